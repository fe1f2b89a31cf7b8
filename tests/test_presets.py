"""Presets: each block loads, is understood, works with its engine, and says what engines.toml.example says."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest
import tomli
import trio
from support.scripted import (
    ScriptedLlamaRouter,
    ScriptedLMStudio,
    ScriptedOllama,
    ScriptedServer,
    ScriptedTabby,
    supervised,
)
from support.scripted.tabby import ADMIN_KEY, API_KEY
from support.served import ask, served

from engine_router import open_router
from engine_router.cli import main
from engine_router.config import (
    AnyEngineConfig,
    Config,
    ContainerConfig,
    HttpConfig,
    OllamaConfig,
    ProcessConfig,
    parse_config,
)
from engine_router.config.template import ModelArguments, is_template, model_command
from engine_router.engines.command_options import model_options
from engine_router.engines.llamacpp.tiny import write_tiny_gguf
from engine_router.engines.remote.http_engine import HttpEngine
from engine_router.engines.remote.ollama_engine import OllamaEngine
from engine_router.models.config_warnings import warnings
from engine_router.models.served_names import served_models
from engine_router.setup.blocks import KIND_NAMES, call_options, start_options
from engine_router.setup.installed import with_installed
from engine_router.setup.model_blocks import scan_block
from engine_router.setup.preset_text import PLACEHOLDERS
from engine_router.setup.presets import (
    Preset,
    PresetError,
    PresetValues,
    filled,
    find_preset,
    model_id,
    preset_for,
    presets,
)
from engine_router.setup.programs import Program
from engine_router.upstream.control_client import control_client


@pytest.fixture(autouse=True)
def key_of_a_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", "its-key")


EXAMPLE = Path(__file__).parent.parent / "engines.toml.example"
TRAITS = ("unified", "cuda-unified")
# What the program of each preset is called, as the router reads commands.
PROGRAMS = {
    "llama.cpp": "llama.cpp",
    "llama.cpp-scan": "llama.cpp",
    "vllm": "vLLM",
    "vllm-scan": "vLLM",
    "vllm-sleep": "vLLM",
    "vllm-lmcache": "vLLM",
    "sglang": "SGLang",
    "sglang-hicache": "SGLang",
    "koboldcpp": "KoboldCpp",
    "mlx": "MLX",
    "localai": "LocalAI",
    "ramalama": "ramalama",
    "max": "MAX",
    "transformers": "transformers",
    "llama-cpp-python": "llama-cpp-python",
    "infinity": "infinity",
    "text-embeddings-inference": "text-embeddings-inference",
    "tabbyapi-process": "",
    "tabbyapi-file": "",
}
# Those that are started for each model with a file or a unit rather than with their command.
FILED = {"tabbyapi-file", "tabbyapi-systemd", "vllm-systemd"}
# The engines of the example, by their names, and the presets of the same kinds.
IN_EXAMPLE = {
    "llamacpp": "llama.cpp",
    "vllm": "vllm",
    "gguf": "llama.cpp-scan",
    "ollama": "ollama",
    "sglang": "sglang",
    "koboldcpp": "koboldcpp",
    "mlx": "mlx",
    "localai": "localai",
    "max": "max",
    "ramalama": "ramalama",
    "tabby": "tabbyapi",
    "lmstudio": "lmstudio",
    "llamarouter": "llama.cpp-router",
    "vllm-sleepy": "vllm-sleep",
}
every_preset = pytest.mark.parametrize("preset", presets().values(), ids=lambda preset: preset.kind)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes a folder on PATH with every program that a preset starts."""
    folder = tmp_path / "bin"
    folder.mkdir()
    names = {argv[0] for preset in presets().values() if (argv := argv_of(configured(preset)))}
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def configured(preset: Preset, **given: object) -> Config:
    sample = attrs.evolve(preset.sample_values(), **given)
    return parse_config(filled(preset, sample, traits=TRAITS).text)


def engine_of(config: Config) -> AnyEngineConfig:
    (engine,) = config.engines.values()
    return engine


