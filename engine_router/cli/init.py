"""`engine-router init`: looks at this machine, and writes a configuration for what it has."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from engine_router.cli import service
from engine_router.cli.exit_codes import BAD_USAGE, FAILED, OK, CommandFailed
from engine_router.cli.folders import absent_folders, lasting
from engine_router.cli.formatting import counted
from engine_router.cli.questions import Questions
from engine_router.cli.terminal import Table, say, show_json
from engine_router.config import ServerConfig
from engine_router.config.file import write
from engine_router.config.load import example
from engine_router.setup.blocks import Block
from engine_router.setup.clouds import way_to_add
from engine_router.setup.config_file import place_for_new
from engine_router.setup.detection import Detection, as_dict, detect
from engine_router.setup.proposal import Proposal, propose

_EVERYWHERE = "0.0.0.0"  # noqa: S104 - only where it was asked for, and with a key


def run(options: argparse.Namespace) -> int:
    """Detect, show, ask, and write.

    Raises:
        CommandFailed: there is nobody to ask, a file is in the way, or a folder is not there.
        ConfigError: the file cannot be written.
    """
    if options.example:
        say(Path(example()).read_text("utf-8"), end="")
        return OK
    for folder in absent_folders(options.scan or ()):
        raise CommandFailed(f"{folder}: there is no such folder; nothing was written", BAD_USAGE)
    detection = trio.run(detect, tuple(map(lasting, options.scan or ())))
    if options.json:
        show_json(as_dict(detection))
        return OK
    proposal = propose(detection)
    _show(detection, proposal)
    if options.detect_only:
        return OK
    if not proposal.blocks:
        _say_what_is_missing(detection)
        return FAILED
    path = place_for_new(options.config)
    questions = Questions(assume_yes=options.yes)
    replaces = _may_replace(path, questions)
    wanted = [block for block in proposal.blocks if questions.yes(f"Serve {block.summary}?", default=True)]
    if not wanted:
        raise CommandFailed("nothing is left to be served; nothing was written")
    key, host = None, "127.0.0.1"
    if not options.yes and questions.yes("Serve other machines of your network, too?", default=False):
        key, host = secrets.token_urlsafe(24), _EVERYWHERE
    text = proposal.text(wanted, host=host, port=ServerConfig().port, key=key)
    written = write(path, text, may_replace=replaces)
    _say_next(path, written.backup, wanted, key, is_default=options.config is None)
    if not options.yes and options.offers_service:
        service.offer(path, questions)
    return OK


def _may_replace(path: Path, questions: Questions) -> bool:
    """Return whether a file that is there may be replaced; False where there is none.

    Raises:
        CommandFailed: it may not.
    """
    if not path.exists():
        return False
    if questions.assume_yes or not questions.yes(
        f"{path} is there already. Replace it, and keep it as .bak?", default=False
    ):
        raise CommandFailed(
            f"{path} is there already, and stays as it is; add to it with `engine-router add` or `engine-router "
            "import`, or name another file with --config"
        )
    return True


def _show(detection: Detection, proposal: Proposal) -> None:
    hardware = detection.hardware
    rows = [("Memory", proposal.memory)]
    if hardware is not None:
        rows[:0] = [("Machine", hardware.machine or sys.platform)]
        rows += [("GPU", gpu.name) for gpu in hardware.gpus] or [("GPU", "none was found")]
    rows += [("Found", block.summary) for block in proposal.blocks]
    rows += [
        ("Installed", ", ".join(program.kind for program in detection.programs) or "no engine that is known")
    ]
    rows += [("Missing", words) for words in detection.missing]
    rows += [
        ("Key", f"{cloud.variable}: {cloud.url} is in the file, commented out, since it costs money")
        for cloud in proposal.clouds
    ]
    rows += [("Left out", words) for words in proposal.left_out]
    if detection.broken:
        rows += [
            (
                "Broken",
                f"{counted(detection.broken, 'file')} in the folders of models: engine-router check names them",
            )
        ]
    rows += [("Not known", words) for words in detection.unknown]
    Table(("What", "On this machine"), rows).show()


def _say_what_is_missing(detection: Detection) -> None:
    say("\nNothing was found that could serve a model, so nothing is written. What helps:")
    if not detection.programs:
        say(
            "  an engine: llama.cpp (llama-server), Ollama, vLLM ...; or pip install 'engine-router[llamacpp]'"
        )
    if not detection.models:
        say(
            "  models: engine-router pull hf:USER/REPO, or engine-router init --scan DIR for a folder that has some"
        )
    for cloud in detection.clouds:
        say(f"  a cloud, whose answers cost money ({cloud.variable} is set): {way_to_add(cloud)}")
    say("  engine-router init --example shows what a configuration looks like; engine-router demo needs none")


def _say_next(
    path: Path, backup: Path | None, wanted: Sequence[Block], key: str | None, *, is_default: bool
) -> None:
    say(
        f"\n{path} is written: {counted(len(wanted), 'engine')}."
        + (f" What was there is {backup}." if backup else "")
    )
    if key is not None:
        say(f"Clients send this key: {key}")
    more = "" if is_default else f" --config {path}"
    say(f"\nNext: engine-router serve{more}\nThen: engine-router models{more}")
