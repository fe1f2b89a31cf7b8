"""Loading of a configuration: find, read and check it, and report every fault at once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import tomli

from engine_router.config.any_engine import AnyEngineConfig
from engine_router.config.container import container_faults
from engine_router.config.context import ContextConfig
from engine_router.config.engines import REMOTES, ContainerConfig, RemoteConfig, StartedConfig
from engine_router.config.environment import Environment
from engine_router.config.families import with_families
from engine_router.config.faults import Fault, close, few_explained, is_table, quoted
from engine_router.config.keys import key_faults
from engine_router.config.kinds import Name
from engine_router.config.kubernetes import KubernetesConfig, kubernetes_faults
from engine_router.config.leader import LeaderElectionConfig, leader_faults
from engine_router.config.memories import gpu_faults, place_faults, pool_settings
from engine_router.config.misplaced import unknown_keys, without_dotted
from engine_router.config.model import (
    Config,
    FamilyConfig,
    HistoryConfig,
    LogConfig,
    ModelConfig,
    SchedulingConfig,
    ServerConfig,
)
from engine_router.config.peers import PeerConfig, peer_faults, place_of, with_peers
from engine_router.config.pools import PoolConfig, pool_faults
from engine_router.config.preload import preload_faults
from engine_router.config.process import process_faults
from engine_router.config.remote import authority_faults, remote_faults
from engine_router.config.route_faults import route_faults
from engine_router.config.routes import RouteConfig
from engine_router.config.sleeping import sleep_faults
from engine_router.config.structure import read_engine, read_table, read_tables
from engine_router.config.template import is_scanned
from engine_router.config.tenants import TenantConfig, tenant_faults
from engine_router.config.traces import TracesConfig
from engine_router.config.turns import turn_faults
from engine_router.config.values import expanded, read_model_name, read_name, read_string, shown
from engine_router.config.variants import variant_faults
from engine_router.errors import ConfigError
from engine_router.guards.limits import MOST_FAULTS

FILE_NAME = "engines.toml"
ENVIRONMENT_VARIABLE = "ENGINE_ROUTER_CONFIG"


def candidates(explicit: str | None, environ: Mapping[str, str]) -> list[Path]:
    """List where a configuration is looked for, first match first.

    `explicit` (the command line's `--config`) or the environment variable stand alone: what the user named
    is used or reported, never replaced by another file.
    """
    named = explicit or environ.get(ENVIRONMENT_VARIABLE)
    if named:
        return [expanded(named)]
    import platformdirs  # noqa: PLC0415 - not needed where a file is named, and slow to import

    folder = platformdirs.user_config_path("engine-router", appauthor=False)
    places = [Path(FILE_NAME), folder / FILE_NAME]
    if os.name == "posix":
        places.append(Path("/etc/engine-router") / FILE_NAME)
    return places


def find_config(explicit: str | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the configuration file to use.

    Raises:
        ConfigError: none of the places holds one; the message lists them.
    """
    places = candidates(explicit, environ)
    for place in places:
        if _is_there(place):
            return place
    if len(places) == 1:
        kind = "is a folder, not a file" if os.path.isdir(places[0]) else "does not exist"  # noqa: PTH112 - is_dir() raises for a name too long
        raise ConfigError(
            str(places[0]), [("", f"{kind}; give a file with --config or ${ENVIRONMENT_VARIABLE}")]
        )
    listed = ", ".join(str(place) for place in places)
    raise ConfigError(
        FILE_NAME,
        [("", f"not found; looked for {listed}. `engine-router init` makes one; or give --config FILE")],
    )


def example() -> str:
    """Return where engines.toml.example lies: in the installed package, or in the sources beside it."""
    package = Path(__file__).parent.parent
    places = (package / f"{FILE_NAME}.example", package.parent / f"{FILE_NAME}.example")
    return str(next((place for place in places if place.is_file()), places[0].name))


def _is_there(place: Path) -> bool:
    """Tell whether something can be read there: a file, or a pipe such as `/dev/stdin`."""
    try:
        return place.exists() and not place.is_dir()
    except OSError:  # a name too long, a folder that may not be entered
        return False


def load_config(path: str | os.PathLike[str], environment: Environment | None = None) -> Config:
    """Read and check a file.

    Args:
        path: the file.
        environment: what `${env:NAME}` is taken from; the process's own when absent.

    Raises:
        ConfigError: with every fault of the file.
    """
    source = str(path)
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(source, [("", f"cannot be read: {error.strerror or error}")]) from None
    return parse_config(raw, source=source, environment=environment)


def parse_config(
    raw: bytes | str, *, source: str = FILE_NAME, environment: Environment | None = None
) -> Config:
    """Check the text of a configuration.

    Raises:
        ConfigError: with every fault of the text.
    """
    try:
        text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw.removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        fault = f"is not UTF-8 text (byte {error.start}): save it as UTF-8"
        raise ConfigError(source, [("", fault)]) from None
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        from engine_router.config.syntax import syntax_fault  # noqa: PLC0415 - most files have no fault

        fault, line = syntax_fault(str(error), text)
        raise ConfigError(source, [("", fault)], [line]) from None
    except (RecursionError, ValueError) as error:  # endless brackets, a number of thousands of digits
        raise ConfigError(source, [("", f"cannot be read: {error}")]) from None
    environment = environment or Environment()
    data, missing = environment.filled(data)
    with few_explained():
        config, faults = build_config(data)
    if config is None or missing:
        from engine_router.config.places import excerpts  # noqa: PLC0415 - likewise

        places = {path for path, _ in missing}  # what stands there now would only be refused once more
        all_faults = [*missing, *(fault for fault in faults if fault[0] not in places)]
        listed = [
            (environment.masked(path), environment.masked(words)) for path, words in all_faults[:MOST_FAULTS]
        ]
        found = excerpts(text, [path for path, _ in listed])
        raise ConfigError(source, [*listed, *all_faults[MOST_FAULTS:]], found)
    return attrs.evolve(config, hidden=environment.hidden())


_SECTIONS: Final[Mapping[str, type[Any]]] = {
    "server": ServerConfig,
    "log": LogConfig,
    "history": HistoryConfig,
    "traces": TracesConfig,
    "context": ContextConfig,
    "leader_election": LeaderElectionConfig,
    "scheduling": SchedulingConfig,
}
_MODEL_NAMES: Final = ("models", "aliases", "routes")  # the tables whose keys clients send


def build_config(data: Mapping[str, Any]) -> tuple[Config | None, list[Fault]]:
    """Build the configuration from TOML data; None and the faults when there are any."""
    faults: list[Fault] = list(unknown_keys(data))
    sections = {key: _section(data, key, kind, faults) for key, kind in _SECTIONS.items()}
    server, scheduling = sections["server"], sections["scheduling"]
    pools = _named(data, "pools", lambda value, path: read_table(value, PoolConfig, path), faults)
    own: dict[str, AnyEngineConfig] = _named(data, "engines", read_engine, faults)
    peers = _named(data, "peers", lambda value, path: read_table(value, PeerConfig, path), faults)
    faults.extend(peer_faults(peers, own))
    engines = with_peers(own, peers)
    models = _named(data, "models", lambda value, path: read_table(value, ModelConfig, path), faults)
    families = _named(data, "families", lambda value, path: read_table(value, FamilyConfig, path), faults)
    aliases = _named(data, "aliases", _read_alias, faults)
    routes = _named(data, "routes", lambda value, path: read_table(value, RouteConfig, path), faults)
    tenants, more = read_tables(data.get("tenants", []), TenantConfig, "tenants")
    faults += [*more, *tenant_faults(tenants, {"default", *_names_in(data, "pools")})]
    state_file = _state_file(data, faults)
    faults.extend(key_faults(() if server is None else server.api_keys))
    faults.extend(_cross_faults(data, pools, engines, models, aliases))
    if scheduling is not None and _is_whole(data, engines, models):
        faults.extend(preload_faults(scheduling, pools, engines, models, aliases))
        faults.extend(route_faults(routes, engines, models, aliases))
    if (election := sections["leader_election"]) is not None:
        faults.extend(leader_faults(election))
    if faults:  # a section that cannot be read has one
        return None, faults
    return Config(
        **sections,
        pools=pools,
        engines=engines,
        peers=peers,
        models=with_families(models, families, engines),
        families=families,
        aliases=aliases,
        routes=routes,
        tenants=tuple(filter(None, tenants)),
        state_file=state_file,
    ), []


def _section(data: Mapping[str, Any], key: str, cls: Any, faults: list[Fault]) -> Any:
    if key not in data:
        return cls()  # quicker than to make a reader for the class
    found, more = read_table(data[key], cls, key)
    faults.extend(more)
    return found


def _named(data: Mapping[str, Any], key: str, read: Any, faults: list[Fault]) -> dict[str, Any]:
    """Read a table of named entries; entries with faults are left out and reported."""
    entries = data.get(key, {})
    if not is_table(entries):
        faults.append((key, f"expected a table, got {shown(entries)}"))
        return {}
    found: dict[str, Any] = {}
    for name, value in entries.items():
        path = f"{key}.{quoted(name)}"
        try:
            checked = (read_model_name if key in _MODEL_NAMES else read_name)(name)
        except ValueError as error:
            faults.append((path, str(error)))
            continue
        own, dotted = without_dotted(key, name, value)
        faults.extend(dotted)
        if dotted and not own:
            continue
        entry, more = read(own, path)
        faults.extend(more)
        if entry is not None:
            found[checked] = entry
    return found


def _read_alias(value: Any, path: str) -> tuple[Name | None, list[Fault]]:
    try:
        return read_model_name(value), []
    except ValueError as error:
        return None, [(path, f"{error}; an alias names one model id")]


def _state_file(data: Mapping[str, Any], faults: list[Fault]) -> str | None:
    if "state_file" not in data:
        return None
    try:
        return str(expanded(read_string(data["state_file"])))
    except ValueError as error:
        faults.append(("state_file", str(error)))
        return None


def _cross_faults(
    data: Mapping[str, Any],
    pools: Mapping[str, PoolConfig],
    engines: Mapping[str, AnyEngineConfig],
    models: Mapping[str, ModelConfig],
    aliases: Mapping[str, str],
) -> Iterator[Fault]:
    """Yield what is wrong between tables. Names of entries with faults of their own count as known."""
    named_engines = {**_names_in(data, "peers"), **_names_in(data, "engines")}
    if not named_engines and is_table(data.get("engines", {})):
        yield "engines", "no engine is configured; add at least one [engines.NAME] or [peers.NAME] table"
    if REMOTES in pools:
        yield (
            f"pools.{REMOTES}",
            'engines of type "remote" are in a pool of this name; give this one another name',
        )
    for pool_name, pool in pools.items():
        yield from pool_faults(f"pools.{quoted(pool_name)}", pool)
    named_pools, named_models = {"default": None, **_names_in(data, "pools")}, _names_in(data, "models")
    of_engines: dict[str, dict[str, ModelConfig]] = {}
    for model_id, model in models.items():
        of_engines.setdefault(model.engine, {})[model_id] = model
    for name, engine in engines.items():
        yield from _engine_faults(name, engine, of_engines.get(name, {}), named_models)
        of_engine = of_engines.get(name, {})
        yield from place_faults(name, engine, of_engine, named_pools)
        yield from gpu_faults(name, engine, of_engine, pools)
        for pool in pool_settings(pools, engine.memories):
            yield from sleep_faults(engine, place_of(name, engine), pool)
            yield from turn_faults(name, engine, models, pool)
    yield from authority_faults(engines)
    for name, model in models.items():
        if model.engine not in named_engines:
            near = close(model.engine, named_engines)
            hint = f"; did you mean {shown(near)}?" if near else ""
            yield f"models.{quoted(name)}.engine", f"no engine is called {shown(model.engine)}{hint}"
    yield from _name_faults(engines, models, aliases, whole=_is_whole(data, engines, models))


def _is_whole(data: Mapping[str, Any], engines: Mapping[str, Any], models: Mapping[str, Any]) -> bool:
    """Tell whether all names are known: an entry with a fault of its own may hold any."""
    named = {**_names_in(data, "engines"), **_names_in(data, "peers")}
    return len(engines) == len(named) and len(models) == len(_names_in(data, "models"))


def _names_in(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the entries of a table, by which their names are found."""
    entries = data.get(key, {})
    return entries if is_table(entries) else {}


def _engine_faults(
    name: str,
    engine: AnyEngineConfig,
    models: Mapping[str, ModelConfig],
    named_models: Collection[str],
) -> Iterator[Fault]:
    path = place_of(name, engine)
    if isinstance(engine, StartedConfig):
        yield from process_faults(name, engine, models, named_models)
    elif isinstance(engine, RemoteConfig):
        yield from remote_faults(engine, path)
    elif isinstance(engine, KubernetesConfig):
        yield from kubernetes_faults(engine, path)
    if isinstance(engine, ContainerConfig):
        yield from container_faults(engine, path)


def _name_faults(
    engines: Mapping[str, AnyEngineConfig],
    models: Mapping[str, ModelConfig],
    aliases: Mapping[str, str],
    *,
    whole: bool,
) -> Iterator[Fault]:
    """Yield ids and aliases that mean two things, and, where all entries are known, aliases of nothing."""
    owners: dict[str, str] = {}
    yield from _id_faults(engines, models, owners)
    yield from variant_faults(models, owners)
    pairs = [(f"models.{quoted(m)}.aliases", a) for m, c in models.items() for a in c.aliases]
    pairs += [
        (f"models.{quoted(m)}.variants.{quoted(v)}.aliases", a)
        for m, c in models.items()
        for v, variant in c.variants.items()
        for a in variant.aliases
    ]
    pairs += [(f"aliases.{quoted(alias)}", alias) for alias in aliases]
    seen: dict[str, str] = {}
    for place, alias in pairs:
        if alias in owners:
            yield place, f"{shown(alias)} is the id of a model already: see {owners[alias]}"
        elif seen.get(alias) == place:
            yield place, f"{shown(alias)} is listed twice"
        elif alias in seen:
            yield place, f"{shown(alias)} is an alias already: see {seen[alias]}"
        seen[alias] = place
    may_discover = any(engine.discover or is_scanned(engine) for engine in engines.values())
    for alias, target in aliases.items():
        if target in seen and target not in owners:
            yield f"aliases.{quoted(alias)}", f"{shown(target)} is itself an alias; name the model id"
        elif target not in owners and whole and not may_discover:
            near = close(target, list(owners))
            hint = f"; did you mean {shown(near)}?" if near else ""
            yield f"aliases.{quoted(alias)}", f"no model is called {shown(target)}{hint}"


def _id_faults(
    engines: Mapping[str, AnyEngineConfig], models: Mapping[str, ModelConfig], owners: dict[str, str]
) -> Iterator[Fault]:
    """Yield ids that mean two models; note in `owners` where each id was found."""
    for name, engine in engines.items():
        place = f"{place_of(name, engine)}.models"
        for model, times in Counter(engine.models).items():
            other = owners.setdefault(model, place)
            if other != place and not isinstance(engine, PeerConfig):  # several places may well have it
                yield place, f"model {shown(model)} is also in {other}; one id belongs to one engine"
            if times > 1:
                yield place, f"model {shown(model)} is listed twice"
    for model_name, model_config in models.items():
        place = owners.get(model_name, "")
        if place.startswith("engines.") and place != f"engines.{quoted(model_config.engine)}.models":
            yield (
                f"models.{quoted(model_name)}.engine",
                f"the model is also in {place}; one id belongs to one engine",
            )
        owners.setdefault(model_name, f"models.{quoted(model_name)}")
