"""The tables inside of an engine's table: calls, sleep, warm-up, files and drop-ins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from attrs import frozen

from engine_router.config.kinds import (
    Argv,
    Deadline,
    HeaderValue,
    JsonValue,
    Name,
    ReadyCheck,
    SleepLevel,
    UrlPath,
    VariableValue,
)
from engine_router.config.options import option, required, table


@frozen(kw_only=True, repr=False)
class CallConfig:
    """One HTTP call that loads, unloads or wakes a model."""

    path: UrlPath = required("Path of the call. {model} and {instance} are filled in.")
    method: Literal["GET", "POST", "PUT", "DELETE"] = option("POST", "HTTP method.")
    headers: Mapping[str, HeaderValue] = table(dict, "Headers of the call, for example an admin key.")
    body: JsonValue | None = option(
        None, "JSON body; {model} and {instance} are filled in within its strings."
    )


@frozen(kw_only=True, repr=False)
class SleepConfig:
    """The calls that put an engine to sleep, instead of stopping it, and wake it again."""

    kind: Literal["vllm", "sglang", "custom"] = required(
        "vllm, sglang, or custom for the calls below. What each needs is said in engines.toml.example."
    )
    level: SleepLevel = option(
        1,
        "vLLM only. 1 parks the weights in main memory: wakes in about a second, but frees nothing where the GPU uses main "
        "memory. 2 drops them and reads them again.",
    )
    path: UrlPath | None = option(None, "custom only: path of the call that puts it to sleep.")
    method: Literal["GET", "POST", "PUT", "DELETE"] = option("POST", "custom only: HTTP method of that call.")
    headers: Mapping[str, HeaderValue] = table(dict, "Headers of all these calls, for example an admin key.")
    body: JsonValue | None = option(None, "custom only: JSON body of that call.")
    wake: tuple[CallConfig, ...] = option((), "custom only: the calls that wake it, in this order.")
    asleep_path: UrlPath | None = option(
        None, "custom only: path that tells whether it sleeps; without it, the router goes by what it did."
    )
    asleep_check: ReadyCheck = option(
        "is_sleeping==true", "custom only: what the answer is while it sleeps; as ready_check."
    )
    timeout_s: Deadline = option(60.0, "Seconds within which it must be asleep; if it is not, it is stopped.")
    verify: bool = option(
        True,
        "Ask it a short question (/v1/chat/completions, temperature 0) before its first sleep and after the wake. Where the "
        "answers differ, or there is none, it is stopped instead of put to sleep from then on.",
    )


@frozen(kw_only=True, repr=False)
class WarmUpConfig:
    """A request that has to succeed before an engine that was started counts as ready."""

    path: UrlPath = option("/v1/chat/completions", "Path that it is posted to.")
    body: JsonValue | None = option(
        None, "JSON body; {model} is filled in within its strings. A chat of one token when absent."
    )


@frozen(kw_only=True, repr=False)
class ConfigFileConfig:
    """A configuration file of the engine's own, in which a model's values are set before each start."""

    path: Name = required("The file; it has to exist. What it was before the first change stays beside it.")
    set: Mapping[str, JsonValue] = required(
        'Keys and their values, such as "model.model_name" = "{model}"; a dot leads into a table. {model}, {path}, {mmproj}, '
        "{ctx} and {port} are filled in; a value whose {mmproj} or {ctx} a model has not becomes empty."
    )
    format: Literal["yaml", "toml", "json"] | None = option(
        None, "yaml, toml or json; as the name of the file ends when absent."
    )


@frozen(kw_only=True, repr=False)
class DropInConfig:
    """Settings that are put beside the unit before each start, with a model's values; the unit itself stays as it is."""

    env: Mapping[str, VariableValue] = table(
        dict, "Environment variables of the unit; {model}, {path}, {mmproj} and {ctx} are filled in."
    )
    exec_start: Argv | None = option(
        None,
        "Command in place of the unit's own, with {model}, {path}, {mmproj}, {ctx} and {args} as in the argv of a template.",
    )
    folder: Literal["run", "config"] = option(
        "run",
        "run: below /run, and removed again after the unit has stopped. config: below ~/.config/systemd/user, where it stays.",
    )


@frozen(kw_only=True, repr=False)
class LoadedConfig:
    """The list in which an engine says what it has loaded."""

    path: UrlPath = required("Path that lists what is loaded.")
    key: str = option(
        "", "Key of the list in the answer, nested by dots; empty when the answer itself is the list."
    )
    id: str = option("id", "Key of a model's id in an entry, nested by dots.")
    instances: str | None = option(
        None,
        "Key, in an entry, of a list of loaded instances; an entry counts as loaded when the list is not empty.",
    )
    instance_id: str = option(
        "id", "Key of an instance's own id, which the unload call may need as {instance}."
    )
    filter: Mapping[str, str] = table(
        dict, "Keys (nested by dots) and the values that a loaded entry has in them."
    )
