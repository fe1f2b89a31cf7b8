"""The commands that make one call to the router and show its answer, as a table of call and rendering."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from attrs import frozen

from engine_router.cli.address import RouterAddress, locate
from engine_router.cli.client import get, not_understood, post
from engine_router.cli.exit_codes import OK, UNREACHABLE, CommandFailed
from engine_router.cli.formatting import counted, gigabytes, seconds
from engine_router.cli.one_model import get_model, show_model
from engine_router.cli.terminal import Table, say, show_json
from engine_router.guards.foreign_text import indented_values
from engine_router.models.scan import NOT_THERE

Answer = Mapping[str, Any]
NOTHING = "-"
# Folders on a network may take their time.
RESCAN_TIMEOUT_S: Final = 120.0

_CHANGES: Final = {
    "added": "new engines",
    "removed": "engines that go",
    "restarted": "engines that start anew once their requests are done",
    "moved": "models that start in other pools once their requests are done",
    "settings": "in force now",
    "needs_restart": "takes effect after a restart of the router",
}

_OTHER_PORT: Final = (
    "host and port are those of the configuration: if they were changed, the router that runs still uses the old ones "
    "until it starts again"
)


@frozen
class OneCall:
    """A command: the call that it makes, and the rendering of its answer for people."""

    call: Callable[[RouterAddress, argparse.Namespace], Any]
    show: Callable[[Answer, argparse.Namespace], None]


def run(options: argparse.Namespace) -> int:
    """Make the command's call and show the answer.

    Raises:
        CommandFailed: the router is not there, says no, or is none.
    """
    command, address = COMMANDS[options.command], locate(options)
    answer = command.call(address, options)
    if options.json:
        show_json(answer)
        return OK
    try:
        command.show(answer, options)
    except (KeyError, TypeError):
        raise not_understood(address) from None
    return OK


def _getting(path: str) -> Callable[[RouterAddress, argparse.Namespace], Any]:
    return lambda address, _: get(address, path)


def _posting(
    path: str, body: Callable[[argparse.Namespace], Mapping[str, object]]
) -> Callable[[RouterAddress, argparse.Namespace], Any]:
    return lambda address, options: post(address, path, body(options))


def _reload(address: RouterAddress, _: argparse.Namespace) -> Any:
    try:
        return post(address, "/admin/reload", {})
    except CommandFailed as failure:
        if failure.code == UNREACHABLE and not address.is_named:
            raise CommandFailed(f"{failure}; {_OTHER_PORT}", UNREACHABLE) from None
        raise


def _list_models(address: RouterAddress, options: argparse.Namespace) -> Any:
    if options.name is not None:
        return get_model(address, options.name)
    answer = get(address, "/v1/models")
    if not options.json and not (isinstance(answer, dict) and "data" in answer):
        raise CommandFailed(f"what answers at {address.url} is not an engine-router")
    # What a folder holds and cannot be served is no model of the list, but people look for it here.
    scan = get(address, "/status").get("scan")
    return {**answer, "scan": scan} if scan else answer


def _show_models(answer: Answer, options: argparse.Namespace) -> None:
    if options.name is not None:
        show_model(answer)
        return
    # An alias is in the list as a model of its own, for other clients.
    rows = [
        (
            entry["id"],
            entry["engine"],
            entry["state"],
            entry["origin"],
            ", ".join(entry["aliases"]) or NOTHING,
        )
        for entry in answer["data"]
        if "alias_of" not in entry
    ]
    if rows:
        Table(("Model", "Engine", "State", "Known from", "Aliases"), rows).show()
    else:
        say("no model is known yet: name some in engines.toml, or start an engine that lists its own")
    if scan := answer.get("scan"):
        show_broken(scan["broken"], scan["broken_total"])


def _show_queue(answer: Answer, _: argparse.Namespace) -> None:
    rows = [
        (
            entry["id"] or NOTHING,
            str(entry["place"]),
            entry["model"],
            entry["priority"],
            seconds(entry["waited_s"]),
            _overdue(entry["overdue_in_s"]),
            _seconds(entry["estimate_s"]),
            entry["waits_for"],
        )
        for entry in answer["waiting"]
    ]
    more = answer["total"] - len(rows)
    if not rows:
        say("no request is waiting")
        return
    headings = ("Id", "Place", "Model", "Priority", "Waited", "Overdue", "Estimate", "Waits for")
    Table(headings, rows, frozenset((1, 4, 5, 6))).show()
    if more > 0:
        say(f"and {counted(more, 'other')}")


def _show_requests(answer: Answer, _: argparse.Namespace) -> None:
    rows = [_request(entry) for entry in answer["requests"]]
    if not rows:
        say("no request is under way")
        return
    headings = ("Id", "Model", "State", "For", "First token", "Tokens", "Tokens/s", "Client", "Endpoint")
    Table(headings, rows, frozenset((3, 4, 5, 6))).show()
    if (more := answer["total"] - len(rows)) > 0:
        say(f"and {counted(more, 'other')}")


def _request(entry: Answer) -> tuple[str, ...]:
    speed = entry["tokens_per_s"]
    return (
        entry["id"],
        entry["model"],
        entry["state"],
        seconds(entry["elapsed_s"]),
        _seconds(entry["first_token_s"]),
        NOTHING if entry["tokens_out"] is None else str(entry["tokens_out"]),
        NOTHING if speed is None else f"{speed:g}",
        entry["key"] or entry["client"] or NOTHING,
        entry["endpoint"],
    )


def _overdue(in_s: float | None) -> str:
    if in_s is None:
        return NOTHING
    return f"in {seconds(in_s)}" if in_s > 0 else f"for {seconds(-in_s)}"


def _seconds(value: float | None) -> str:
    return NOTHING if value is None else seconds(value)


def _show_residents(answer: Answer, _: argparse.Namespace) -> None:
    rows = [_resident(entry) for entry in answer["residents"]]
    if not rows:
        say("nothing is resident")
        return
    headings = ("Pool", "Resident", "State", "Since", "Memory", "Idle", "Goes in", "Waiting", "Running")
    Table(headings, rows, frozenset((3, 4, 5, 6, 7))).show()


def _resident(entry: Answer) -> tuple[str, ...]:
    size_bytes = entry["footprint_bytes"] or entry["need_bytes"]
    ids = [request["id"] or NOTHING for request in entry["requests"]]
    return (
        entry["pool"],
        entry["resident"],
        entry["phase"],
        _seconds(entry["for_s"]),
        gigabytes(size_bytes) if size_bytes else NOTHING,
        _seconds(entry["idle_s"]),
        "pinned" if entry["pinned"] else _seconds(entry["expires_in_s"]),
        str(entry["waiting"]),
        ", ".join(ids) or NOTHING,
    )


def _show_failed(answer: Answer, _: argparse.Namespace) -> None:
    for entry in indented_values(answer["failed"]):
        again_s = entry["again_in_s"]
        when = f"tried again in {seconds(again_s)}" if again_s else "the next request tries it again"
        say(f"{entry['model']}: failed {counted(entry['count'], 'time')}, {when}\n  {entry['error']}")
    if not answer["failed"]:
        say("nothing has failed")


def _show_reload(answer: Answer, _: argparse.Namespace) -> None:
    changes = indented_values({name: answer[name] for name in _CHANGES})
    lines = [f"{words}: {', '.join(changes[name])}" for name, words in _CHANGES.items() if changes[name]]
    say("\n".join(lines) or "nothing has changed")


def _show_rescan(answer: Answer, _: argparse.Namespace) -> None:
    answer = indented_values(dict(answer))
    if not answer["folders"]:
        say("no engine has `scan`: give one the folders of your models in engines.toml")
        return
    show_folders(answer["folders"])
    for words, names in (("new", answer["found"]), ("gone", answer["gone"])):
        if names:
            say(f"{words}: {', '.join(names)}")
    show_broken(answer["broken"], answer["broken_total"])


def show_folders(folders: Mapping[str, Answer]) -> None:
    """Show the folders of models, each with how many it holds, or what is wrong with it."""
    rows = [
        (place, str(entry["models"]), entry["error"] or ", ".join(entry["paths"]) or NOT_THERE)
        for place, entry in folders.items()
    ]
    Table(("Folder", "Models", "Where, or what is wrong"), rows, frozenset((1,))).show()


def show_broken(broken: Sequence[Answer], total: int) -> None:
    """Show the files that no engine can serve, and why."""
    if broken:
        say(f"\n{counted(total, 'file')} that cannot be served:")
    for entry in broken:
        say(f"  {entry['path']}: {entry['reason']}")
    if total > len(broken):
        say(f"  and {counted(total - len(broken), 'other')}")


def _show_reset(answer: Answer, options: argparse.Namespace) -> None:
    if answer["forgotten"]:
        failures = counted(answer["forgotten"], "failure")
        say(f"{options.name}: {failures} forgotten; the next request starts it")
    else:
        say(f"{options.name} had not failed")


def _show_pin(answer: Answer, options: argparse.Namespace) -> None:
    if answer["is_resident"]:
        say(f"{options.name} is pinned: it stays until it is unpinned or unloaded")
    else:
        say(f"{options.name} is pinned: it stays once it is loaded (engine-router load {options.name})")


def _show_unpin(_: Answer, options: argparse.Namespace) -> None:
    say(f"{options.name} is not pinned any more")


def _show_cancel(answer: Answer, _: argparse.Namespace) -> None:
    answer = indented_values(dict(answer))
    say(f"ended {answer['cancelled']}: {answer['path']} {answer['model']}")


COMMANDS: Final[Mapping[str, OneCall]] = {
    "models": OneCall(_list_models, _show_models),
    "queue": OneCall(_getting("/admin/queue"), _show_queue),
    "requests": OneCall(_getting("/admin/requests"), _show_requests),
    "residents": OneCall(_getting("/admin/residents"), _show_residents),
    "failed": OneCall(_getting("/admin/failed"), _show_failed),
    "reload": OneCall(_reload, _show_reload),
    "rescan": OneCall(
        lambda address, _: post(address, "/admin/rescan", {}, timeout_s=RESCAN_TIMEOUT_S), _show_rescan
    ),
    "reset": OneCall(_posting("/admin/reset", lambda options: {"model": options.name}), _show_reset),
    "pin": OneCall(
        _posting("/admin/pin", lambda options: {"model": options.name, "pinned": True}), _show_pin
    ),
    "unpin": OneCall(
        _posting("/admin/pin", lambda options: {"model": options.name, "pinned": False}), _show_unpin
    ),
    "cancel": OneCall(_posting("/admin/cancel", lambda options: {"id": options.id}), _show_cancel),
}
