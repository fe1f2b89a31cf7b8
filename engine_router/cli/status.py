"""`engine-router status`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

from engine_router.cli.address import locate
from engine_router.cli.client import get_status, not_understood
from engine_router.cli.formatting import gigabytes, phase_text, phases, seconds, transition
from engine_router.cli.terminal import Table, say, show_json
from engine_router.guards.foreign_text import indented_values

Data = Mapping[str, Any]
NOTHING = "-"
SHOWN_DECISIONS = 5


def run(options: argparse.Namespace) -> int:
    """Show the router's status.

    Raises:
        CommandFailed: as `get_status`, or what it says is not understood.
    """
    address = locate(options)
    status = get_status(address)
    if options.json:
        show_json(status)
        return 0
    status = indented_values(status)
    try:
        say(f"engine-router {status['version']} at {address.url}, up {seconds(status['uptime_s'])}\n")
        _pools(status["pools"])
        say()
        _engines(status["engines"])
        _peers(status["engines"])
        _kept(status["engines"])
        _swaps(status)
    except (KeyError, TypeError):
        raise not_understood(address) from None
    return 0


def _pools(pools: Mapping[str, Data]) -> None:
    rows: list[tuple[str, ...]] = []
    for name, pool in pools.items():
        waiting = str(sum(pool["waiting"].values()))
        first, *others = [_resident(resident) for resident in pool["residents"]] or [_nobody(pool)]
        rows.append((name, *first, waiting))
        rows += [("", *other, "") for other in others]
        rows += [("", *_program(program), "") for program in pool.get("other_programs") or ()]
    headings = ("Pool", "Resident", "State", "Since", "Memory", "Running", "Waiting")
    Table(headings, rows, frozenset((3, 4, 5, 6))).show()


def _nobody(pool: Data) -> tuple[str, str, str, str, str]:
    settling = pool["settling"]
    if settling:
        return settling, "settling", NOTHING, NOTHING, "0"
    return NOTHING, "empty", NOTHING, NOTHING, "0"


def _resident(resident: Data) -> tuple[str, str, str, str, str]:
    return (
        resident["resident"],
        resident["phase"],
        seconds(resident["for_s"]) if resident["for_s"] is not None else NOTHING,
        gigabytes(resident["footprint_bytes"]) if resident["footprint_bytes"] else NOTHING,
        str(resident["in_flight"]),
    )


def _program(program: Data) -> tuple[str, str, str, str, str]:
    size = program["held_bytes"]
    held = gigabytes(size) if size else NOTHING
    name = program.get("tenant") or program["name"]
    return f"{name} (pid {program['pid']})", "other program", NOTHING, held, NOTHING


def _engines(engines: Mapping[str, Data]) -> None:
    rows = [
        (
            name,
            engine["type"],
            engine["pool"],
            engine["state"],
            ", ".join(engine["models"]) or NOTHING,
            ", ".join(path for path, is_there in engine["endpoints"].items() if is_there) or NOTHING,
        )
        for name, engine in engines.items()
    ]
    Table(("Engine", "Type", "Pool", "State", "Models", "Serves itself"), rows).show()


def _peers(engines: Mapping[str, Data]) -> None:
    """Show what peers tell of themselves."""
    rows = [(name, *_peer(engine["peer"])) for name, engine in engines.items() if engine.get("peer")]
    if rows:
        say()
        Table(("Peer", "Program", "Running", "Waiting", "Doing"), rows, frozenset((2, 3))).show()


def _peer(peer: Data) -> tuple[str, str, str, str]:
    if peer["fault"] is not None or peer["program"] is None:
        return peer["program"] or NOTHING, NOTHING, NOTHING, peer["fault"] or "not asked yet"
    program = " ".join(filter(None, (peer["program"], peer["version"])))
    doing = "; ".join(_peers_swap(swap) for swap in peer["swaps"]) or NOTHING
    return program, str(peer["in_flight"]), str(peer["waiting"]), doing


def _kept(engines: Mapping[str, Data]) -> None:
    """Show what is kept of conversations, where an engine keeps any."""
    rows = [
        (name, *_kept_by(engine["kept_context"]))
        for name, engine in engines.items()
        if engine.get("kept_context")
    ]
    if rows:
        say()
        headings = ("Keeps context", "Conversations", "On disk", "Restored", "Read again", "Tokens reused")
        Table(headings, rows, frozenset(range(1, 6))).show()


def _kept_by(kept: Data) -> tuple[str, ...]:
    restores = dict(kept["restores"])
    restored = restores.pop("restored", 0)
    again = ", ".join(f"{count} {reason}" for reason, count in restores.items() if count) or "0"
    if not kept["keeps"]:
        again = f"all: of no use ({again})"
    size = gigabytes(kept["size_bytes"]) if kept["size_bytes"] else NOTHING
    return str(kept["conversations"]), size, str(restored), again, str(sum(kept["reused_tokens"].values()))


def _peers_swap(swap: Data) -> str:
    expected = "" if swap["expected_s"] is None else f" of about {seconds(swap['expected_s'])}"
    return f"{swap['words']}, {seconds(swap['elapsed_s'])}{expected}"


def _swaps(status: Data) -> None:
    """Show what changes now, what the last swap took, and what the person should know."""
    lines = [_current(pool["swap"]) for pool in status["pools"].values() if pool["swap"] is not None]
    if status.get("adopting"):
        lines.append("now: asking the engines what they have in memory; requests wait for that")
    if (last := status["last_swap"]) is not None:
        ago = seconds(max(0.0, time.time() - last["at"]))
        result = {"ok": "", "error": " failed", "abandoned": " was given up"}.get(
            last["result"], last["result"]
        )
        name = transition(last["source"], last["target"])
        lines.append(
            f"last: {name} ({last['cause']}){result}: {phases(last['phases'], last['duration_s'])}; {ago} ago"
        )
    decisions = status.get("decisions", [])  # an older router tells none
    lines += [f"{_clock(decision['at'])} {decision['text']}" for decision in decisions[-SHOWN_DECISIONS:]]
    lines += [f"{_clock(notice['at'])} {notice['message']}" for notice in status["notices"]]
    if lines:
        say("\n" + "\n".join(lines))


def _current(swap: Data) -> str:
    line = f"now: {phase_text(swap['phase'], swap['source'], swap['target'])}, {seconds(swap['phase_elapsed_s'])}"
    if swap["phase"] == "start" and swap["expected_s"] is not None:
        line += f" of about {seconds(swap['expected_s'])}"
    return f"{line} ({swap['cause']})"


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))
