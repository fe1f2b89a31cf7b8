"""`[[tenants]]`: other programs that share a memory with the engines, and how each is asked to give up its part."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from attrs import frozen

from engine_router.config.faults import Fault, close
from engine_router.config.kinds import (
    Argv,
    Deadline,
    HeaderValue,
    JsonValue,
    Name,
    OneOrMore,
    RemoteUrl,
    Seconds,
)
from engine_router.config.options import option, required, table
from engine_router.config.values import shown


@frozen(kw_only=True, repr=False)
class TenantConfig:
    """An entry of `[[tenants]]`: a program that shares a memory with the engines."""

    name: Name = required("What to call it, in messages.")
    pool: Name = option("default", "Pool whose memory it shares.")
    process: OneOrMore | None = option(
        None,
        "Its process, with * and ? as wildcards, compared with the name and with the command line, such as "
        '"*ComfyUI*"; one, or a list. It is asked only while such a process holds memory. Absent: it is always asked.',
    )
    url: RemoteUrl | None = option(
        None, "Where it is asked to free memory, such as http://127.0.0.1:8188/free for ComfyUI."
    )
    method: Literal["POST", "GET", "PUT", "DELETE"] = option("POST", "HTTP method of that request.")
    body: Mapping[str, JsonValue] = table(
        dict,
        "JSON body of that request, such as { unload_models = true, free_memory = true }; none when empty.",
    )
    headers: Mapping[str, HeaderValue] = table(dict, "Headers of that request.")
    command: Argv | None = option(
        None, "Command that makes it free memory, in place of url; it has to end with status 0."
    )
    timeout_s: Deadline = option(
        30.0, "Seconds that it may take to answer, and the same again until its memory has come back."
    )
    ask_every_s: Seconds = option(60.0, "Seconds between two times that it is asked, at least.")

    @property
    def can_be_asked(self) -> bool:
        """Whether there is a way to ask it."""
        return self.url is not None or self.command is not None

    def is_process(self, name: str, command: str) -> bool:
        """Tell whether a process is this program.

        >>> comfy = TenantConfig(name="ComfyUI", process=("*comfyui/main.py*",))
        >>> comfy.is_process("python", "python /opt/ComfyUI/main.py --listen"), comfy.is_process("python", "python")
        (True, False)
        """
        texts = (name.lower(), command.lower())
        return any(fnmatchcase(text, pattern.lower()) for pattern in self.process or () for text in texts)


def tenant_faults(tenants: Sequence[TenantConfig | None], pools: Collection[str]) -> Iterator[Fault]:
    """Yield what is wrong with tenants.

    Args:
        tenants: those of the file, in its order; None in the place of one that could not be read.
        pools: the names of all pools.
    """
    names = set[str]()
    for index, tenant in enumerate(tenants):
        if tenant is None:
            continue
        path = f"tenants[{index}]"
        if tenant.name in names:
            yield (
                f"{path}.name",
                f"{shown(tenant.name)} is the name of an earlier tenant; each needs one of its own",
            )
        names.add(tenant.name)
        yield from _tenant_faults(tenant, path, pools)


def _tenant_faults(tenant: TenantConfig, path: str, pools: Collection[str]) -> Iterator[Fault]:
    if tenant.pool not in pools:
        near = close(tenant.pool, list(pools))
        hint = f"; did you mean {shown(near)}?" if near else "; declare it as [pools.NAME]"
        yield f"{path}.pool", f"no pool is called {shown(tenant.pool)}{hint}"
    if tenant.url is not None and tenant.command is not None:
        yield f"{path}.command", "not allowed together with url; give one way to ask it"
    if not tenant.can_be_asked and tenant.process is None:
        yield (
            path,
            "says neither what it is nor how to ask it; give url or command, or process to have it named",
        )
    if tenant.url is None:
        for key, value in (("body", tenant.body), ("headers", tenant.headers)):
            if value:
                yield f"{path}.{key}", "means something together with url only"
