"""A Kubernetes API server with one workload, as the API concepts and the reference of its objects describe it.

The workload's Service is the same server: GET /health answers 200 while a Pod is ready.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any
from urllib.parse import parse_qs

import trio

from support.scripted.server import Answer, Call, Json, ScriptedServer, as_json

# How Pods are selected. A LeaderWorkerSet's scale selects the leaders; its workers have the first of their two labels, too.
SELECTOR = "app=vllm"
GROUP = "leaderworkerset.sigs.k8s.io/name=vllm"
LEADERS = f"{GROUP},leaderworkerset.sigs.k8s.io/worker-index=0"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/models/leases"
PODS = "/api/v1/namespaces/models/pods"
PLURALS = {
    "deployment": ("apps/v1", "deployments"),
    "statefulset": ("apps/v1", "statefulsets"),
    "leaderworkerset": ("leaderworkerset.x-k8s.io/v1", "leaderworkersets"),
}


def waiting(reason: str, message: str = "", *, restarts: int = 0, ended: Json | None = None) -> Json:
    """Return the status of a Pod whose container waits."""
    state = {
        "name": "vllm",
        "restartCount": restarts,
        "state": {"waiting": {"reason": reason, "message": message}},
    }
    if ended is not None:
        state["lastState"] = {"terminated": ended}
    return {"phase": "Pending", "conditions": [], "containerStatuses": [state]}


def unschedulable(message: str) -> Json:
    """Return the status of a Pod that no node can take."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [condition]}


def failed_to_create(creator: str, message: str, at: str = "2999-01-01T00:00:00Z") -> Json:
    """Return an event of what creates Pods, which is a ReplicaSet where the workload is a Deployment.

    Args:
        creator: its kind and its name.
    """
    kind, _, name = creator.partition("/")
    involved = {"kind": kind, "name": name}
    return {"reason": "FailedCreate", "involvedObject": involved, "message": message, "lastTimestamp": at}


READY: Json = {
    "phase": "Running",
    "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}],
    "containerStatuses": [{"name": "vllm", "restartCount": 0, "state": {"running": {}}}],
}


def status_of(code: int, message: str, **headers: str) -> Answer:
    """Answer with a `Status` object."""
    body = {"kind": "Status", "status": "Failure", "message": message, "code": code}
    return Answer(code, json.dumps(body).encode(), headers=tuple(headers.items()))


