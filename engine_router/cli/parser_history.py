"""The commands that show what happened."""

from __future__ import annotations

from engine_router.cli.parser_options import Adder, add_address, add_json, count, duration


def add_history(command: Adder) -> None:
    """Add activity and figures."""
    activity = command(
        "activity",
        "show past requests: tokens, speed, waits, status",
        "Show the last requests that the router remembers, the latest one last: tokens as the engine counts them, the time\n"
        "to the first token, tokens per second, the wait for the model, and the whole time. A dash: not known.",
        "activity --since 2h --model qwen3-30b",
        "activity --status error",
        "activity --histogram --model qwen3-30b",
        "activity --csv > requests.csv",
    )
    activity.add_argument("-n", "--lines", type=count, default=50, metavar="N", help="how many (default: 50)")
    activity.add_argument("--since", type=duration, metavar="TIME", help='only the last "30m", "2h", "7d"')
    activity.add_argument("--model", metavar="MODEL", help="only requests for this model")
    activity.add_argument("--engine", metavar="ENGINE", help="only requests to this engine")
    activity.add_argument("--key", metavar="NAME", help="only requests with the key of this name")
    activity.add_argument("--client", metavar="ADDRESS", help="only requests from this address")
    activity.add_argument("--status", metavar="STATUS", help="ok, error, or a number such as 404")
    activity.add_argument("-q", metavar="TEXT", help="only requests with this text in a name or an error")
    activity.add_argument("--csv", action="store_true", help="print all of them as CSV, the latest one first")
    activity.add_argument(
        "--histogram", action="store_true", help="show how the first token's time and the speed are spread"
    )
    figures = command(
        "figures",
        "show what each model did, and what swaps cost today",
        "Show the requests and tokens of each model, the memory of each pool, and the time that swaps took today. With --json\n"
        "everything over time.",
        "figures",
        "figures --since 7d",
    )
    figures.add_argument(
        "--since", type=duration, default=86400.0, metavar="TIME", help='the last "1h", "7d" (default: 1d)'
    )
    figures.add_argument("--points", type=count, default=96, metavar="N", help="with --json (default: 96)")
    for calling in (activity, figures):
        add_address(calling)
        add_json(calling)
