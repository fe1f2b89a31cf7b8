"""The commands that see and steer what is resident."""

from __future__ import annotations

from engine_router.cli.parser_options import Adder, add_address, add_json


def add_control(command: Adder) -> None:
    """Add queue, requests, residents, failed, load, reset, pin, unpin, cancel and events."""
    queue = command(
        "queue",
        "show waiting requests",
        "Show every waiting request: its place, how long it has waited, what it waits for, and an estimate of the\n"
        "remaining time, if there is one.",
        "queue",
        "queue --json",
    )
    requests = command(
        "requests",
        "show the requests under way, waiting or running",
        "Show every request that waits for its model or is being answered: for how long, the time to its first token,\n"
        "who sent it, and tokens where the engine tells them before the end. End one with engine-router cancel ID.",
        "requests",
        "requests --json",
    )
    residents = command(
        "residents",
        "show the models in memory, and the requests that use them",
        "Show the models in memory: their memory use, how long they have been idle, when they are unloaded, and the\n"
        "requests that use them.",
        "residents",
        "ps",
        aliases=("ps",),
    )
    failed = command(
        "failed",
        "show failed models, the reason, and the next attempt",
        "Show the models that failed to start or crashed, and have not worked since. See also: engine-router reset.",
        "failed",
    )
    load = command(
        "load",
        "make a model resident, optionally for a given time",
        "Make a model resident, and wait for it. It queues like any request. With --no-wait the command returns at once,\n"
        "and the router loads the model in the background.",
        "load qwen3-30b",
        "load qwen3-30b --keep-alive 1h --no-wait",
    )
    load.add_argument("name", metavar="MODEL|ENGINE", help="a model id or alias, or the name of an engine")
    load.add_argument(
        "--keep-alive",
        metavar="TIME",
        help='how long it stays when idle: seconds, or "30m", "2h"; -1 for ever',
    )
    load.add_argument("--no-wait", action="store_true", help="return at once")
    reset = command(
        "reset",
        "clear a model's failure and retry on the next request",
        "Clear a model's failure, so that the next request starts it again. An engine that could not be stopped is\n"
        "treated as stopped: make sure that it is.",
        "reset qwen3-30b",
    )
    pin = command(
        "pin",
        "protect a model from eviction",
        "Keep a model in memory once it is resident: never evict it, never unload it when idle, until it is unpinned or the\n"
        "router stops.",
        "pin qwen3-30b",
    )
    unpin = command(
        "unpin", "remove a model's pin", "Allow a model to be evicted and unloaded again.", "unpin qwen3-30b"
    )
    cancel = command(
        "cancel",
        "cancel a request or a job",
        "Cancel a request or a job. Its resources are released, and its client gets an error. engine-router queue and\n"
        "engine-router residents show the ids.",
        "cancel r12",
    )
    cancel.add_argument("id", metavar="ID", help="such as r12, or j3 for a job")
    events = command(
        "events",
        "show events as they happen",
        "Show the router's events from now on, until Ctrl-C.",
        "events",
        "events --json | jq .",
    )
    for naming in (reset, pin, unpin):
        naming.add_argument("name", metavar="MODEL", help="a model id or alias")
    for calling in (queue, requests, residents, failed, load, reset, pin, unpin, cancel, events):
        add_address(calling)
        add_json(calling)