class ScriptedCluster(ScriptedServer):
    """An API server, and the controller of one workload.

    Attributes:
        replicas: how often the workload is wanted.
        become: the statuses that a new Pod goes through, one after the other; READY at the end as a rule.
        pods: by name.
        refusals: answers to calls of a kind (scale, patch, pods, watch, events, log), each used once.
        lines: what a container has written.
        events: of what creates Pods, and of anything else; see `failed_to_create`.
        leases: by name.
        is_stuck: Pods do not go.
        is_deleted: there is no such workload any more.
        ends_watches: a watch ends after so many events.
    """

    def __init__(self, kind: str = "deployment", *, replicas: int = 0) -> None:
        super().__init__("m")
        group, plural = PLURALS[kind]
        self.path = f"/apis/{group}/namespaces/models/{plural}/vllm"
        self.told, self.selector = (LEADERS, GROUP) if kind == "leaderworkerset" else (SELECTOR, SELECTOR)
        self.replicas = 0
        self.become: list[Json] = [READY]
        self.pods: dict[str, Json] = {}
        self.refusals: dict[str, list[Answer]] = {}
        self.lines: list[str] = []
        self.events: list[Json] = []
        self.leases: dict[str, Json] = {}
        self.is_stuck = False
        self.is_deleted = False
        self.creates = True
        self.ends_watches = 10**9
        self.compacted = 0
        self._version = 10
        self._history: list[tuple[int, str, Json]] = []
        self._news = trio.Event()
        self._made = 0
        if replicas:
            self.wanted(replicas)

    # The controller.

    def wanted(self, replicas: int) -> None:
        """Scale the workload, as anybody may."""
        self.replicas = replicas
        if replicas and not self._living() and self.creates:
            self._made += 1
            name = f"vllm-{self._made}"
            self.pods[name] = {
                "metadata": {"name": name, "uid": f"uid-{self._made}", "labels": {"app": "vllm"}},
                "status": copy.deepcopy(self.become[0]),
            }
            self._tell("ADDED", name)
            if len(self.become) > 1 and self._nursery is not None:
                self._nursery.start_soon(self._develop, name, self.become[1:])
        if not replicas:
            for name in self._living():
                self.pods[name]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
                self._tell("MODIFIED", name)
                if not self.is_stuck:
                    self._later(0.01, functools.partial(self.vanish, name))

    def change(self, name: str, status: Json) -> None:
        """Have a Pod be otherwise."""
        if name in self.pods:
            self.pods[name]["status"] = copy.deepcopy(status)
            self._tell("MODIFIED", name)

    def vanish(self, name: str) -> None:
        """Have a Pod be gone."""
        if name in self.pods:
            self._tell("DELETED", name)
            del self.pods[name]

    def bookmark(self) -> None:
        """Tell watchers which version there is."""
        self._version += 1
        self._note("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": str(self._version)}})

    async def _develop(self, name: str, statuses: list[Json]) -> None:
        for status in statuses:
            await trio.sleep(0.01)
            self.change(name, status)

    def _living(self) -> list[str]:
        return [name for name, pod in self.pods.items() if "deletionTimestamp" not in pod["metadata"]]

    def _tell(self, kind: str, name: str) -> None:
        self._version += 1
        self.pods[name]["metadata"]["resourceVersion"] = str(self._version)
        self._note(kind, copy.deepcopy(self.pods[name]))

    def _note(self, kind: str, found: Json) -> None:
        self._history.append((self._version, kind, found))
        self._news.set()
        self._news = trio.Event()

    # The API.

    async def _respond(self, call: Call) -> Answer:
        self.calls.append(call)
        if call.path == "/v1/chat/completions":
            return await self.openai_chat(call) if self.is_serving else as_json({}, 503)
        if call.path == "/v1/models":
            return await self.openai_models(call)
        kind, handler = self._route(call)
        if kind in self.script.hang:
            await trio.sleep_forever()
        if self.refusals.get(kind):
            return self.refusals[kind].pop(0)
        return handler(call)

    def _route(self, call: Call) -> tuple[str, Callable[[Call], Answer]]:  # noqa: PLR0911 - one for each route
        match (call.method, call.path):
            case ("GET", path) if path == f"{self.path}/scale":
                return "scale", self._scale
            case ("PATCH", path) if path == f"{self.path}/scale":
                return "patch", self._patch
            case ("GET", path) if path == PODS:
                return ("watch", self._watch) if "watch=1" in call.query else ("pods", self._pods)
            case ("GET", "/api/v1/namespaces/models/events"):
                return "events", self._events
            case ("GET", path) if path.endswith("/log"):
                return "log", lambda _call: Answer(200, "\n".join(self.lines).encode(), "text/plain")
            case (_, path) if path.startswith(LEASES):
                return "lease", self._lease
            case ("GET", "/health"):
                return "health", lambda _call: as_json({}, 200 if self.is_serving else 503)
        return "unknown", lambda call: status_of(404, f"the server could not find {call.path}")

    @property
    def is_serving(self) -> bool:
        """True while a Pod is ready."""
        return any(
            {"type": "Ready", "status": "True"} in self.pods[name]["status"]["conditions"]
            for name in self._living()
        )

    def _lease(self, call: Call) -> Answer:
        """Answer as the API does: a change counts only if nothing has changed since it was read."""
        name = call.path.removeprefix(LEASES).strip("/") or call.body["metadata"]["name"]
        found = self.leases.get(name)
        if call.method == "GET":
            return status_of(404, f"leases {name} not found") if found is None else as_json(found)
        version = call.body["metadata"].get("resourceVersion")
        if (call.method == "POST") != (found is None) or (
            found is not None and version != found["metadata"]["resourceVersion"]
        ):
            return status_of(409, "the object has been modified")
        self._version += 1
        self.leases[name] = copy.deepcopy(call.body)
        self.leases[name]["metadata"]["resourceVersion"] = str(self._version)
        return as_json(self.leases[name])

    def _events(self, call: Call) -> Answer:
        (selector,) = parse_qs(call.query)["fieldSelector"]
        reason, kind = (word.partition("=")[2] for word in selector.split(","))
        found = [
            event
            for event in self.events
            if (event["reason"], event["involvedObject"]["kind"]) == (reason, kind)
        ]
        return as_json({"items": found})

    def _scale(self, _call: Call) -> Answer:
        status = {"replicas": len(self.pods), "selector": self.told}
        if self.is_deleted:
            return status_of(404, f"{self.path} not found")
        spec = {"replicas": self.replicas} if self.replicas else {}  # as a real one has it
        return as_json({"kind": "Scale", "spec": spec, "status": status})

    def _patch(self, call: Call) -> Answer:
        assert call.headers["content-type"] == "application/merge-patch+json"
        self.wanted(call.body["spec"]["replicas"])
        return self._scale(call)

    def _pods(self, call: Call) -> Answer:
        assert parse_qs(call.query)["labelSelector"] == [self.selector]
        return as_json(
            {"metadata": {"resourceVersion": str(self._version)}, "items": list(self.pods.values())}
        )

    def _watch(self, call: Call) -> Answer:
        query: dict[str, Any] = parse_qs(call.query)
        assert query["allowWatchBookmarks"] == ["true"]
        since = int(query["resourceVersion"][0])
        if since < self.compacted:
            gone = {"kind": "Status", "code": 410, "message": "too old resource version"}
            return Answer(200, json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
        return Answer(pieces=self._changes(since))

    async def _changes(self, since: int) -> AsyncGenerator[bytes, None]:
        told = 0
        while True:
            news = self._news
            for version, kind, found in list(self._history):
                if version > since:
                    since, told = version, told + 1
                    line = json.dumps({"type": kind, "object": found}).encode() + b"\n"
                    yield line[:7]  # in pieces, as a network has them
                    yield line[7:]
                    if told >= self.ends_watches:
                        return
            await news.wait()
