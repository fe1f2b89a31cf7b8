"""What can be configured: frozen classes, one for each table of `engines.toml`.

Each option carries its one-line documentation in its metadata; the JSON Schema and the reference in the
README are made from it, so there is one place to read and to change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import attrs
from attrs import frozen

from engine_router.config.values import (
    Argv,
    BaseUrl,
    BoolOrAuto,
    Count,
    Gigabytes,
    GigabytesOrAuto,
    HeaderValue,
    HostsOrAuto,
    JsonValue,
    Megabytes,
    Name,
    NamesOrAll,
    Network,
    Origin,
    Port,
    ReadyCheck,
    Seconds,
    SecondsOrAuto,
    SignalName,
    SleepLevel,
    UrlPath,
    VariableValue,
)

T = TypeVar("T")

Capability = Literal["completion", "tools", "thinking", "vision", "embedding", "insert"]
"""What a model can do, in Ollama's words."""

Priority = Literal["high", "normal", "low"]
"""How much a request matters."""

OptionalEndpoint = Literal["/v1/messages", "/v1/messages/count_tokens", "/v1/responses"]
"""An endpoint that only some engines have."""


def required(doc: str) -> Any:
    """Declare an option that must be given."""
    return attrs.field(metadata={"doc": doc})


def option(default: T, doc: str) -> T:
    """Declare an option with a default."""
    return attrs.field(default=default, metadata={"doc": doc})


def table(factory: Callable[[], T], doc: str) -> T:
    """Declare an option whose default is made anew: a table of its own."""
    return attrs.field(factory=factory, metadata={"doc": doc})


@frozen(kw_only=True)
class ServerConfig:
    """`[server]`: the one port that clients talk to."""

    host: str = option(
        "127.0.0.1", "Address to listen on. Use 0.0.0.0 to serve the network, together with api_keys."
    )
    port: Port = option(Port(8077), "Port to listen on.")
    api_keys: tuple[Name, ...] = option(
        (), "Keys of which a client must send one, as Bearer token or X-API-Key. Empty: no key is asked for."
    )
    trusted_networks: tuple[Network, ...] = option(
        (),
        "Networks such as 192.168.1.0/24 whose machines need no key, for clients that cannot send one. Not for requests "
        "that say that they came through a proxy.",
    )
    allowed_hosts: HostsOrAuto = option(
        HostsOrAuto("auto"),
        "Names of the router, beside addresses and local names, by which clients may address it; *.example.com and * "
        "are understood. auto: any name for requests with one of the api_keys, none but those otherwise.",
    )
    cors_origins: tuple[Origin, ...] = option(
        (),
        "Origins of web pages that may use the router, such as http://localhost:* or app://obsidian.md; * allows all. "
        "Empty: none but its own page.",
    )
    key_priorities: Mapping[str, Priority] = table(
        dict,
        "How much the requests with a key matter: KEY = high, normal or low; X-Request-Priority says otherwise for one.",
    )
    max_body_mb: Megabytes = option(Megabytes(512.0), "Largest request body, in MB; larger ones get 413.")
    keepalive_interval_s: Seconds = option(
        Seconds(5.0),
        "Seconds of silence before a streaming client that waits gets a keep-alive frame; 0 sends none.",
    )
    nonstreaming_keepalive_after_s: Seconds = option(
        Seconds(25.0),
        "Seconds after which a client that waits for an answer in one piece gets blanks ahead of it, so that it does not "
        "give up. The status is 200 then, whatever follows. 0 sends none.",
    )
    default_model: Name | None = option(
        None, "Model of requests that name none, such as those of llama.cpp's own page. Absent: they get 400."
    )
    show_progress: bool = option(
        False, "Tell streaming clients what they wait for, where they show a model's thoughts."
    )
    footer: bool = option(
        False,
        "Add a line with tokens per second, and how long the model took to load, to the end of answers.",
    )
    allow_destructive_ollama_api: bool = option(
        False,
        "Let clients delete, create, copy and push Ollama models, and upload blobs, through the router.",
    )
    fast_path: bool = option(
        True,
        "Serve plain requests to the proxied routes by the fast tier; false leaves them all to the ordinary one.",
    )
    watch_config: bool = option(
        False,
        "Read the configuration again whenever the file changes; `engine-router reload` does it by hand.",
    )
    shutdown_timeout_s: Seconds = option(
        Seconds(10.0),
        "Seconds that requests in flight may go on after SIGTERM before the engines are stopped.",
    )


