"""What a unit is started with for one model: its name, its drop-in and its configuration file."""

from __future__ import annotations

from pathlib import Path

import trio
from attrs import frozen

from engine_router.config import SystemdConfig
from engine_router.config.filled import filled_settings, unit_name
from engine_router.config.template import NO_ARGUMENTS, ModelArguments, TemplateModels
from engine_router.engines.base import ResidentId
from engine_router.engines.remote.drop_in import (
    drop_in_path,
    drop_in_text,
    folder_fault,
    is_drop_in,
    remove_drop_in,
    write_drop_in,
)
from engine_router.engines.settings_file import (
    SettingsFileError,
    has_settings,
    set_values,
    settings_obstacle,
)
from engine_router.errors import EngineStartFailed


@frozen(eq=False)
class UnitFiles:
    """What one resident of a unit needs, written before its start.

    Attributes:
        config: the engine's.
        resident: the model, or the engine where it serves all of its models at once.
        models: what the models fill in.
    """

    config: SystemdConfig
    resident: ResidentId
    models: TemplateModels | None

    @property
    def _arguments(self) -> ModelArguments:
        return NO_ARGUMENTS if self.models is None else self.models.arguments(self.resident.model or "")

    @property
    def _values(self) -> dict[str, str]:
        return {} if self.resident.model is None else self._arguments.values(self.resident.model)

    @property
    def unit(self) -> str:
        """The name of the unit, an instance where the engine has one for each model."""
        return unit_name(self.config.unit, self._values)

    @property
    def path(self) -> Path:
        """Where the drop-in belongs."""
        return drop_in_path(self.config, self.unit)

    @property
    def _text(self) -> str | None:
        return drop_in_text(self.config, self._arguments, self._values)

    async def write(self) -> bool:
        """Write what the resident needs; return whether systemd has to read its files anew.

        Raises:
            EngineStartFailed: it cannot be written.
        """
        await set_values(self.resident.engine, self.config.config_file, self._values)
        text, path = self._text, self.path
        if text is None:
            return False
        try:
            return await trio.to_thread.run_sync(write_drop_in, path, text)
        except OSError as error:
            raise EngineStartFailed(
                self.resident.engine,
                f"cannot be started: its drop_in {path} cannot be written: {error.strerror or error}; "
                "let the router's user write there",
            ) from None

    async def remove(self) -> bool:
        """Take the drop-in away unless it is to stay; return whether systemd has to read its files anew.

        Raises:
            OSError: it cannot be removed.
        """
        if self.config.drop_in is None or self.config.drop_in.folder != "run":
            return False
        return await trio.to_thread.run_sync(remove_drop_in, self.path)

    async def obstacle(self) -> str | None:
        """Say what keeps a start from being prepared; None where nothing does."""
        found = await settings_obstacle(self.config.config_file, self._values)
        if found is None and self.config.drop_in is not None:
            fault = await trio.to_thread.run_sync(folder_fault, self.path, abandon_on_cancel=True)
            found = fault and f"cannot be started: its drop_in cannot be written: {fault}"
        return found

    async def are_in_place(self) -> bool:
        """Tell whether the files are as they are for this resident: then a unit that runs serves it."""
        text = self._text
        if text is not None and not await trio.to_thread.run_sync(is_drop_in, self.path, text):
            return False
        if self.config.config_file is None:
            return True
        settings = filled_settings(self.config.config_file, self._values)
        try:
            return await trio.to_thread.run_sync(has_settings, self.config.config_file, settings)
        except SettingsFileError:
            return False
