"""The commands of every day: what a router has, and what it writes."""

from __future__ import annotations

from engine_router.cli.parser_options import Adder, add_address, add_json, count


def add_showing(command: Adder) -> None:
    """Add status, models, discover, explain, use, unload, logs, reload and rescan."""
    status = command(
        "status",
        "show resident models, waiting requests and the last swap",
        "Show the resident models, the number of waiting requests, and how long the last swap took.",
        "status",
        "status --json",
    )
    models = command(
        "models",
        "list the models that clients can request, or show one",
        "List the models that clients can request, with the engine and state of each. Of one model, show its settings\n"
        "and where each comes from, its command, and its last starts.",
        "models",
        "models qwen3-30b",
        "models --url http://192.168.1.20:8077",
        aliases=("list", "ls"),
    )
    models.add_argument("name", metavar="MODEL", nargs="?", help="default: all of them")
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
    explain = command(
        "explain",
        "show which model would answer a request now, and why",
        "Show which model a route would choose for a request now, and why: word for word what the log and the answer's\n"
        "X-Engine-Router-Route would say. FILE is the body of a request, as a client sends it. Nothing is started.",
        "explain request.json",
        "explain request.json --path /v1/messages --header User-Agent:cline",
        "explain - --key-name agents < request.json",
    )
    explain.add_argument("file", metavar="FILE", help="JSON, such as a chat; - reads standard input")
    explain.add_argument(
        "--path",
        metavar="PATH",
        default="/v1/chat/completions",
        help="the endpoint (default: /v1/chat/completions)",
    )
    explain.add_argument(
        "--header",
        metavar="NAME:VALUE",
        action="append",
        default=[],
        help="a header of the request; repeatable",
    )
    explain.add_argument("--key-name", metavar="NAME", help="as if it came with this key of server.api_keys")
    use = command(
        "use",
        "make a model resident now",
        "Make a model or an engine resident, and wait for it. It queues like any request. Ctrl-C stops waiting, and\n"
        "cancels the start unless another request needs it.",
        "use qwen3-30b",
    )
    use.add_argument("name", metavar="MODEL|ENGINE", help="a model id or alias, or the name of an engine")
    unload = command(
        "unload",
        "stop resident models and free their memory",
        "Let running requests finish, then stop one model or engine, or all of them.",
        "unload qwen3-30b",
        "unload --all",
    )
    which = unload.add_mutually_exclusive_group()
    which.add_argument("name", metavar="MODEL|ENGINE", nargs="?", help="default: everything")
    which.add_argument("--all", action="store_true", help="everything (explicit)")
    logs = command(
        "logs",
        "show the output of an engine or a model, or the router's own log",
        "Show the last lines of an engine's output. For a model with its own process, show only its lines.",
        "logs llama -n 50",
        "logs qwen3-30b -f",
        "logs -f",
    )
    logs.add_argument(
        "name",
        metavar="MODEL|ENGINE",
        nargs="?",
        help="the engine, if both have this name (default: the router's own log)",
    )
    logs.add_argument("-f", "--follow", action="store_true", help="keep showing new output until Ctrl-C")
    logs.add_argument("-n", "--lines", type=count, default=200, metavar="N", help="how many (default: 200)")
    reload = command(
        "reload",
        "make the router read its configuration again",
        "Make the router read its configuration again. Any error rejects the whole file; nothing changes then.\n"
        "Changed engines restart after their running requests; everything else continues undisturbed.",
        "reload",
    )
    rescan = command(
        "rescan",
        "make the router scan its model folders again",
        "Make the router scan the folders in its engines' `scan` again, and ask running engines for their models. Shows\n"
        "new models, missing models, and the files that cannot be served, with the reason.",
        "rescan",
    )
    for calling in (status, models, discover, explain, use, unload, logs, reload, rescan):
        add_address(calling)
    for answering in (status, models, discover, explain, use, unload, reload, rescan):
        add_json(answering)