@frozen(kw_only=True)
class LogConfig:
    """`[log]`: what the router writes about itself."""

    level: Literal["debug", "info", "warning", "error"] = option("info", "Least severity that is written.")
    format: Literal["human", "json"] = option(
        "human", "One readable line for each event, or one JSON object."
    )
    file: str | None = option(None, "File to append to; the terminal (standard error) when absent.")


@frozen(kw_only=True)
class SchedulingConfig:
    """`[scheduling]`: who is served when."""

    drain_timeout_s: Seconds = option(
        Seconds(30.0),
        "Seconds that running requests may go on once their engine is to be stopped; then they are ended.",
    )
    settle_timeout_s: Seconds = option(
        Seconds(25.0), "Longest wait, in seconds, for the memory of a stopped engine to come back."
    )
    max_wait_s: Seconds = option(
        Seconds(60.0),
        "Seconds that a request waits while the running engine's own requests go first; then the engine must yield.",
    )
    abandon_grace_s: Seconds = option(
        Seconds(2.0),
        "Seconds that a start goes on after its last client has left, for a client that tries again.",
    )
    failed_start_memory_s: Seconds = option(
        Seconds(5.0),
        "Seconds for which a failed start is remembered and answered at once instead of tried again.",
    )
    max_queue: Count = option(Count(1000), "Requests that may wait for one pool; the next one gets 503.")
    max_queue_per_model: Count = option(
        Count(0), "Requests that may wait for one model; the next one gets 503. 0: as many as for its pool."
    )
    min_resident_s: Seconds = option(
        Seconds(0.0),
        "Seconds that a model stays once it is ready, even if it is idle and another is wanted (but not overdue).",
    )
    hold_s: SecondsOrAuto = option(
        SecondsOrAuto("auto"),
        "Seconds that an idle model is kept for a client that comes back, while another is wanted (but not overdue); "
        "auto learns when that pays from the clients' pauses and the cost of a swap.",
    )
    idle_timeout_s: Seconds = option(
        Seconds(0.0), "Seconds after which a model that nobody uses is stopped; 0 keeps it."
    )
    health_interval_s: Seconds = option(
        Seconds(30.0),
        "Seconds between two health checks of a ready engine; after three failures in a row it is stopped. 0: none.",
    )
    read_ahead: BoolOrAuto = option(
        BoolOrAuto("auto"),
        "While an engine is being stopped, read the next model's files from disk into memory that is free anyway; true, "
        "false, or auto: where the page cache does not count as used.",
    )
    preload: NamesOrAll = option(
        NamesOrAll(()), "Models to start before anybody asks, as far as they fit: a list of ids, or all."
    )


@frozen(kw_only=True)
class PoolConfig:
    """`[pools.NAME]`: one memory that engines share. The pool `default` exists without being declared."""

    gauge: Literal["auto", "memavailable", "memfree", "psutil", "nvml", "command", "none"] = option(
        "auto",
        "How free memory is read: auto (MemAvailable on Linux, psutil elsewhere), memfree (DGX Spark's CUDA view), "
        "nvml (a discrete NVIDIA GPU), command, or none (a remote machine).",
    )
    gpu: Count = option(Count(0), "Index of the GPU that the nvml gauge reads.")
    mode: Literal["exclusive", "budget"] = option(
        "exclusive",
        "exclusive: one engine (or one group) has the memory at a time. budget: several, while they fit budget_gb.",
    )
    budget_gb: GigabytesOrAuto = option(
        GigabytesOrAuto("auto"),
        "Memory that engines may use together in budget mode, in GB; auto is what is free at the start, less reserve_gb.",
    )
    reserve_gb: Gigabytes = option(
        Gigabytes(2.0), "Memory that a budget_gb of auto leaves to everything else, in GB."
    )
    max_resident: Count = option(Count(0), "Engines that may be running at once; 0: as many as fit.")
    default_model: Name | None = option(
        None, "Model to return to when nobody wants another; it is loaded at the start, too."
    )
    return_after_s: Seconds = option(
        Seconds(60.0), "Seconds that other models must be idle before they make way for default_model."
    )
    command: Argv | None = option(
        None, "Command whose last number on standard output is the free memory in bytes."
    )
    unified: BoolOrAuto = option(
        BoolOrAuto("auto"),
        "Whether the GPU uses this machine's main memory, so that what an engine parks there is not freed: true, false, "
        "or auto (Apple silicon, GB10, Jetson, and wherever the gauge is memfree).",
    )


