"""The commands of every day: what a router has, and what it writes."""

from __future__ import annotations

from engine_router.cli.parser_options import Adder, add_address, add_json, count


def add_showing(command: Adder) -> None:
    """Add status, models, discover, use, unload, logs, reload and rescan."""
    status = command(
        "status",
        "show what is resident, who waits, and the last swap",
        "Show what is resident, who waits, and what the last swap took.",
        "status",
        "status --json",
    )
    models = command(
        "models",
        "list the models that clients can ask for",
        "List the models that clients can ask for, with the engine and the state of each.",
        "models",
        "models --url http://192.168.1.20:8077",
        aliases=("list", "ls"),
    )
    discover = command(
        "discover",
        "ask the engines for their models, and show where each is known from",
        "Ask every engine, or one, for its models, and show each with where it is known from: the configuration, a\n"
        "folder, the engine's command (argv), or its list, now (live) or earlier (last seen); and which engine serves\n"
        "an id that two of them have. No engine is started.",
        "discover",
        "discover llama --json",
    )
    discover.add_argument("name", metavar="ENGINE", nargs="?", help="default: all of them")
    use = command(
        "use",
        "make a model resident now",
        "Make a model, or an engine, resident, and wait until it is. It takes its turn like any request.\n"
        "Ctrl-C gives up the wait, and the start too where nobody else wants it.",
        "use qwen3-30b",
    )
    use.add_argument("name", metavar="MODEL|ENGINE", help="a model id or alias, or the name of an engine")
    unload = command(
        "unload",
        "stop what is resident and free its memory",
        "Let running requests end, then stop what is resident: everything, or one model or engine.",
        "unload qwen3-30b",
        "unload --all",
    )
    which = unload.add_mutually_exclusive_group()
    which.add_argument("name", metavar="MODEL|ENGINE", nargs="?", help="default: everything")
    which.add_argument("--all", action="store_true", help="everything, in so many words")
    logs = command(
        "logs",
        "show what an engine or a model wrote",
        "Show the last lines that an engine wrote; for a model, its own lines only, where each has its own process.",
        "logs llama -n 50",
        "logs qwen3-30b -f",
    )
    logs.add_argument("name", metavar="MODEL|ENGINE", help="a name that is both is the engine's")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what it writes, until Ctrl-C")
    logs.add_argument("-n", "--lines", type=count, default=200, metavar="N", help="how many (default: 200)")
    reload = command(
        "reload",
        "have the router read its configuration again",
        "Have the router read its configuration again. A file with any fault is refused as a whole. Engines that\n"
        "changed start anew once their requests are done; everything else goes on undisturbed.",
        "reload",
    )
    rescan = command(
        "rescan",
        "have the router look through its folders of models",
        "Have the router look through the folders that its engines `scan`, and ask engines that run for their models.\n"
        "Shows what is new, what is gone, and which files cannot be served, and why.",
        "rescan",
    )
    for calling in (status, models, discover, use, unload, logs, reload, rescan):
        add_address(calling)
    for answering in (status, models, discover, use, unload, reload, rescan):
        add_json(answering)
