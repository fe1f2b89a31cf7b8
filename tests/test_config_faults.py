"""Faults of a configuration, one at a time: the file, the path and the words."""

import json

import pytest
import tomli
from support.config_faults import CALLS, ENGINE, HTTP, SGLANG, VALIDATOR, VLLM, faults_of

from engine_router.config import (
    parse_config,
)
from engine_router.errors import ConfigError

PEER = '[peers.p]\nbase_url = "http://127.0.0.1:1"\n'
COMMON = "models, pool, pools, memory_gb, group, pinned, evict_cost, idle_timeout_s, start_timeout_s, stop_timeout_s, connect_timeout_s, headers, discover, endpoints, stream_upstream, cache_salt, type"


# Faults, one at a time: the file, the path and the words, and whether an editor can see it by the schema.

FAULTS = [
    # What is missing.
    ("", "engines", "no engine is configured; add at least one [engines.NAME] or [peers.NAME] table", True),
    ("engines = 3", "engines", "expected a table, got 3", True),
    ("[engines]\na = 1", "engines.a", "expected a table, got 1", True),
    (
        '[engines.a]\nargv = "x"',
        "engines.a.type",
        'missing; one of "process", "container", "http", "ollama", "systemd", "kubernetes", "remote"',
        True,
    ),
    (
        '[engines.a]\ntype = "proces"',
        "engines.a.type",
        'expected one of "process", "container", "http", "ollama", "systemd", "kubernetes", "remote", got "proces"; did you mean "process"?',
        True,
    ),
    (
        "[engines.a]\ntype = 7",
        "engines.a.type",
        'expected one of "process", "container", "http", "ollama", "systemd", "kubernetes", "remote", got 7',
        True,
    ),
    (
        '[engines.a]\ntype = "process"\nargv = "s {port} --slot-save-path=/x"\nkeep_context = true',
        "engines.a.argv",
        "leave --slot-save-path out: keep_context adds it, with a folder of the router's own",
        False,
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
        "unknown key; known: server, log, history, traces, context, leader_election, scheduling, pools, engines, peers, models, families, aliases, routes, tenants, state_file",
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
        f"unknown key; known keys: {COMMON}, base_url, metrics_path, stop_command",
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
        "expected a number of seconds above zero, got -1",
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
    *(
        (
            ENGINE + f"[server]\nhost = {given}",
            "server.host",
            f'expected an address such as "127.0.0.1" or "::1", or a name, without scheme and port, got {shown}',
            by_schema,
        )
        for given, shown, by_schema in (
            ('"http://a"', '"http://a"', True),
            ('["::1", "10.0.0.999"]', '"10.0.0.999"', False),
            ('"127.0.0.1:8077"', '"127.0.0.1:8077"', True),
            ('"two words"', '"two words"', True),
            (f'"{"h" * 64}.example"', f'"{"h" * 56}...', True),
            (f'"fe80::1%{"e" * 64}"', f'"fe80::1%{"e" * 48}...', True),
        )
    ),
    # Addresses and times of peers.
    (
        PEER + 'interface = "http://a"',
        "peers.p.interface",
        'expected an IPv4 address of this machine such as "192.168.1.7", got "http://a"',
        True,
    ),
    *(
        (
            PEER + f'broadcast = "{given}"',
            "peers.p.broadcast",
            f'expected "ADDRESS" or "ADDRESS:PORT" such as "192.168.1.255" or "192.168.1.255:7", got "{given}"',
            by_schema,
        )
        for given, by_schema in (("*", True), ("1.2.3.4:", True), ("1.2.3.4:0", False), ("::1", True))
    ),
    *(
        (f"{table}\n{key} = 0", f"{path}.{key}", "expected a number of seconds above zero, got 0", True)
        for table, path, key in (
            (PEER, "peers.p", "wake_timeout_s"),
            (ENGINE, "engines.a", "start_timeout_s"),
            (ENGINE, "engines.a", "stop_timeout_s"),
            (ENGINE, "engines.a", "connect_timeout_s"),
            (ENGINE + "[context]", "context", "save_timeout_s"),
            (ENGINE + '[[tenants]]\nname = "t"\nprocess = "p"', "tenants[0]", "timeout_s"),
        )
    ),
    # Names that no client could send are not repeated whole either.
    *(
        (
            text,
            path,
            f'expected {words} characters, got "{"m" * 56}...',
            by_schema,
        )
        for text, path, words, by_schema in (
            (
                ENGINE + f'models = ["{"m" * 513}"]',
                "engines.a.models[0]",
                "a model's name, of at most 512",
                True,
            ),
            (
                ENGINE + f'models = ["{"m" * 50_000}"]',
                "engines.a.models[0]",
                "a name of at most 4,096",
                True,
            ),
            (
                ENGINE + f'[aliases]\n{"m" * 513} = "x"',
                f'aliases."{"m" * 56}...',
                "a model's name, of at most 512",
                False,
            ),
        )
    ),
    (
        ENGINE + "server = 1",
        "engines.a.server",
        f"unknown key; known keys: {COMMON.removesuffix(', type')}, metrics_path, scan, scan_formats, base_url, env, config_file, grace_s, log_file, ready_path, ready_check, warm_up, sleep, type, argv, cwd, stop_signal, stop_command, kill_command, keep_context",
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
        'expected a check such as "status == 200", "status==ok" for a JSON key, "model:my-model", or "port", got "ok"',
        True,
    ),
    (
        ENGINE + 'ready_check = "model:  "',
        "engines.a.ready_check",
        'expected a check such as "status == 200", "status==ok" for a JSON key, "model:my-model", or "port", got "model:  "',
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
        "[pools.default]\nunified = true\n" + ENGINE + 'sleep = { kind = "vllm", level = 2, verify = false }',
        "engines.a.sleep.verify",
        "vLLM has failed to wake, or woken to gibberish, where the GPU uses main memory, so every wake has to be verified: leave it out; if this pool's GPU has a memory of its own, say so with unified = false in its [pools] table",
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
    # Routes that lead to themselves, or to another.
    *(
        (
            f'{ENGINE}models = ["x"]\n[aliases]\nfast = "auto"\n[routes.auto]\n{prefer}\n[routes.other]\nprefer = ["x"]',
            f"routes.auto.{place}",
            f"{words}; name models",
            False,
        )
        for prefer, place, words in (
            ('prefer = ["auto"]', "prefer", '"auto" is itself a route'),
            ('prefer = ["x", "auto:latest"]', "prefer", '"auto:latest" is itself a route'),
            ('prefer = ["fast"]', "prefer", '"fast" is an alias of "auto", which is a route'),
            (
                'prefer = ["fast:latest", "x"]',
                "prefer",
                '"fast:latest" is an alias of "auto", which is a route',
            ),
            ('prefer = ["other"]', "prefer", '"other" is itself a route'),
            (
                'prefer = ["x"]\nrules = [{ tools = true, prefer = ["fast"] }]',
                "rules[0].prefer",
                '"fast" is an alias of "auto", which is a route',
            ),
        )
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
