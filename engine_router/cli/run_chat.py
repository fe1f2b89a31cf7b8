"""`engine-router run`: one answer, or a chat on the terminal."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from pathlib import Path
from typing import Final

from engine_router.cli.address import locate
from engine_router.cli.chat.answer import Answer, Unshown, receive
from engine_router.cli.chat.images import MAX_IMAGES, data_url, find_images, user_message
from engine_router.cli.chat.screen import Screen, note
from engine_router.cli.chat.session import ChatSession, request_body
from engine_router.cli.chat.settings import Settings
from engine_router.cli.exit_codes import BAD_USAGE, INTERRUPTED, OK, CommandFailed
from engine_router.cli.terminal import has_colours, is_terminal, show_json

MAX_INPUT_BYTES: Final = 16_777_216
"""Text from standard input: more than any model reads."""


def run(options: argparse.Namespace) -> int:
    """Show the answer to what was asked on the command line or is piped in; without that, chat.

    Raises:
        CommandFailed: the router or the model cannot answer, or it is not clear what is asked.
        ConfigError: the file named by `--config` has faults.
    """
    if options.model is None:
        raise CommandFailed(
            "run needs the name of a model: engine-router run MODEL (engine-router models lists them).\n"
            "To run the router itself: engine-router serve",
            BAD_USAGE,
        )
    settings = _settings(options)
    text, urls = _question(options)
    if text or urls:
        return _answer_once(options, settings, text, urls)
    if options.json or not sys.stdout.isatty():
        what = "--json" if options.json else "standard output that is no terminal"
        raise CommandFailed(f"what is asked? {what} needs a PROMPT, or text on standard input", BAD_USAGE)
    is_coloured = not options.raw and has_colours(sys.stdout)
    ChatSession(locate(options), options.model, settings, has_colours=is_coloured).run()
    return OK


def _settings(options: argparse.Namespace) -> Settings:
    settings = Settings()
    pairs = [("system", options.system)] if options.system else []
    pairs += [("verbose", "on")] if options.verbose else []
    pairs += [("thoughts", "off")] if options.hide_thinking else []
    for word in options.set or ():
        name, is_pair, value = word.partition("=")
        if not is_pair:
            raise CommandFailed(f"--set {word}: NAME=VALUE is wanted, such as temperature=0", BAD_USAGE)
        pairs.append((name.strip(), value))
    for name, value in pairs:
        try:
            settings.put(name, value)
        except ValueError as wrong:
            raise CommandFailed(f"--set {name}: {wrong}", BAD_USAGE) from None
    return settings


def _question(options: argparse.Namespace) -> tuple[str, list[str]]:
    """Return what is asked, and the images to it; both are empty where nothing is."""
    text, paths = find_images(" ".join(options.prompt))
    paths = [*(Path(name).expanduser() for name in options.image or ()), *paths]
    if len(paths) > MAX_IMAGES:
        raise CommandFailed(f"at most {MAX_IMAGES} images can be sent", BAD_USAGE)
    urls = [data_url(path) for path in paths]
    if _has_input(is_asked=bool(text or urls)):
        text = "\n\n".join(part for part in (text, _input_text()) if part)
        if not text and not urls:
            raise CommandFailed("standard input is empty: there is nothing to ask", BAD_USAGE)
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise CommandFailed("what is asked is not UTF-8", BAD_USAGE)
    return text, urls


def _has_input(*, is_asked: bool) -> bool:
    """Tell whether text comes on standard input: beside a question only from a pipe or a file."""
    if sys.stdin is None or sys.stdin.isatty():
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return not is_asked or stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _input_text() -> str:
    data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise CommandFailed("standard input is longer than 16 MB", BAD_USAGE)
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise CommandFailed(
            "standard input is not UTF-8 text; images are sent with --image FILE", BAD_USAGE
        ) from None


def _answer_once(options: argparse.Namespace, settings: Settings, text: str, urls: list[str]) -> int:
    is_person = is_terminal(sys.stdout)
    screen = Screen(
        shows_thoughts=is_person and settings.is_on("thoughts", default=True),
        has_colours=not options.raw and has_colours(sys.stdout),
    )
    answer = Answer()
    body = request_body(options.model, [*settings.messages(), user_message(text, urls)], settings)
    try:
        receive(locate(options), body, answer, Unshown() if options.json else screen, quiet=options.json)
    except KeyboardInterrupt:
        screen.end()
        return INTERRUPTED
    except CommandFailed:
        screen.end()
        raise
    screen.end()
    if options.json:
        show_json(
            {
                "model": options.model,
                "text": answer.text,
                **({"thinking": answer.thinking} if answer.thinking else {}),
                "finish_reason": answer.finish_reason,
                "usage": dict(answer.usage),
                "timings": answer.times(),
            }
        )
    elif answer.finish_reason == "length":
        note("engine-router: the answer is cut off: max_tokens, or the end of the context, is reached")
    if settings.is_on("verbose", default=False):
        note(answer.cost())
    return OK
