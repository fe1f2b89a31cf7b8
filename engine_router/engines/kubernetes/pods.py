"""The Pods of a workload: what the API tells of each, and a watch that keeps up with them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import trio
from attrs import define, field, frozen

from engine_router.engines.backoff import Backoff
from engine_router.engines.kubernetes.api import ApiError, KubernetesApi, pause_after
from engine_router.engines.readiness import dig
from engine_router.guards.foreign_text import one_line

Json = Mapping[str, Any]

# Why a container waits, where waiting longer is in vain: Kubernetes has tried more than once, or cannot try at all.
_IN_VAIN: Final = frozenset(
    (
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "CrashLoopBackOff",
    )
)
# What creates the Pods of each kind of workload, and is told about in events: its kind, and its name by the workload's.
_CREATORS: Final = {
    "deployment": ("ReplicaSet", "{}-[a-z0-9]+"),
    "statefulset": ("StatefulSet", "{}"),
    "leaderworkerset": ("StatefulSet", "{}(-[0-9]+)?"),  # of the leaders, and one of each leader's workers
}
_MESSAGE_CHARS: Final = 300
# Seconds after which a watch that ends is none that a proxy or a server ends at once, each time.
_LASTING_S: Final = 5.0


@frozen
class Pod:
    """A Pod of a workload.

    Attributes:
        is_ready: all of its readiness probes pass.
        is_going: it was told to end.
        trouble: what is in its way, in words; empty where nothing is.
        is_in_vain: it will not come to anything by waiting.
        crashed: the container that ended last and has been restarted, or is about to be; empty for none.
        restarts: how often its containers were restarted.
    """

    uid: str
    name: str
    is_ready: bool
    is_going: bool
    trouble: str = ""
    is_in_vain: bool = False
    crashed: str = ""
    restarts: int = 0

    @classmethod
    def of(cls, data: Json) -> Pod:
        """Read a Pod as the API tells it."""
        status = data.get("status")
        status = status if isinstance(status, dict) else {}
        trouble, is_in_vain = _trouble(status)
        containers = list(_containers(status))
        crashed = next((name for name, each in containers if _ended(each) is not None), "")
        return cls(
            uid=str(dig(data, "metadata.uid") or dig(data, "metadata.name")),
            name=str(dig(data, "metadata.name") or "?"),
            is_ready=_condition(status, "Ready").get("status") == "True",
            is_going=bool(dig(data, "metadata.deletionTimestamp")),
            trouble=trouble,
            is_in_vain=is_in_vain,
            crashed=crashed,
            restarts=sum(
                each["restartCount"] for _, each in containers if isinstance(each.get("restartCount"), int)
            ),
        )


def _containers(status: Json) -> Iterator[tuple[str, Json]]:
    for key in ("initContainerStatuses", "containerStatuses"):
        entries = status.get(key)
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict):
                yield str(entry.get("name") or ""), entry


def _ended(container: Json) -> Json | None:
    """Return how a container ended with an error last, where it did."""
    for place in ("state.terminated", "lastState.terminated"):
        found = dig(container, place)
        if isinstance(found, dict) and found.get("exitCode") != 0:
            return found
    return None


def _condition(status: Json, kind: str) -> Json:
    conditions = status.get("conditions")
    for condition in conditions if isinstance(conditions, list) else ():
        if isinstance(condition, dict) and condition.get("type") == kind:
            return condition
    return {}


def _trouble(status: Json) -> tuple[str, bool]:
    """Return what is in a Pod's way, and whether to wait is in vain."""
    if status.get("phase") == "Failed":  # evicted, or refused by its node
        return _words(status.get("reason") or "Failed", status.get("message")), True
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") == "False":  # more nodes may come
        return _words(scheduled.get("reason") or "Unschedulable", scheduled.get("message")), False
    found, is_in_vain = [], False
    for name, container in _containers(status):
        if (ended := _ended(container)) is not None:
            found.append(f"container {name} ended: {_end_words(ended)}")
        waiting = dig(container, "state.waiting")
        if isinstance(waiting, dict) and waiting.get("reason") not in (
            None,
            "ContainerCreating",
            "PodInitializing",
        ):
            found.append(_words(waiting["reason"], waiting.get("message")))
            is_in_vain = is_in_vain or str(waiting["reason"]) in _IN_VAIN
    return "; ".join(dict.fromkeys(found)), is_in_vain


def _end_words(ended: Json) -> str:
    if ended.get("reason") == "OOMKilled":
        return "OOMKilled: it needed more memory than its limit"
    return _words(f"exit code {ended.get('exitCode')}", ended.get("message"))


def _words(reason: object, message: object) -> str:
    said = f"{reason}: {message}" if message else str(reason)
    return one_line(said, _MESSAGE_CHARS)


async def failed_creation(
    api: KubernetesApi, namespace: str, workload: tuple[str, str], since: str
) -> str | None:
    """Return why a workload's Pods cannot even be created, such as a quota; None where they can.

    Args:
        workload: its kind, and its name.
        since: an RFC 3339 time in UTC; what was told before does not count.

    Raises:
        ApiError: that cannot be told.
    """
    kind, name = workload
    creator, pattern = _CREATORS[kind]
    is_creator = re.compile(pattern.format(re.escape(name))).fullmatch
    newest, why = since, None
    for event in await api.events(namespace, "FailedCreate", creator):
        at = str(event.get("lastTimestamp") or event.get("eventTime") or since)
        if at >= newest and is_creator(str(dig(event, "involvedObject.name") or "")):
            newest, why = at, _words("FailedCreate", event.get("message"))
    return why


@define(eq=False, repr=False)
class PodWatch:
    """The Pods that a selector means, kept up to date while `run` runs.

    Attributes:
        pods: by uid; None before they were listed.
        fault: why they are not known now; empty where they are.
    """

    _api: KubernetesApi
    _namespace: str
    _selector: str
    pods: dict[str, Pod] | None = None
    fault: str = ""
    _version: str = ""
    _has_changed: trio.Event = field(factory=trio.Event)

    async def run(self) -> None:
        """List, and watch, again and again; what fails is tried again. Cancellation ends it."""
        backoff = Backoff()
        while True:
            began = trio.current_time()
            try:
                if not self._version:
                    await self._list()
                await self._api.watch_pods(self._namespace, self._selector, self._version, self._take)
            except ApiError as error:
                self._version = ""
                if error.status != 410:  # which says that it is too old: the list has to be had anew
                    self.fault = str(error)
                    self._tell()
                    await pause_after(error)
            if trio.current_time() - began > _LASTING_S:
                backoff = Backoff()
            await backoff.pause()

    async def changed(self) -> None:
        """Wait until something has changed since this was last waited for."""
        await self._has_changed.wait()
        self._has_changed = trio.Event()

    async def _list(self) -> None:
        found, self._version = await self._api.pods(self._namespace, self._selector)
        self.pods = {pod.uid: pod for pod in map(Pod.of, found)}
        self.fault = ""
        self._tell()

    def _take(self, kind: str, data: Json) -> None:
        self._version = str(dig(data, "metadata.resourceVersion") or self._version)
        if kind == "BOOKMARK" or self.pods is None:
            return
        pod = Pod.of(data)
        if kind == "DELETED":
            self.pods.pop(pod.uid, None)
        else:
            self.pods[pod.uid] = pod
        self._tell()

    def _tell(self) -> None:
        self._has_changed.set()
