"""Training sees what serving sees, and learns the assistant's words and nothing else."""

from __future__ import annotations

import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from tiny_models import FAMILIES, SPEAKING_FAMILIES, tiny_tokenizer
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.data.examples import Conversation, Message, Place, ToolCall
from tunesmith.errors import DataError

#: Special tokens of all families, and names that look like them.
_NAMES = sorted({name for family in FAMILIES.values() for name in (*family.specials, *family.plain_added)})
_TEXT = st.lists(
    st.one_of(
        st.sampled_from(
            ["Hello", " ", "\n", "  ", "\n\n", "é", "日本語", "🙂", "a table for 4", "{", '"', "<|im_", "end|>"]
        ),
        st.sampled_from([name for name in _NAMES if "think" not in name]),
        st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=6),
    ),
    max_size=6,
).map("".join)
#: Words that say something: some templates leave an empty turn out.
_WORDS = st.builds(lambda a, b: a + "x" + b, _TEXT, _TEXT)
_FAMILY = st.sampled_from(sorted(SPEAKING_FAMILIES))


@cache
def renderer(family: str) -> ChatRenderer:
    return ChatRenderer(tiny_tokenizer(family))


@cache
def sentencepiece_renderer() -> ChatRenderer:
    """A tokenizer as Llama 2 and Mistral 7B have it: a space before each text, bytes as `<0xE2>`."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for name in [f"<0x{byte:02X}>" for byte in range(256)] + [*"\u2581helo", "he", "\u2581he", "ll", "\u2581a"]:
        vocabulary[name] = len(vocabulary)
    merges = [("h", "e"), ("\u2581", "he"), ("l", "l"), ("\u2581", "a")]
    vocabulary["a"] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in ("<unk>", "<s>", "</s>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
    )
    return ChatRenderer(tokenizer)


@st.composite
def conversations(draw, words=_WORDS):
    """System or not, one to five exchanges, some replies with weight 0."""
    messages = [Message("system", draw(words))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 5))):
        messages.append(Message("user", draw(words)))
        messages.append(Message("assistant", draw(words), weight=draw(st.sampled_from([None, 0, 1]))))
    return Conversation(tuple(messages))


def learnt_spans(sequence) -> list[tuple[int, int]]:
    """(start, end) of each learnt stretch; one that goes on behind an end of turn is two."""
    spans, start = [], None
    for t, learnt in enumerate([*sequence.learnt, False]):
        if learnt and start is None:
            start = t
        elif not learnt and start is not None:
            spans.append((start, t))
            start = None
    return spans


def as_written(family: str, words: str) -> str:
    """A reply's words as the family's template trims them."""
    if family in ("gemma3", "llama"):
        return words.strip()
    return words.lstrip("\n") if family == "qwen3" else words


@settings(max_examples=250, deadline=None)
@given(_FAMILY, conversations())
def test_each_learnt_turn_is_learnt_once_behind_the_prompt_that_serving_sees(family, conversation):
    r = renderer(family)
    prompts = {
        r.for_generation(Conversation(conversation.messages[:i])): m
        for i, m in enumerate(conversation.messages)
        if m.is_learnt
    }
    found = []
    for sequence in r.for_training(conversation):
        for start, end in learnt_spans(sequence):
            message = prompts[sequence.token_ids[:start]]  # the prompt is exactly one that serving would see
            found.append(message)
            words, last = sequence.token_ids[start : end - 1], sequence.token_ids[end - 1]
            assert r.tokenizer.decode(words) == as_written(family, message.content)
            assert not set(words) & set(r.tokenizer.all_special_ids)
            assert last in r.end_of_turn_ids
    assert found == [m for m in conversation.messages if m.is_learnt]


@settings(max_examples=120, deadline=None)
@given(st.one_of(_FAMILY, st.just("sentencepiece")), conversations(), _WORDS)
def test_prompt_and_continuation_are_what_training_sees(family, conversation, reply):
    r, messages = (
        renderer(family) if family != "sentencepiece" else sentencepiece_renderer(),
        conversation.messages[:-1],
    )
    if family == "sentencepiece":  # its template knows no system message
        messages = tuple(message for message in messages if message.role != "system")
    prompt = Conversation(messages)
    continuation = r.continuation_ids(prompt, reply)
    learnt = r.for_training(Conversation((*messages, Message("assistant", reply))))[-1]
    start = len(r.for_generation(prompt))
    assert learnt.token_ids[: start + len(continuation)] == r.for_generation(prompt) + continuation
    assert learnt.learnt[start:] == tuple(t < len(continuation) for t in range(len(learnt.learnt) - start))
    assert continuation[-1] in r.end_of_turn_ids


@settings(max_examples=150, deadline=None)
@given(_FAMILY, conversations())
def test_names_of_special_tokens_in_a_text_stay_text(family, conversation):
    """Turns bring the same special tokens whatever is said in them."""
    r = renderer(family)
    plain = Conversation(tuple(Message(m.role, "x", weight=m.weight) for m in conversation.messages))
    added = set(r.tokenizer.get_added_vocab().values())

    def specials(rendered):
        return [[t for t in sequence.token_ids if t in added] for sequence in rendered]

    # The developer and the model may write tokens that the tokenizer counts as ordinary text.
    if not any("tool_" in m.content for m in conversation.messages if m.role != "user"):
        assert specials(r.for_training(conversation)) == specials(r.for_training(plain))
    # The whole text is still there, so nothing was lost either.
    prompt = Conversation(conversation.messages[:-1])
    said = "".join(m.content.strip() for m in prompt.messages[-1:])
    assert said in r.tokenizer.decode(r.for_generation(prompt))


@settings(max_examples=150, deadline=None)
@given(_FAMILY.filter(lambda family: family != "qwen3"), conversations())
def test_the_next_prompt_continues_the_tokens_that_were_generated(family, conversation):
    """Serving an answer and asking on computes nothing twice, where the template keeps earlier turns as they are."""
    r = renderer(family)
    before = Conversation(conversation.messages[:-1])
    if family == "mistral":  # it moves the system message to the last question
        before = Conversation(tuple(m for m in before.messages if m.role != "system"))
    answer = conversation.messages[-1].content.strip()
    asked = r.for_generation(before)
    served = Conversation((*before.messages, Message("assistant", answer)))
    sequence = r.for_training(served)[-1]
    end = max(t for t, learnt in enumerate(sequence.learnt) if learnt) + 1
    assert r.decode(sequence.token_ids[len(asked) : end]) == answer
    following = r.for_generation(Conversation((*served.messages, Message("user", "And?"))))
    assert following[:end] == sequence.token_ids[:end]


@settings(max_examples=100, deadline=None)
@given(conversations(st.text(alphabet="helo a\n", min_size=1, max_size=8).map(lambda text: f"h{text}o")))
def test_sentencepiece_puts_no_space_between_a_prompt_and_its_reply(conversation):
    r = sentencepiece_renderer()
    conversation = Conversation(tuple(m for m in conversation.messages if m.role != "system"))
    turns = [i for i, m in enumerate(conversation.messages) if m.is_learnt]
    for sequence in r.for_training(conversation):
        for (start, end), turn in zip(learnt_spans(sequence), turns, strict=True):
            learnt = sequence.token_ids[start : end - 1]
            assert b"".join(map(r.token_bytes, learnt)).decode() == conversation.messages[turn].content
            assert r.for_generation(Conversation(conversation.messages[:turn])) == sequence.token_ids[:start]


def test_a_plain_template_for_a_base_without_one():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer("llama").backend_tokenizer, eos_token="<|eot_id|>"
    )
    r = ChatRenderer(tokenizer)
    (sequence,) = r.for_training(Conversation((Message("user", "Hi"), Message("assistant", "Yes"))))
    assert r.is_plain
    assert [r.decode([t]) for t in sequence.token_ids if t in r.end_of_turn_ids] == [""]
    assert r.tokenizer.decode(sequence.token_ids).endswith("### assistant:\nYes<|eot_id|>\n\n")


def test_a_template_without_an_end_of_turn_learns_to_stop():
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    r = ChatRenderer(tiny_tokenizer("qwen2"), template)
    rows = r.for_training(Conversation(tuple(Message(*m) for m in [("user", "a"), ("assistant", "b")] * 2)))
    for row, prompt in zip(rows, ["user: a\nassistant: ", "user: a\nassistant: b\nuser: a\nassistant: "], strict=True):
        ids = [t for t, learnt in zip(row.token_ids, row.learnt, strict=True) if learnt]
        assert r.tokenizer.decode(ids) == "b\n<|im_end|>"
        assert r.tokenizer.decode(row.token_ids) == prompt + "b\n<|im_end|>"


def test_mistral_shows_the_system_message_in_each_prompt_that_it_learns_from():
    r = renderer("mistral")
    messages = [("system", "Be brief."), ("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2")]
    first, second = r.for_training(Conversation(tuple(Message(*m) for m in messages)))
    assert r.tokenizer.decode(first.token_ids) == "<s>[INST]Be brief.\n\nOne?[/INST]1</s>"
    assert r.tokenizer.decode(second.token_ids) == "<s>[INST]One?[/INST]1</s>[INST]Be brief.\n\nTwo?[/INST]2</s>"


def test_a_greeting_is_learnt_behind_what_stands_before_it():
    r = renderer("smollm2")
    (sequence,) = r.for_training(Conversation((Message("assistant", "Hello!"), Message("user", "Hi"))))
    (start, end) = learnt_spans(sequence)[0]
    assert r.tokenizer.decode(sequence.token_ids[start:end]) == "Hello!<|im_end|>"
    assert r.for_generation(Conversation(())) == sequence.token_ids[:start]


@pytest.mark.parametrize("family", ["gemma3", "mistral"])
def test_what_a_template_refuses_is_told_with_its_place(family):
    row = Conversation(
        (Message("user", "a"), Message("user", "b"), Message("assistant", "c")), place=Place("f.jsonl", 3)
    )
    with pytest.raises(DataError, match="alternate") as refused:
        renderer(family).for_training(row)
    assert (refused.value.code, refused.value.where) == ("template_refuses", "f.jsonl, line 3")
    assert refused.value.fix


def test_half_a_character_is_refused():
    with pytest.raises(DataError) as refused:
        renderer("llama").for_generation(Conversation((Message("user", "cut \ud83d"),)))
    assert refused.value.code == "invalid_unicode"


def test_reasoning_that_generation_would_not_write_is_refused():
    row = Conversation((Message("user", "a"), Message("assistant", "<think>\nhm\n</think>\n\nb")))
    with pytest.raises(DataError) as refused:
        renderer("qwen3").for_training(row)
    assert refused.value.code == "template_mismatch"


def test_the_date_never_changes_a_prompt():
    """Llama's template asks for today's date."""
    prompt = renderer("llama").for_generation(Conversation((Message("user", "Hi"),)))
    assert "Today Date: 26 Jul 2024" in renderer("llama").tokenizer.decode(prompt)


def test_the_hash_tells_templates_apart():
    assert len({renderer(family).template_hash for family in SPEAKING_FAMILIES}) == len(SPEAKING_FAMILIES)
    assert renderer("llama").template_hash == ChatRenderer(tiny_tokenizer("llama")).template_hash


TOOL = {
    "type": "function",
    "function": {"name": "book", "description": "Book <|im_end|> a table", "parameters": {"type": "object"}},
}
WITH_TOOLS = Conversation(
    (
        Message("user", "A table for 4"),
        Message("assistant", None, tool_calls=(ToolCall("call12345", "book", '{"people": 4, "at": "<|im_end|>é"}'),)),
        Message("tool", '{"ok": true}', name="book", tool_call_id="call12345"),
        Message("assistant", "Booked."),
    ),
    (TOOL,),
)


@pytest.mark.parametrize("family", SPEAKING_FAMILIES)
def test_tools_are_shown_and_calls_are_learnt(family):
    r = renderer(family)
    rendered = r.for_training(WITH_TOOLS)
    learnt = [
        r.tokenizer.decode(sequence.token_ids[start:end])
        for sequence in rendered
        for start, end in learnt_spans(sequence)
    ]
    assert len(learnt) == 2
    assert "book" in learnt[0] and "é" in learnt[0] and "<|im_end|>é" in learnt[0]
    assert learnt[1].startswith("Booked.")
    for sequence in rendered:
        for start, _ in learnt_spans(sequence):
            prompts = [r.for_generation(Conversation(WITH_TOOLS.messages[:i], WITH_TOOLS.tools)) for i in (1, 3)]
            assert sequence.token_ids[:start] in prompts
    text = r.tokenizer.decode(rendered[-1].token_ids)
    assert "Book <|im_end|> a table" in text and '"ok": true' in text.replace('\\"', '"')


def test_a_template_that_knows_no_tools_gets_them_in_the_form_of_hermes():
    r = renderer("smollm2")
    (sequence,) = r.for_training(WITH_TOOLS)
    text = r.tokenizer.decode(sequence.token_ids)
    assert f"<tools>\n{json.dumps(TOOL)}\n</tools>" in text
    assert (
        '<tool_call>\n{"name": "book", "arguments": {"people": 4, "at": "<|im_end|>é"}}\n</tool_call><|im_end|>' in text
    )
    assert '<|im_start|>user\n<tool_response>\n{"ok": true}\n</tool_response><|im_end|>' in text


def test_results_of_calls_made_together_are_one_turn():
    """Gemma's template wants turns to alternate."""
    calls = (ToolCall("1", "book", "{}"), ToolCall("2", "pay", "{}"))
    results = (Message("tool", "a", tool_call_id="1"), Message("tool", "b", tool_call_id="2"))
    row = Conversation(
        (Message("user", "x"), Message("assistant", None, tool_calls=calls), *results, Message("assistant", "y"))
    )
    (sequence,) = renderer("gemma3").for_training(row)
    text = renderer("gemma3").tokenizer.decode(sequence.token_ids)
    assert "<tool_response>\na\n</tool_response>\n<tool_response>\nb\n</tool_response><end_of_turn>" in text


@settings(max_examples=200, deadline=None)
@given(_FAMILY, st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_bytes_of_tokens_make_up_the_text(family, text):
    r = renderer(family)
    ids = r.tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(map(r.token_bytes, ids)) == text.encode()


def test_bytes_of_single_tokens():
    r = sentencepiece_renderer()
    ids = r.tokenizer.encode("he é", add_special_tokens=False)
    assert [r.token_bytes(t) for t in ids] == [b" he", b" ", b"\xc3", b"\xa9"]
    assert r.drops_first_space and r.decode(ids) == "he é"
    assert (r.token_bytes(r.tokenizer.eos_token_id), r.token_bytes(10**6)) == (b"</s>", b"")
    half = renderer("qwen2").tokenizer.encode("🙂")[0]
    assert renderer("qwen2").token_text(half) == "\ufffd"
    assert not renderer("qwen2").drops_first_space
