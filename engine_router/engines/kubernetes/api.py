"""The calls of Kubernetes' API that the router makes. It reads, and scales; the only object of its own is a Lease.

Sources: the API concepts (watches, bookmarks, 410 Gone, 429) and the reference of autoscaling/v1 Scale.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import trio
from attrs import define, field, frozen

from engine_router.config.kubernetes import WORKLOADS
from engine_router.engines.kubernetes.access import Access
from engine_router.engines.readiness import dig
from engine_router.guards.foreign_text import one_line, output_line
from engine_router.guards.limits import LONG_LINE_BYTES
from engine_router.upstream.control_answers import UnreadableAnswer, json_or_none, read_answer
from engine_router.upstream.control_client import ControlClient
from engine_router.upstream.control_errors import CallFailed

if TYPE_CHECKING:
    import ssl

    import httpx

CALL_WITHIN_S: Final = 15.0
"""Seconds that a call may take; a watch may take as long as it likes."""
# The longest event of a watch: a Pod has some 20 kB.
_EVENT_BYTES: Final = 64 * LONG_LINE_BYTES
_MESSAGE_CHARS: Final = 400
# Seconds for which a token that was read is used: the one in a Pod is renewed an hour before its end.
_TOKEN_S: Final = 60.0
# Seconds before another try: after somebody else's change, and after a fault, unless the server says it.
_CONFLICT_S: Final = 0.1
_FAULT_S: Final = 1.0
_MOST_WAIT_S: Final = 30.0
# A LeaderWorkerSet's scale tells of the leaders alone, and workers outlast them, with their memory.
_GROUPS: Final = "leaderworkerset.sigs.k8s.io/name={}"

Json = Mapping[str, Any]


class ApiError(Exception):
    """The API server refused a call, or did not answer it.

    Attributes:
        status: of its answer; None without one.
        retry_after_s: after which it wants to be asked again.
    """

    def __init__(self, message: str, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def may_pass(self) -> bool:
        """True where another try may do better: it is busy, changed meanwhile, or was not reached."""
        return self.status is None or self.status in (409, 429) or self.status >= 500


@frozen
class Scale:
    """How often a workload is wanted, and how its Pods are selected."""

    replicas: int
    selector: str


@define(eq=False, repr=False)
class KubernetesApi:
    """A cluster's API. Every call raises `ApiError`; cancellation closes its connection."""

    access: Access
    _tls: ssl.SSLContext | None = None
    _token: str = ""
    _token_until: float = field(default=-math.inf)

    # Workloads.

    async def scale(self, kind: str, namespace: str, name: str) -> Scale:
        """Return how a workload is scaled."""
        found = await self._call("GET", self._scale_path(kind, namespace, name))
        selector = (
            _GROUPS.format(name) if kind == "leaderworkerset" else str(dig(found, "status.selector") or "")
        )
        if not selector:  # it would mean every Pod of the namespace
            raise ApiError(f"the API server does not tell how the Pods of {kind}/{name} are selected")
        return Scale(_whole(dig(found, "spec.replicas")), selector)

    async def set_scale(self, kind: str, namespace: str, name: str, replicas: int) -> None:
        """Scale a workload."""
        body = {"spec": {"replicas": replicas}}
        await self._call("PATCH", self._scale_path(kind, namespace, name), body=body)

    def _scale_path(self, kind: str, namespace: str, name: str) -> str:
        return f"/{WORKLOADS[kind].format(quote(namespace))}/{quote(name)}/scale"

    # Pods.

    async def pods(self, namespace: str, selector: str) -> tuple[list[Json], str]:
        """Return the Pods that a selector means, and the version of the list, from which it can be watched."""
        found = await self._call("GET", _pods_path(namespace), {"labelSelector": selector})
        return _items(found), str(dig(found, "metadata.resourceVersion") or "")

    async def watch_pods(
        self, namespace: str, selector: str, version: str, take: Callable[[str, Json], None]
    ) -> None:
        """Hand on what changes, until the server ends that, as it does every few minutes.

        Args:
            take: called with the kind of a change and the object; it does not wait.
        """
        query = {
            "watch": "1",
            "labelSelector": selector,
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
        }
        async with self._stream("GET", _pods_path(namespace), query) as response:
            buffer, error = bytearray(), None
            # Cancelled rather than left: httpx's generators end properly only from within.
            with trio.CancelScope() as scope:
                async for data in response.aiter_raw():
                    if error is None and (error := _take_events(buffer, data, take)) is not None:
                        scope.cancel()
            if error is not None:
                raise error

    async def pods_on(self, node: str) -> list[Json]:
        """Return the Pods of all namespaces that hold something of a node: those that have not ended."""
        selector = f"spec.nodeName={node},status.phase!=Succeeded,status.phase!=Failed"
        return _items(await self._call("GET", "/api/v1/pods", {"fieldSelector": selector}))

    async def nodes(self, selector: str) -> list[Json]:
        """Return the nodes that a selector means; all where it is empty."""
        query = {"labelSelector": selector} if selector else {}
        return _items(await self._call("GET", "/api/v1/nodes", query))

    async def events(self, namespace: str, reason: str, kind: str) -> list[Json]:
        """Return what happened for one reason to objects of one kind, such as a `ReplicaSet`."""
        query = {"fieldSelector": f"reason={reason},involvedObject.kind={kind}", "limit": "500"}
        return _items(await self._call("GET", f"/api/v1/namespaces/{quote(namespace)}/events", query))

    async def last_lines(
        self, namespace: str, pod: str, container: str, lines: int, *, previous: bool
    ) -> list[str]:
        """Return the last lines that a container wrote; `previous`: before it was restarted."""
        query = {"container": container, "tailLines": str(lines)}
        if previous:
            query["previous"] = "true"
        with trio.move_on_after(CALL_WITHIN_S):
            async with self._stream("GET", f"{_pods_path(namespace)}/{quote(pod)}/log", query) as response:
                text = (await _read(response)).decode("utf-8", "replace")
                return [output_line(line) for line in text.splitlines()[-lines:]]
        return []

    # Leases.

    async def lease(self, namespace: str, name: str) -> Json | None:
        """Return a Lease; None where there is none."""
        try:
            found = await self._call("GET", f"{_leases_path(namespace)}/{quote(name)}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return found if isinstance(found, dict) else {}

    async def put_lease(self, namespace: str, name: str, lease: Json, *, is_new: bool) -> Json:
        """Create a Lease, or replace it; refused with 409 where somebody else did that meanwhile. Return it as it is now."""
        path = _leases_path(namespace)
        if is_new:
            found = await self._call("POST", path, body=lease)
        else:
            found = await self._call("PUT", f"{path}/{quote(name)}", body=lease)
        return found if isinstance(found, dict) else {}

    # Calls.

    async def _call(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None
    ) -> Any:
        with trio.move_on_after(CALL_WITHIN_S):
            async with self._stream(method, path, query, body) as response:
                return json_or_none(await _read(response))
        raise ApiError(f"{self.access.server} did not answer within {CALL_WITHIN_S:g} s")

    @asynccontextmanager
    async def _stream(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None
    ) -> AsyncIterator[httpx.Response]:
        """Make a call; the block reads its answer, which is none of an error."""
        url = f"{self.access.server}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": "application/json, */*", "Accept-Encoding": "identity"}
        if token := await self._current_token():
            headers["Authorization"] = f"Bearer {token}"
        content = None
        if body is not None:
            headers["Content-Type"] = f"application/{'merge-patch+' if method == 'PATCH' else ''}json"
            content = json.dumps(body).encode()
        try:
            # A client of its own: one that is cancelled just when it has connected would keep that connection for ever.
            async with (
                aclosing(ControlClient(tls=self._tls)) as client,
                client.stream(
                    method, url, headers=headers, content=content, connect_timeout_s=CALL_WITHIN_S
                ) as response,
            ):
                if response.status_code >= 400:
                    raise await _refusal(method, path, response)
                yield response
        except CallFailed as error:
            words = str(error) or error.kind
            raise ApiError(f"{self.access.server} cannot be asked ({words})") from error

    async def _current_token(self) -> str:
        path = self.access.token_file
        if path is None:
            return self.access.token
        if trio.current_time() >= self._token_until:
            try:
                self._token = (await trio.Path(path).read_text("ascii")).strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ApiError(f"the token in {path} cannot be read: {error}") from None
            self._token_until = trio.current_time() + _TOKEN_S
        return self._token


