"""Models that write tool calls, each in its own way: the families' templates, and forms that others have."""

from __future__ import annotations

from functools import cache

from transformers import PreTrainedTokenizerFast

from tiny_models import SPEAKING_FAMILIES, tiny_tokenizer
from tunesmith.chat.call_probe import find_format
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.chat.tool_calls import ToolCallFormat

#: Mistral since its 11th tokenizer: a call is a name, an id and arguments.
NAMED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}[TOOL_CALLS]{{ c.function.name }}[CALL_ID]{{ c.id }}"
    "[ARGS]{{ c.function.arguments | tojson }}{% endfor %}{{ eos_token }}{% endif %}{% endfor %}"
)
#: As DeepSeek does it: calls inside two kinds of brackets.
BRACKETS = (
    "{% for m in messages %}{% if m.role == 'user' %}User: {{ m.content }}{% else %}Assistant: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '<calls><call>' if loop.first else '\n<call>' }}function<sep>"
    "{{ c.function.name }}\n```json\n{{ c.function.arguments | tojson }}\n```</call>{{ '</calls>' if loop.last }}"
    "{% endfor %}{{ eos_token }}{% endif %}{% endfor %}{{ 'Assistant: ' if add_generation_prompt }}"
)
KINDS = (*SPEAKING_FAMILIES, "named", "brackets", "plain")
NAMES = ("book", "book_all", "Pay-2")


@cache
def renderer(kind: str) -> ChatRenderer:
    if kind == "plain":
        backend = tiny_tokenizer("llama").backend_tokenizer
        return ChatRenderer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eot_id|>"))
    if kind == "named":
        return ChatRenderer(tiny_tokenizer("mistral"), "{{ '' if tools }}" + NAMED)
    if kind == "brackets":
        return ChatRenderer(tiny_tokenizer("qwen2"), "{{ '' if tools }}" + BRACKETS)
    return ChatRenderer(tiny_tokenizer(kind))


@cache
def form(kind: str) -> ToolCallFormat:
    found = find_format(renderer(kind))
    assert found is not None
    return found