def argv_of(config: Config) -> tuple[str, ...]:
    engine = engine_of(config)
    return engine.argv if isinstance(engine, ProcessConfig) else ()


# The blocks.


def test_every_kind_is_there() -> None:
    started = {kind for kind, preset in presets().items() if argv_of(configured(preset))}
    assert started == set(PROGRAMS)
    assert set(presets()) - started == {
        *("ollama", "tabbyapi", "lmstudio", "llama.cpp-router"),
        *("tabbyapi-systemd", "vllm-systemd", "llama.cpp-container", "vllm-container", "remote", "peer"),
    }
    used = frozenset[str]().union(*(preset.placeholders for preset in presets().values()))
    assert used == set(PLACEHOLDERS)
    words = [word for preset in presets().values() for word in (preset.kind, *preset.also)]
    assert len(words) == len(set(words))


@every_preset
def test_its_command_is_understood(preset: Preset) -> None:
    config = configured(preset)
    engine = engine_of(config)
    if not isinstance(engine, ProcessConfig):
        return
    arguments = ModelArguments(path="/w/model-1b", mmproj="/w/mmproj", context_length=4096)
    argv = model_command(engine.argv, arguments, {"port": "4711", **arguments.values("some-model")})
    read = model_options(argv)
    assert read.kind.name == PROGRAMS[preset.kind]
    assert any(word == "4711" or word.endswith(":4711") for word in argv)
    if preset.kind in FILED:
        assert is_template(engine)
        return
    if is_template(engine):
        assert "/w/model-1b" in argv
        assert preset.kind == "tabbyapi-process" or read.context_length == 4096
        return
    assert read.model == (preset.sample if preset.kind != "localai" else None)
    assert read.embedding == (preset.kind in ("infinity", "text-embeddings-inference"))
    # The id by which it is asked for is one that it accepts, as far as its command says.
    (model,) = config.models or engine.models
    upstream = config.models[model].upstream if model in config.models else None
    names = {name for one in served_models(argv, {}).models for name in one.names}
    names.update({"default_model"} if preset.kind == "mlx" else ())
    assert not names or not served_models(argv, {}).is_strict or (upstream or model) in names


@pytest.mark.skipif(os.name != "posix", reason="scripts stand for the engines")
@every_preset
def test_check_has_nothing_to_say_about_it(preset: Preset, tmp_path: Path, installed: Path) -> None:
    (tmp_path / "main.py").touch()
    for name in ("a b-1b-Q4_K_M.gguf", 'c"1.yml'):
        (tmp_path / name).touch()
    forms: Mapping[str, str] = {
        "FILE": 'c"1.yml' if "FOLDER" in preset.placeholders else "a b-1b-Q4_K_M.gguf",
        "DIR": ".",
        "REPO": "user/Some-Repo-GGUF:Q4_K_M",
        "PATH": "user/Some-Repo",
    }
    cases: list[dict[str, object]] = [{}]
    for form in preset.placeholders & {*forms}:
        path = forms[form] if form in ("REPO", "PATH") else str(tmp_path / forms[form])
        cases = [one for one in cases if one] + [{"path": path, "name": "a.b c", "model": 'x/y "z":1'}]
    if "scan" in preset.options:
        cases = [{"scan": (str(tmp_path), "huggingface")}]
    for given in cases:
        for port in {None, 4711 if "port" in preset.options else None}:
            config = configured(preset, port=port, **given)
            engine = engine_of(config)
            assert warnings(config) == []
            if port is not None:
                assert engine.base_url == "http://127.0.0.1:4711"
            if given.get("name"):
                assert [*config.engines] == ["a.b c"]
                assert 'x/y "z":1' in {*engine.models, *config.models}


def test_what_is_detected_gets_the_facts_of_its_preset() -> None:
    for kind in set(KIND_NAMES) - {"openai", "engine-router"}:
        preset = engine_of(configured(find_preset(kind)))
        lines = {*start_options(kind), *call_options(kind)}
        found = tomli.loads("\n".join(lines))
        assert len(found) == len(lines)
        for key, value in attrs.asdict(preset).items():
            assert (
                key not in found
                or key == "loaded"
                or key in ("load", "unload")
                or _plain(value) == found[key]
            )
        assert ("load" in found) == (preset.type == "http")
    assert start_options("openai") == []
    assert start_options("koboldcpp") == [
        'ready_path = "/api/extra/version"', "discover = false", "stream_upstream = true", 'metrics_path = ""',
    ]  # fmt: skip


