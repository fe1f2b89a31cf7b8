"""`type = "container"`: a server that Docker or Podman run, started and stopped by the router."""

from __future__ import annotations

import functools
import re
import sys
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

import trio

from engine_router.config import ContainerConfig
from engine_router.config.template import NO_ARGUMENTS
from engine_router.engines.base import ResidentId, Supervision
from engine_router.engines.container import removal
from engine_router.engines.container.creation import creation, image_of, missing_source
from engine_router.engines.container.daemon import Daemon, DaemonError
from engine_router.engines.container.ownership import ENGINE, MODEL, OWNER, Owner, leftovers
from engine_router.engines.container.pull import PullProgress
from engine_router.engines.container.running_container import RunningContainer
from engine_router.engines.container.sockets import NoSocket, find_socket
from engine_router.engines.settings_file import set_values, settings_obstacle
from engine_router.engines.started.log_file import open_log_file
from engine_router.engines.started.output import EngineOutput
from engine_router.engines.started.started_engine import StartedEngine
from engine_router.errors import EngineStartFailed, EngineUnreachable
from engine_router.guards.masking import masked_argv
from engine_router.upstream.address import address_of

T = TypeVar("T")

_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_.-]+")
_NAME_CHARS: Final = 40
# The first release of Podman that can be given GPUs by Docker's API.
_PODMAN_WITH_GPUS: Final = 5