@frozen(kw_only=True)
class EngineConfig:
    """What every engine has."""

    type: str = option("", "Kind of engine.")
    models: tuple[Name, ...] = option((), "Ids of the models that this engine serves.")
    pool: Name = option(Name("default"), "Pool whose memory it uses.")
    memory_gb: Gigabytes | None = option(
        None,
        "Memory that it takes, in GB; measured when absent. The settle after its stop waits for this much.",
    )
    group: Name | None = option(
        None, "Engines of one group may stay together; those of others are stopped before one of them starts."
    )
    pinned: bool = option(False, "Once running, it is never stopped for another's sake, nor for being idle.")
    idle_timeout_s: Seconds | None = option(
        None,
        "Seconds after which it is stopped when nobody uses it; 0 keeps it. As in [scheduling] when absent.",
    )
    start_timeout_s: Seconds = option(Seconds(300.0), "Seconds within which it must be ready.")
    stop_timeout_s: Seconds = option(Seconds(30.0), "Seconds within which it must be gone after a stop.")
    connect_timeout_s: Seconds = option(Seconds(15.0), "Seconds within which it must accept a connection.")
    headers: Mapping[str, HeaderValue] = table(
        dict, "Headers added to every request to it, for example its own Authorization."
    )
    discover: bool = option(
        True, "Ask the running engine which models it serves and accept requests for those too."
    )
    endpoints: tuple[OptionalEndpoint, ...] | None = option(
        None,
        "Which of /v1/messages, /v1/messages/count_tokens and /v1/responses it serves itself; the others are translated. "
        "When absent, the running engine is asked.",
    )


@frozen(kw_only=True)
class CallConfig:
    """One HTTP call that loads, unloads or wakes a model."""

    path: UrlPath = required("Path of the call. {model} and {instance} are filled in.")
    method: Literal["GET", "POST", "PUT", "DELETE"] = option("POST", "HTTP method.")
    headers: Mapping[str, HeaderValue] = table(dict, "Headers of the call, for example an admin key.")
    body: JsonValue | None = option(
        None, "JSON body; {model} and {instance} are filled in within its strings."
    )


@frozen(kw_only=True)
class SleepConfig:
    """How an engine is put to sleep, instead of being stopped, and woken again."""

    kind: Literal["vllm", "sglang", "custom"] = required(
        "vllm, sglang, or custom for the calls below. What each needs is said in engines.toml.example."
    )
    level: SleepLevel = option(
        SleepLevel(1),
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
        ReadyCheck("is_sleeping==true"), "custom only: what the answer is while it sleeps; as ready_check."
    )
    timeout_s: Seconds = option(
        Seconds(60.0), "Seconds within which it must be asleep; if it is not, it is stopped."
    )


@frozen(kw_only=True)
class ProcessConfig(EngineConfig):
    """`type = "process"`: a server that the router starts and stops itself."""

    type: Literal["process"] = option("process", "A server that the router starts and stops.")
    argv: Argv = required(
        "Command, as a list or one string (no shell runs). {port}, {model} and {path} are filled in; {port} takes a "
        "free port; {model} or {path} make it a template that is started once for each model."
    )
    base_url: BaseUrl | None = option(None, "Where it listens; not needed when argv has {port}.")
    env: Mapping[str, VariableValue] = table(dict, "Environment variables added to the router's own.")
    cwd: str | None = option(None, "Working directory.")
    stop_signal: SignalName = option(SignalName("SIGTERM"), "Signal that asks it to end.")
    stop_command: Argv | None = option(
        None,
        "Command run ahead of that signal, for what a daemon holds for it, such as docker stop NAME; {port}, {model}, "
        "{path} and {pid} are filled in.",
    )
    kill_command: Argv | None = option(
        None,
        "Command run beside SIGKILL, and when the router itself dies, such as docker rm -f NAME; stop_command when absent.",
    )
    grace_s: Seconds = option(
        Seconds(10.0), "Seconds between that signal and SIGKILL; at most three quarters of stop_timeout_s."
    )
    log_file: str | None = option(
        None, "File that its output is appended to, besides the log kept in memory."
    )
    ready_path: UrlPath = option(UrlPath("/health"), "Path that tells whether it is ready.")
    ready_check: ReadyCheck = option(
        ReadyCheck("status == 200"),
        'What the answer must be: "status == 200", "key==value" in its JSON (nested by dots), or "model:<id>" listed.',
    )
    sleep: SleepConfig | None = option(
        None, "Put it to sleep instead of stopping it, where that frees enough."
    )


@frozen(kw_only=True)
class LoadedConfig:
    """Where an engine says what it has loaded."""

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


