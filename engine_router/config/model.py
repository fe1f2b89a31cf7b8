"""Options of a configuration: frozen classes, one for each table of `engines.toml`.

Each option carries its one-line documentation in its metadata; the JSON Schema and the reference in
docs/configuration.md are made from it, so there is one place to read and to change.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Literal

import attrs
from attrs import frozen

from engine_router.config.any_engine import AnyEngineConfig
from engine_router.config.context import ContextConfig
from engine_router.config.engines import ProcessConfig, RemoteConfig
from engine_router.config.keys import ApiKey, Priority
from engine_router.config.kinds import (
    Addresses,
    BoolOrAuto,
    Count,
    GigabytesOrShares,
    HostsOrAuto,
    JsonValue,
    Megabytes,
    ModelName,
    Name,
    NamesOrAll,
    Network,
    OneOrMore,
    Origin,
    Port,
    Seconds,
    SecondsOrAuto,
)
from engine_router.config.leader import LeaderElectionConfig
from engine_router.config.options import option, required, table
from engine_router.config.peers import PeerConfig
from engine_router.config.pools import PoolConfig
from engine_router.config.routes import RouteConfig
from engine_router.config.tenants import TenantConfig
from engine_router.config.traces import TracesConfig
from engine_router.config.variants import Variant, VariantConfig, variants_of

Capability = Literal["completion", "tools", "thinking", "vision", "embedding", "insert"]
"""A capability of a model, in Ollama's words."""


