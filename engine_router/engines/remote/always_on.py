"""Engines of type `remote`: servers that are always on, of which nothing is in the memory here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from engine_router.config import RemoteConfig
from engine_router.engines.base import Ended, Endpoint, ResidentId, Supervision
from engine_router.engines.remote.circuit import CircuitBreaker
from engine_router.engines.remote.client import EngineClient
from engine_router.engines.remote.remote_engine import RemoteEngine
from engine_router.upstream.address import RemoteAddress
from engine_router.upstream.connect import NotAccepted, dial_within
from engine_router.upstream.control_client import ControlClient

LIST_S: Final = 300.0
"""Seconds for which a list of models is believed: what others run is asked seldom."""


class AlwaysOnEngine(RemoteEngine[RemoteConfig]):
    """A server that runs by itself, for all that the router does: one resident, which needs no memory and never ends.

    Attributes:
        list_s: seconds for which a list of models is believed.
    """

    list_s = LIST_S

    def __init__(self, name: str, config: RemoteConfig, client: ControlClient) -> None:
        super().__init__(name, config, client)
        self.address = RemoteAddress.of(config)
        self.server = EngineClient(name, config, self.address.origin, client, ca_file=self.address.ca_file)
        self._listed: tuple[str, ...] | None = None
        self._listed_at = 0.0

    def resident_of(self, model: str) -> ResidentId:  # noqa: ARG002 - one server has them all
        """Return the resident that stands for the server; see `Engine.resident_of`."""
        return ResidentId(self.name)

    async def run_resident(
        self,
        resident: ResidentId,  # noqa: ARG002 - there is one
        supervision: Supervision,
        *,
        adopt: bool = False,  # noqa: ARG002 - it runs already
    ) -> Ended:
        """Watch over the server until asked to let it go; see `Engine.run_resident`. It is ready at once.

        Cancellation leaves it as it is.
        """
        supervision.ready(Endpoint(self.address.origin, is_lasting=True))
        circuit = CircuitBreaker(self.name, self.log, self.fault)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(circuit.run, supervision)
            await supervision.stop_asked.wait()
            nursery.cancel_scope.cancel()
        return Ended(stopped=True, message="let go")

    async def check(self, resident: ResidentId, *, used: bool = False) -> str | None:  # noqa: ARG002 - see below
        """Return None: it is looked at where a request finds something wrong."""
        await trio.lowlevel.checkpoint()
        return None

    async def obstacle(self, resident: ResidentId) -> str | None:  # noqa: ARG002 - it need not start
        """Return None; see `Engine.obstacle`."""
        await trio.lowlevel.checkpoint()
        return None

    async def find(self) -> Sequence[ResidentId]:
        """Return nothing: what is always there need not be looked for."""
        await trio.lowlevel.checkpoint()
        return ()

    async def list_models(self) -> Sequence[str] | None:
        """Return the models that it lists, as it was asked within five minutes; None when nobody listens.

        Raises:
            EngineUnreachable: it does not answer sensibly.
        """
        if self._listed is not None and trio.current_time() - self._listed_at < self.list_s:
            await trio.lowlevel.checkpoint()
            return self._listed
        path = (
            "/v1/models" if self.config.speaks("openai") or self.config.speaks("anthropic") else "/api/tags"
        )
        listed = await self.server.models(self.address.target(path))
        self._listed = None if listed is None else tuple(listed)
        self._listed_at = trio.current_time()
        return self._listed

    async def fault(self, timeout_s: float | None = None) -> str | None:
        """Make a connection and close it. Returns what was in the way; None for nothing.

        Args:
            timeout_s: seconds that it may take; `connect_timeout_s` when absent.
        """
        timeout_s = self.config.connect_timeout_s if timeout_s is None else timeout_s
        address, shown = self.address, self.config.base_url
        try:
            connection = await dial_within(timeout_s, address.origin, address.ca_file, shown=shown)
        except NotAccepted as error:
            return f"it {error}"
        connection.close()
        return None
