"""`engine-router activity` and `engine-router figures`: what happened, and what swaps cost."""

from __future__ import annotations

import argparse
import codecs
import http.client
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from engine_router.cli.address import RouterAddress, locate
from engine_router.cli.client import ANSWER_TIMEOUT_S, Call, get, not_understood
from engine_router.cli.exit_codes import OK, CommandFailed
from engine_router.cli.formatting import counted, gigabytes, seconds
from engine_router.cli.terminal import Table, say, show_json

NOTHING = "-"
PIECE_BYTES = 65536
BAR_CHARS = 40
_FILTERS = ("model", "engine", "key", "client", "status", "q")


def run(options: argparse.Namespace) -> int:
    """Show past requests, or figures; raises as `Call.read`."""
    address = locate(options)
    if options.command == "figures":
        span = urlencode({"span_s": int(options.since), "points": options.points})
        return _shown(address, f"/admin/figures?{span}", _show_figures, as_json=options.json)
    query = {name: value for name in _FILTERS if (value := getattr(options, name)) is not None}
    if options.since is not None:
        query["since"] = f"{time.time() - options.since:.3f}"
    if options.csv:
        return _csv(address, query)
    if options.histogram:
        path = f"/admin/activity/histogram?{urlencode(query)}"
        return _shown(address, path, _show_histograms, as_json=options.json)
    limited = urlencode({**query, "limit": options.lines})
    return _shown(address, f"/admin/activity?{limited}", _show_requests, as_json=options.json)


def _shown(
    address: RouterAddress, path: str, show: Callable[[Mapping[str, Any]], None], *, as_json: bool
) -> int:
    """Ask for something of the history, and show it; as JSON, or where one is kept."""
    answer = get(address, path)
    if as_json:
        show_json(answer)
        return OK
    try:
        if answer["enabled"]:
            show(answer)
        else:
            say(f"no history is kept: {answer['why_off']}")
    except (KeyError, TypeError):
        raise not_understood(address) from None
    return OK


def _show_histograms(answer: Mapping[str, Any]) -> None:
    for title, name, unit in (("First token", "first_token_s", " s"), ("Tokens/s", "tokens_per_s", "")):
        _show_histogram(title, answer[name], unit)


def _show_histogram(title: str, histogram: Mapping[str, Any], unit: str) -> None:
    if not histogram["count"]:
        say(f"{title}: not known of any request")
        return
    say(
        f"{title}: half below {histogram['p50']:.3g}{unit}, 95 % below {histogram['p95']:.3g}{unit} ({counted(histogram['count'], 'request')})"
    )
    most = max(bin_["count"] for bin_ in histogram["bins"])
    for bin_ in histogram["bins"]:
        bar = "#" * round(BAR_CHARS * bin_["count"] / most)
        say(f"{bin_['from']:>8g}{unit}  {bar} {bin_['count'] or ''}".rstrip())


def _csv(address: RouterAddress, query: Mapping[str, str]) -> int:
    text = codecs.getincrementaldecoder("utf-8")("replace")  # a piece may end within a character
    call = Call(address, "GET", f"/admin/activity.csv?{urlencode(query)}", None, ANSWER_TIMEOUT_S)
    try:
        with call.answer() as answer:
            while piece := answer.read1(PIECE_BYTES):
                say(text.decode(piece).replace("\r", ""), to=sys.stdout, end="")
    except BrokenPipeError:  # whoever read our output has gone
        raise
    except (http.client.HTTPException, ConnectionError, TimeoutError):
        raise CommandFailed(f"the connection to {address.url} broke off") from None
    finally:
        call.close()
    return OK


def _show_requests(answer: Mapping[str, Any]) -> None:
    rows = [_row(entry) for entry in reversed(answer["requests"])]
    if not rows:
        say("no request is remembered that matches")
    else:
        headings = (
            "Time",
            "Model",
            "Endpoint",
            "Status",
            "In",
            "Out",
            "First",
            "Tok/s",
            "Waited",
            "Took",
            "From",
        )
        Table(headings, rows, frozenset(range(3, 10))).show()
        if (more := answer["total"] - len(rows)) > 0:
            say(f"and {counted(more, 'earlier one')}")


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    speed = entry["tokens_per_s"]
    return (
        time.strftime("%m-%d %H:%M:%S", time.localtime(entry["at"])),
        entry["model"] or NOTHING,
        entry["endpoint"],
        str(entry["status"]),
        _number(entry["tokens_in"]),
        _number(entry["tokens_out"]),
        _seconds(entry["first_token_s"]),
        NOTHING if speed is None else f"{speed:.1f}",
        _seconds(entry["queue_wait_s"]),
        _seconds(entry["duration_s"]),
        entry["key"] or entry["client"] or NOTHING,
    )


def _number(value: int | None) -> str:
    return NOTHING if value is None else str(value)


def _seconds(value: float | None) -> str:
    return NOTHING if value is None else seconds(value)


def _show_figures(answer: Mapping[str, Any]) -> None:
    models = [_model(name, lines) for name, lines in answer["models"].items()]
    if models:
        Table(("Model", "Requests", "Tokens", "Tok/s"), models, frozenset((1, 2, 3))).show()
        say()
    pools = [_pool(name, pool) for name, pool in answer["pools"].items()]
    if pools:
        Table(("Pool", "Memory", "Most used", "Used now"), pools, frozenset((1, 2, 3))).show()
        say()
    say(f"today: {answer['today']['text']}")


def _model(name: str, lines: Mapping[str, list[float | None]]) -> tuple[str, ...]:
    requests, tokens, speeds = (
        [value for value in lines[key] if value is not None]
        for key in ("requests", "tokens_out", "tokens_per_s")
    )
    return (
        name,
        f"{sum(requests):.0f}",
        f"{sum(tokens):.0f}" if tokens else NOTHING,
        f"{sum(speeds) / len(speeds):.1f}" if speeds else NOTHING,
    )


def _pool(name: str, pool: Mapping[str, Any]) -> tuple[str, ...]:
    used = [value for value in pool["used_bytes"] if value is not None]
    capacity = [value for value in pool["capacity_bytes"] if value is not None]
    sizes = (capacity[-1:], [max(used)] if used else [], used[-1:])
    return (name, *(gigabytes(size[0]) if size else NOTHING for size in sizes))
