"""What ends an answer: the template's end of turn, and what the base's own configs name."""

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.generate.engine import Engine
from tunesmith.generate.request import Request
from tunesmith.models.load import load_base
from tunesmith.models.resolve import resolve_base
from tunesmith.specs.generation import SamplingSpec


def test_an_end_that_only_the_generation_config_names_ends_the_answer(home, tiny_folder):
    loaded = load_base(resolve_base(str(tiny_folder("llama")), home), "float32", "cpu")
    renderer = ChatRenderer(loaded.tokenizer)
    request = Request((5, 6, 7), SamplingSpec(max_completion_tokens=6))
    tokens = Engine(loaded, renderer).generate([request])[0].token_ids
    loaded.end_of_turn_ids = (*loaded.end_of_turn_ids, tokens[2])
    ended = Engine(loaded, renderer).generate([request])[0]
    assert ended.finish_reason == "stop"
    assert ended.token_ids == tokens[: tokens.index(tokens[2]) + 1]
