"""Configuration: what is accepted, and in which words everything else is refused."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import hypothesis
import jsonschema
import platformdirs
import pytest
import tomli
from hypothesis import strategies as st

from engine_router.config import (
    HttpConfig,
    ModelConfig,
    ProcessConfig,
    find_config,
    is_template,
    load_config,
    parse_config,
)
from engine_router.config.engines import EngineConfig
from engine_router.config.load import build_config, candidates
from engine_router.config.schema import json_schema, reference
from engine_router.errors import ConfigError
from engine_router.memory.unified import is_unified, is_unified_machine

EXAMPLE = Path(__file__).parent.parent / "engines.toml.example"
SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

ENGINE = '[engines.a]\ntype = "process"\nargv = "serve {port}"\n'
HTTP = '[engines.h]\ntype = "http"\nbase_url = "http://127.0.0.1:5000"\n'
CALLS = 'unload = { path = "/u" }\nloaded = { path = "/l" }\n'
COMMON = "models, pool, memory_gb, group, pinned, idle_timeout_s, start_timeout_s, stop_timeout_s, connect_timeout_s, headers, discover, endpoints, stream_upstream, type"


def faults_of(text: str | bytes) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    return list(caught.value.faults)


def an_engine(options: str) -> ProcessConfig:
    engine = parse_config(ENGINE + options).engines["a"]
    assert isinstance(engine, ProcessConfig)
    return engine


# The example

CODE = re.compile(r"#[^ ]")
SLEEPS = re.compile(r"(Http|Systemd)Config(?=\).sleep)")


def blocks_of_example() -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    """Yield each table of the example: its header, and its lines, with whether they are commented out."""
    header, lines = "", []
    for line in EXAMPLE.read_text("utf-8").splitlines():
        commented = bool(CODE.match(line))
        text = line[1:] if commented else line
        if not text or text.startswith("#"):
            continue
        if text.startswith("["):
            yield header, lines
            header, lines = text, [(text, commented)]
        else:
            lines.append((text, commented))
    yield header, lines


def documented() -> dict[str, list[tuple[str, Any]]]:
    """Return what the example shows, as reference() names the tables: (key, value) of every line."""
    found: dict[str, list[tuple[str, Any]]] = {}
    kinds = {
        "process": "ProcessConfig",
        "http": "HttpConfig",
        "ollama": "OllamaConfig",
        "systemd": "SystemdConfig",
    }
    kind = ""
    for header, lines in blocks_of_example():
        values = tomli.loads("\n".join(text for text, _ in lines if not text.startswith("[")))
        top, *rest = header.strip("[]").split(".")
        kind = kinds.get(str(values.get("type")), kind)
        place = top if top not in ("pools", "models", "engines") else f"{top}.NAME"
        if top == "engines":
            place += f" ({kind})" + "".join(f".{part}" for part in rest[1:])
        entries = found.setdefault(place, [])
        for key, value in values.items():
            if isinstance(value, dict) and key in ("load", "unload", "loaded", "sleep"):
                found.setdefault(f"{place}.{key}", []).extend(value.items())
            else:
                entries.append((key, value))
    return found


def test_the_example_loads() -> None:
    config = load_config(EXAMPLE)
    assert [type(engine).__name__ for engine in config.engines.values()] == [
        "ProcessConfig",
        "ProcessConfig",
        "ProcessConfig",
        "OllamaConfig",
    ]
    assert config.models["qwen3-8b"].path == "~/models/qwen3-8b-q4_k_m.gguf"
    assert config.aliases["gpt-4o-mini"] == "qwen3-30b"


def test_everything_that_the_example_comments_out_loads_too() -> None:
    live, engines = EXAMPLE.read_text("utf-8"), 0
    for header, lines in blocks_of_example():
        if lines and all(commented for _, commented in lines) and header.startswith("["):
            engines += header.startswith("[engines") and header.count(".") == 1
            live += "\n" + "\n".join(text for text, _ in lines)
    config = parse_config(live.replace("[pools.gpu]", "[pools.card]"))
    assert len(config.engines) == engines + 4 == 16
    assert {type(engine).__name__ for engine in config.engines.values()} == {
        "ProcessConfig",
        "HttpConfig",
        "OllamaConfig",
        "SystemdConfig",
    }


def test_every_single_option_that_the_example_comments_out_loads() -> None:
    lines = EXAMPLE.read_text("utf-8").splitlines()
    live_header, tried = False, 0
    for index, line in enumerate(lines):
        if line.startswith(("[", "#[")):
            live_header = line.startswith("[")
        elif live_header and CODE.match(line):
            tried += 1
            parse_config("\n".join([*lines[:index], line[1:], *lines[index + 1 :]]))
    assert tried > 25


def test_the_example_shows_every_option() -> None:
    shown = documented()
    common = {field.name for field in attrs.fields(EngineConfig)}
    anywhere = {key for place, entries in shown.items() if place.startswith("engines") for key, _ in entries}
    missing = [
        (place, key)
        for place, key, _, _ in reference()
        if key not in [k for k, _ in shown.get(place, [])]
        # Three kinds of engines sleep in the same way; it is shown once.
        and key not in [k for k, _ in shown.get(SLEEPS.sub("ProcessConfig", place), [])]
        and not (place.startswith("engines") and place.endswith(")") and key in common & anywhere)
        and not (not place and (key in shown or key in [k for k, _ in shown[""]]))
    ]
    assert missing == []


def test_the_example_shows_the_true_defaults() -> None:
    shown = documented()
    wrong = []
    for place, key, default, _ in reference():
        entries = shown.get(place, [])
        values = [value for k, value in entries if k == key]
        if not values or default in ("required", "null", "{}"):
            continue
        if (
            json.loads(default) not in values
            and key not in ("models", "aliases")
            and not place.endswith("load")
        ):
            wrong.append((place, key, default, values))
    # What only other engines' blocks show is an example there: a loaded list's shape, a start's time.
    assert wrong == []


def test_the_example_satisfies_the_schema() -> None:
    VALIDATOR.validate(tomli.loads(EXAMPLE.read_text("utf-8")))


# Faults, one at a time: the file, the path and the words, and whether an editor can see it by the schema.

VLLM = """
[pools.default]
unified = false
[engines.v]
type = "process"
argv = "vllm serve some/model --port {port} --enable-sleep-mode"
env = { VLLM_SERVER_DEV_MODE = "1" }
sleep = { kind = "vllm" }
"""
SGLANG = """
[pools.default]
unified = false
[engines.s]
type = "process"
argv = "python -m sglang.launch_server --port {port} --enable-memory-saver --enable-weights-cpu-backup"
sleep = { kind = "sglang" }
"""

FAULTS = [
    # What is missing.
    ("", "engines", "no engine is configured; add at least one [engines.NAME] table", True),
    ("engines = 3", "engines", "expected a table, got 3", True),
    ("[engines]\na = 1", "engines.a", "expected a table, got 1", True),
    (
        '[engines.a]\nargv = "x"',
        "engines.a.type",
        'missing; one of "process", "http", "ollama", "systemd"',
        True,
    ),
    (
        '[engines.a]\ntype = "proces"',
        "engines.a.type",
        'expected one of "process", "http", "ollama", "systemd", got "proces"; did you mean "process"?',
        True,
    ),
    (
        "[engines.a]\ntype = 7",
        "engines.a.type",
        'expected one of "process", "http", "ollama", "systemd", got 7',
        True,
    ),
    (
        '[engines.a]\ntype = "process"',
        "engines.a.argv",
        "missing; it is required (command, as a list or one string (no shell runs))",
        True,
    ),
    (
        HTTP + 'loaded = { path = "/l" }',
        "engines.h.unload",
        "missing; it is required (call that unloads a model)",
        True,
    ),
    (
        HTTP + 'unload = { method = "POST" }\nloaded = { path = "/l" }',
        "engines.h.unload.path",
        "missing; it is required (path of the call)",
        True,
    ),
    (
        '[models.x]\npath = "p"\n' + ENGINE,
        "models.x.engine",
        "missing; it is required (engine that serves it)",
        True,
    ),
    # Unknown keys.
    (ENGINE + "[servr]\nport = 1", "servr", "unknown table; did you mean server?", True),
    (
        "zzz = 1\n" + ENGINE,
        "zzz",
        "unknown key; known: server, log, scheduling, pools, engines, models, aliases, state_file",
        True,
    ),
    (
        ENGINE + "start_timeout = 3",
        "engines.a.start_timeout",
        "unknown key; did you mean start_timeout_s?",
        True,
    ),
    (
        '[engines.o]\ntype = "ollama"\n"a.b" = 3',
        'engines.o."a.b"',
        f"unknown key; known keys: {COMMON}, base_url, stop_command",
        True,
    ),
    (ENGINE + "[server]\nprt = 1", "server.prt", "unknown key; did you mean port?", True),
    (
        HTTP + 'unload = { path = "/u", boddy = 1 }\nloaded = { path = "/l" }',
        "engines.h.unload.boddy",
        "unknown key; did you mean body?",
        True,
    ),
    # Values of the wrong kind.
    (
        ENGINE + 'start_timeout_s = "5"',
        "engines.a.start_timeout_s",
        'expected a number of seconds, got "5"',
        True,
    ),
    (
        ENGINE + "start_timeout_s = true",
        "engines.a.start_timeout_s",
        "expected a number of seconds, got true",
        True,
    ),
    (
        ENGINE + "start_timeout_s = nan",
        "engines.a.start_timeout_s",
        "expected a number of seconds that is finite, got NaN",
        False,
    ),
    (
        ENGINE + "start_timeout_s = inf",
        "engines.a.start_timeout_s",
        "expected a number of seconds that is finite, got Infinity",
        False,
    ),
    (
        ENGINE + f"start_timeout_s = 1{'0' * 400}",
        "engines.a.start_timeout_s",
        f"expected a number of seconds that is finite, got 1{'0' * 56}...",
        False,
    ),
    (
        ENGINE + "start_timeout_s = -1",
        "engines.a.start_timeout_s",
        "expected a number of seconds of zero or more, got -1",
        True,
    ),
    (ENGINE + "memory_gb = 0", "engines.a.memory_gb", "expected a number of GB above zero, got 0", True),
    (ENGINE + "memory_gb = false", "engines.a.memory_gb", "expected a number of GB, got false", True),
    (
        ENGINE + "[server]\nmax_body_mb = -inf",
        "server.max_body_mb",
        "expected a number of MB that is finite, got -Infinity",
        True,
    ),
    (ENGINE + "[server]\nport = 0", "server.port", "expected a port from 1 to 65535, got 0", True),
    (ENGINE + "[server]\nport = 65536", "server.port", "expected a port from 1 to 65535, got 65536", True),
    (ENGINE + "[server]\nport = true", "server.port", "expected a port from 1 to 65535, got true", True),
    (ENGINE + "[server]\nport = 80.0", "server.port", "expected a port from 1 to 65535, got 80.0", False),
    (
        ENGINE + "[server]\nhost = 1",
        "server.host",
        "expected an address, or a list of addresses, got 1",
        True,
    ),
    (
        ENGINE + "[server]\nhost = []",
        "server.host",
        "expected an address, or a list of addresses, got []",
        True,
    ),
    (
        ENGINE + "server = 1",
        "engines.a.server",
        f"unknown key; known keys: {COMMON}, argv, base_url, env, cwd, stop_signal, stop_command, kill_command, grace_s, log_file, ready_path, ready_check, sleep",
        True,
    ),
    ("server = 1\n" + ENGINE, "server", "expected a table, got 1", True),
    (
        ENGINE + "[server]\nallow_destructive_ollama_api = 1",
        "server.allow_destructive_ollama_api",
        "expected true or false, got 1",
        True,
    ),
    (
        ENGINE + '[server]\napi_keys = "k"',
        "server.api_keys",
        "expected a list, got a text (not shown: it may be a secret)",
        True,
    ),
    (
        ENGINE + '[server]\napi_keys = ["k", " "]',
        "server.api_keys[1]",
        "expected a name with at least one visible character, got a text (not shown: it may be a secret)",
        True,
    ),
    (
        ENGINE + "[scheduling]\nmax_queue = -1",
        "scheduling.max_queue",
        "expected a whole number of zero or more, got -1",
        True,
    ),
    (
        ENGINE + "[scheduling]\nmax_queue = 1.5",
        "scheduling.max_queue",
        "expected a whole number of zero or more, got 1.5",
        True,
    ),
    (
        ENGINE + '[log]\nlevel = "warn"',
        "log.level",
        'expected "debug" or "info" or "warning" or "error", got "warn"; did you mean "warning"?',
        True,
    ),
    (ENGINE + "[log]\nformat = 3", "log.format", 'expected "human" or "json", got 3', True),
    (ENGINE + "models = [7]", "engines.a.models[0]", "expected a name in quotes, got 7", True),
    (ENGINE + "models = 2.5", "engines.a.models", "expected a list, got 2.5", True),
    (
        ENGINE + "env = { A = 1 }",
        "engines.a.env.A",
        "expected a string in quotes, got a number (not shown: it may be a secret)",
        True,
    ),
    (
        ENGINE + "env = 3",
        "engines.a.env",
        "expected a table, got a number (not shown: it may be a secret)",
        True,
    ),
    (
        ENGINE + "headers = { a = 2024-05-01 }",
        "engines.a.headers.a",
        "expected a string in quotes, got something else (not shown: it may be a secret)",
        False,
    ),
    (
        ENGINE + 'headers = { a = "ключ" }',
        "engines.a.headers.a",
        "expected the value of an HTTP header: printable ASCII on one line, without spaces around it, got a text (not shown: it may be a secret)",
        True,
    ),
    (
        ENGINE + 'headers = { "a b" = "c" }',
        "engines.a.headers",
        "expected the name of an HTTP header, got a text (not shown: it may be a secret)",
        False,
    ),
    (
        ENGINE + 'stop_signal = "TERM"',
        "engines.a.stop_signal",
        'expected the name of a signal such as SIGTERM or SIGINT, got "TERM"',
        True,
    ),
    (
        ENGINE + "stop_signal = 15",
        "engines.a.stop_signal",
        "expected the name of a signal such as SIGTERM or SIGINT, got 15",
        True,
    ),
    (
        ENGINE + 'stop_signal = "SIGNOTHING"',
        "engines.a.stop_signal",
        'expected the name of a signal such as SIGTERM or SIGINT, got "SIGNOTHING"',
        False,
    ),
    (
        ENGINE + 'ready_path = "health"',
        "engines.a.ready_path",
        'expected a path that begins with / and has no spaces, got "health"',
        True,
    ),
    (
        ENGINE + 'ready_path = "/a b"',
        "engines.a.ready_path",
        'expected a path that begins with / and has no spaces, got "/a b"',
        True,
    ),
    (
        ENGINE + 'ready_check = "ok"',
        "engines.a.ready_check",
        'expected a check such as "status == 200", "status==ok" for a JSON key, or "model:my-model", got "ok"',
        True,
    ),
    (
        ENGINE + 'ready_check = "model:  "',
        "engines.a.ready_check",
        'expected a check such as "status == 200", "status==ok" for a JSON key, or "model:my-model", got "model:  "',
        True,
    ),
    # Commands.
    (
        '[engines.a]\ntype = "process"\nargv = []',
        "engines.a.argv",
        "expected a command with at least the program, got a list (not shown: it may be a secret)",
        True,
    ),
    (
        '[engines.a]\ntype = "process"\nargv = "  "',
        "engines.a.argv",
        "expected a command with at least the program, got a text (not shown: it may be a secret)",
        False,
    ),
    (
        '[engines.a]\ntype = "process"\nargv = ["", "{port}"]',
        "engines.a.argv",
        "expected a command with at least the program, got a list (not shown: it may be a secret)",
        False,
    ),
    (
        '[engines.a]\ntype = "process"\nargv = ["x", 1]',
        "engines.a.argv",
        "expected a command: a list of strings, or one string, got a list (not shown: it may be a secret)",
        True,
    ),
    (
        '[engines.a]\ntype = "process"\nargv = 1',
        "engines.a.argv",
        "expected a command: a list of strings, or one string, got a number (not shown: it may be a secret)",
        True,
    ),
    (
        '[engines.a]\ntype = "process"\nargv = "x \'y {port}"',
        "engines.a.argv",
        "expected a command that can be split into words (a single quote is not closed), got a text (not shown: it may be a secret)",
        False,
    ),
    (
        '[engines.a]\ntype = "process"\nargv = ["x\\u0000", "{port}"]',
        "engines.a.argv",
        "expected a command without NUL characters, got a list (not shown: it may be a secret)",
        False,
    ),
    # URLs.
    *(
        (
            HTTP.replace("http://127.0.0.1:5000", url) + CALLS,
            "engines.h.base_url",
            f"expected a URL such as http://127.0.0.1:8080, got {json.dumps(url.replace('me:pw', '***'))}",
            schema,
        )
        for url, schema in [
            ("127.0.0.1:80", True),
            ("ftp://x", True),
            ("http://", True),
            ("http://a b", True),
            ("http://me:pw@host", True),
            ("http://x:0", False),
            ("http://x:99999", False),
            ("http://[::1", False),
            ("", True),
        ]
    ),
    (
        HTTP.replace(":5000", ":5000/v1") + CALLS,
        "engines.h.base_url",
        (
            'expected a URL without a path, such as http://127.0.0.1:5000, got "http://127.0.0.1:5000/v1"; '
            "clients' paths (/v1/..., /api/...) are added to it"
        ),
        True,
    ),
    (
        HTTP.replace('"http://127.0.0.1:5000"', "5000") + CALLS,
        "engines.h.base_url",
        "expected a URL in quotes such as http://127.0.0.1:8080, got 5000",
        True,
    ),
    # Names.
    (
        '[engines." "]\ntype = "ollama"',
        'engines." "',
        'expected a name with at least one visible character, got " "',
        False,
    ),
    (
        ENGINE + "[aliases]\nx = 3",
        "aliases.x",
        "expected a name in quotes, got 3; an alias names one model id",
        True,
    ),
    ("aliases = []\n" + ENGINE, "aliases", "expected a table, got []", True),
    (
        "state_file = 1\n" + ENGINE,
        "state_file",
        "expected a string in quotes, got 1",
        True,
    ),
    # Between tables: no schema can tell.
    (
        ENGINE + 'pool = "gpo"\n[pools.gpu]',
        "engines.a.pool",
        'no pool is called "gpo"; did you mean "gpu"?',
        False,
    ),
    (ENGINE + 'pool = "zz"', "engines.a.pool", 'no pool is called "zz"; declare it as [pools.NAME]', False),
    (
        ENGINE + '[pools.p]\ngauge = "command"',
        "pools.p.command",
        'missing; gauge = "command" needs the command to run',
        False,
    ),
    (
        ENGINE + '[models.x]\nengine = "aa"',
        "models.x.engine",
        'no engine is called "aa"; did you mean "a"?',
        False,
    ),
    (ENGINE + '[models.x]\nengine = "zz"', "models.x.engine", 'no engine is called "zz"', False),
    (
        '[engines.a]\ntype = "process"\nargv = "serve"',
        "engines.a.base_url",
        "missing; say where it listens, or put {port} into argv",
        False,
    ),
    (
        ENGINE + 'base_url = "http://127.0.0.1:80"',
        "engines.a.base_url",
        "not allowed together with {port} in argv, which takes a free port",
        False,
    ),
    # Templates.
    (
        '[engines.a]\ntype = "process"\nargv = "serve {model}"',
        "engines.a.argv",
        "{model} or {path} start it once for each model, so it needs {port} too",
        False,
    ),
    (
        '[engines.a]\ntype = "process"\nargv = "serve {path}"\nbase_url = "http://127.0.0.1:80"',
        "engines.a.argv",
        "{model} or {path} start it once for each model, so it needs {port} too",
        False,
    ),
    (
        '[engines.a]\ntype = "process"\nargv = "serve {path} {port}"\nmodels = ["a.b"]',
        "engines.a.models",
        '"a.b" has no path; add [models."a.b"] with its path',
        False,
    ),
    (
        '[engines.a]\ntype = "process"\nargv = "serve {path} {port}"\n[models.x]\nengine = "a"',
        "models.x.path",
        'missing; the argv of engine "a" asks for {path}',
        False,
    ),
    # Names that mean two things.
    (ENGINE + 'models = ["x", "y", "x"]', "engines.a.models", 'model "x" is listed twice', False),
    (
        ENGINE + 'models = ["x"]\n[engines.b]\ntype = "ollama"\nmodels = ["x"]',
        "engines.b.models",
        'model "x" is also in engines.a.models; one id belongs to one engine',
        False,
    ),
    (
        ENGINE + 'models = ["x"]\n[engines.b]\ntype = "ollama"\n[models.x]\nengine = "b"',
        "models.x.engine",
        "the model is also in engines.a.models; one id belongs to one engine",
        False,
    ),
    (
        ENGINE + 'sleep = { kind = "vlm" }',
        "engines.a.sleep.kind",
        'expected "vllm" or "sglang" or "custom", got "vlm"; did you mean "vllm"?',
        True,
    ),
    (
        ENGINE + 'sleep = { kind = "vllm", level = 3 }',
        "engines.a.sleep.level",
        "expected 1 or 2, got 3",
        True,
    ),
    (
        ENGINE + 'sleep = { kind = "vllm", level = true }',
        "engines.a.sleep.level",
        "expected 1 or 2, got true",
        True,
    ),
    (
        ENGINE + "sleep = { level = 1 }",
        "engines.a.sleep.kind",
        "missing; it is required (vllm, sglang, or custom for the calls below)",
        True,
    ),
    (
        ENGINE + 'sleep = { kind = "sglang", level = 2 }',
        "engines.a.sleep.level",
        'only vLLM has levels; leave it out, or say kind = "vllm"',
        False,
    ),
    (
        ENGINE + 'sleep = { kind = "vllm", level = 2, path = "/sleep" }',
        "engines.a.sleep.path",
        'not allowed with kind = "vllm"; use kind = "custom"',
        False,
    ),
    (
        ENGINE + 'sleep = { kind = "custom", wake = [{ path = "/up" }] }',
        "engines.a.sleep.path",
        'missing; kind = "custom" needs the call that puts the engine to sleep',
        False,
    ),
    (
        ENGINE + 'sleep = { kind = "custom", path = "/down" }',
        "engines.a.sleep.wake",
        'missing; kind = "custom" needs the calls that wake the engine',
        False,
    ),
    (
        ENGINE + 'sleep = { kind = "custom", path = "/down", wake = [{ path = "up" }] }',
        "engines.a.sleep.wake[0].path",
        'expected a path that begins with / and has no spaces, got "up"',
        True,
    ),
    (
        '[pools.default]\ngauge = "memfree"\n' + ENGINE + 'sleep = { kind = "vllm" }',
        "engines.a.sleep.level",
        "1 parks the weights in main memory, which the GPU of this pool uses too, so that nothing is freed: use level = 2; if this pool's GPU has a memory of its own, say so with unified = false in its [pools] table",
        False,
    ),
    (
        "[pools.default]\nunified = true\n" + ENGINE + 'sleep = { kind = "sglang" }',
        "engines.a.sleep.kind",
        "SGLang keeps the weights in main memory while it sleeps, which the GPU of this pool uses too, so that hardly anything is freed: leave sleep out; if this pool's GPU has a memory of its own, say so with unified = false in its [pools] table",
        False,
    ),
    (
        "[pools.default]\nunified = 1\n" + ENGINE,
        "pools.default.unified",
        'expected true, false or "auto", got 1',
        True,
    ),
    (
        VLLM.replace(" --enable-sleep-mode", ""),
        "engines.v.argv",
        "vLLM does not sleep unless it is started with it: add --enable-sleep-mode",
        False,
    ),
    (
        VLLM.replace('{ VLLM_SERVER_DEV_MODE = "1" }', "{}"),
        "engines.v.env",
        'vLLM has no calls to sleep without it: add env = { VLLM_SERVER_DEV_MODE = "1" }',
        False,
    ),
    (
        SGLANG.replace(" --enable-weights-cpu-backup", ""),
        "engines.s.argv",
        "SGLang wakes without its weights unless it is started with it: add --enable-weights-cpu-backup",
        False,
    ),
    (
        SGLANG.replace(" --enable-memory-saver", ""),
        "engines.s.argv",
        "SGLang does not sleep unless it is started with it: add --enable-memory-saver",
        False,
    ),
    (
        ENGINE + 'models = ["x"]\n[aliases]\nx = "x"',
        "aliases.x",
        '"x" is the id of a model already: see engines.a.models',
        False,
    ),
    (
        ENGINE + '[models.x]\nengine = "a"\naliases = ["y", "y"]',
        "models.x.aliases",
        '"y" is listed twice',
        False,
    ),
    (
        ENGINE + '[models.x]\nengine = "a"\naliases = ["y"]\n[aliases]\ny = "x"',
        "aliases.y",
        '"y" is an alias already: see models.x.aliases',
        False,
    ),
    (
        ENGINE + 'models = ["x"]\n[aliases]\ny = "x"\nz = "y"',
        "aliases.z",
        '"y" is itself an alias; name the model id',
        False,
    ),
    (
        ENGINE + '[models.x]\nengine = "a"\naliases = ["y"]\n[aliases]\nz = "y"',
        "aliases.z",
        '"y" is itself an alias; name the model id',
        False,
    ),
    (
        ENGINE + 'models = ["qwen3"]\ndiscover = false\n[aliases]\ny = "qwen"',
        "aliases.y",
        'no model is called "qwen"; did you mean "qwen3"?',
        False,
    ),
    (
        ENGINE + 'models = ["x"]\ndiscover = false\n[aliases]\ny = "zzz"',
        "aliases.y",
        'no model is called "zzz"',
        False,
    ),
    (
        "[scheduling]\npreload = ['small', 'qwen']\n"
        + ENGINE
        + 'models = ["qwen3"]\n[aliases]\nsmall = "qwen3"',
        "scheduling.preload",
        'no model is called "qwen"; did you mean "qwen3"?',
        False,
    ),
    (
        "scheduling.preload = ['zzz']\n" + ENGINE + '[models.x]\nengine = "a"\naliases = ["y"]',
        "scheduling.preload",
        'no model is called "zzz"; known: x, y',
        False,
    ),
    (
        "scheduling.preload = ['zzz']\n" + ENGINE + "discover = false",
        "scheduling.preload",
        'no model is called "zzz"; name it in the models of its engine',
        False,
    ),
    (
        ENGINE + 'models = ["qwen3"]\n[pools.default]\ndefault_model = "a"',
        "pools.default.default_model",
        'no model is called "a"; that is an engine; name one of its models',
        False,
    ),
    (
        ENGINE + 'models = ["qwen3"]\n[pools.gpu]\ndefault_model = "qwen3:latest"',
        "pools.gpu.default_model",
        'model "qwen3:latest" is not of this pool: its engine "a" uses pool "default"',
        False,
    ),
]


@pytest.mark.parametrize(
    ("text", "path", "words", "schema"), FAULTS, ids=[f"{f[1]}-{i}" for i, f in enumerate(FAULTS)]
)
def test_one_fault_is_named_by_its_path(text: str, path: str, words: str, schema: bool) -> None:
    assert faults_of(text) == [(path, words)]
    if schema:
        assert not VALIDATOR.is_valid(tomli.loads(text))


def test_all_faults_are_reported_at_once() -> None:
    text = """
        sever = 1
        [server]
        port = "8077"
        api_keys = [1, "good", ""]
        [scheduling]
        drain_timeout_s = nan
        max_wait = 5
        [engines.one]
        type = "process"
        argv = "x"
        models = [3]
        headers = { a = 1, b = "ok", c = 2 }
        [engines.two]
        type = "http"
        base_url = "localhost"
        unload = { path = "u" }
        [engines.three]
        type = "docker"
        [engines.four]
        type = "ollama"
        pool = "nowhere"
        [models.m]
        engine = "fuor"
        [aliases]
        z = 1
    """
    expected = {
        "sever",
        "server.port",
        "server.api_keys[0]",
        "server.api_keys[2]",
        "scheduling.drain_timeout_s",
        "scheduling.max_wait",
        "engines.one.models[0]",
        "engines.one.headers.a",
        "engines.one.headers.c",
        "engines.two.base_url",
        "engines.two.unload.path",
        "engines.two.loaded",
        "engines.three.type",
        "engines.four.pool",
        "models.m.engine",
        "aliases.z",
    }
    faults = faults_of(text)
    assert {path for path, _ in faults} == expected
    assert len(faults) == len(expected)
    with pytest.raises(
        ConfigError, match=r"^engines.toml: 16 faults\n  sever: unknown key; did you mean server\?\n"
    ):
        parse_config(text)


def test_a_fault_brings_no_others_after_it() -> None:
    # The engine that has a fault of its own would serve "x", and so would the model.
    bad_engine = ENGINE + 'models = ["x"]\ndiscover = false\nport = 1\n[aliases]\ny = "x"'
    assert [path for path, _ in faults_of(bad_engine)] == ["engines.a.port"]
    bad_model = (
        '[engines.a]\ntype = "process"\nargv = "serve {path} {port}"\nmodels = ["x"]\ndiscover = false\n'
        '[models.x]\nengine = "a"\npath = 1\n[aliases]\ny = "x"\n[pools.p]\ngpu = -1'
    )
    assert {path for path, _ in faults_of(bad_model)} == {"models.x.path", "pools.p.gpu"}
    bad_name = "scheduling.preload = ['x']\n" + ENGINE + "models = [3]\ndiscover = false"
    assert [path for path, _ in faults_of(bad_name)] == ["engines.a.models[0]"]


# Good files


def test_a_small_file_gets_the_defaults() -> None:
    config = parse_config('[engines.o]\ntype = "ollama"')
    assert (config.server.host, config.server.port) == (("127.0.0.1",), 8077)
    assert config.scheduling.max_wait_s == 60
    assert config.models == {}
    assert config.state_file is None


@pytest.mark.parametrize(
    ("written", "argv"),
    [
        ("'srv --name \"two words\" {port}'", ("srv", "--name", "two words", "{port}")),
        ('["srv", "--name", "two words", "{port}"]', ("srv", "--name", "two words", "{port}")),
        (r"'srv a\ b --x=\"\" {port}'", ("srv", "a b", '--x=""', "{port}")),
        ("'srv \"\" {port}'", ("srv", "", "{port}")),
        ("'srv $HOME *.gguf {port} | tee'", ("srv", "$HOME", "*.gguf", "{port}", "|", "tee")),
        ("'srv {\"a\":{}} {port}'", ("srv", "{a:{}}", "{port}")),
    ],
)
def test_a_command_is_split_as_a_shell_would(written: str, argv: tuple[str, ...]) -> None:
    engine = parse_config(f'[engines.a]\ntype = "process"\nargv = {written}').engines["a"]
    assert isinstance(engine, ProcessConfig)
    assert engine.argv == argv


@pytest.mark.parametrize(
    ("argv", "template"),
    [
        ("s {port}", False),
        ("s {port} {model}", True),
        ("s {port} -m={path}", True),
        ("s {port} {models}", False),
    ],
)
def test_model_and_path_make_a_template(argv: str, template: bool) -> None:
    engine = parse_config(f'[engines.a]\ntype = "process"\nargv = "{argv}"').engines["a"]
    assert isinstance(engine, ProcessConfig)
    assert is_template(engine) is template


@pytest.mark.parametrize(
    "text",
    [
        "status == 200",
        "status==ok",
        "  a.b-c.0 == yes, really ",
        "model:org/name:tag",
        'state=="it\'s"',
        "status == 999",
    ],
)
def test_readiness_checks(text: str) -> None:
    assert an_engine(f"ready_check = {json.dumps(text)}").ready_check == text.strip()


def test_numbers_may_be_written_as_they_are() -> None:
    engine = an_engine("start_timeout_s = 5\ngrace_s = 0\nstop_timeout_s = 1e3\nmemory_gb = 0x10")
    assert (engine.start_timeout_s, engine.grace_s, engine.stop_timeout_s, engine.memory_gb) == (
        5,
        0,
        1000,
        16,
    )
    assert isinstance(engine.start_timeout_s, float)


def test_a_base_url_is_normalised() -> None:
    config = parse_config(HTTP.replace("http://127.0.0.1:5000", " HTTP://LocalHost:5000/ ") + CALLS)
    engine = config.engines["h"]
    assert isinstance(engine, HttpConfig)
    assert engine.base_url == "http://LocalHost:5000"


def test_a_json_body_may_be_anything() -> None:
    body = '{ model = "{model}", deep = [1, { a = true, b = 2.5 }] }'
    config = parse_config(HTTP + f'unload = {{ path = "/u", body = {body} }}\nloaded = {{ path = "/l" }}')
    engine = config.engines["h"]
    assert isinstance(engine, HttpConfig)
    assert engine.unload.body == {"model": "{model}", "deep": [1, {"a": True, "b": 2.5}]}


def test_a_model_in_its_own_engines_list_may_have_a_table_too() -> None:
    config = parse_config(ENGINE + 'models = ["x"]\n[models.x]\nengine = "a"\naliases = ["y"]')
    assert config.models == {"x": ModelConfig(engine="a", aliases=("y",))}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "engines",
    [
        ENGINE,  # its models are not known
        ENGINE + 'models = ["x"]\n[engines.o]\ntype = "ollama"\nmodels = ["y"]',
        ENGINE + 'models = ["mine"]',
        ENGINE + 'models = ["mine:latest"]',
        ENGINE + '[models.x]\nengine = "a"\naliases = ["mine"]',
        ENGINE + 'models = ["x"]\n[aliases]\nmine = "x"',
    ],
)
def test_a_model_that_may_be_there_may_be_loaded_ahead(engines: str) -> None:
    text = "scheduling.preload = ['mine']\npools.default.default_model = 'mine'\n" + engines
    assert parse_config(text).scheduling.preload == ("mine",)


def test_an_alias_of_a_model_that_an_engine_may_list_is_accepted() -> None:
    assert parse_config('[engines.o]\ntype = "ollama"\n[aliases]\nx = "llama3.2:3b"').aliases == {
        "x": "llama3.2:3b"
    }


# Files

GOOD = '[engines.o]\ntype = "ollama"\n[aliases]\n"klein" = "größe"\n'


@pytest.mark.parametrize(
    "raw",
    [
        GOOD.encode(),
        GOOD.encode("utf-8-sig"),
        GOOD.replace("\n", "\r\n").encode(),
        GOOD.replace("\n", "\r\n").encode("utf-8-sig"),
    ],
    ids=["plain", "bom", "crlf", "bom-crlf"],
)
def test_what_editors_do_to_a_file_does_not_matter(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "engines.toml"
    path.write_bytes(raw)
    assert load_config(path).aliases == {"klein": "größe"}
    assert parse_config(raw.decode()).aliases == {"klein": "größe"}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (GOOD.encode("latin-1"), "is not UTF-8 text (byte 51): save it as UTF-8"),
        (GOOD.encode("utf-16"), "is not UTF-8 text (byte 0): save it as UTF-8"),
        (
            b"[engines",
            "is not TOML: Expected ']' at the end of a table declaration; the name of a table stands in brackets, [engines.NAME]; other characters than letters, digits, - and _ need quotes (line 1, column 9)",
        ),
        (
            b"[a]\n[a]",
            "the table [a] stands here and in line 1: put both together, or give this one another name (line 2, column 3)",
        ),
    ],
)
def test_a_file_that_is_no_toml(raw: bytes, words: str) -> None:
    assert faults_of(raw) == [("", words)]


@pytest.mark.parametrize("raw", ["a = " + "[" * 5000, "a = " + "9" * 5000, "a = 1\0", "a\ud800 = 1"])
def test_a_file_that_is_out_of_all_bounds(raw: str) -> None:
    ((path, words),) = faults_of(raw)
    assert path == ""
    assert words.startswith(("is not TOML: ", "cannot be read: "))


def test_a_file_that_is_missing_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "none.toml")
    assert caught.value.source == str(tmp_path / "none.toml")
    assert caught.value.faults == (("", "cannot be read: No such file or directory"),)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


def test_what_the_user_named_is_used_or_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("engines.toml").write_text(GOOD, "utf-8")
    Path("mine.toml").write_text(GOOD, "utf-8")
    assert find_config("mine.toml", {"ENGINE_ROUTER_CONFIG": "other.toml"}) == Path("mine.toml")
    assert find_config(None, {"ENGINE_ROUTER_CONFIG": "mine.toml"}) == Path("mine.toml")
    for named in (
        {"explicit": "none.toml", "environ": {}},
        {"environ": {"ENGINE_ROUTER_CONFIG": "none.toml"}},
    ):
        with pytest.raises(ConfigError) as caught:
            find_config(**named)  # type: ignore[arg-type]
        assert caught.value.source == "none.toml"
        assert caught.value.faults == (
            ("", "does not exist; give a file with --config or $ENGINE_ROUTER_CONFIG"),
        )
    with pytest.raises(ConfigError, match="is a folder, not a file"):
        find_config(str(tmp_path), {})
    for odd in ("~nobody-of-this-name/engines.toml", "x" * 5000):
        with pytest.raises(ConfigError, match="does not exist"):
            find_config(odd, {})


@pytest.mark.skipif(os.name != "posix", reason="a pipe in the file system")
def test_a_configuration_may_come_from_a_pipe() -> None:
    reading, writing = os.pipe()
    os.write(writing, GOOD.encode())
    os.close(writing)
    try:
        assert load_config(find_config(f"/dev/fd/{reading}", {})).aliases == {"klein": "größe"}
    finally:
        os.close(reading)


def test_the_search_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    monkeypatch.setattr(platformdirs, "user_config_path", lambda *_, **__: home)
    home.mkdir()
    places = candidates(None, {})
    assert places[:2] == [Path("engines.toml"), home / "engines.toml"]
    assert places[2:] == ([Path("/etc/engine-router/engines.toml")] if os.name == "posix" else [])
    (home / "engines.toml").write_text(GOOD, "utf-8")
    Path("engines.toml").mkdir()  # a folder is passed over
    assert find_config(None, {"ENGINE_ROUTER_CONFIG": ""}) == home / "engines.toml"
    Path("engines.toml").rmdir()
    Path("engines.toml").write_text(GOOD, "utf-8")
    assert find_config(None, {}) == Path("engines.toml")


def test_where_nothing_is_found_all_places_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_router.config.load.candidates", lambda *_: [tmp_path / "a", tmp_path / "b"])
    with pytest.raises(
        ConfigError, match=r"not found; looked for .*/a, .*/b\. Write one \(see .*/engines\.toml\.example\)"
    ):
        find_config(None, {})


# Sleep


@pytest.mark.parametrize(
    "text",
    [
        VLLM,
        SGLANG,
        VLLM.replace('"vllm serve', '"env VLLM_SERVER_DEV_MODE=1 vllm serve').replace('{ VLLM_SERVER_DEV_MODE = "1" }', "{}"),
        VLLM.replace('"vllm serve', '"./our-own-script').replace(" --enable-sleep-mode", ""),
        VLLM.replace("unified = false", "unified = true").replace('"vllm" }', '"vllm", level = 2 }'),
        SGLANG.replace("unified = false", 'gauge = "nvml"'),
    ],
)  # fmt: skip
def test_an_engine_that_may_sleep(text: str) -> None:
    VALIDATOR.validate(tomli.loads(text))
    assert next(iter(parse_config(text).engines.values())).sleep is not None  # type: ignore[union-attr]


def test_what_the_router_itself_inherits_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    text = VLLM.replace('{ VLLM_SERVER_DEV_MODE = "1" }', "{}")
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    parse_config(text)
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "0")
    with pytest.raises(ConfigError):
        parse_config(text)


GPU = "proc/driver/nvidia/gpus/0000:01:00.0/information"


@pytest.mark.parametrize(
    ("system", "machine", "files", "unified"),
    [
        ("darwin", "arm64", {}, True),
        ("darwin", "x86_64", {}, False),
        ("win32", "AMD64", {}, False),
        ("linux", "aarch64", {}, False),
        ("linux", "aarch64", {"sys/class/dmi/id/product_name": b"NVIDIA_DGX_Spark\n"}, True),
        ("linux", "aarch64", {GPU: b"Model: \t\t NVIDIA GB10\nIRQ: 1\n"}, True),
        ("linux", "x86_64", {GPU: b"Model: \t\t NVIDIA GeForce RTX 4090\n"}, False),
        ("linux", "aarch64", {"proc/device-tree/model": b"NVIDIA Jetson AGX Orin\0"}, True),
        ("linux", "x86_64", {"sys/class/dmi/id/product_name": b"\xff\xfe"}, False),
    ],
)
def test_machines_with_one_memory_are_known(
    system: str, machine: str, files: dict[str, bytes], unified: bool, tmp_path: Path
) -> None:
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(data)
    assert is_unified_machine(system, machine, tmp_path) is unified


@pytest.mark.parametrize(
    ("configured", "gauge", "machine", "unified"),
    [
        ("auto", "auto", True, True),
        ("auto", "memavailable", False, False),
        ("auto", "memfree", False, True),
        ("auto", "nvml", True, False),
        ("auto", "none", True, False),
        (False, "memfree", True, False),
        (True, "nvml", False, True),
    ],
)
def test_a_pool_is_unified_as_configured_or_as_its_gauge_and_machine_say(
    configured: object, gauge: str, machine: bool, unified: bool
) -> None:
    assert is_unified(configured, gauge, machine=machine) is unified


# The schema and the reference


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


def test_every_option_is_described() -> None:
    rows = reference()
    assert len(rows) > 80
    assert len({(table, key) for table, key, _, _ in rows}) == len(rows)
    for table, key, default, doc in rows:
        assert doc.endswith("."), (table, key)
        assert default


# Whatever a file holds

KEYS = st.sampled_from(
    sorted(
        {key for _, key, _, _ in reference()}
        | {"server", "log", "engines", "pools", "models", "load", "loaded"}
    )
) | st.text(max_size=4)
LEAVES = (
    st.none()  # TOML has none; the library's caller may
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.dates()
    | st.sampled_from(
        ["process", "http", "ollama", "{port}", "{path} {port}", "/x", "http://a:1", "default", "a", 10**400]
    )
)
JUNK = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=30,
)
TABLES = ("server", "log", "scheduling", "pools", "engines", "models", "aliases", "state_file")


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.dictionaries(st.sampled_from(TABLES) | st.text(max_size=5), JUNK, max_size=6))
def test_junk_is_never_more_than_faults(data: dict[str, Any]) -> None:
    config, faults = build_config(data)
    assert (config is None) == bool(faults)
    assert all(isinstance(path, str) and words for path, words in faults)


# What a TOML file can say, which has no null.
SAID = LEAVES.filter(lambda value: value is not None)
OPTIONS = st.dictionaries(KEYS, SAID | st.lists(SAID, max_size=3), max_size=6)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
    st.dictionaries(
        st.sampled_from(["a", "b", "a b"]),
        st.builds(
            lambda kind, more: {**more, "type": kind},
            st.sampled_from(["process", "http", "ollama", "systemd"]),
            OPTIONS,
        ),
        min_size=1,
        max_size=3,
    ),
    st.dictionaries(
        st.sampled_from(["m", "n", "a"]), OPTIONS | st.just({"engine": "a", "path": "p"}), max_size=3
    ),
    st.dictionaries(st.sampled_from(["m", "n", "o"]), st.sampled_from(["m", "n", "o", 1]), max_size=3),
)
def test_what_is_accepted_satisfies_the_schema(engines: Any, models: Any, aliases: Any) -> None:
    data = {"engines": engines, "models": models, "aliases": aliases}
    config, faults = build_config(data)
    assert (config is None) == bool(faults)
    if config is not None:
        VALIDATOR.validate(data)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(st.binary(max_size=200) | st.text(max_size=200))
def test_any_bytes_are_refused_in_words(raw: bytes | str) -> None:
    with pytest.raises(ConfigError):
        parse_config(raw)
