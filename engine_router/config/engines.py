"""Options of an engine: frozen classes, one for each `type`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from attrs import frozen

from engine_router.config.engine_tables import (
    CallConfig,
    ConfigFileConfig,
    DropInConfig,
    LoadedConfig,
    SleepConfig,
    WarmUpConfig,
)
from engine_router.config.kinds import (
    Argv,
    BaseUrl,
    ByteSize,
    Count,
    Deadline,
    GigabytesOrShares,
    Gpus,
    HeaderValue,
    JsonValue,
    ModelName,
    Name,
    OneOrMore,
    ReadyCheck,
    RemoteUrl,
    Seconds,
    SignalName,
    UrlPath,
    UrlPathOrEmpty,
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

    @property
    def memories(self) -> tuple[str, ...]:
        """The pools whose memory it uses."""
        return self.pools or (self.pool,)

    type: str = option("", "Kind of engine.")
    models: tuple[ModelName, ...] = option((), "Ids of the models that this engine serves.")
    pool: Name = option("default", "Pool whose memory it uses.")
    pools: tuple[Name, ...] = option(
        (), "Pools from which it takes memory at once, such as two GPUs; in place of pool."
    )
    memory_gb: GigabytesOrShares | None = option(
        None,
        "Memory that it takes, in GB; measured when absent. The settle after its stop waits for this much. Of several "
        "pools it takes it evenly, or as { gpu0 = 20, gpu1 = 16 } says.",
    )
    group: OneOrMore | None = option(
        None,
        "Engines of one group may stay together; those of others are stopped before one of them starts. With several, "
        'such as ["chat", "voice"]: any number of engines may be there that have one group in common.',
    )
    pinned: bool = option(False, "Once running, it is neither evicted nor stopped when idle.")
    evict_cost: float = option(
        1.0,
        "How many times its own start counts when the router chooses what to evict: the more, the later it goes.",
    )
    idle_timeout_s: Seconds | None = option(
        None,
        "Seconds after which it is stopped when nobody uses it; 0 keeps it. As in [scheduling] when absent.",
    )
    start_timeout_s: Deadline = option(300.0, "Seconds within which it must be ready.")
    stop_timeout_s: Deadline = option(30.0, "Seconds within which it must be gone after a stop.")
    connect_timeout_s: Deadline = option(15.0, "Seconds within which it must accept a connection.")
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
    cache_salt: bool = option(
        False,
        "vLLM, SGLang, TensorRT-LLM: give each owner's requests a cache_salt of their own, so that no key's requests reuse, or "
        "measure, what others' prompts left in its prefix cache. Keys in [context] shared_by count as one owner.",
    )
    metrics_path: UrlPathOrEmpty = option(
        "/metrics",
        "Path of its own metrics, which /metrics?engines=1 of the router adds; {model} is filled in. Empty where it has none.",
    )


@frozen(kw_only=True, repr=False)
class StartedConfig(EngineConfig):
    """The options of an engine whose server the router starts and stops itself."""

    scan: tuple[Name, ...] = option(
        (),
        "Templates only: folders whose models it serves, and huggingface, lmstudio or llamacpp for these programs' own. "
        "Models come and go with their files.",
    )
    scan_formats: tuple[Literal["gguf", "safetensors"], ...] = option(
        (), "What is looked for there: gguf, safetensors, or both; by the program that it runs when absent."
    )
    base_url: BaseUrl | None = option(
        None, "Where it listens; not needed with {port}, which takes a free port."
    )
    env: Mapping[str, VariableValue] = table(
        dict,
        "Environment variables: of a process, added to the router's own; of a container, to its image's. {gpus} is filled in "
        "with the numbers of the GPUs of its pools, such as 0,1.",
    )
    config_file: ConfigFileConfig | None = option(
        None,
        "File in which values are set before each start, for an engine that reads its model from a file. With {model} or "
        "{path} in it, the engine is started once for each model, one at a time.",
    )
    grace_s: Seconds = option(
        10.0,
        "Seconds between that signal and SIGKILL; at most three quarters of stop_timeout_s. On macOS at least one for each 10 GB "
        "of wired memory: killing a large model there may lose its memory until a restart.",
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

    @property
    def argv(self) -> tuple[str, ...]:
        """The command that starts it."""
        raise NotImplementedError


@frozen(kw_only=True, repr=False)
class ProcessConfig(StartedConfig):
    """`type = "process"`: a server that the router starts and stops itself."""

    type: Literal["process"] = option("process", "A server that the router starts and stops.")
    argv: Argv = required(
        "Command, as a list or one string (no shell runs). {port}, {model} and {path} are filled in; {port} takes a "
        "free port; {model} or {path} make it a template that is started once for each model, with the {mmproj}, {ctx} and "
        "{args} of that model."
    )
    cwd: str | None = option(None, "Working directory.")
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
    keep_context: bool = option(
        False,
        "llama.cpp only: save what it has read of conversations before it stops, and restore it when they go on, so that "
        "they are not read again after a swap. Limits: [context].",
    )


@frozen(kw_only=True, repr=False)
class ContainerConfig(StartedConfig):
    """`type = "container"`: a container that Docker or Podman runs, started and stopped by the router."""

    type: Literal["container"] = option("container", "A container that Docker or Podman runs.")
    compose: Name | None = option(
        None,
        'Service of a compose file, as "FILE:SERVICE", whose options are taken over; those of this table come first.',
    )
    image: Name | None = option(None, "Image, such as ghcr.io/ggml-org/llama.cpp:server-cuda.")
    command: Argv | None = option(
        None,
        "Arguments of the image's program, or its command; the image's own when absent. {port}, {model}, {path}, {mmproj}, "
        "{ctx} and {args} are filled in as in the argv of a process; in image, entrypoint, env, volumes and ports, too.",
    )
    entrypoint: Argv | None = option(None, "Program in place of the image's own.")
    volumes: tuple[Name, ...] = option(
        (), 'Folders, files and volumes to mount: "/models:/models:ro", "~/cache:/cache", "NAME:/data".'
    )
    ports: tuple[Name, ...] = option(
        (),
        'Ports to publish, as "{port}:8000", that of this machine first. On 127.0.0.1, unless an address stands ahead: '
        '"0.0.0.0:8000:8000".',
    )
    network: Name | None = option(
        None, "host, bridge, none, or a network's name; with host, the command has to say where to listen."
    )
    gpus: Gpus | None = option(
        None,
        '"all", a number of GPUs, a list of their ids, or "{gpus}" (those of its pools), as docker run --gpus; Podman is '
        "asked by CDI.",
    )
    devices: tuple[Name, ...] = option(
        (), 'Devices, such as "/dev/kfd", "/dev/dri", or "nvidia.com/gpu=all" (CDI).'
    )
    ipc: Name | None = option(
        None, "host, private or shareable; vLLM with several GPUs wants host or a large shm_size."
    )
    shm_size: ByteSize | None = option(None, 'Size of /dev/shm, such as "16g".')
    user: Name | None = option(None, "User that it runs as, as UID, UID:GID or a name.")
    host_config: Mapping[str, JsonValue] = table(
        dict,
        'More of HostConfig in the words of Docker\'s API, such as { CapAdd = ["SYS_PTRACE"], Init = true }.',
    )
    pull: Literal["never", "missing", "always"] = option(
        "missing", "When the image is pulled before a start."
    )
    stop_signal: SignalName | None = option(
        None, "Signal that asks it to end; the image's own, or SIGTERM, when absent."
    )
    socket: Name | None = option(
        None,
        "UNIX socket of Docker's or Podman's API; DOCKER_HOST, or where they are as a rule, when absent.",
    )

    @property
    def argv(self) -> tuple[str, ...]:
        """The command that would start it by hand, as far as it tells what it serves."""
        variables = [word for name, value in self.env.items() for word in ("-e", f"{name}={value}")]
        program = ["--entrypoint", self.entrypoint[0]] if self.entrypoint else []
        words = [*(self.entrypoint or ())[1:], *(self.command or ())]
        return ("docker", "run", *variables, *program, self.image or "", *words)


@frozen(kw_only=True, repr=False)
class HttpConfig(EngineConfig):
    """`type = "http"`: a running server that loads and unloads models when told over HTTP."""

    type: Literal["http"] = option("http", "A running server that loads models when told over HTTP.")
    base_url: BaseUrl = required("Where it listens.")
    metrics_path: UrlPathOrEmpty = option(
        "",
        'Path of its own metrics for /metrics?engines=1, such as "/metrics"; none when empty, as TabbyAPI and LM Studio have none.',
    )
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
    metrics_path: UrlPathOrEmpty = option(
        "", "Path of its own metrics for /metrics?engines=1. Ollama has none."
    )
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
    metrics_path: UrlPathOrEmpty = option(
        "",
        "Path of its own metrics for /metrics?engines=1; none when empty, as servers elsewhere keep theirs to themselves.",
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
        "too; chats for a server that speaks Anthropic's alone, to that.",
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
    pools: tuple[str, ...] = no_option(())
    memory_gb: float | Mapping[str, float] | None = no_option(None)
    group: tuple[str, ...] | None = no_option(None)
    pinned: bool = no_option(False)
    evict_cost: float = no_option(1.0)
    idle_timeout_s: float | None = no_option(None)
    start_timeout_s: float = no_option(0.0)
    stop_timeout_s: float = no_option(0.0)

    @property
    def sleeps(self) -> bool:
        """Whether it has to be woken, at times."""
        return False

    def speaks(self, dialect: Literal["openai", "anthropic", "ollama"]) -> bool:
        """Tell whether it speaks a dialect; an Ollama server speaks OpenAI's, too."""
        return dialect in self.dialects or (dialect == "openai" and "ollama" in self.dialects)
