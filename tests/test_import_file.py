"""`engine-router import FILE`: shown, reported and written, never half, never with a secret; and what comes of it serves."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import trio
from hypothesis import strategies as st
from support.served import ask, served

import engine_router
from engine_router.cli import main
from engine_router.cli.exit_codes import BAD_USAGE, OK
from engine_router.cli.parser_running import IMPORTED
from engine_router.config import load_config, parse_config
from engine_router.guards.documents import Unreadable
from engine_router.setup.migrate.migration import migrate
from engine_router.setup.migrate.recognise import KINDS, Kind
from engine_router.setup.migrate.render import rendered
from engine_router.setup.migrate.sound import any_environment

PROGRAM = Path(__file__).parent / "programs" / "obedient_engine.py"
SWAP = """\
apiKeys: [sk-very-secret-key, "${env.OTHER_KEY}"]
models:
  big:
    cmd: llama-server --port ${PORT} -m /big.gguf --api-key inner-secret-1
    env: ["HF_TOKEN=hf_secret_2"]
    aliases: [large]
    metadata: {a: 1}
  small:
    cmd: llama-server --port ${PORT} -m /small.gguf
"""
SECRETS = ("sk-very-secret-key", "inner-secret-1", "hf_secret_2")


@pytest.fixture
def swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("OTHER_KEY", raising=False)
    monkeypatch.setenv("ENGINE_ROUTER_CONFIG", str(tmp_path / "engines.toml"))
    path = tmp_path / "config.yaml"
    path.write_text(SWAP)
    return path


def test_it_is_shown_with_a_report_and_nothing_is_written(
    swap: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", str(swap)]) == OK
    shown = capsys.readouterr()
    config = parse_config(shown.out, environment=any_environment())
    assert config.engines.keys() == {"big", "small"}
    assert config.models["big"].aliases == ("large",)
    assert "line 7, models.big.metadata: " in shown.err
    assert "1 lost" in shown.err
    assert "not set here: OTHER_KEY" in shown.err
    assert "ROUTER_API_KEY_1, ROUTER_SECRET_1, ROUTER_SECRET_2" in shown.err
    assert [secret for secret in SECRETS if secret in shown.out + shown.err] == []
    assert list(swap.parent.iterdir()) == [swap]


def test_the_report_alone_has_every_key(swap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(swap), "--report"]) == OK
    shown = capsys.readouterr()
    assert "carried over:\n" in shown.out
    assert "line 6, models.big.aliases: aliases" in shown.out
    assert "[engines" not in shown.out
    assert [secret for secret in SECRETS if secret in shown.out + shown.err] == []


def test_json_has_it_all(swap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(swap), "--json", "--write"]) == OK
    shown = capsys.readouterr()
    data = json.loads(shown.out)
    assert data["from"] == "llama-swap"
    assert data["written"] == str(swap.parent / "engines.toml")
    assert data["missing_variables"] == ["OTHER_KEY"]
    assert [(note["place"], note["line"]) for note in data["lost"]] == [("models.big.metadata", 7)]
    assert parse_config(data["toml"], environment=any_environment()).engines.keys() == {"big", "small"}
    assert [secret for secret in SECRETS if secret in shown.out + shown.err] == []


def test_a_new_file_is_written_for_its_owner_alone(swap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(swap), "--write"]) == OK
    path = swap.parent / "engines.toml"
    text = path.read_text()
    assert text.startswith("# engines.toml: ")
    assert [secret for secret in SECRETS if secret not in text] == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "ROUTER_SECRET" not in text
    assert f"{path}: written" in capsys.readouterr().err


def test_what_is_there_stays_as_it_is(swap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = swap.parent / "engines.toml"
    before = """# mine
[server] # the port
port = 9000
api_keys = ["mine"]

[engines.small]
type = "ollama"   # keep

