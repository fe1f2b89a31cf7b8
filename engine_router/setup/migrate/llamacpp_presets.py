"""llama.cpp's presets: an `.ini` file with a section for each model, as `llama-server --models-preset` reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from engine_router.guards.documents import Document
from engine_router.setup.migrate.draft import Draft, Entry
from engine_router.setup.migrate.ini_reader import FIRST
from engine_router.setup.migrate.sections import Section

NAME: Final = "llama.cpp presets"

_ALL: Final = "*"
_ENGINE: Final = "llamacpp"
_TRUE: Final = ("true", "on", "enabled", "1")
_FALSE: Final = ("false", "off", "disabled", "0")
_CONTEXT: Final = ("c", "ctx-size")
_MODEL: Final = ("m", "model")
_PROJECTOR: Final = ("mm", "mmproj")
_REPOSITORY: Final = ("hf", "hfr", "hf-repo")
_OWN: Final = ("host", "port", "api-key", "api-key-file", "alias", "a", "models-preset", "models-autoload")
_FOLDER: Final = "models-dir"
# Options that are only there or not there; `no-` before them is the contrary where llama.cpp knows one.
_NEGATABLE: Final = frozenset(
    (
        *(
            "mmap",
            "perf",
            "escape",
            "kv-offload",
            "repack",
            "op-offload",
            "cont-batching",
            "context-shift",
            "warmup",
        ),
        *(
            "jinja",
            "mmproj-auto",
            "mmproj-offload",
            "prefill-assistant",
            "slots",
            "webui",
            "ui",
            "cache-prompt",
        ),
        *(
            "log-prefix",
            "log-timestamps",
            "kv-unified",
            "mmproj",
            "models-autoload",
            "clear-idle",
            "direct-io",
        ),
    )
)
_SWITCHES: Final = _NEGATABLE | frozenset(
    (
        *(
            "embedding",
            "embeddings",
            "rerank",
            "reranking",
            "metrics",
            "props",
            "mlock",
            "swa-full",
            "cpu-moe",
        ),
        *(
            "verbose",
            "ignore-eos",
            "check-tensors",
            "offline",
            "log-disable",
            "no-host",
            "special",
            "lora-init-without-apply",
        ),
        *("e", "cb", "cmoe", "v", "sp", "nkvo", "nr", "nocb", "kvu"),
    )
)
_SHORT: Final = re.compile(
    r"[A-Za-z]{1,2}|n?(ngl|ctk|ctv|ctkd|ctvd|ncmoe|cmoe|ngld|fit[ctp]?|kvo|kvu|cram|hff?|hft|mmu?|dev|devd)|sps|tbd?|ubd?|lcs|lcd"
)
_ENVIRONMENT: Final = "LLAMA_ARG_"
_NAMES: Final = {
    "batch": "batch-size",
    "ubatch": "ubatch-size",
    "n-parallel": "parallel",
    "think": "reasoning-format",
}


def read(document: Document, models_dir: str | None = None) -> Draft:
    """Turn presets into a draft: one engine that is started for each model, and what each model adds to it.

    Args:
        document: the presets.
        models_dir: the folder that `llama-server --models-dir` was given.
    """
    draft = Draft(NAME)
    root = Section.root(document, draft)
    sections = dict(_tables(root))
    shared = [sections.pop(name) for name in (FIRST, _ALL, "llama-server") if name in sections]
    folders = [models_dir] if models_dir else []
    common = Entry()
    for section in shared:
        folders += [found for key in _spellings(_FOLDER, section) if (found := section.text(key))]
        section.carried(_FOLDER, "scan: models in this folder come and go with their files")
        if (
            most := next((section.whole(key) for key in _spellings("models-max", section)), None)
        ) is not None:
            _add_most(section, most, draft)
        common.values.update(_settings(section, common.values))
    own = {
        name: section for name, section in sections.items() if any(True for _ in _values(section, *_MODEL))
    }
    needs_template = own or folders or any("/" not in name for name in sections)
    if needs_template:
        draft.engines[_ENGINE] = _template(folders)
    if common.values and needs_template:
        draft.families["all"] = Entry({"match": _ALL, **common.values}, "What [*] says of every model.")
    for name, section in sections.items():
        _add_model(name, section, common, draft, has_folders=bool(folders))
    for section in (*shared, *sections.values()):
        section.finish()
    return draft


def _tables(root: Section) -> Iterator[tuple[str, Section]]:
    for name in root.data:
        if (section := root.section(name)) is not None:
            yield name, section


def _template(folders: list[str]) -> Entry:
    argv = ["llama-server", "-m", "{path}", "--mmproj", "{mmproj}", "--alias", "{model}"]
    argv += ["--host", "127.0.0.1", "--port", "{port}", "-c", "{ctx}", "{args}"]
    values: dict[str, Any] = {"type": "process", "argv": argv, "discover": False}
    return Entry({**values, **({"scan": folders} if folders else {})})


def _add_most(section: Section, most: int, draft: Draft) -> None:
    for key in _spellings("models-max", section):
        section.approximated(
            key,
            "pools.default: mode and max_resident; models stay together while they fit",
            "for a graphics card set gauge of pools.default",
        )
    if most != 1:
        pool = draft.pool("default")
        pool.values["mode"] = "budget"
        if most:
            pool.values["max_resident"] = most


def _add_model(name: str, section: Section, common: Entry, draft: Draft, *, has_folders: bool) -> None:
    path = next((value for _, value in _values(section, *_MODEL)), None)
    repository = next((value for _, value in _values(section, *_REPOSITORY)), None)
    projector = next((value for _, value in _values(section, *_PROJECTOR)), None)
    values = _settings(section, {})
    if _startup(section):
        draft.scheduling.values.setdefault("preload", []).append(name)
    if path is not None:
        draft.models[name] = Entry(
            {"engine": _ENGINE, "path": path, **({"mmproj": projector} if projector else {}), **values}
        )
        for key in (*_MODEL, *_PROJECTOR):
            section.carried(key, "path" if key in _MODEL else "mmproj")
        section.lost(*_REPOSITORY, words="model names the file already")
    elif repository is not None or ("/" in name and not has_folders):
        _add_repository(name, repository or name, section, common, values, draft)
    else:
        draft.families[name] = Entry({"match": name, **values})
        words = "settings of the model of this name"
        section.approximated("", words, "it has to be found by scan: set the folder with --models-dir DIR")


def _add_repository(
    name: str, repository: str, section: Section, common: Entry, values: Mapping[str, Any], draft: Draft
) -> None:
    """Add an engine of its own for a model that llama.cpp fetches."""
    context = values.get("context_length", common.values.get("context_length"))
    argv = ["llama-server", "-hf", repository, "--alias", name, "--host", "127.0.0.1", "--port", "{port}"]
    argv += ["-c", str(context)] if context else []
    argv += [*common.values.get("args", ()), *values.get("args", ())]
    draft.engines[name] = Entry({"type": "process", "argv": argv, "models": [name], "discover": False})
    for key in _REPOSITORY:
        section.carried(key, "an engine of its own with -hf")
    if not any(key in section for key in _REPOSITORY):
        section.approximated(
            "", "an engine of its own: llama-server -hf takes it from its cache, or fetches it"
        )


def _startup(section: Section) -> bool:
    value = (section.text("load-on-startup") or "").lower()
    section.carried("load-on-startup", "scheduling.preload")
    section.lost("stop-timeout", words="it is one for all models", remedy=f"grace_s of engines.{_ENGINE}")
    section.lost("dedup-cache-models", words="each model is listed once anyway")
    return value in _TRUE


def _settings(section: Section, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return context and further words of a section, after those of an earlier one."""
    args = list(before.get("args", ()))
    values: dict[str, Any] = dict(before)
    section.carried("version", "nothing depends on it")
    for key in section.data:
        option = _option(key)
        if key in ("version", "load-on-startup", "stop-timeout", "dedup-cache-models"):
            continue
        if option in _OWN:
            section.lost(
                key, words="the router sets it by itself", remedy="server has host, port and api_keys"
            )
        elif option in _CONTEXT:
            if context := section.whole(key):
                values["context_length"] = context
            section.carried(key, "context_length, which is {ctx} in argv")
        elif option not in (*_MODEL, *_PROJECTOR, *_REPOSITORY, _FOLDER, "models-max"):
            words = _words(key, section.text(key) or "")
            args += words
            if words:
                section.carried(key, f"args: {words[0]}")
            else:
                section.approximated(key, "left out: llama.cpp has no option for its contrary")
    return {**values, **({"args": args} if args else {})}


