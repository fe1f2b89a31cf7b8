"""Files in the page cache: read ahead, or dropped, when one resident makes way for another."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import trio
from attrs import frozen

from engine_router.config import Config, KubernetesConfig, OllamaConfig, RemoteConfig
from engine_router.config.unified import is_unified
from engine_router.engines.base import ResidentId
from engine_router.memory import drop, read_ahead
from engine_router.models.weights import launch_of, weight_files
from engine_router.residency.settings import pools_of

logger = logging.getLogger(__name__)


@frozen
class Prefetch:
    """Knows each resident's files; for the supervisor, which knows who comes and who goes."""

    config: Config

    async def ahead(self, resident: ResidentId, *, is_asleep: bool) -> int:
        """Read the files of a resident that starts or is woken, where that is wanted. Returns the bytes read.

        Cancellation ends it within a slice; it is of no use any more once the resident is ready.
        """
        if not self._reads_ahead(resident) or (is_asleep and self._keeps_weights(resident)):
            return 0
        files = await trio.to_thread.run_sync(self._files, resident)
        return await read_ahead(files, sys.maxsize)

    async def behind(self, resident: ResidentId) -> None:
        """Drop the files of a resident that has stopped, where the page cache counts as used memory."""
        if self._counts_cache(resident):
            await drop(await trio.to_thread.run_sync(self._files, resident))

    def _counts_cache(self, resident: ResidentId) -> bool:
        engine = self.config.engines.get(resident.engine)
        # None: it was taken out of the configuration while somebody waited for it, or has no memory here.
        known = pools_of(self.config)
        pools = [] if engine is None else [known[name] for name in engine.memories if name in known]
        return any(is_unified(pool.unified, pool.gauge) or pool.gauge == "memfree" for pool in pools)

    def _reads_ahead(self, resident: ResidentId) -> bool:
        return _decided(self.config.scheduling.read_ahead, auto=not self._counts_cache(resident))

    def _keeps_weights(self, resident: ResidentId) -> bool:
        """Tell whether a resident that sleeps has its weights in main memory, so that its wake reads no file."""
        engine = self.config.engines.get(resident.engine)
        if isinstance(engine, (OllamaConfig, RemoteConfig, KubernetesConfig)) or engine is None:
            return False
        return engine.sleep is not None and engine.sleep.kind != "custom" and engine.sleep.level == 1

    def _files(self, resident: ResidentId) -> tuple[Path, ...]:
        """Return the files that a resident reads from the page cache, as far as its command or configuration names them.

        Blocks.
        """
        engine = self.config.engines.get(resident.engine)
        if engine is None:
            return ()
        upstream = resident.model or next(iter(engine.models), "")
        launch = launch_of(self.config, resident.engine, upstream)
        if launch.path is None or launch.direct_io:
            return ()
        try:
            return weight_files(launch.path)
        except (OSError, ValueError) as error:
            logger.debug("the files of %s cannot be found: %s", resident, error)
            return ()


def _decided(wanted: object, *, auto: bool) -> bool:
    return wanted if isinstance(wanted, bool) else auto