def test_who_writes_a_command_of_an_engine_has_it_serve_its_metrics() -> None:
    found = scan_block("llama", ("llama-server",), ("~/models",), 1)
    assert "--metrics" in argv_of(parse_config(found.text))
    for kind, flag in {
        "llama.cpp": "--metrics",
        "llama.cpp-scan": "--metrics",
        "sglang": "--enable-metrics",
    }.items():
        assert flag in argv_of(configured(find_preset(kind)))
        assert engine_of(configured(find_preset(kind))).metrics_path == "/metrics"
    container = engine_of(configured(find_preset("llama.cpp-container")))
    assert isinstance(container, ContainerConfig)
    assert "--metrics" in (container.command or ())


def _plain(value: object) -> object:
    return [*value] if isinstance(value, tuple) else value


def test_a_port_of_its_own_is_in_the_command_too() -> None:
    config = configured(find_preset("localai"), port=4711)
    assert "127.0.0.1:4711" in argv_of(config)
    assert "{port}" in argv_of(configured(find_preset("vllm")))


def test_a_line_without_a_value_goes_with_its_comment() -> None:
    text = filled(find_preset("llama.cpp"), PresetValues(path="/m/a.gguf")).text
    assert "-hf" not in text
    assert "downloads" not in text
    assert "base_url" not in text
    text = filled(find_preset("llama.cpp"), PresetValues(path="hf:u/r:Q8_0")).text
    assert '"-hf", "u/r:Q8_0",' in text
    assert "# It downloads the model when it starts for the first time.\nstart_timeout_s = 3600\n" in text
    assert '"-m"' not in text


@pytest.mark.parametrize(
    ("kind", "traits", "words"),
    [
        ("llama.cpp", ("unified", "cuda-unified"), '"--load-mode", "none"'),
        ("llama.cpp", ("unified",), None),
        ("vllm-sleep", ("unified",), "level 1 would free nothing"),
        ("vllm-sleep", (), None),
        ("vllm", (), "/health answers before"),
        ("mlx", (), "discover is off"),
        ("tabbyapi", (), "in place of YOUR-KEY and YOUR-ADMIN-KEY"),
    ],
)
def test_notes_stand_in_the_block_where_the_machine_asks_for_them(
    kind: str, traits: tuple[str, ...], words: str | None
) -> None:
    preset = find_preset(kind)
    block = filled(preset, preset.sample_values(), traits=traits)
    comment = " ".join(line.removeprefix("# ") for line in block.text.splitlines() if line.startswith("#"))
    if words is None:
        assert not any(word in comment for word in ("load-mode", "would free nothing"))
    else:
        assert words in comment
        assert any(words in note for note in block.notes)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/m/Qwen3-8B-UD-Q4_K_XL-00001-of-00002.gguf", "qwen3-8b:ud-q4_k_xl"),
        ("unsloth/Qwen3-8B-GGUF", "qwen3-8b"),
        ("unsloth/Qwen3-8B-GGUF:Q6_K", "qwen3-8b:q6_k"),
        ("~/models/Qwen3 14B/", "qwen3-14b"),
        ("/opt/tabby/config-1.yml", "config-1"),
        ("oci://quay.io/x/y:latest", "y:latest"),
    ],
)
def test_a_model_that_nobody_named(path: str, name: str) -> None:
    assert model_id(path) == name