[models.large]
engine = "small"
"""
    path.write_text(before)
    assert main(["import", str(swap), "--write"]) == OK
    after = path.read_text()
    rest = iter(after.splitlines())
    assert all(line in rest for line in before.splitlines())
    assert path.with_name("engines.toml.bak").read_text() == before
    config = parse_config(after, environment=any_environment())
    assert config.server.api_keys == ("mine",)
    assert config.engines["small"].type == "ollama"
    assert config.engines["big"].models == ("big",)
    assert config.models["large"].engine == "small"
    assert "big" not in config.models or config.models["big"].aliases == ()
    said = capsys.readouterr().err
    assert "there already, and left as it is:\n  server.api_keys\n  engines.small\n" in said
    # A second time there is nothing to add.
    assert main(["import", str(swap), "--write"]) == OK
    assert path.read_text() == after
    assert capsys.readouterr().err.endswith("\nnothing new is found: the configuration stays as it is\n")


def test_a_configuration_with_faults_is_left_alone(swap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = swap.parent / "engines.toml"
    path.write_text("[engines.x]\ntype = 1\n")
    assert main(["import", str(swap), "--write"]) == BAD_USAGE
    assert "engines.x.type" in capsys.readouterr().err
    assert path.read_text() == "[engines.x]\ntype = 1\n"


def test_a_file_without_engines_gets_some(swap: Path) -> None:
    path = swap.parent / "engines.toml"
    path.write_text("")  # as the shell leaves it that is to write there
    assert main(["import", str(swap)]) == OK
    path.write_text("# the port\n[server]\nport = 1234\n")
    assert main(["import", str(swap), "--write"]) == OK
    config = parse_config(path.read_text(), environment=any_environment())
    assert (config.server.port, len(config.server.api_keys)) == (1234, 2)
    assert "# the port\n[server]\nport = 1234\n" in path.read_text()


def test_the_configuration_in_use_is_the_one_that_is_written(
    swap: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ENGINE_ROUTER_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(swap.parent / "home"))
    monkeypatch.chdir(swap.parent)
    assert main(["import", "config.yaml", "--write"]) == OK
    assert (swap.parent / "home" / "engine-router" / "engines.toml").exists()
    (swap.parent / "engines.toml").write_text('[engines.o]\ntype = "ollama"\n')
    assert main(["import", "config.yaml", "--write"]) == OK
    assert "[engines.big]" in (swap.parent / "engines.toml").read_text()
    assert "written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("colour: blue", [], "say --from with one of llama-swap, llamacpp"),
        ("colour: blue", ["--from", "llama-swap"], "nothing in it can be carried over"),
        ("models: {a: {name: x}}", ["--from", "llama-swap", "--json"], "nothing in it can be carried over"),
        ("a: [1", [], "config.yaml, line 1: is no YAML"),
        (SWAP, ["--engine", "x"], "--engine is for the models of folders"),
        (SWAP, ["--from", "llamacpp"], "line 1: is no INI file"),
        ("\0", [], "is no text file"),
    ],
)
def test_what_cannot_be(
    text: str, options: list[str], words: str, swap: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swap.write_text(text)
    assert main(["import", str(swap), "--write", *options]) == BAD_USAGE
    assert words in capsys.readouterr().err
    assert list(swap.parent.iterdir()) == [swap]


def test_files_that_are_not_there_or_too_large(swap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(swap.with_name("no")), "--from", "llama-swap"]) == BAD_USAGE
    assert "cannot be read: No such file" in capsys.readouterr().err
    swap.write_bytes(b"#" * (2 << 20))
    assert main(["import", str(swap)]) == BAD_USAGE
    assert "is larger than 1 MiB" in capsys.readouterr().err
    assert main(["import", str(swap.parent), "--report"]) == BAD_USAGE
    assert "are for another router's FILE" in capsys.readouterr().err


async def test_what_was_imported_serves(tmp_path: Path) -> None:
    """Two engines of a llama-swap file take turns, under their names, aliases and variants."""
    program = f'"{sys.executable}" "{PROGRAM}" ${{PORT}}'
    (tmp_path / "config.yaml").write_text(
        f"""
healthCheckTimeout: 100
macros:
  run: >
    {program}
models:
  one:
    cmd: |
      ${{run}}
      # the models that it lists
      models=one
    checkEndpoint: /v1/models
    aliases: [first]
    filters:
      stripParams: top_k
      setParams: {{temperature: 0.25}}
      setParamsByID:
        "${{MODEL_ID}}:hot": {{temperature: 0.75}}
  two:
    cmd: ${{run}} models=two
    checkEndpoint: /v1/models
    useModelName: another
