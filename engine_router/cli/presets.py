"""`engine-router presets`: the engines that can be added, and what each of them adds."""

from __future__ import annotations

import argparse
from typing import Any

from engine_router.cli.exit_codes import BAD_USAGE, OK, CommandFailed
from engine_router.cli.terminal import Table, say, show_json
from engine_router.setup.presets import Preset, PresetError, filled, find_preset, machine_traits, presets


def run(options: argparse.Namespace) -> int:
    """List the presets, or show one.

    Raises:
        CommandFailed: there is none of that name.
    """
    try:
        found = [find_preset(options.kind)] if options.kind else [*presets().values()]
    except PresetError as error:
        raise CommandFailed(str(error), BAD_USAGE) from None
    if options.json:
        plain = [_plain(preset) for preset in found]
        show_json(plain[0] if options.kind else {"presets": plain})
    elif options.kind:
        say(_block(found[0]), end="")
    else:
        rows = [(preset.kind, _needs(preset), f"{preset.title}: {preset.summary}") for preset in found]
        Table(("Kind", "Needs", "What"), rows).show()
        say("\nengine-router presets KIND shows what one adds; engine-router add KIND adds it")
    return OK


def _needs(preset: Preset) -> str:
    return " ".join(f"--{option}" for option in preset.needs) or "-"


def _block(preset: Preset) -> str:
    return filled(preset, preset.sample_values(), traits=machine_traits()).text


def _plain(preset: Preset) -> dict[str, Any]:
    return {
        "kind": preset.kind,
        "title": preset.title,
        "summary": preset.summary,
        "also": list(preset.also),
        "needs": list(preset.needs),
        "options": sorted(preset.options),
        "block": _block(preset),
    }
