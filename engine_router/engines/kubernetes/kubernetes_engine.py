"""Engines of type `kubernetes`: a workload of a cluster, scaled to 1 when it is wanted and to 0 when it has to go."""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import trio

from engine_router.config import KubernetesConfig
from engine_router.engines.base import DOUBT_S, Ended, Endpoint, ResidentId, Supervision
from engine_router.engines.beside import beside
from engine_router.engines.kubernetes.access import NoAccess, find_access
from engine_router.engines.kubernetes.api import ApiError, KubernetesApi, Scale, connected, pause_after
from engine_router.engines.kubernetes.pods import Pod, PodWatch, failed_creation
from engine_router.engines.readiness import Check, ReadinessProbe
from engine_router.engines.remote.lifecycle import LOG_TAIL_LINES, ended_after_doubt, run_lifecycle
from engine_router.engines.remote.remote_engine import RemoteEngine
from engine_router.engines.warm_up import warm_up
from engine_router.errors import EngineStartFailed, EngineStopFailed, EngineUnreachable
from engine_router.upstream.control_client import ControlClient

T = TypeVar("T")

ALLOWED_RESTARTS: Final = 2
"""A Pod whose containers were restarted this often during its start is given up; Kubernetes would go on for ever."""
# Seconds between two looks at what no watch tells: the probe, and the events of a workload.
_LOOK_S: Final = 0.25
_EVENTS_S: Final = 2.0


class _WorkloadAbsent(EngineUnreachable):
    """The cluster has no such workload."""


class KubernetesEngine(RemoteEngine[KubernetesConfig]):
    """A workload of a cluster; implements `engines.base.Engine`.

    It is the resident, whichever model it serves. The router scales it, and never creates or deletes anything.

    Args:
        outlasts: it goes on when the router ends: another one leads then, and takes it over.
    """

    def __init__(
        self, name: str, config: KubernetesConfig, client: ControlClient, *, outlasts: bool = False
    ) -> None:
        super().__init__(name, config, client)
        self.outlasts = outlasts
        self._client = client
        self._api: KubernetesApi | None = None
        self._connecting = trio.Lock()

    def __repr__(self) -> str:
        return f"<KubernetesEngine {self.name}: {self.config.workload}>"

    def resident_of(self, model: str) -> ResidentId:  # noqa: ARG002 - it serves the same models always
        """Return the workload: the resident of all its models."""
        return ResidentId(self.name)

    async def api(self) -> KubernetesApi:
        """Return the cluster's API.

        Raises:
            EngineUnreachable: it is not known where the cluster is, or who the router is there.
        """
        async with self._connecting:
            if self._api is None:
                try:
                    access = await trio.to_thread.run_sync(
                        find_access, self.config.kubeconfig, self.config.context
                    )
                    self._api = await connected(access)
                except NoAccess as error:
                    raise EngineUnreachable(self.name, f"cannot be scaled: {error}") from None
        return self._api

    def probe(self) -> ReadinessProbe:
        """Return the test of the workload's readiness, at its Service."""
        url = self.config.base_url + self.config.ready_path
        return ReadinessProbe(self._client, url, Check(self.config.ready_check), self.config.headers)

    async def scale(self) -> Scale:
        """Ask how the workload is scaled.

        Raises:
            EngineUnreachable: that cannot be told.
        """
        api = await self.api()
        try:
            return await api.scale(self.config.kind, self.namespace(api), self.config.workload_name)
        except ApiError as error:
            raise self.refused("looked at", error) from error

    def refused(self, what: str, error: ApiError) -> EngineUnreachable:
        """Return the error of a call by which the workload should have been looked at, or scaled."""
        kind = _WorkloadAbsent if error.status == 404 else EngineUnreachable
        return kind(self.name, f"cannot be {what}: {error}")

    def namespace(self, api: KubernetesApi) -> str:
        """Return the workload's namespace."""
        return self.config.namespace or api.access.namespace

    async def run_resident(
        self, resident: ResidentId, supervision: Supervision, *, adopt: bool = False
    ) -> Ended:
        """Scale the workload to 1, stay with it, scale it to 0; see `Engine.run_resident`.

        Cancellation leaves the workload as it is.
        """
        return await run_lifecycle(_Workload(self, resident, supervision), supervision, adopt=adopt)

    async def check(self, resident: ResidentId, *, used: bool = False) -> str | None:  # noqa: ARG002 - it does not matter
        """Look whether the workload is wanted, and ask it again what was asked before it was ready; see `Engine.check`.

        Raises:
            EngineUnreachable: the cluster cannot be asked.
        """
        try:
            scale = await self.scale()
        except _WorkloadAbsent as error:
            return error.summary
        if scale.replicas == 0:
            return f"is down: {self.config.workload} is scaled to 0"
        return await self.probe().look()

    async def obstacle(self, resident: ResidentId) -> str | None:  # noqa: ARG002 - there is one
        """Say so where the cluster cannot be asked, or has no such workload; see `Engine.obstacle`."""
        try:
            await self.scale()
        except EngineUnreachable as error:
            return error.summary
        return None

    async def find(self) -> Sequence[ResidentId]:
        """Return the workload if it is wanted, or has Pods still: they hold memory.

        Raises:
            EngineUnreachable: the cluster cannot be asked.
        """
        scale = await self.scale()
        if scale.replicas == 0:
            api = await self.api()
            try:
                pods, _ = await api.pods(self.namespace(api), scale.selector)
            except ApiError as error:
                raise self.refused("looked at", error) from error
            if not pods:
                return []
        return [ResidentId(self.name)]