async def connected(access: Access) -> KubernetesApi:
    """Return the API of a cluster.

    Raises:
        NoAccess: a certificate cannot be used.
    """
    tls = await trio.to_thread.run_sync(access.tls) if access.server.startswith("https:") else None
    return KubernetesApi(access, tls)


async def pause_after(error: ApiError) -> None:
    """Wait until a call that failed may be made again."""
    pause_s = _CONFLICT_S if error.status == 409 else _FAULT_S
    await trio.sleep(pause_s if error.retry_after_s is None else min(error.retry_after_s, _MOST_WAIT_S))


def _pods_path(namespace: str) -> str:
    return f"/api/v1/namespaces/{quote(namespace)}/pods"


def _leases_path(namespace: str) -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{quote(namespace)}/leases"


def _items(found: object) -> list[Json]:
    items = dig(found, "items")
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


async def _read(response: httpx.Response) -> bytes:
    try:
        return await read_answer(response)
    except UnreadableAnswer as error:
        raise ApiError(f"the API server answered {error}") from error


async def _refusal(method: str, path: str, response: httpx.Response) -> ApiError:
    """Return the error of an answer: the message of the `Status` in it, and what may be done."""
    status = response.status_code
    said = dig(json_or_none(await _read(response)), "message") or f"answered {method} {path} with {status}"
    words = one_line(str(said), _MESSAGE_CHARS)
    if status == 401:
        words += "; the router's token or certificate is not accepted"
    if status == 403:
        words += "; give it the rights of scripts/deploy/kubernetes/rbac.yaml"
    after = response.headers.get("retry-after", "")
    return ApiError(words, status, float(after) if after.isascii() and after.isdigit() else None)


def _take_events(buffer: bytearray, data: bytes, take: Callable[[str, Json], None]) -> ApiError | None:
    """Hand on the events of a watch that a piece of the answer completes; return its error, if one is among them."""
    buffer += data
    *lines, rest = bytes(buffer).split(b"\n")
    buffer[:] = rest
    for line in lines:
        event = json_or_none(line)
        kind, found = dig(event, "type"), dig(event, "object")
        if not isinstance(kind, str) or not isinstance(found, dict):
            continue
        if kind == "ERROR":
            code = found.get("code")
            return ApiError(
                str(found.get("message") or "the watch failed"), code if isinstance(code, int) else None
            )
        take(kind, found)
    if len(rest) > _EVENT_BYTES:
        return ApiError("the watch brought an event that is longer than any")
    return None