@pytest.mark.parametrize(
    ("kind", "on_path", "programs", "begins"),
    [
        (
            "llama.cpp",
            ("llama-server",),
            [Program("llamacpp", ("/x",), is_on_path=False)],
            ("llama-server", "-m"),
        ),
        (
            "llama.cpp",
            (),
            [Program("llamacpp", ("/a b/py", "-m", "x"), is_on_path=False)],
            ("/a b/py", "-m", "x", "-m"),
        ),
        (
            "llama.cpp-scan",
            (),
            [Program("llamacpp", ("/b/llama-server",), is_on_path=False)],
            ("/b/llama-server", "-m"),
        ),
        ("vllm", (), [Program("vllm", ("~/vllm/bin/vllm",), is_on_path=False)], ("~/vllm/bin/vllm", "serve")),
        ("vllm", (), [Program("max", ("/b/max",), is_on_path=False)], ("vllm", "serve")),
        ("sglang", ("python3",), [], ("python3", "-m")),
        ("sglang", (), [], ("python", "-m")),
        ("ollama", (), [Program("ollama", ("/b/ollama",), is_on_path=False)], ()),
    ],
)
def test_the_program_that_is_installed_is_started(
    kind: str, on_path: tuple[str, ...], programs: list[Program], begins: tuple[str, ...]
) -> None:
    preset = find_preset(kind)
    block = filled(preset, preset.sample_values())
    found = with_installed(block, programs, lambda name: name if name in on_path else None)
    argv = argv_of(parse_config(found.text))
    assert tuple(map(os.path.expanduser, begins)) == argv[: len(begins)]
    assert len(argv) == len(argv_of(parse_config(block.text))) + max(0, len(begins) - 2)


def test_the_stand_in_downloads_nothing() -> None:
    block = filled(find_preset("llama.cpp"), PresetValues(path="u/m"))
    stand_in = Program("llamacpp", ("python", "-m", "engine_router.llamacpp"), is_on_path=False)
    found = with_installed(block, [stand_in], lambda _: None)
    assert found.text == block.text
    assert "engine-router pull does" in found.notes[-1]


# What does not fit.


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        ("vlm", PresetValues(), "there is no preset 'vlm'; did you mean vllm?"),
        ("x" * 5000, PresetValues(), "engine-router presets lists them"),
        (
            "ollama",
            PresetValues(path="u/r"),
            "ollama has no use for --path; it takes --model, --name, --port",
        ),
        ("koboldcpp", PresetValues(scan=("/m",)), "no use for --scan"),
        ("koboldcpp", PresetValues(path="u/r"), "needs a file; engine-router pull hf:u/r downloads it"),
        ("localai", PresetValues(path="/m/a.gguf", model="m"), "is a file, but localai needs a folder"),
        (
            "vllm",
            PresetValues(path="nothing"),
            "no such file or folder, nor is it a repository such as user/repo",
        ),
        ("vllm", PresetValues(), "vllm needs --path"),
        ("localai", PresetValues(), "localai needs --path and --model"),
        ("tabby", PresetValues(path="/nowhere", model="m"), "api_tokens.yml cannot be read: No such file"),
    ],
)
def test_what_does_not_fit_is_said(kind: str, given: PresetValues, words: str) -> None:
    with pytest.raises(PresetError, match=re.escape(words)):
        filled(*preset_for(kind, given))


def test_a_folder_of_models_is_scanned(tmp_path: Path) -> None:
    preset, given = preset_for("llama-server", PresetValues(path=str(tmp_path), scan=("huggingface",)))
    assert (preset.kind, given.scan, given.path) == ("llama.cpp-scan", ("huggingface", str(tmp_path)), None)
    assert preset_for("vLLM", PresetValues(scan=("x",)))[0].kind == "vllm-scan"
    assert preset_for("vllm", PresetValues(path=str(tmp_path)))[0].kind == "vllm"


# The example.


def engine_in_example(name: str) -> AnyEngineConfig:
    lines = EXAMPLE.read_text("utf-8").splitlines()
    start = next(
        index for index, line in enumerate(lines) if line in (f"[engines.{name}]", f"#[engines.{name}]")
    )
    end = next(index for index in range(start, len(lines)) if not lines[index])
    block = lines[start:end]
    if block[0].startswith("#"):
        block = [line.removeprefix("#") for line in block if not line.startswith("# ")]
    return engine_of(parse_config("\n".join(block)))