def _option(key: str) -> str:
    """Return the option that a key means, without its dashes."""
    if not key.startswith(_ENVIRONMENT):
        return key
    name = key.removeprefix(_ENVIRONMENT).lower().replace("_", "-")
    return _NAMES.get(name, name)


def _words(key: str, value: str) -> list[str]:
    """Return the words of the command line for a key.

    >>> _words("n-gpu-layers", "99"), _words("ngl", "99"), _words("jinja", "true"), _words("mmap", "off")
    (['--n-gpu-layers', '99'], ['-ngl', '99'], ['--jinja'], ['--no-mmap'])
    """
    option = _option(key)
    dashes = "-" if _SHORT.fullmatch(option) else "--"
    positive = option.removeprefix("no-")
    is_switch = option in _SWITCHES or positive in _NEGATABLE or value.lower() in ("true", "false", "")
    if not is_switch or value.lower() not in (*_TRUE, *_FALSE, ""):
        return [f"{dashes}{option}", value]
    if value.lower() not in _FALSE:
        return [f"{dashes}{option}"]
    if option != positive:
        return [f"--{positive}"]
    return [f"--no-{option}"] if option in _NEGATABLE else []


def _values(section: Section, *options: str) -> Iterator[tuple[str, str]]:
    for key in section.data:
        if _option(key) in options and (value := section.text(key)):
            yield key, value


def _spellings(option: str, section: Section) -> list[str]:
    return [key for key in section.data if _option(key) == option]
