"""The commands that see and steer what is resident."""

from __future__ import annotations

from engine_router.cli.parser_options import Adder, add_address, add_json


def add_control(command: Adder) -> None:
    """Add queue, residents, failed, load, reset, pin, unpin, cancel and events."""
    queue = command(
        "queue",
        "show who waits, and what for",
        "Show every request that waits: its place, how long it has waited, what has to happen first, and how\n"
        "long that takes as far as is known.",
        "queue",
        "queue --json",
    )
    residents = command(
        "residents",
        "show what is in memory, and which requests use it",
        "Show what is in memory: what it takes, since when it is idle, when it goes by itself, and the requests\n"
        "that use it.",
        "residents",
        "ps",
        aliases=("ps",),
    )
    failed = command(
        "failed",
        "show what failed, why, and when it is tried again",
        "Show the models that could not be started, or died, and have not worked since. See also: reset.",
        "failed",
    )
    load = command(
        "load",
        "make a model resident, and say how long it stays",
        "Make a model resident and wait until it is, in turn like any request. With --no-wait the router goes\n"
        "on with it alone, and the command ends at once.",
        "load qwen3-30b",
        "load qwen3-30b --keep-alive 1h --no-wait",
    )
    load.add_argument("name", metavar="MODEL|ENGINE", help="a model id or alias, or the name of an engine")
    load.add_argument(
        "--keep-alive",
        metavar="TIME",
        help='how long it shall stay when nobody uses it: seconds, or "30m", "2h"; -1 for ever',
    )
    load.add_argument("--no-wait", action="store_true", help="do not wait until it is there")
    reset = command(
        "reset",
        "forget that a model failed, so that it is tried again at once",
        "Forget that a model failed, so that the next request for it starts it. One that could not be stopped is "
        "taken to be gone: see to that first.",
        "reset qwen3-30b",
    )
    pin = command(
        "pin",
        "protect a model from eviction",
        "Once a model is resident, neither evict it nor stop it when idle, until the router ends.",
        "pin qwen3-30b",
    )
    unpin = command(
        "unpin", "end a model's protection from eviction", "Let a model be stopped again.", "unpin qwen3-30b"
    )
    cancel = command(
        "cancel",
        "end one request",
        "End one request, or one job: it gives back what it holds, and its client is told. The ids are shown by\n"
        "engine-router queue and engine-router residents.",
        "cancel r12",
    )
    cancel.add_argument("id", metavar="ID", help="such as r12, or j3 for a job")
    events = command(
        "events",
        "show what happens, as it happens",
        "Show everything that happens in the router from now on, until Ctrl-C.",
        "events",
        "events --json | jq .",
    )
    for naming in (reset, pin, unpin):
        naming.add_argument("name", metavar="MODEL", help="a model id or alias")
    for calling in (queue, residents, failed, load, reset, pin, unpin, cancel, events):
        add_address(calling)
        add_json(calling)
