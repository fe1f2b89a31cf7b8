"""`/admin/config`: the text of `engines.toml`, checked, and changed where the configuration allows that."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import trio
from quart import Response, request
from quart_trio import QuartTrio

from engine_router.config import Config, KeyConfig, parse_config
from engine_router.config.environment import Environment
from engine_router.config.file import write
from engine_router.config.masked import masked_config
from engine_router.config.problems import Problem, problems_of
from engine_router.config.schema import json_schema
from engine_router.errors import (
    BadConfiguration,
    BadRequest,
    ConfigError,
    ConfigurationChanged,
    ConfigurationReadOnly,
    NoSuchRoute,
)
from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import MAX_CONFIG_TEXT_BYTES
from engine_router.guards.regular_file import open_regular
from engine_router.models.config_warnings import warnings
from engine_router.router import Router
from engine_router.web.connection import scope_of
from engine_router.web.params import fields, text
from engine_router.web.responses import json_response

_CONTEXT_LINES: Final = 3
# A file for a thousand models, with a few lines changed, has some ten thousand.
_MOST_PAIRS: Final = 200_000
_FEW_LINES: Final = 200  # up to here `difflib` ignores none
_NO_FILE: Final = "this router was not started from a file that can be changed"


def why_read_only(router: Router, key: KeyConfig | None) -> str | None:
    """Return why the configuration may not be changed with a key, or without one, and what helps; None where it may."""
    server = router.config.server
    if router.config_file is None or not router.can_reload:
        return _NO_FILE
    if not server.edit_config:
        return "read-only: set edit_config = true under [server] in engines.toml, and an API key"
    if not server.api_keys:
        return "read-only without a key: set api_keys under [server] in engines.toml"
    if key is None or not key.admin:
        return "read-only without a key that may do everything"
    return None


class ConfigurationRoutes:
    """The routes of the configuration."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._one_at_a_time = trio.Lock()
        # A check of a hostile text takes seconds, and the interpreter with them: a second one beside it would only take
        # more of the router's own share. One that was abandoned counts until it has ended.
        self._checks = trio.CapacityLimiter(1)

    async def config(self) -> Response:
        """`GET /admin/config`: the text of the file; without its secrets for those who may not change it."""
        why_not = why_read_only(self._router, scope_of(request).key)
        raw = await self._read()
        visible = await trio.to_thread.run_sync(_visible, _decoded(raw), why_not is None)
        response = json_response(
            {
                "path": str(self._router.config_file),
                "text": visible,
                "sha256": _sha256(raw),
                "editable": why_not is None,
                "why_not": why_not,
                "is_masked": why_not is not None,
            }
        )
        response.headers["Cache-Control"] = "no-store"  # there may be keys in it
        return response

    async def schema(self) -> Response:
        """`GET /admin/config/schema`: the JSON Schema of the file."""
        return json_response(json_schema())

    async def check(self) -> Response:
        """`POST /admin/config/check {text}`: what is wrong with a text, and what is different in it. Changes nothing."""
        new = _new_text(await fields("text"))
        may_edit = why_read_only(self._router, scope_of(request).key) is None
        before = _decoded(await self._read())
        return json_response(
            await trio.to_thread.run_sync(
                _checked, before, new, may_edit, abandon_on_cancel=True, limiter=self._checks
            )
        )

    async def save(self) -> Response:
        """`PUT /admin/config {text, was_sha256}`: replace the file, with a backup beside it, and take it over.

        Raises:
            ConfigurationReadOnly: whoever asks may not do that.
            ConfigurationChanged: the file is not any more what it was when it was read.
            BadConfiguration: the text has faults; nothing was changed.
        """
        if (why_not := why_read_only(self._router, scope_of(request).key)) is not None:
            raise ConfigurationReadOnly(f"the configuration is {why_not.removeprefix('read-only: ')}")
        data = await fields("text", "was_sha256")
        new, was = _new_text(data), text(data, "was_sha256")
        async with self._one_at_a_time:
            raw = await self._read()
            if _sha256(raw) != was.strip().lower():
                raise ConfigurationChanged(
                    "the file was changed by somebody else meanwhile; nothing was saved: read it again, and make your changes there"
                )
            # In a thread that is waited for: a file is replaced as a whole, or not at all.
            backup = await trio.to_thread.run_sync(_saved, self._path, new, _decoded(raw))
        key = shown(scope_of(request).key_name or "")
        self._router.note(f"the configuration was changed over HTTP with the key '{key}'", severity="info")
        return json_response(
            {
                "path": str(self._path),
                "backup": None if backup is None else str(backup),
                "sha256": _sha256(new.encode()),
                **await self._taken_over(),
            }
        )

    async def _taken_over(self) -> Mapping[str, Any]:
        """Read the file again. What only a new start takes over is said; the file stays."""
        try:
            changes = await self._router.reload()
        except ConfigError as error:
            return {"reloaded": False, "problem": str(error), "changes": None}
        return {"reloaded": True, "problem": None, "changes": changes.as_dict()}

    @property
    def _path(self) -> Path:
        if self._router.config_file is None:
            raise NoSuchRoute(_NO_FILE)
        return self._router.config_file

    async def _read(self) -> bytes:
        """Return what is in the file.

        Raises:
            NoSuchRoute: there is none, or it is none that can be shown.
        """
        return await trio.to_thread.run_sync(_bytes_of, self._path, abandon_on_cancel=True)