def facts(engine: AnyEngineConfig) -> dict[str, object]:
    """Return what a block says of a kind of engine, and not of one model, one machine or one person's keys."""
    own = {"argv", "models", "base_url", "headers", "scan"}
    found = {key: value for key, value in attrs.asdict(engine).items() if key not in own}
    for call in (found.get("load"), found.get("unload")):
        if isinstance(call, dict):
            call.update(headers={}, body=call["body"] or None)
    return found


@pytest.mark.parametrize("name", IN_EXAMPLE)
def test_it_says_what_the_example_says(name: str) -> None:
    example = engine_in_example(name)
    same = {"model": example.models[0]} if example.models else {}
    preset = engine_of(configured(find_preset(IN_EXAMPLE[name]), **same))
    assert facts(preset) == facts(example)
    if isinstance(preset, ProcessConfig) and isinstance(example, ProcessConfig):
        assert model_options(preset.argv).kind == model_options(example.argv).kind
    else:
        assert preset.base_url == example.base_url


# The engines.


def add(tmp_path: Path, *words: str) -> Config:
    path = tmp_path / "engines.toml"
    assert main(["add", *words, "--config", str(path)]) == 0
    return parse_config(path.read_text("utf-8"))


@pytest.mark.parametrize(
    ("kind", "server"),
    [
        ("tabbyapi", ScriptedTabby("m1", "m2")),
        ("lmstudio", ScriptedLMStudio("m1", "m2")),
        ("llama.cpp-router", ScriptedLlamaRouter("m1", "m2")),
        ("ollama", ScriptedOllama("m1", "m2")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_model_is_loaded_and_unloaded(kind: str, server: ScriptedServer, tmp_path: Path) -> None:
    with trio.fail_after(100):
        async with server.running(), control_client() as client:
            port = server.base_url.rpartition(":")[2]
            words = [kind, "--model", "m1", "--port", port]
            if kind == "tabbyapi":
                keys = f"api_key: {API_KEY}\nadmin_key: '{ADMIN_KEY}' # mine\n"
                (tmp_path / "api_tokens.yml").write_text(keys)
                words += ["--path", str(tmp_path)]
            config = await trio.to_thread.run_sync(add, tmp_path, *words)
            ((name, settings),) = config.engines.items()
            assert isinstance(settings, HttpConfig | OllamaConfig)
            engine = (
                HttpEngine(name, settings, client)
                if isinstance(settings, HttpConfig)
                else OllamaEngine(name, settings, client)
            )
            async with supervised(engine, "m1") as resident:
                await resident.ready.wait()
                assert {*server.loaded.values()} | {*server.loaded} <= {"m1", "m1:latest"}
                assert server.loaded
                await resident.stop()
                assert resident.stopped, resident.error
                assert not server.loaded


@pytest.mark.real
@pytest.mark.skipif(os.name != "posix", reason="a script stands for llama-server")
@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs the extra llamacpp")
@pytest.mark.parametrize(
    ("words", "model"),
    [
        (["--path", "tiny-1b-Q8_0.gguf"], "tiny-1b:q8_0"),
        (["--path", "tiny-1b-Q8_0.gguf", "--name", "no-shim"], "tiny-1b:q8_0"),
        (["--path", "tiny-1b-Q8_0.gguf", "--model", "a b", "--name", "it's"], "a b"),
        (["--scan", "."], "tiny-1b:q8_0"),
    ],
)
async def test_the_real_llama_cpp_answers(
    words: list[str], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_gguf(tmp_path / "tiny-1b-Q8_0.gguf", layers=1)
    program = tmp_path / "bin" / "llama-server"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m engine_router.llamacpp --threads 1 "$@"\n')
    program.chmod(0o755)
    if "no-shim" not in words:
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "engines.toml").write_text('state_file = "/dev/null/state.json"\n')
    config = await trio.to_thread.run_sync(add, tmp_path, "llama.cpp", *words)
    with trio.fail_after(300):
        async with open_router(config) as router, served(router) as url:
            body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
            answer = await ask(url, "POST", "/v1/chat/completions", body=body)
            assert answer.status == 200, answer.body
            assert answer.json()["choices"]
