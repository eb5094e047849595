"""`tunesmith chat`: talk to a model in the terminal, or through a pipe."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.text import Text

from tunesmith.cli.engine_room import api
from tunesmith.cli.errors import show_error
from tunesmith.cli.generate import SAMPLING_FLAGS
from tunesmith.cli.options import Json, takes_settings
from tunesmith.cli.screen import Screen, printable
from tunesmith.data.examples import Conversation, Message
from tunesmith.errors import RequestError
from tunesmith.specs.generation import SamplingSpec

_HELP = "/system WORDS sets the system prompt, /reset forgets the conversation, /quit leaves."


class Talk:
    """A conversation that grows: the system prompt and the turns so far."""

    def __init__(self, model: Any, sampling: SamplingSpec, system: str | None) -> None:
        """Begin a conversation with `model` (`api.Model`)."""
        self._model = model
        self._sampling = sampling
        self.system = system
        self.turns: list[Message] = []

    @property
    def messages(self) -> tuple[Message, ...]:
        """All that the model would be shown."""
        instructions = (Message("system", self.system),) if self.system else ()
        return (*instructions, *self.turns)

    def say(self, words: str) -> Iterator[str]:
        """Yield the answer to `words` piece by piece; both are remembered, also when the answer is broken off.

        Raises:
            RequestError: the conversation can't be answered; `words` are forgotten.
        """
        self.turns.append(Message("user", words))
        answer = ""
        try:
            for piece in self._model.stream(Conversation(self.messages), self._sampling):
                answer += piece
                yield piece
        except RequestError:
            self.turns.pop()
            raise
        finally:
            if self.turns and self.turns[-1].role == "user" and self.turns[-1].content == words:
                self.turns.append(Message("assistant", answer))


@takes_settings(SamplingSpec, SAMPLING_FLAGS, panel="Sampling")
def chat(
    settings: dict[str, Any],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A tuned model (ft: name, id, label) or a base.")],
    system: Annotated[
        str | None, typer.Option(help="The system prompt. None: the one that the model was trained with.")
    ] = None,
    json: Json = False,
) -> None:
    """Talk to a model. Through a pipe, each line is one message and each answer one block of text."""
    sampling = SamplingSpec.parse(settings)
    screen = Screen(json=json)
    opened = api.open_model(model)
    if system is None and opened.system_prompt is not None:
        system = opened.system_prompt
        screen.say(Text(f"System prompt, as in training: {system}", style="faint"))
    talk = Talk(opened, sampling, system)
    if sys.stdin.isatty():
        screen.say(Text.assemble("Talking to ", (opened.name, "name"), f". {_HELP}"))
    for line in _lines(screen):
        if line.startswith("/"):
            if not _obey(line, talk, screen):
                break
        elif line:
            _answer(line, talk, screen)
    screen.finish(
        {
            "model": opened.name,
            "messages": [{"role": message.role, "content": message.content} for message in talk.messages],
        }
    )


def _lines(screen: Screen) -> Iterator[str]:
    """Yield what the user says, until the end of the input."""
    if not sys.stdin.isatty():
        if isinstance(sys.stdin, io.TextIOWrapper):
            # A pipe may hold anything; what is no text must not end the talk.
            sys.stdin.reconfigure(errors="replace")
        for line in sys.stdin:
            yield line.strip()
        return
    # Importing it gives `input` a history and editing; some systems don't have it.
    if importlib.util.find_spec("readline") is not None:
        importlib.import_module("readline")
    while True:
        try:
            screen.story.print(Text("\nyou   ", style="heading"), end="")
            yield input().strip()
        except EOFError:
            return


def _obey(line: str, talk: Talk, screen: Screen) -> bool:
    """Do what a line with a slash says; return whether the conversation goes on."""
    command, _, words = line.partition(" ")
    match command:
        case "/quit" | "/exit":
            return False
        case "/reset":
            talk.turns.clear()
            screen.say(Text("The conversation is forgotten.", style="faint"))
        case "/system":
            talk.system = words.strip() or None
            done = "The system prompt is set." if talk.system else "There is no system prompt now."
            screen.say(Text(done, style="faint"))
        case _:
            screen.say(Text(_HELP, style="faint"))
    return True


def _answer(line: str, talk: Talk, screen: Screen) -> None:
    """Show the answer to one message as it comes."""
    if sys.stdin.isatty():
        screen.story.print(Text("model ", style="learnt"), end="")
    try:
        for piece in talk.say(line):
            screen.story.out(printable(piece), end="", highlight=False)
            screen.story.file.flush()
        screen.story.print()
    except KeyboardInterrupt:
        # The first Ctrl-C ends the answer, not the conversation.
        screen.story.print(Text(" …", style="faint"))
    except RequestError as error:
        show_error(error, as_json=False)