@frozen(kw_only=True)
class HttpConfig(EngineConfig):
    """`type = "http"`: a running server that loads and unloads models when told over HTTP."""

    type: Literal["http"] = option("http", "A running server that loads models when told over HTTP.")
    base_url: BaseUrl = required("Where it listens.")
    load: CallConfig | None = option(
        None, "Call that loads a model; absent where the first request loads it."
    )
    unload: CallConfig = required("Call that unloads a model.")
    loaded: LoadedConfig = required("Where it says what is loaded.")
    sleep: SleepConfig | None = option(
        None, "Put it to sleep instead of stopping it, where that frees enough."
    )


@frozen(kw_only=True)
class OllamaConfig(EngineConfig):
    """`type = "ollama"`: the Ollama daemon."""

    type: Literal["ollama"] = option("ollama", "The Ollama daemon.")
    base_url: BaseUrl = option(BaseUrl("http://127.0.0.1:11434"), "Where it listens.")
    stop_command: Argv | None = option(
        Argv(("ollama", "stop", "{model}")), "Last resort when keep_alive 0 did not unload a model."
    )


@frozen(kw_only=True)
class SystemdConfig(EngineConfig):
    """`type = "systemd"`: a unit that systemd runs, `Restart=always` included."""

    type: Literal["systemd"] = option("systemd", "A unit that systemd runs.")
    base_url: BaseUrl = required("Where it listens.")
    unit: Name = required("Name of the unit, such as vllm.service.")
    scope: Literal["user", "system"] = option("user", "systemctl --user, or the system's own.")
    prefix: Argv | None = option(None, 'Command put before systemctl, such as ["sudo", "-n"].')
    ready_path: UrlPath = option(UrlPath("/health"), "Path that tells whether it is ready.")
    ready_check: ReadyCheck = option(
        ReadyCheck("status == 200"), "What the answer must be; as for process engines."
    )
    sleep: SleepConfig | None = option(
        None, "Put it to sleep instead of stopping it, where that frees enough."
    )


AnyEngineConfig = ProcessConfig | HttpConfig | OllamaConfig | SystemdConfig
"""Any engine's configuration."""

ENGINE_TYPES: Mapping[str, type[AnyEngineConfig]] = {
    "process": ProcessConfig,
    "http": HttpConfig,
    "ollama": OllamaConfig,
    "systemd": SystemdConfig,
}
"""The class for each value of `type`."""


@frozen(kw_only=True)
class ModelConfig:
    """`[models."ID"]`: a model that needs more than its id in its engine's `models`."""

    engine: Name = required("Engine that serves it.")
    upstream: Name | None = option(None, "Name that the engine knows it by; the id itself when absent.")
    aliases: tuple[Name, ...] = option((), "Other names that clients may use.")
    path: str | None = option(
        None, "File or folder of its weights, filled in for {path} in a template's argv."
    )
    memory_gb: Gigabytes | None = option(None, "Memory that it takes, in GB; measured when absent.")
    group: Name | None = option(None, "As for engines; its engine's when absent.")
    pinned: bool | None = option(None, "As for engines; its engine's when absent.")
    unlisted: bool = option(False, "Not listed, but served to whoever asks for it by name.")
    context_length: Count | None = option(
        None, "Tokens of context to tell clients of; what its files and its engine say when absent."
    )
    capabilities: tuple[Capability, ...] = option(
        (),
        "What to tell clients that it can do: completion, tools, thinking, vision, embedding, insert. Empty: what its "
        "files show. Ollama's own models are described by Ollama.",
    )
    set: Mapping[str, JsonValue] = table(
        dict,
        'Members put into every request as its engine gets it, such as temperature or "chat_template_kwargs.x"; a dot '
        "leads into an object.",
    )
    strip: tuple[Name, ...] = option((), "Members taken out of every request; a dot leads into an object.")
    disable_thinking_below_max_tokens: Count = option(
        Count(0),
        "A request for fewer tokens than this is answered without thinking, which would use all of them up; 0: never.",
    )


@frozen(kw_only=True)
class Config:
    """A whole `engines.toml`."""

    server: ServerConfig = table(ServerConfig, "The port that clients talk to.")
    log: LogConfig = table(LogConfig, "What the router writes about itself.")
    scheduling: SchedulingConfig = table(SchedulingConfig, "Who is served when.")
    pools: Mapping[str, PoolConfig] = table(dict, "Memories that engines share.")
    engines: Mapping[str, AnyEngineConfig] = required("The engines.")
    models: Mapping[str, ModelConfig] = table(dict, "Models that need more than an id.")
    aliases: Mapping[str, str] = table(dict, "Other names for models: alias = model id.")
    state_file: str | None = option(
        None,
        "File that remembers measured memory and start times; in the platform's state folder when absent.",
    )