hooks: {{on_startup: {{preload: [two]}}}}
"""
    )
    path = tmp_path / "engines.toml"
    code = await trio.to_thread.run_sync(
        main, ["import", str(tmp_path / "config.yaml"), "--config", str(path), "--write"]
    )
    assert code == OK
    path.write_text(
        f'state_file = "{tmp_path}/state.json"\n{path.read_text()}[pools.default]\ngauge = "none"\n'
    )
    seen: list[tuple[Any, ...]] = []
    with trio.fail_after(300):
        async with engine_router.open_router(load_config(path)) as router, served(router) as url:
            for model in ("one", "two", "first", "one:hot"):
                body = {"model": model, "messages": [], "do": "echo", "temperature": 1, "top_k": 3}
                answer = await ask(url, "POST", "/v1/chat/completions", body=body)
                assert answer.status == 200, answer.body
                got = json.loads(json.loads(answer.body)["body"])
                seen.append((got["model"], got["temperature"], got.get("top_k")))
    assert seen == [("one", 0.25, None), ("another", 1, 3), ("one", 0.25, None), ("one", 0.75, None)]


def test_every_router_can_be_named() -> None:
    assert IMPORTED == KINDS


# Odd files.

WORDS = st.sampled_from(
    [
        *(
            "models",
            "engines",
            "cmd",
            "${PORT}",
            "${a}",
            "macros",
            "proxy",
            "http://127.0.0.1:${PORT}",
            "docker run -d x",
        ),
        *(
            "a",
            "env",
            "A=1",
            "groups",
            "members",
            "swap",
            "matrix",
            "sets",
            "a & (b | +c)",
            "filters",
            "setParams",
        ),
        *(
            "type",
            "generic_process",
            "api_swap",
            "ollama",
            "ds4",
            "start_cmd",
            "base_url",
            "unload_path",
            "id",
            "engine",
        ),
        *(
            "Services",
            "Name",
            "Command",
            "Args",
            "ProxyTargetPort",
            "ResourcesAvailable",
            "ResourceRequirements",
            "8080",
        ),
        *(
            "router",
            "default_spawn",
            "command",
            "path",
            "name",
            "spawn",
            "system",
            "api",
            "model_path",
            "params",
            "n_ctx",
        ),
        *(
            "backend",
            "script",
            "sglang",
            "tabby",
            "model_name",
            "backends",
            "port",
            "aliases",
            "hooks",
            "on_startup",
        ),
        *(
            "preload",
            "routing",
            "settings",
            "selectors",
            "targets",
            "peers",
            "ttl",
            "checkEndpoint",
            "none",
            "host",
        ),
        *("'", '"', "\\", "\x7f", "{path}", "{model}", "ü\u2028", "", " ", ".", "${env.X}", "[", "#"),
    ]
)
SCALARS = st.one_of(WORDS, st.text(max_size=8), st.none(), st.booleans(), st.integers(-5, 99999), st.floats())
TABLES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=5)),
    max_leaves=30,
)


def check_soundness(text: str, kind: Kind | None, folder: Path) -> None:
    path = folder / "odd"
    path.write_text(text, "utf-8")
    try:
        draft, has_engines = migrate([path], kind)
    except Unreadable:
        return
    if has_engines:
        parse_config(rendered(draft), environment=any_environment())


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(data=st.dictionaries(WORDS, TABLES, max_size=6), kind=st.sampled_from([None, *KINDS]))
def test_odd_tables_never_end_in_a_traceback(
    data: dict[str, Any], kind: Kind | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_soundness(json.dumps(data), kind, tmp_path_factory.getbasetemp())


MODEL = st.dictionaries(WORDS, TABLES, max_size=5)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(
    models=st.dictionaries(WORDS, MODEL, min_size=1, max_size=4), more=MODEL, kind=st.sampled_from(KINDS)
)
def test_odd_models_never_end_in_a_traceback(
    models: dict[str, Any], more: dict[str, Any], kind: Kind, tmp_path_factory: pytest.TempPathFactory
) -> None:
    needed = {
        "llama-swap": {"cmd": "s --port ${PORT}"},
        "routermodelcustom": {"model_path": "/m.gguf"},
        "openwebui-router": {"backend": "sglang", "script": "/s.sh"},
    }.get(kind, {})
    data = {**more, "models": {name: {**needed, **model} for name, model in models.items()}}
    services = [
        {"Name": name, "Command": "c", "ProxyTargetPort": 1, **model} for name, model in models.items()
    ]
    listed = [
        {"name": name, "path": "/p", "id": name, "engine": "e", **model} for name, model in models.items()
    ]
    if kind == "large-model-proxy":
        data = {**more, "Services": services}
    elif kind in ("llama-router", "local-engine-router"):
        engine = {
            "type": "generic_process",
            "start_cmd": "s",
            "base_url": "http://h:1",
            **next(iter(models.values())),
        }
        data = {"engines": {"e": engine}, **more, "models": listed}
    check_soundness(json.dumps(data), kind, tmp_path_factory.getbasetemp())


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(
    text=st.text(alphabet="ab:-{}[]\"'\n #&*|>!%=;,\\/.${}1~<\t", max_size=60),
    kind=st.sampled_from([None, *KINDS]),
)
def test_odd_texts_never_end_in_a_traceback(
    text: str, kind: Kind | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_soundness(text, kind, tmp_path_factory.getbasetemp())
    check_soundness(f"[*]\nc = {text}\n[a b]\nmodel = /m\n{text}", "llamacpp", tmp_path_factory.getbasetemp())
