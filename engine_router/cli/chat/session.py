"""A chat of a person with a model: messages, and commands that begin with a slash."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from attrs import frozen

from engine_router.cli.address import RouterAddress
from engine_router.cli.chat.answer import Answer, receive
from engine_router.cli.chat.images import MAX_IMAGES, data_url, find_images, user_message
from engine_router.cli.chat.line_input import history, read_message
from engine_router.cli.chat.screen import Screen, note
from engine_router.cli.chat.settings import SETTINGS, Settings
from engine_router.cli.client import get
from engine_router.cli.exit_codes import CommandFailed
from engine_router.cli.formatting import counted
from engine_router.cli.terminal import say
from engine_router.guards.foreign_text import indented_values


@frozen
class SlashCommand:
    """A command of the chat.

    Attributes:
        usage: what follows its name.
        run: gets what follows; returns whether the chat goes on.
    """

    usage: str
    about: str
    run: Callable[[ChatSession, str], bool]


class ChatSession:
    """A conversation with one model at a time.

    Args:
        has_colours: thoughts are dimmed; else they are marked by lines of their own.
    """

    def __init__(self, address: RouterAddress, model: str, settings: Settings, *, has_colours: bool) -> None:
        self.address = address
        self.model = model
        self.settings = settings
        self.messages: list[dict[str, Any]] = []
        self.images: list[str] = []
        self._has_colours = has_colours

    def run(self) -> None:
        """Chat until the person ends it.

        Raises:
            CommandFailed: there is no router, or no such model.
        """
        find_model(self.address, self.model)
        say(f"{self.model} at {self.address.url}; /help shows what there is, /bye ends")
        with history():
            while (line := read_message()) is not None:
                if line and not self.take(line):
                    return
        say()

    def take(self, line: str) -> bool:
        """Do what a line says; returns whether the chat goes on."""
        name, _, rest = line.partition(" ")
        try:
            if name in COMMANDS:
                return COMMANDS[name].run(self, rest.strip())
            if _is_meant_as_command(name):
                note(f"there is no {name}; /help shows what there is")
            else:
                self.ask(line)
        except CommandFailed as failure:
            note(str(failure))
        except KeyboardInterrupt:
            note("")
        return True

    def ask(self, text: str) -> None:
        """Send a message, and show the answer. A message that gets none is taken back.

        Raises:
            CommandFailed: an image cannot be sent, the router says no, or the answer breaks off.
        """
        text, paths = find_images(text)
        for path in paths:
            self.attach(path)
        message = user_message(text, self.images)
        answer = Answer()
        screen = Screen(
            shows_thoughts=self.settings.is_on("thoughts", default=True), has_colours=self._has_colours
        )
        messages = [*self.settings.messages(), *self.messages, message]
        try:
            receive(
                self.address, request_body(self.model, messages, self.settings), answer, screen, quiet=False
            )
        except KeyboardInterrupt:
            screen.end()
            note("(ended)")
        except CommandFailed:
            screen.end()
            raise
        else:
            screen.end()
        if answer.text or answer.finish_reason is not None:
            self.messages += [message, {"role": "assistant", "content": answer.text}]
            self.images = []
        if answer.finish_reason == "length":
            note("(cut off: max_tokens, or the end of the context, is reached)")
        if self.settings.is_on("verbose", default=False):
            note(answer.cost())

    def attach(self, path: Path) -> None:
        """Send an image with the next message.

        Raises:
            CommandFailed: it cannot be sent.
        """
        if len(self.images) >= MAX_IMAGES:
            raise CommandFailed(f"a message has at most {MAX_IMAGES} images")
        self.images.append(data_url(path))
        note(f"(with {path})")

    # The commands.

    def clear(self, _: str) -> bool:
        """Forget what was said."""
        self.messages, self.images = [], []
        note("the conversation begins anew")
        return True

    def set(self, rest: str) -> bool:
        """Make a setting, or show them."""
        name, _, value = rest.partition(" ")
        if not name:
            for setting, about in SETTINGS.items():
                value = str(self.settings.values.get(setting, ""))
                say(f"{setting:18}{value or '-':12}{about.about}")
            return True
        try:
            self.settings.put(name, value.strip())
        except ValueError as wrong:
            raise CommandFailed(str(wrong)) from None
        return True

    def show(self, _: str) -> bool:
        """Show the model, the settings, and how much was said."""
        entry = indented_values(find_model(self.address, self.model))
        for key, words in (("engine", "engine"), ("state", "state"), ("context_length", "context")):
            if key in entry:
                say(f"{words:18}{entry[key]}")
        for name, value in self.settings.values.items():
            say(f"{name:18}{value}")
        said = counted(len(self.messages), "message")
        say(
            f"{'model':18}{self.model}\n{'conversation':18}{said}, {counted(len(self.images), 'image')} to send"
        )
        return True

    def change_model(self, name: str) -> bool:
        """Go on with another model, or show which there are."""
        if not name:
            entries = indented_values(get(self.address, "/v1/models"))["data"]
            say("\n".join(f"{'*' if entry['id'] == self.model else ' '} {entry['id']}" for entry in entries))
            return True
        find_model(self.address, name)
        self.model = name
        note(f"{name} goes on with the conversation")
        return True

    def add_image(self, name: str) -> bool:
        """Send an image with the next message."""
        if not name:
            raise CommandFailed("which file? /image FILE")
        _, found = find_images(name)
        self.attach(found[0] if found else Path(name).expanduser())
        return True

    def save(self, name: str) -> bool:
        """Write the conversation to a file that is not there yet."""
        if not name:
            raise CommandFailed("to which file? /save FILE")
        messages = [*self.settings.messages(), *self.messages]
        try:
            with Path(name).expanduser().open("x", encoding="utf-8") as file:
                json.dump({"model": self.model, "messages": messages}, file, indent=2, ensure_ascii=False)
        except FileExistsError:
            raise CommandFailed(f"{name} is there already; name another file") from None
        except (OSError, ValueError, RuntimeError) as error:
            raise CommandFailed(f"{name} cannot be written: {error}") from None
        note(f"saved in {name}")
        return True

    def help(self, _: str) -> bool:
        """Show the commands."""
        rows = [
            (f"{name} {command.usage}", command.about) for name, command in COMMANDS.items() if command.about
        ]
        say("\n".join(f"{usage:22}{about}" for usage, about in rows))
        say('\n"""                   begins and ends a message of several lines')
        say("the path of an image  in a message sends the image with it")
        say("Ctrl-C                ends an answer; Ctrl-D ends the chat")
        return True


