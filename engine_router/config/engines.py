"""Options of an engine: frozen classes, one for each `type`, and for the tables inside of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from attrs import frozen

from engine_router.config.kinds import (
    Argv,
    BaseUrl,
    Count,
    Gigabytes,
    HeaderValue,
    JsonValue,
    Name,
    ReadyCheck,
    RemoteUrl,
    Seconds,
    SignalName,
    SleepLevel,
    UrlPath,
    VariableValue,
)
from engine_router.config.options import no_option, option, required, table

REMOTES: Final = "remotes"
"""The pool of remotes, which is no memory and has no options. All other pools are memories."""

OptionalEndpoint = Literal["/v1/messages", "/v1/messages/count_tokens", "/v1/responses"]
"""An endpoint that only some engines have."""


@frozen(kw_only=True, repr=False)
class EngineConfig:
    """The options that every engine has."""

    type: str = option("", "Kind of engine.")
    models: tuple[Name, ...] = option((), "Ids of the models that this engine serves.")
    pool: Name = option("default", "Pool whose memory it uses.")
    memory_gb: Gigabytes | None = option(
        None,
        "Memory that it takes, in GB; measured when absent. The settle after its stop waits for this much.",
    )
    group: Name | None = option(
        None, "Engines of one group may stay together; those of others are stopped before one of them starts."
    )
    pinned: bool = option(False, "Once running, it is neither evicted nor stopped when idle.")
    idle_timeout_s: Seconds | None = option(
        None,
        "Seconds after which it is stopped when nobody uses it; 0 keeps it. As in [scheduling] when absent.",
    )
    start_timeout_s: Seconds = option(300.0, "Seconds within which it must be ready.")
    stop_timeout_s: Seconds = option(30.0, "Seconds within which it must be gone after a stop.")
    connect_timeout_s: Seconds = option(15.0, "Seconds within which it must accept a connection.")
    headers: Mapping[str, HeaderValue] = table(
        dict, "Headers added to every request to it, for example its own Authorization."
    )
    discover: bool = option(
        True, "Ask the running engine which models it serves and accept requests for those too, up to 2,000."
    )
    endpoints: tuple[OptionalEndpoint, ...] | None = option(
        None,
        "Which of /v1/messages, /v1/messages/count_tokens and /v1/responses it serves itself; the others are translated. "
        "When absent, the running engine is asked.",
    )
    stream_upstream: bool = option(
        False,
        "Ask it for a stream where a client wants a chat or a completion in one piece: it stops when that client leaves.",
    )


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
    timeout_s: Seconds = option(60.0, "Seconds within which it must be asleep; if it is not, it is stopped.")


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
class ProcessConfig(EngineConfig):
    """`type = "process"`: a server that the router starts and stops itself."""

    type: Literal["process"] = option("process", "A server that the router starts and stops.")
    argv: Argv = required(
        "Command, as a list or one string (no shell runs). {port}, {model} and {path} are filled in; {port} takes a "
        "free port; {model} or {path} make it a template that is started once for each model, with the {mmproj}, {ctx} and "
        "{args} of that model."
    )
    scan: tuple[Name, ...] = option(
        (),
        "Templates only: folders whose models it serves, and huggingface, lmstudio or llamacpp for these programs' own. "
        "Models come and go with their files.",
    )
    scan_formats: tuple[Literal["gguf", "safetensors"], ...] = option(
        (), "What is looked for there: gguf, safetensors, or both; by the program in argv when absent."
    )
    base_url: BaseUrl | None = option(None, "Where it listens; not needed when argv has {port}.")
    env: Mapping[str, VariableValue] = table(dict, "Environment variables added to the router's own.")
    cwd: str | None = option(None, "Working directory.")
    config_file: ConfigFileConfig | None = option(
        None,
        "File in which values are set before each start, for an engine that reads its model from a file. With {model} or "
        "{path} in it, the engine is started once for each model, one at a time.",
    )
    stop_signal: SignalName = option("SIGTERM", "Signal that asks it to end.")
    stop_command: Argv | None = option(
        None,
        "Command run before that signal, to stop what a daemon runs for it, such as docker stop NAME; {port}, {model}, "
        "{path} and {pid} are filled in.",
    )
    kill_command: Argv | None = option(
        None,
        "Command run together with SIGKILL and when the router dies, such as docker rm -f NAME; default: stop_command.",
    )
    grace_s: Seconds = option(
        10.0, "Seconds between that signal and SIGKILL; at most three quarters of stop_timeout_s."
    )
    log_file: str | None = option(
        None, "File that its output is appended to, besides the log kept in memory."
    )
    ready_path: UrlPath = option("/health", "Path that tells whether it is ready.")
    ready_check: ReadyCheck = option(
        "status == 200",
        'What the answer must be: "status == 200", "key==value" in its JSON (nested by dots), or "model:<id>" listed; '
        '"port": nothing is asked, it need only accept connections.',
    )
    warm_up: WarmUpConfig | None = option(
        None,
        "Request that has to succeed after a start before others are let in, as part of the start; {} for a chat of one token.",
    )
    sleep: SleepConfig | None = option(
        None, "Put it to sleep instead of stopping it, where that frees enough."
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


@frozen(kw_only=True, repr=False)
class HttpConfig(EngineConfig):
    """`type = "http"`: a running server that loads and unloads models when told over HTTP."""

    type: Literal["http"] = option("http", "A running server that loads models when told over HTTP.")
    base_url: BaseUrl = required("Where it listens.")
    load: CallConfig | None = option(
        None, "Call that loads a model; absent where the first request loads it."
    )
    unload: CallConfig = required("Call that unloads a model.")
    loaded: LoadedConfig = required("Where it says what is loaded.")
    warm_up: WarmUpConfig | None = option(
        None,
        "Request that has to succeed after a start before others are let in, as part of the start; {} for a chat of one token.",
    )
    sleep: SleepConfig | None = option(
        None, "Put it to sleep instead of stopping it, where that frees enough."
    )


@frozen(kw_only=True, repr=False)
class OllamaConfig(EngineConfig):
    """`type = "ollama"`: the Ollama daemon."""

    type: Literal["ollama"] = option("ollama", "The Ollama daemon.")
    base_url: BaseUrl = option("http://127.0.0.1:11434", "Where it listens.")
    stop_command: Argv | None = option(
        ("ollama", "stop", "{model}"), "Last resort when keep_alive 0 did not unload a model."
    )


@frozen(kw_only=True, repr=False)
class SystemdConfig(EngineConfig):
    """`type = "systemd"`: a unit that systemd runs, `Restart=always` included."""

    type: Literal["systemd"] = option("systemd", "A unit that systemd runs.")
    base_url: BaseUrl = required("Where it listens.")
    unit: Name = required(
        "Name of the unit, such as vllm.service; or vllm@{model}.service, an instance for each model, one at a time."
    )
    scope: Literal["user", "system"] = option("user", "systemctl --user, or the system's own.")
    prefix: Argv | None = option(None, 'Command put before systemctl, such as ["sudo", "-n"].')
    ready_path: UrlPath = option("/health", "Path that tells whether it is ready.")
    ready_check: ReadyCheck = option("status == 200", "What the answer must be; as for process engines.")
    config_file: ConfigFileConfig | None = option(
        None,
        "File in which values are set before each start; as for process engines. With {model} or {path} in it, the unit "
        "is started for one model at a time.",
    )
    drop_in: DropInConfig | None = option(
        None,
        "Settings put beside the unit before each start. With {model} or {path} in them, the unit is started for one model "
        "at a time.",
    )
    warm_up: WarmUpConfig | None = option(
        None,
        "Request that has to succeed after a start before others are let in, as part of the start; {} for a chat of one token.",
    )
    sleep: SleepConfig | None = option(
        None, "Put it to sleep instead of stopping it, where that frees enough."
    )


@frozen(kw_only=True, repr=False)
class RemoteConfig(EngineConfig):
    """`type = "remote"`: a server that is always on, on another machine or in a cloud: nothing is started or stopped."""

    type: Literal["remote"] = option(
        "remote", "A server that is always on, on another machine or in a cloud."
    )
    base_url: RemoteUrl = required(
        "Its base URL as an OpenAI client has it, such as https://openrouter.ai/api/v1; for a server that speaks only "
        "Anthropic's dialect, or Ollama's, as a client of that has it."
    )
    api_key: HeaderValue | None = option(
        None,
        "Its key, such as ${env:OPENROUTER_API_KEY}: sent as Bearer token, and to /v1/messages as x-api-key. No key of a "
        "client ever goes there.",
    )
    dialects: tuple[Literal["openai", "anthropic", "ollama"], ...] = option(
        ("openai",),
        "The dialects that it speaks. Requests in another one are translated to OpenAI's, which an Ollama server speaks, "
        "too.",
    )
    max_in_flight: Count = option(
        0, "Requests that it gets at the same time; the others wait in a queue. 0: any number."
    )
    paid: bool = option(
        False,
        "Whether its answers cost money. Then only a request that names its model goes there, be it by an alias, and none "
        "by default_model.",
    )
    allow_default: bool = option(
        False, "paid only: let requests without a model go there all the same, where default_model says so."
    )
    ca_file: str | None = option(
        None, "PEM file of the authorities that vouch for its certificate, in place of the system's."
    )
    pool: str = no_option(REMOTES)
    memory_gb: float | None = no_option(None)
    group: str | None = no_option(None)
    pinned: bool = no_option(False)
    idle_timeout_s: float | None = no_option(None)
    start_timeout_s: float = no_option(0.0)
    stop_timeout_s: float = no_option(0.0)

    def speaks(self, dialect: Literal["openai", "anthropic", "ollama"]) -> bool:
        """Tell whether it speaks a dialect; an Ollama server speaks OpenAI's, too."""
        return dialect in self.dialects or (dialect == "openai" and "ollama" in self.dialects)


AnyEngineConfig = ProcessConfig | HttpConfig | OllamaConfig | SystemdConfig | RemoteConfig
"""Any engine's configuration."""

ENGINE_TYPES: Mapping[str, type[AnyEngineConfig]] = {
    "process": ProcessConfig,
    "http": HttpConfig,
    "ollama": OllamaConfig,
    "systemd": SystemdConfig,
    "remote": RemoteConfig,
}
"""The class for each value of `type`."""
