"""Arms rewrite requests, never see the answer, and share their examples."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.examples import Conversation, Message, ToolCall
from tunesmith.evaluate.arms import (
    as_is,
    ask_with_examples,
    ask_with_system_prompt,
    choose_examples,
    with_examples,
    with_system_prompt,
)


def row(user: str, answer: str, system: str | None = "Be brief.") -> Conversation:
    start = (Message("system", system),) if system else ()
    return Conversation((*start, Message("user", user), Message("assistant", answer)))


def texts(conversation: Conversation) -> list[str | None]:
    return [message.content for message in conversation.messages]


ROWS = [row("table for 2", '{"people": "2"}'), row("at 7 pm", '{"time": "7 pm"}')]


def test_as_is_asks_the_prompt() -> None:
    assert as_is("base").requests(ROWS) == [item.prompt for item in ROWS]


def test_system_prompts_are_replaced_or_added_to() -> None:
    prompt = ROWS[0].prompt
    assert texts(ask_with_system_prompt(prompt, "Answer in JSON.")) == ["Answer in JSON.", "table for 2"]
    assert texts(ask_with_system_prompt(prompt, "Answer in JSON.", "add")) == [
        "Be brief.\n\nAnswer in JSON.",
        "table for 2",
    ]
    bare = row("hello", "hi", system=None).prompt
    assert texts(ask_with_system_prompt(bare, "Be kind.", "add")) == ["Be kind.", "hello"]


def test_examples_stand_between_instructions_and_question() -> None:
    asked = ask_with_examples(ROWS[0].prompt, [ROWS[1]])
    assert texts(asked) == ["Be brief.", "at 7 pm", '{"time": "7 pm"}', "table for 2"]
    arm = with_examples("base, examples", "one example", [ROWS[1]], system="Answer in JSON.")
    assert arm.shots == 1
    assert texts(arm.request(ROWS[0]))[0] == "Answer in JSON."


def test_requests_share_everything_up_to_their_own_question() -> None:
    examples = choose_examples([row(f"question {i}", f"answer {i}") for i in range(20)], 4)
    first, second = with_examples("base, examples", "", examples).requests(ROWS)
    assert first.messages[:-1] == second.messages[:-1]
    assert len(first.messages) == 1 + 2 * 4 + 1


def test_tools_and_place_stay() -> None:
    tools = ({"type": "function", "function": {"name": "book"}},)
    asked = with_system_prompt("a", "b", "Be kind.").request(Conversation(ROWS[0].messages, tools))
    assert asked.tools == tools


def test_chosen_examples_cover_the_kinds_of_answers() -> None:
    kinds = {"people": "a table for {} people please", "time": "can we come at {} pm", "name": "it is under Smith {}"}
    rows = [row(text.format(i), f'{{"{kind}": "{i}"}}') for i in range(2, 9) for kind, text in kinds.items()]
    chosen = choose_examples(rows, 3)
    assert {kind for kind in kinds for item in chosen if kind in item.reference} == set(kinds)


def test_only_plain_rows_are_chosen() -> None:
    call = Message("assistant", None, tool_calls=(ToolCall("1", "book", "{}"),))
    odd = [
        Conversation((Message("user", "book"), call)),
        Conversation((Message("assistant", "Which day?"), Message("user", "6th"), Message("assistant", "{}"))),
        Conversation((Message("user", "a"), Message("user", "b"), Message("assistant", "c"))),
        row("long " * 1000, "x"),
    ]
    assert choose_examples(odd, 5) == ()
    assert choose_examples([*odd, ROWS[0]], 5) == (ROWS[0],)


@given(st.lists(st.tuples(st.text(max_size=12), st.text(min_size=1, max_size=8)), max_size=25), st.integers(0, 6))
def test_the_choice_is_repeatable_distinct_and_short(pairs: list[tuple[str, str]], count: int) -> None:
    rows = [row(f"{i} {question}", answer) for i, (question, answer) in enumerate(pairs)]
    chosen = choose_examples(rows, count)
    assert chosen == choose_examples(rows, count)
    assert len({id(item) for item in chosen}) == len(chosen) == min(count, len(rows))


def test_many_rows_are_thinned_not_refused() -> None:
    rows = [row(f"question number {i}", f"answer {i % 7}") for i in range(3000)]
    assert len(choose_examples(rows, 8)) == 8
