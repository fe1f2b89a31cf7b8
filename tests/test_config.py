"""Configuration files that are good: the example, defaults, files and places, the schema and its reference."""

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
from support.config_faults import (
    CALLS,
    ENGINE,
    HTTP,
    KEYS,
    SCHEMA,
    SGLANG,
    VALIDATOR,
    VLLM,
    faults_of,
)

from engine_router.config import (
    HttpConfig,
    ModelConfig,
    ProcessConfig,
    find_config,
    is_template,
    load_config,
    parse_config,
)
from engine_router.config.engines import EngineConfig, RemoteConfig, StartedConfig
from engine_router.config.load import build_config, candidates
from engine_router.config.schema import reference
from engine_router.config.unified import is_unified, is_unified_machine
from engine_router.errors import ConfigError

EXAMPLE = Path(__file__).parent.parent / "engines.toml.example"


def an_engine(options: str) -> ProcessConfig:
    engine = parse_config(ENGINE + options).engines["a"]
    assert isinstance(engine, ProcessConfig)
    return engine


# The example

CODE = re.compile(r"#[^ ]")

SLEEPS = re.compile(
    r"(ContainerConfig|HttpConfig|SystemdConfig|KubernetesConfig)(?=\)\.(sleep|warm_up|config_file))"
)


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
        "container": "ContainerConfig",
        "http": "HttpConfig",
        "ollama": "OllamaConfig",
        "systemd": "SystemdConfig",
        "kubernetes": "KubernetesConfig",
        "remote": "RemoteConfig",
    }
    kind = ""
    for header, lines in blocks_of_example():
        values = tomli.loads("\n".join(text for text, _ in lines if not text.startswith("[")))
        top, *rest = header.strip("[]").split(".")
        kind = kinds.get(str(values.get("type")), kind)
        named = ("pools", "models", "families", "engines", "peers", "routes")
        place = top if top not in named else f"{top}.NAME"
        if "variants" in rest:
            place += ".variants"
            found.setdefault(f"{top}.NAME", []).append(("variants", {}))
        if top in ("routes", "pools"):
            place += "".join(f".{part}" for part in rest[1:])
        if top == "server":
            place = ".".join((top, *rest))
        if top == "engines":
            place += f" ({kind})" + "".join(f".{part}" for part in rest[1:])
        entries = found.setdefault(place, [])
        for key, value in values.items():
            if isinstance(value, dict) and key in (
                "load",
                "unload",
                "loaded",
                "sleep",
                "warm_up",
                "config_file",
            ):
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
        "ContainerConfig",
        "OllamaConfig",
    ]
    assert config.models["qwen3-8b"].path == "~/models/qwen3-8b-q4_k_m.gguf"
    assert config.aliases["gpt-4o-mini"] == "qwen3-30b"


def test_everything_that_the_example_comments_out_loads_too() -> None:
    live, engines = EXAMPLE.read_text("utf-8"), 0
    for header, lines in blocks_of_example():
        if lines and all(commented for _, commented in lines) and header.startswith("["):
            engines += header.startswith(("[engines", "[peers")) and header.count(".") == 1
            live += "\n" + "\n".join(text for text, _ in lines)
    config = parse_config(live.replace("[pools.gpu", "[pools.card"))
    assert len(config.engines) == engines + 5 == 22
    assert {type(engine).__name__ for engine in config.engines.values()} == {
        "ProcessConfig",
        "ContainerConfig",
        "HttpConfig",
        "OllamaConfig",
        "SystemdConfig",
        "KubernetesConfig",
        "RemoteConfig",
        "PeerConfig",
    }


def test_every_single_option_that_the_example_comments_out_loads() -> None:
    lines = EXAMPLE.read_text("utf-8").splitlines()
    live_header, tried = False, 0
    for index, line in enumerate(lines):
        if line.startswith(("[", "#[")):
            live_header = line.startswith("[")
        elif (
            live_header and CODE.match(line) and not line.startswith("#compose")
        ):  # of a file that is not there
            tried += 1
            parse_config("\n".join([*lines[:index], line[1:], *lines[index + 1 :]]))
    assert tried > 25


def test_the_example_shows_every_option() -> None:
    shown = documented()
    common = {field.name for field in attrs.fields(EngineConfig)}
    started = {field.name for field in attrs.fields(StartedConfig)} | {"stop_signal"}
    of_remotes = {field.name for field in attrs.fields(RemoteConfig)}
    anywhere = {key for place, entries in shown.items() if place.startswith("engines") for key, _ in entries}
    missing = [
        (place, key)
        for place, key, _, _ in reference()
        if key not in [k for k, _ in shown.get(place, [])]
        # Three kinds of engines sleep in the same way; it is shown once.
        and key not in [k for k, _ in shown.get(SLEEPS.sub("ProcessConfig", place), [])]
        and not (place.startswith("engines") and place.endswith(")") and key in common & anywhere)
        and not (place == "engines.NAME (ContainerConfig)" and key in started & anywhere)
        and not (place == "peers.NAME" and key in of_remotes)
        and not (not place and (key in shown or key in [k for k, _ in shown[""]]))
    ]
    assert missing == []


def test_the_example_shows_the_true_defaults() -> None:
    shown = documented()
    wrong = []
    for place, key, default, _ in reference():
        entries = shown.get(place, [])
        values = [value for k, value in entries if k == key]
        if not values or default in ("required", "null", "{}", "[]"):
            continue
        if json.loads(default) not in values and not place.endswith("load"):
            wrong.append((place, key, default, values))
    # What only other engines' blocks show is an example there: a loaded list's shape, a start's time.
    assert wrong == []


def test_the_example_satisfies_the_schema() -> None:
    VALIDATOR.validate(tomli.loads(EXAMPLE.read_text("utf-8")))


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
        "port",
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
        ConfigError, match=r"not found; looked for .*/a, .*/b\. `engine-router init` makes one"
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

LEAVES = (
    st.none()  # TOML has none; the library's caller may
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.dates()
    | st.sampled_from(
        [
            "process",
            "container",
            "http",
            "ollama",
            "{port}",
            "{path} {port}",
            "/x",
            "http://a:1",
            "default",
            "a",
            10**400,
        ]
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
            st.sampled_from(["process", "container", "http", "ollama", "systemd", "remote"]),
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