COMMANDS: Final[Mapping[str, SlashCommand]] = {
    "/set": SlashCommand("[NAME [VALUE]]", "make a setting, or take it back; alone: show them", ChatSession.set),
    "/show": SlashCommand("", "show the model, the settings, and how much was said", ChatSession.show),
    "/model": SlashCommand("[NAME]", "go on with another model; alone: show which there are", ChatSession.change_model),
    "/image": SlashCommand("FILE", "send an image with the next message", ChatSession.add_image),
    "/clear": SlashCommand("", "forget what was said", ChatSession.clear),
    "/save": SlashCommand("FILE", "write the conversation to a file, as JSON", ChatSession.save),
    "/help": SlashCommand("", "show this", ChatSession.help),
    "/?": SlashCommand("", "", ChatSession.help),
    "/bye": SlashCommand("", "end the chat", lambda _session, _rest: False),
    "/exit": SlashCommand("", "", lambda _session, _rest: False),
    "/quit": SlashCommand("", "", lambda _session, _rest: False),
}  # fmt: skip


def request_body(model: str, messages: list[dict[str, Any]], settings: Settings) -> dict[str, Any]:
    """Return the body of a request for a streamed answer."""
    return {
        "model": model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        **settings.members(),
    }


def find_model(address: RouterAddress, model: str) -> Mapping[str, Any]:
    """Return what the router knows of a model.

    Raises:
        CommandFailed: it knows none of that name, or is not there.
    """
    entry = get(address, f"/v1/models/{quote(model, safe='/')}")
    return entry if isinstance(entry, dict) else {}


def _is_meant_as_command(name: str) -> bool:
    """Tell whether a line's first word looks like a command rather than a path."""
    return name.startswith("/") and "/" not in name[1:] and not Path(name).exists()