@frozen(kw_only=True, repr=False)
class ServerConfig:
    """`[server]`: the one port that clients talk to."""

    host: Addresses = option(
        ("127.0.0.1",),
        "Address to listen on, or a list of them. Use 0.0.0.0, or :: for IPv6 too, to serve the network, together with "
        "api_keys.",
    )
    port: Port = option(8077, "Port to listen on.")
    api_keys: tuple[ApiKey, ...] = option(
        (),
        "Keys of which a client must send one, as Bearer token or X-API-Key: strings, which may do everything, or tables "
        "with the rights of each. Empty: no key is asked for.",
    )
    trusted_networks: tuple[Network, ...] = option(
        (),
        "Networks such as 192.168.1.0/24 whose machines need no key, for clients that cannot send one. Requests with a "
        "proxy's headers still need a key.",
    )
    allowed_hosts: HostsOrAuto = option(
        "auto",
        "Host names that clients may use for the router, in addition to IP addresses and local names; *.example.com "
        "and * are wildcards. auto: any name with one of the api_keys, only addresses and local names without.",
    )
    cors_origins: tuple[Origin, ...] = option(
        (),
        "Origins of web pages that may use the router, such as http://localhost:* or app://obsidian.md; * allows all. "
        "Empty: none but its own page.",
    )
    key_priorities: Mapping[str, Priority] = table(
        dict,
        "How much the requests with a key matter: KEY = high, normal or low; X-Request-Priority overrides it for one request.",
    )
    max_body_mb: Megabytes = option(512.0, "Largest request body, in MB; larger ones get 413.")
    max_held_mb: Megabytes = option(
        2048.0,
        "Memory limit for the bodies of all waiting and running requests together, in MB; a request above it gets 503. "
        "A single request is always accepted.",
    )
    keepalive_interval_s: Seconds = option(
        5.0,
        "Seconds of silence before a streaming client that waits gets a keep-alive frame; 0 sends none.",
    )
    nonstreaming_keepalive_after_s: Seconds = option(
        25.0,
        "Seconds after which a client that waits for an answer in one piece gets blanks ahead of it, so that it does not "
        "give up. The status is 200 then, whatever follows. 0 sends none.",
    )
    default_model: Name | None = option(
        None,
        "Model for requests without a model name, such as those from llama.cpp's own page. Absent: they get 400.",
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
    edit_config: bool = option(
        False,
        "Let whoever has a key that may do everything change this file over HTTP, as the page does. It has commands in "
        "it that the router runs; so without api_keys it stays read-only.",
    )
    shutdown_timeout_s: Seconds = option(
        10.0,
        "Seconds that requests in flight may go on after SIGTERM before the engines are stopped.",
    )


@frozen(kw_only=True, repr=False)
class LogConfig:
    """`[log]`: what the router writes about itself."""

    level: Literal["debug", "info", "warning", "error"] = option("info", "Least severity that is written.")
    format: Literal["human", "json"] = option(
        "human", "One readable line for each event, or one JSON object."
    )
    access: bool = option(
        False, "A line for each answered request (status, times, waits, tokens) at level info, not debug."
    )
    file: str | None = option(None, "File to append to; the terminal (standard error) when absent.")
    max_mb: Count = option(
        50, "Size of that file, in MB, at which it becomes FILE.1 and a new one begins; 0: never."
    )
    keep: Count = option(3, "Older files that are kept: FILE.1, FILE.2 and so on.")


@frozen(kw_only=True, repr=False)
class HistoryConfig:
    """`[history]`: what the router remembers of past requests, swaps and memory."""

    enabled: bool = option(
        True, "Keep past requests, swaps and memory use in a file; false keeps none, and makes no file."
    )
    file: str | None = option(None, "The file (SQLite); history.db beside the state file when absent.")
    max_days: Count = option(31, "Days after which an entry is removed; 0: only max_mb counts.")
    max_mb: Megabytes = option(100.0, "Size of the file above which the oldest entries are removed, in MB.")
    captures: tuple[Name, ...] = option(
        (),
        'Models whose requests and answers are kept whole, with * and ? as wildcards, such as "qwen3*", to see what a '
        "client really sends. In memory only, the last 100; secrets in headers are masked.",
    )
    captures_mb: Megabytes = option(32.0, "Memory for captures, in MB; above it the oldest are removed.")


@frozen(kw_only=True, repr=False)
class SchedulingConfig:
    """`[scheduling]`: who is served when."""

    drain_timeout_s: Seconds = option(
        30.0,
        "Seconds that running requests may go on once their engine is to be stopped; then they are ended.",
    )
    settle_timeout_s: Seconds = option(
        25.0, "Longest wait, in seconds, for the memory of a stopped engine to come back."
    )
    max_wait_s: Seconds = option(
        60.0,
        "Seconds that a request waits while the running engine's own requests go first; then the engine must yield.",
    )
    abandon_grace_s: Seconds = option(
        2.0,
        "Seconds that a start goes on after its last client has left, for a client that tries again.",
    )
    failed_start_memory_s: Seconds = option(
        5.0,
        "Seconds for which a failed start is remembered and answered at once instead of tried again.",
    )
    max_queue: Count = option(1000, "Requests that may wait for one pool; the next one gets 503.")
    max_queue_per_model: Count = option(
        0, "Requests that may wait for one model; the next one gets 503. 0: as many as for its pool."
    )
    min_resident_s: Seconds = option(
        0.0,
        "Seconds that a model stays once it is ready, even if it is idle and another is wanted (but not overdue).",
    )
    hold_s: SecondsOrAuto = option(
        "auto",
        "Seconds that an idle model is kept for a client that comes back, while another is wanted (but not overdue); "
        "auto learns when that pays from the clients' pauses and the cost of a swap.",
    )
    idle_timeout_s: Seconds = option(
        0.0, "Seconds after which a model that nobody uses is stopped; 0 keeps it."
    )
    health_interval_s: Seconds = option(
        30.0,
        "Seconds between two health checks of a ready engine; after three failures in a row it is stopped. 0: none.",
    )
    read_ahead: BoolOrAuto = option(
        "auto",
        "While another engine is stopped for a model, and while it starts, read its files in several streams from disk into "
        "memory that is free anyway; true, false, or auto: where the page cache does not count as used.",
    )
    preload: NamesOrAll = option(
        (), "Models to start before anybody asks, as far as they fit: a list of ids, or all."
    )


@frozen(kw_only=True, repr=False)
class ModelSettings:
    """The options that a model has, or shares with others of its family."""

    args: tuple[str, ...] = option(
        (),
        'Words of its own for a template\'s command, such as ["--jinja", "-ngl", "99"]; they take the place of '
        "{args}, or stand at the end.",
    )
    context_length: Count | None = option(
        None,
        "Tokens of context to tell clients of, filled in for {ctx} in a template's argv; what its files and its engine say "
        "when absent.",
    )
    pools: tuple[Name, ...] = option(
        (), "Pools from which it takes memory, such as two GPUs at once; its engine's when absent."
    )
    memory_gb: GigabytesOrShares | None = option(
        None, "Memory that it takes, in GB, or { POOL = GB } of each of its pools; measured when absent."
    )
    group: OneOrMore | None = option(None, "As for engines; its engine's when absent.")
    pinned: bool | None = option(None, "As for engines; its engine's when absent.")
    evict_cost: float | None = option(None, "As for engines; its engine's when absent.")
    unlisted: bool = option(False, "Hidden from model lists, but served to requests that name it.")
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
    defaults: Mapping[str, JsonValue] = table(
        dict, "Members put into requests that do not have them; a dot leads into an object."
    )
    strip: tuple[Name, ...] = option((), "Members taken out of every request; a dot leads into an object.")
    reasoning_effort: Mapping[str, Mapping[str, JsonValue]] = table(
        dict,
        "Members put in where a request asks for an effort, in the place of that: EFFORT = { member = value }. Clients "
        "write low, medium, high or none; Ollama's think and Anthropic's thinking count too where they are translated.",
    )
    variants: Mapping[str, VariantConfig] = table(
        dict, "More names of the model, ID:NAME, each with other settings of its requests."
    )
    disable_thinking_below_max_tokens: Count = option(
        0,
        "A request for fewer tokens than this is answered without thinking, which would use all of them up; 0: never.",
    )


@frozen(kw_only=True, repr=False)
class ModelConfig(ModelSettings):
    """`[models."ID"]`: a model that needs more than its id in its engine's `models`."""

    engine: Name = required("Engine that serves it.")
    upstream: Name | None = option(None, "Name that the engine knows it by; the id itself when absent.")
    aliases: tuple[ModelName, ...] = option((), "Other names that clients may use.")
    path: str | None = option(
        None, "File or folder of its weights, filled in for {path} in a template's argv."
    )
    mmproj: str | None = option(
        None, "File of its projector for images, filled in for {mmproj} in a template's argv."
    )
    found: bool = attrs.field(default=False)
    """True for a model that a scan of folders found; it goes with its files. No option of the file."""
    other_names: tuple[str, ...] = attrs.field(default=())
    """Names that lead to it as well, and that no list shows. No option of the file."""
    givers: Mapping[str, str] = attrs.field(factory=dict, eq=False)
    """Where its settings come from, for a model of a family. No option of the file."""


@frozen(kw_only=True, repr=False)
class FamilyConfig(ModelSettings):
    """`[families.NAME]`: settings of all models whose names match; what a model has itself counts more."""

    match: OneOrMore = required(
        'Names of the models, with * and ? as wildcards, such as "qwen3*"; one, or a list.'
    )


@frozen(kw_only=True, repr=False)
class Config:
    """A whole `engines.toml`."""

    server: ServerConfig = table(ServerConfig, "The port that clients talk to.")
    log: LogConfig = table(LogConfig, "What the router writes about itself.")
    history: HistoryConfig = table(HistoryConfig, "What is remembered of past requests, swaps and memory.")
    traces: TracesConfig = table(TracesConfig, "Spans of requests and swaps for a collector.")
    context: ContextConfig = table(ContextConfig, "What is kept of conversations when their engine stops.")
    leader_election: LeaderElectionConfig = table(LeaderElectionConfig, "Which of several routers decides.")
    scheduling: SchedulingConfig = table(SchedulingConfig, "Who is served when.")
    pools: Mapping[str, PoolConfig] = table(dict, "Memories that engines share.")
    engines: Mapping[str, AnyEngineConfig] = table(dict, "The engines. Once read, the peers are among them.")
    peers: Mapping[str, PeerConfig] = table(dict, "Other routers, whose models appear here.")
    models: Mapping[str, ModelConfig] = table(dict, "Models that need more than an id.")
    families: Mapping[str, FamilyConfig] = table(dict, "Settings for all models whose names match.")
    aliases: Mapping[str, str] = table(dict, "Other names for models: alias = model id.")
    routes: Mapping[str, RouteConfig] = table(dict, "Names for whichever of some models answers best now.")
    tenants: tuple[TenantConfig, ...] = option((), "Other programs that share a memory with the engines.")
    state_file: str | None = option(
        None,
        "File that remembers measured memory and start times; in the platform's state folder when absent.",
    )
    hidden: Mapping[str, str] = attrs.field(factory=dict, eq=False, repr=False)
    """Values that `${env:NAME}` gave and nobody is told, each with its reference. No option of the file."""

    @functools.cached_property
    def paid_engines(self) -> frozenset[str]:
        """The engines whose answers cost money."""
        return frozenset(n for n, e in self.engines.items() if isinstance(e, RemoteConfig) and e.paid)

    @functools.cached_property
    def keeping_engines(self) -> frozenset[str]:
        """The engines whose conversations outlast a stop."""
        return frozenset(
            n for n, e in self.engines.items() if isinstance(e, ProcessConfig) and e.keep_context
        )

    @functools.cached_property
    def guarded_engines(self) -> frozenset[str]:
        """The engines in whose caches requests are kept apart, or find their own conversations again."""
        return self.keeping_engines | {n for n, e in self.engines.items() if e.cache_salt}

    @functools.cached_property
    def engine_order(self) -> Sequence[str]:
        """The engines in the order in which a model is looked for in their lists: those that cost money come last."""
        return sorted(self.engines, key=self.paid_engines.__contains__)

    @functools.cached_property
    def variants(self) -> Mapping[str, Variant]:
        """The variants of all models, by their names."""
        return variants_of(self.models)

    @functools.cached_property
    def models_by_upstream(self) -> Mapping[tuple[str, str], ModelConfig]:
        """The configured models, by their engine and the name that it knows."""
        found: dict[tuple[str, str], ModelConfig] = {}
        for name, model in self.models.items():
            found.setdefault((model.engine, model.upstream or name), model)
        return found