class ContainerEngine(StartedEngine[ContainerConfig]):
    """Starts a container, watches it, and ends it. Each start makes a new one, of a name of its own."""

    _owner: Owner | None = None  # once it was asked for

    @functools.cached_property
    def _daemons(self) -> dict[str, Daemon]:
        """The daemons that were asked, by their sockets."""
        return {}

    async def obstacle(self, resident: ResidentId) -> str | None:
        """Say so where no daemon can be asked, or the image is missing and not to be pulled."""
        values = self._values(resident, 0)
        try:
            daemon = await self._daemon()
            is_missing = (
                self.config.pull == "never" and await daemon.image(image_of(self.config, values)) is None
            )
        except (NoSocket, DaemonError) as error:
            return f"cannot be started: {error}"
        if is_missing:
            return f"cannot be started: {self._no_image(image_of(self.config, values))}"
        if (missing := await self._missing_source(values)) is not None:
            return f"cannot be started: {missing}"
        return await settings_obstacle(self.config.config_file, values)

    async def _missing_source(self, values: Mapping[str, str]) -> str | None:
        """Say which folder or file to be mounted does not exist, where the daemon sees the same files."""
        if sys.platform != "linux" or (await self._this_router()).container:
            return None
        missing = await trio.to_thread.run_sync(missing_source, self.config, values, abandon_on_cancel=True)
        return None if missing is None else f"{missing}, which volumes names, does not exist"

    async def find(self) -> Sequence[ResidentId]:
        """Remove what routers that live no more have left behind. Nothing is taken over."""
        try:
            socket = await trio.to_thread.run_sync(find_socket, self.config.socket)
        except NoSocket:
            return []  # who starts one is told
        daemon = self._daemon_at(socket)
        try:
            left = await leftovers(daemon, await self._this_router())
            async with trio.open_nursery() as nursery:
                for container in left:
                    nursery.start_soon(self._remove_leftover, daemon, container)
        except DaemonError as error:
            raise EngineUnreachable(self.name, f"its containers are not known: {error}") from None
        return []

    async def _remove_leftover(self, daemon: Daemon, container: str) -> None:
        try:
            await daemon.remove(container)
        except DaemonError as error:
            if error.status in (404, 409):  # another engine of this router removes it, too
                return
            self.log.write(f"[engine-router] container {container[:12]} is left behind: {error}")
        else:
            self.log.write(f"[engine-router] removed container {container[:12]}, whose router is gone")

    async def _found(self) -> RunningContainer | None:
        await trio.lowlevel.checkpoint()
        return None

    async def _daemon(self) -> Daemon:
        """Return the daemon, which has said which version of the API it speaks.

        Raises:
            NoSocket: there is none.
            DaemonError: it does not answer.
        """
        daemon = self._daemon_at(await trio.to_thread.run_sync(find_socket, self.config.socket))
        await daemon.greet()
        return daemon

    def _daemon_at(self, socket: str) -> Daemon:
        return self._daemons.setdefault(socket, Daemon(socket))

    async def _this_router(self) -> Owner:
        if self._owner is None:
            self._owner = await trio.to_thread.run_sync(Owner.this)
        return self._owner

    # A container of our own.

    async def _start(self, resident: ResidentId, supervision: Supervision) -> RunningContainer:
        try:
            socket = await trio.to_thread.run_sync(find_socket, self.config.socket)
        except NoSocket as error:
            raise EngineStartFailed(self.name, f"cannot be started: {error}") from None
        log, file = self.logs.of(resident), await open_log_file(self.name, self.config)
        try:
            base_url, claim = self._place()
        except BaseException:
            if file is not None:
                file.close()
            raise
        name = self._name(resident)

        async def prepare(running: RunningContainer) -> None:
            await self._prepare(resident, running, supervision)

        return RunningContainer(
            engine=self.name,
            config=self.config,
            name=name,
            log=log,
            log_start=log.count,
            base_url=base_url,
            daemon=self._daemon_at(socket),
            output=EngineOutput(log, file),
            prepare=prepare,
            guard=lambda: self._guard(socket, name),
            port=claim,
        )

    def _name(self, resident: ResidentId) -> str:
        words = _NOT_IN_NAMES.sub("-", str(resident))[:_NAME_CHARS].strip("-._")
        return f"engine-router-{words or 'engine'}-{uuid.uuid4().hex[:12]}"

    def _guard(self, socket: str, name: str) -> Callable[[], None]:
        """Have a container removed when the router dies; return what is called once it is gone."""
        if self._guardian is None:
            return lambda: None
        program = [sys.executable, "-I", "-S", str(Path(removal.__file__)), socket, name]
        guardian, key = self._guardian, self._guardian.run_at_death(program)
        return lambda: guardian.forget(key)

    async def _prepare(
        self, resident: ResidentId, running: RunningContainer, supervision: Supervision
    ) -> None:
        """Have the image there, and the container made and started."""
        port = address_of(running.base_url)[1]
        values = self._values(resident, port)
        await set_values(self.name, self.config.config_file, values)
        image, daemon = image_of(self.config, values), running.daemon
        try:
            await self._in_time(daemon.greet)
            if self.config.gpus is not None and daemon.is_podman:
                self._check_podman(daemon)
            running.stop_signal = await self._image_ready(daemon, image, running, supervision)
            labels = {
                OWNER: (await self._this_router()).label(),
                ENGINE: self.name,
                MODEL: resident.model or "",
            }
            arguments = self._arguments(resident) if self._is_template else NO_ARGUMENTS
            body = creation(self.config, arguments, values, labels, is_podman=daemon.is_podman)
            if (missing := await self._missing_source(values)) is not None:
                raise EngineStartFailed(self.name, f"cannot be started: {missing}")
            supervision.tell("the container is started")
            await self._in_time(lambda: running.create(body))
        except DaemonError as error:
            hint = f"; {self._no_image(image)}" if error.is_missing else ""
            raise EngineStartFailed(self.name, f"cannot be started: {error}{hint}") from None
        supervision.tell(None)
        running.log.write(
            f"[engine-router] started container {running.name}: "
            f"{' '.join(masked_argv(self.command(resident, port)))}"
        )

    async def _in_time(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call that is part of a start."""
        limit_s = self.config.start_timeout_s
        with trio.move_on_after(limit_s):
            return await call()
        raise DaemonError(f"the daemon did not answer within {limit_s:g} s")

    def _check_podman(self, daemon: Daemon) -> None:
        release = daemon.release.partition(".")[0]
        if release.isdecimal() and int(release) < _PODMAN_WITH_GPUS:
            raise EngineStartFailed(
                self.name,
                f"cannot be started: Podman {daemon.release} gives no GPUs by its API; use Podman "
                f"{_PODMAN_WITH_GPUS}, or name /dev/nvidia0 and its kin in devices",
            )

    async def _image_ready(
        self, daemon: Daemon, image: str, running: RunningContainer, supervision: Supervision
    ) -> str:
        """Pull the image where that is wanted; return the signal that asks a container of it to end."""
        known = await self._in_time(lambda: daemon.image(image))
        if self.config.pull == "always" or (known is None and self.config.pull == "missing"):
            await PullProgress(image, supervision.tell, running.log).pull(daemon)
            known = await self._in_time(lambda: daemon.image(image))
        if known is None:
            raise EngineStartFailed(self.name, f"cannot be started: {self._no_image(image)}")
        settings = known.get("Config")
        own = settings.get("StopSignal") if isinstance(settings, dict) else None
        return self.config.stop_signal or (own if isinstance(own, str) and own else "SIGTERM")

    def _no_image(self, image: str) -> str:
        return f'image {image} is not on this machine; pull it, or set pull = "missing"'
