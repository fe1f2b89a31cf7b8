"""The calls by which tenants are asked to free memory: an HTTP request, or a command."""

from __future__ import annotations

from typing import Final

from attrs import frozen

from engine_router.config import TenantConfig
from engine_router.guards.commands import run_command
from engine_router.guards.foreign_text import shown
from engine_router.upstream.control_client import ControlClient
from engine_router.upstream.control_errors import CallFailed

# What is read of an answer, to say what was wrong.
_MOST_BYTES: Final = 65_536
_OK: Final = range(200, 300)


@frozen(eq=False, repr=False)
class TenantCalls:
    """Asks tenants. None of its calls ends by itself in any given time: whoever calls says how long it may take."""

    client: ControlClient

    async def ask(self, tenant: TenantConfig) -> str | None:
        """Ask a tenant to free memory. Returns what went wrong; None where it agreed.

        Cancellation closes the connection, or kills the command.
        """
        if tenant.command is not None:
            result = await run_command(tenant.command, timeout_s=tenant.timeout_s, own_session=True)
            return None if result.code == 0 else shown(result.complaint)
        if tenant.url is None:
            return "there is neither url nor command to ask it by"
        try:
            async with self.client.stream(
                tenant.method,
                tenant.url,
                headers=tenant.headers,
                json=dict(tenant.body) or None,
                connect_timeout_s=tenant.timeout_s,
            ) as response:
                said = bytearray()
                async for data in response.aiter_raw():
                    said += data
                    if len(said) > _MOST_BYTES:
                        break
                if response.status_code in _OK:
                    return None
                words = shown(said.decode("utf-8", "replace").strip()) or response.reason_phrase
                return f"{tenant.url} answered {response.status_code}: {words}"
        except CallFailed as error:
            return f"{tenant.url} cannot be reached: {error}"