def _bytes_of(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            data = file.read(MAX_CONFIG_TEXT_BYTES + 1)
    except (OSError, ValueError) as error:
        raise NoSuchRoute(f"{_NO_FILE}: {error}") from None
    if len(data) > MAX_CONFIG_TEXT_BYTES:
        raise NoSuchRoute(f"{path} is too long to be shown here (over {MAX_CONFIG_TEXT_BYTES >> 20} MiB)")
    return data


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadConfiguration(f"the file is not UTF-8 text (byte {error.start}): save it as UTF-8") from None


def _new_text(data: Mapping[str, Any]) -> str:
    new = data.get("text")
    if not isinstance(new, str):
        raise BadRequest('"text" must be the text of the configuration')
    try:
        size = len(new.encode())
    except UnicodeEncodeError:
        raise BadRequest('"text" has half a character in it, which no file can hold') from None
    if size > MAX_CONFIG_TEXT_BYTES:
        raise BadRequest(f'"text" is too long: a configuration has at most {MAX_CONFIG_TEXT_BYTES >> 20} MiB')
    return new


def _visible(config: str, is_whole: bool) -> str:
    return config if is_whole else masked_config(config)


# In threads: these read files and compare texts.


def _checked(before: str, new: str, may_edit: bool) -> Mapping[str, Any]:
    """Return what is wrong with a text, and what is different in it."""
    environment = Environment()
    problems: Sequence[Problem] = ()
    more = 0
    warned: Sequence[tuple[str, str]] = ()
    try:
        config: Config = parse_config(new, environment=environment)
    except ConfigError as error:
        problems, more = problems_of(error, new), error.more
    else:
        warned = [(place, environment.masked(words)) for place, words in warnings(config)]
    doubts = ConfigError("", warned)
    return {
        "problems": [attrs.asdict(problem) for problem in problems],
        "more_problems": more,
        "warnings": [attrs.asdict(warning) for warning in problems_of(doubts, new)],
        "more_warnings": doubts.more,
        "diff": _diff(_visible(before, may_edit), _visible(new, may_edit)),
    }


def _diff(before: str, after: str) -> str:
    old, new = before.splitlines(), after.splitlines()
    if _pairs(old, new) > _MOST_PAIRS:
        # Which of the many equal lines belong together would take minutes to find out.
        return "\n".join(
            ("--- engines.toml", "+++ new", *(f"-{line}" for line in old), *(f"+{line}" for line in new))
        )
    return "\n".join(difflib.unified_diff(old, new, "engines.toml", "new", lineterm="", n=_CONTEXT_LINES))


def _pairs(old: Sequence[str], new: Sequence[str]) -> int:
    """Return how many pairs of equal lines a comparison looks at, again and again. Lines that are everywhere it ignores."""
    most = math.inf if len(new) < _FEW_LINES else len(new) // 100 + 1
    counted = Counter(new)
    return sum(count * counted[line] for line, count in Counter(old).items() if counted[line] <= most)


def _saved(path: Path, new: str, before: str) -> Path | None:
    """Write the file; return where its former text is.

    Raises:
        BadConfiguration: the text has faults, or cannot be written; nothing was changed.
    """
    try:
        return write(path, new, may_replace=True, before=before).backup
    except ConfigError as error:
        raise BadConfiguration(str(error)) from None


def add_configuration(app: QuartTrio, router: Router) -> None:
    """Add the routes."""
    routes = ConfigurationRoutes(router)
    for method, path, view in (
        ("GET", "", routes.config),
        ("PUT", "", routes.save),
        ("POST", "/check", routes.check),
        ("GET", "/schema", routes.schema),
    ):
        app.add_url_rule(f"/admin/config{path}", f"configuration {view.__name__}", view, methods=[method])
