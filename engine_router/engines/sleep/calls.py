"""The HTTP calls that put a server to sleep, wake it, and tell whether it sleeps.

They are known for vLLM and SGLang, and configuration for others. As with loads and unloads, asking is not doing:
where a server tells whether it sleeps, only that counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import trio
from attrs import frozen

from engine_router.config import SleepConfig
from engine_router.engines.backoff import Backoff
from engine_router.engines.readiness import Check
from engine_router.engines.remote.answers import fill
from engine_router.engines.remote.client import BadAnswer, EngineClient
from engine_router.errors import EngineError


class SleepFailed(EngineError):
    """An error for a server that cannot be put to sleep or woken. It is stopped instead; no client sees this."""


@frozen
class SleepCall:
    """One of the calls that put a server to sleep or wake it.

    Attributes:
        insists: it is repeated while the server says that it is busy.
    """

    method: str
    path: str
    body: Any = None
    insists: bool = False
    headers: Mapping[str, str] = {}


@frozen
class SleepPlan:
    """The calls for one kind of server.

    Attributes:
        remedy: what to do where the server does not know these calls.
    """

    sleep: tuple[SleepCall, ...]
    wake: tuple[SleepCall, ...]
    asleep_path: str | None
    asleep_check: Check
    remedy: str


_VLLM_CHECK: Final = Check("is_sleeping==true")
_VLLM_REMEDY: Final = "start vLLM with --enable-sleep-mode and with VLLM_SERVER_DEV_MODE=1 in its environment"
_SGLANG_REMEDY: Final = "start SGLang with --enable-memory-saver and --enable-weights-cpu-backup"


def plan_of(config: SleepConfig) -> SleepPlan:
    """Return the calls that a configuration means."""
    match config.kind:
        case "vllm":
            # Level and tags are query parameters. After level 2 the memory of the weights is there again but
            # empty: they are read anew before the cache takes the rest of the memory.
            refill = (
                SleepCall("POST", "/wake_up?tags=weights"),
                SleepCall("POST", "/collective_rpc", {"method": "reload_weights"}),
                SleepCall("POST", "/wake_up?tags=kv_cache"),
                SleepCall("POST", "/reset_prefix_cache"),
            )
            wake = (SleepCall("POST", "/wake_up"),) if config.level == 1 else refill
            sleep = (SleepCall("POST", f"/sleep?level={config.level}"),)
            return SleepPlan(sleep, wake, "/is_sleeping", _VLLM_CHECK, _VLLM_REMEDY)
        case "sglang":
            # To release while something is generated takes the whole server down (an assertion in its
            # scheduler), and what a client left behind is not aborted at once. To flush is refused until then.
            flush = SleepCall("POST", "/flush_cache", insists=True)
            release = SleepCall("POST", "/release_memory_occupation", {})
            resume = SleepCall("POST", "/resume_memory_occupation", {})
            return SleepPlan((flush, release), (resume,), None, _VLLM_CHECK, _SGLANG_REMEDY)
        case "custom":
            return SleepPlan(
                (SleepCall(config.method, config.path or "/", config.body),),
                tuple(
                    SleepCall(call.method, call.path, call.body, headers=call.headers) for call in config.wake
                ),
                config.asleep_path,
                Check(config.asleep_check),
                "check its sleep in engines.toml",
            )


class SleepClient:
    """The client that puts one server to sleep and wakes it.

    Args:
        values: what is filled in for `{model}` in the calls.
    """

    def __init__(self, server: EngineClient, config: SleepConfig, values: Mapping[str, str]) -> None:
        self._server = server
        self._config = config
        self._values = values
        self._plan = plan_of(config)

    async def fall_asleep(self) -> None:
        """Put it to sleep, and see that it sleeps, within `sleep.timeout_s`.

        Raises:
            SleepFailed: it may be awake, asleep or in between.

        Cancellation leaves it in between, too.
        """
        timeout_s = self._config.timeout_s
        with trio.move_on_after(timeout_s):
            await self._perform(self._plan.sleep, "fall asleep")
            await self._until(asleep=True)
            return
        raise SleepFailed(self._server.name, f"did not fall asleep within {timeout_s:g} s (sleep.timeout_s)")

    async def wake(self) -> None:
        """Wake it, and see that it is awake; whoever has woken it already has saved the work.

        Not bounded in time: the caller does that.

        Raises:
            SleepFailed: it may be awake, asleep or in between.

        Cancellation leaves it in between, too.
        """
        if await self.is_asleep() is False:
            return
        await self._perform(self._plan.wake, "wake up")
        await self._until(asleep=False)

    async def is_asleep(self) -> bool | None:
        """Ask whether it sleeps; None where it does not tell."""
        if self._plan.asleep_path is None:
            return None
        try:
            answer = await self._server.call("GET", self._plan.asleep_path, headers=self._config.headers)
        except EngineError:
            return None
        if not answer.ok:
            return None
        return self._plan.asleep_check.verdict(answer.status, answer.body) is None

    async def _perform(self, calls: Sequence[SleepCall], what: str) -> None:
        for call in calls:
            try:
                await self._call(call)
            except EngineError as error:
                knows = not isinstance(error, BadAnswer) or error.answer_status not in (404, 405)
                remedy = "" if knows else f"; {self._plan.remedy}"
                raise SleepFailed(self._server.name, f"could not {what}: {error.summary}{remedy}") from error

    async def _call(self, call: SleepCall) -> None:
        backoff = Backoff()
        while True:
            answer = await self._server.call(
                call.method,
                fill(call.path, {key: quote(value, safe="") for key, value in self._values.items()}),
                body=fill(call.body, self._values),
                headers={**self._config.headers, **call.headers},
                timeout_s=math.inf,
            )
            if answer.good:
                return
            refusal = self._server.refusal(f"{call.method} {call.path}", answer)
            if not call.insists or answer.status in (401, 403, 404, 405):
                raise refusal
            await backoff.pause()

    async def _until(self, *, asleep: bool) -> None:
        """Wait until it says so itself, where it tells."""
        backoff = Backoff()
        while await self.is_asleep() is (not asleep):
            await backoff.pause()
