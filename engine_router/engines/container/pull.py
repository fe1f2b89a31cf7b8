"""The pull of an image, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import trio
from attrs import define, field

from engine_router.engines.base import LogRing
from engine_router.engines.container.daemon import Daemon, DaemonError
from engine_router.engines.container.logins import login_for, registry_of
from engine_router.engines.readiness import dig

# Seconds after which a pull that tells nothing is given up.
SILENCE_S: Final = 600.0
_LAYERS: Final = 1000


@define(eq=False, repr=False)
class PullProgress:
    """The pull of one image.

    Attributes:
        tell: gets its progress in words.
        log: gets its beginning and its end.
    """

    image: str
    tell: Callable[[str | None], None]
    log: LogRing
    _layers: dict[str, tuple[int, int]] = field(factory=dict)
    _scope: trio.CancelScope = field(factory=trio.CancelScope)

    async def pull(self, daemon: Daemon) -> None:
        """Pull the image.

        Raises:
            DaemonError: it cannot be pulled, or nothing was heard for `SILENCE_S`.
        """
        self.log.write(f"[engine-router] pulling {self.image}")
        self.tell(f"pulling {self.image}")
        self._scope.deadline = trio.current_time() + SILENCE_S
        login = await trio.to_thread.run_sync(login_for, self.image, abandon_on_cancel=True)
        try:
            with self._scope:
                await daemon.pull(self.image, self._note, login.header)
        except DaemonError as error:
            if not login.helper:
                raise
            raise DaemonError(
                f"{error}; the login at {registry_of(self.image)} is with {login.helper}, which is not run: "
                f"pull {self.image} by hand",
                error.status,
            ) from error
        if self._scope.cancelled_caught:
            raise DaemonError(f"nothing was heard of the pull of {self.image} for {SILENCE_S:g} s")
        self.log.write(f"[engine-router] pulled {self.image}")
        self.tell(None)

    def _note(self, entry: Mapping[str, Any]) -> None:
        self._scope.deadline = trio.current_time() + SILENCE_S
        layer, current, total = (
            entry.get("id"),
            dig(entry, "progressDetail.current"),
            dig(entry, "progressDetail.total"),
        )
        if not isinstance(layer, str) or len(self._layers) >= _LAYERS:
            return
        if entry.get("status") == "Downloading" and isinstance(current, int) and isinstance(total, int):
            self._layers[layer] = (current, total)
        elif layer in self._layers and entry.get("status") in ("Download complete", "Pull complete"):
            self._layers[layer] = (self._layers[layer][1],) * 2
        got, whole = (sum(pair[index] for pair in self._layers.values()) for index in (0, 1))
        if whole:
            self.tell(f"pulling {self.image}: {got / 1e9:.1f} of {whole / 1e9:.1f} GB")