class _Workload:
    """The lifecycle of the workload; the steps are described at `RemoteLifecycle`."""

    def __init__(self, engine: KubernetesEngine, resident: ResidentId, supervision: Supervision) -> None:
        self.name, self.config, self.log = engine.name, engine.config, engine.logs.of(resident)
        self.engine = engine
        self.supervision = supervision
        self.probe = engine.probe()
        self.began = False
        self._selector = ""
        self._seen = ""
        self._shown: set[str] = set()

    @property
    def obstacle(self) -> str:
        return self._seen

    async def start(self) -> Endpoint:
        # Tells what is wrong before anything is changed, and at once: somebody else may serve the request.
        self._selector = (await self.engine.scale()).selector
        began_at = dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.began = True  # also where this is cancelled: the call may have been heard
        self.log.write(f"scaling {self.config.workload} to 1")
        await self._set_scale(1)
        endpoint = await self._watched(lambda watch: self._until_ready(watch, began_at))
        model = next(iter(self.config.models), "")
        seen: list[str] = []
        await warm_up(self.engine.server, self.config.warm_up, model, seen)
        self.supervision.tell(None)
        return endpoint

    async def adopt(self) -> Endpoint | Ended:
        self.began = True
        scale = await self.engine.scale()
        self._selector = scale.selector
        if scale.replicas == 0:
            message = f"is down: {self.config.workload} is scaled to 0"
            # Its last Pods may still be on their way out, with their memory.
            return Ended(stopped=False, message=f"{message}; {await self.end(aborted=False)}")
        endpoint = await self._watched(lambda watch: self._until_ready(watch, ""))
        self.supervision.tell(None)
        return endpoint

    async def gone(self) -> str | None:
        return await ended_after_doubt(self, self._look_again)

    async def end(self, *, aborted: bool) -> str:  # noqa: ARG002 - the cluster knows all that belongs to it
        if self.engine.outlasts and self.supervision.is_last:
            return f"{self.config.workload} goes on, for the router that leads next"
        timeout_s = self.config.stop_timeout_s
        self.log.write(f"scaling {self.config.workload} to 0")
        with trio.move_on_after(timeout_s):
            try:
                self._selector = (await self._scale()).selector
                if not self._selector:
                    return f"there is no {self.config.workload}"
                await self._watched(self._until_no_pod)
            except EngineUnreachable as error:
                raise EngineStopFailed(self.name, f"cannot be stopped: it {error.summary}") from error
            return f"{self.config.workload} is scaled to 0, and its Pods are gone"
        raise EngineStopFailed(
            self.name,
            f"did not stop within {timeout_s:g} s (stop_timeout_s in engines.toml): {self._seen or 'the cluster is silent'}; "
            "compare it with terminationGracePeriodSeconds of its Pods",
        )

    # What the steps are made of.

    async def _patiently(self, what: str, call: Callable[[KubernetesApi, str], Awaitable[T]]) -> T:
        """Make a call until nothing is in its way any more that may pass, and tell what is.

        Raises:
            EngineUnreachable: no other try would do better.
        """
        api = await self.engine.api()
        while True:
            try:
                return await call(api, self.engine.namespace(api))
            except ApiError as error:
                if not error.may_pass:
                    raise self.engine.refused(what, error) from error
                if error.status != 409:  # somebody else's change, which is over
                    self._note(f"it cannot be {what}: {error}")
                await pause_after(error)

    async def _set_scale(self, replicas: int) -> None:
        kind, name = self.config.kind, self.config.workload_name
        await self._patiently("scaled", lambda api, namespace: api.set_scale(kind, namespace, name, replicas))

    async def _scale(self) -> Scale:
        """Return how the workload is scaled: to 0 where somebody has deleted it. Raises as `_patiently` does."""
        kind, name = self.config.kind, self.config.workload_name
        try:
            return await self._patiently("looked at", lambda api, namespace: api.scale(kind, namespace, name))
        except _WorkloadAbsent:
            return Scale(0, self._selector)

    async def _watched(self, work: Callable[[PodWatch], Awaitable[T]]) -> T:
        """Do some work while the workload's Pods are watched.

        Raises:
            EngineError: as the work raised it.
        """
        api = await self.engine.api()
        watch = PodWatch(api, self.engine.namespace(api), self._selector)
        return await beside(watch.run, lambda: work(watch))

    async def _until_ready(self, watch: PodWatch, began_at: str) -> Endpoint:
        """Wait until a Pod is ready and the probe passes at the Service, or until that is in vain."""
        looked_at = trio.current_time()
        while True:
            pods = [pod for pod in (watch.pods or {}).values() if not pod.is_going]
            for pod in pods:
                await self._raise_if_in_vain(pod)
            if any(pod.is_ready for pod in pods):
                obstacle = await self.probe.ask()
                if obstacle is None:
                    self.log.write(f"{self.config.workload} is ready")
                    return Endpoint(self.config.base_url, None)
                self._note(f"its probe: {obstacle}")
            else:
                self._note(watch.fault or _state_of(pods))
            if not pods and began_at and trio.current_time() - looked_at >= _EVENTS_S:
                looked_at = trio.current_time()
                await self._raise_if_not_created(began_at)
            with trio.move_on_after(_LOOK_S):
                await watch.changed()

    def _note(self, seen: str) -> None:
        """Tell what is waited for, each thing once in the log."""
        self._seen = seen
        self.supervision.tell(seen)
        if seen not in self._shown:
            self._shown.add(seen)
            self.log.write(seen)

    async def _raise_if_in_vain(self, pod: Pod) -> None:
        if not pod.is_in_vain and pod.restarts < ALLOWED_RESTARTS:
            return
        api, lines = await self.engine.api(), []
        if pod.crashed:
            try:
                lines = await api.last_lines(
                    self.engine.namespace(api),
                    pod.name,
                    pod.crashed,
                    LOG_TAIL_LINES,
                    previous=pod.restarts > 0,
                )
            except ApiError as error:
                self.log.write(f"the last lines of Pod {pod.name} cannot be had: {error}")
        for line in lines:
            self.log.write(line)
        raise EngineStartFailed(
            self.name,
            f"cannot be started: Pod {pod.name}: {pod.trouble or 'it ends again and again'}",
            log_tail=tuple(lines),
        )

    async def _raise_if_not_created(self, began_at: str) -> None:
        api = await self.engine.api()
        workload = self.config.kind, self.config.workload_name
        try:
            why = await failed_creation(api, self.engine.namespace(api), workload, began_at)
        except ApiError:
            return  # it says more than is needed
        if why is not None:
            raise EngineStartFailed(self.name, f"cannot be started: {why}")

    async def _until_no_pod(self, watch: PodWatch) -> None:
        """Scale to 0, and again where somebody else wants more, until no Pod is left. Raises as `_patiently` does."""
        is_scaled = False
        while True:
            scale = await self._scale()
            if scale.replicas > 0:
                if is_scaled:
                    self.log.write(
                        "somebody else has scaled it up again; see whether an autoscaler looks after it"
                    )
                await self._set_scale(0)
                is_scaled = True
            elif watch.pods is not None and not watch.pods and not watch.fault:
                return
            self._seen = watch.fault or f"{len(watch.pods or ())} of its Pods are left"
            with trio.move_on_after(_EVENTS_S):
                await watch.changed()

    async def _look_again(self) -> str | None:
        """Give a doubted workload a moment to show that it serves; return what has become of it otherwise."""
        reason = await self._watched(self._revived)
        try:
            replicas = (await self.engine.scale()).replicas
        except _WorkloadAbsent:
            return f"is gone: somebody else has deleted {self.config.workload}"
        if reason is not None and replicas == 0:
            return f"is down: somebody else has scaled {self.config.workload} to 0"
        return reason

    async def _revived(self, watch: PodWatch) -> str | None:
        with trio.move_on_after(DOUBT_S):
            while True:
                if any(pod.is_ready and not pod.is_going for pod in (watch.pods or {}).values()):
                    return None  # busy or hung: it is there, and holds its memory
                with trio.move_on_after(_LOOK_S):
                    await watch.changed()
        if watch.pods is None:
            return None  # nobody knows
        return f"is not ready any more: {_state_of(list(watch.pods.values()))}"


def _state_of(pods: Sequence[Pod]) -> str:
    """Return how a workload is whose Pods are not ready."""
    if not pods:
        return "it has no Pod yet"
    return "; ".join(
        f"Pod {pod.name} is {pod.trouble or ('going' if pod.is_going else 'not ready yet')}"
        for pod in pods[:3]
    )
