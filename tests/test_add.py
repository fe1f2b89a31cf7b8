"""`engine-router add` and `engine-router presets`."""

from __future__ import annotations

import io
import json
import os
import re
import stat
from pathlib import Path

import pytest

from engine_router.cli import main
from engine_router.cli.exit_codes import BAD_CONFIG, BAD_USAGE
from engine_router.config import ProcessConfig, RemoteConfig, load_config
from engine_router.config.load import ENVIRONMENT_VARIABLE
from engine_router.setup import presets
from engine_router.setup.config_file import HEAD

CONFIG = """\
# mine
[engines.ollama]  # here
type = "ollama"
models = ["taken"]

# the end
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "engines.toml"
    path.write_text(CONFIG)
    return path


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_an_engine_is_added_and_everything_else_stays(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["add", "vllm", "--path", "Qwen/Qwen3-32B-AWQ", "--config", str(config)]) == 0
    text = config.read_text()
    assert text.startswith(CONFIG)
    assert config.with_name("engines.toml.bak").read_text() == CONFIG
    assert load_config(config).engines["vllm"].models == ("qwen3-32b-awq",)
    out = capsys.readouterr().out
    assert out.startswith(
        f"engine vllm added to {config}; its former state is in engines.toml.bak\nnote: Its /health"
    )
    assert re.search(r"\nnext: engine-router (serve|reload) --config \S+engines\.toml", out)
    # The same kind once more gets a name of its own.
    assert main(["add", "vllm", "--path", "Qwen/Qwen3-8B", "--config", str(config)]) == 0
    assert [*load_config(config).engines] == ["ollama", "vllm", "vllm-2"]


@pytest.mark.parametrize(
    ("words", "name", "expected"),
    [
        (
            ["https://cloud.example/api/v1", "--model", "vendor/large"],
            "example",
            {"base_url": "https://cloud.example/api/v1", "paid": True, "discover": False, "api_key": "k"},
        ),
        (["http://attic.lan:11434/"], "attic", {"dialects": ("ollama",), "paid": False, "api_key": None}),
        (["remote", "--url", "http://10.0.0.7:8000/v1"], "remote", {"discover": True, "paid": False}),
        (["https://api.anthropic.com"], "anthropic", {"dialects": ("anthropic",), "paid": True}),
    ],
)
def test_a_server_elsewhere_is_added_by_its_url(
    words: list[str],
    name: str,
    expected: dict[str, object],
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for variable in ("EXAMPLE_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(variable, "k")
    assert main(["add", *words, "--config", str(config)]) == 0
    engine = load_config(config).engines[name]
    assert isinstance(engine, RemoteConfig)
    assert {key: getattr(engine, key) for key in expected} == expected
    assert main(["add", *words, "--config", str(config)]) == BAD_USAGE
    assert "already" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["https://"], ["ftp://a/v1"], ["remote"], ["ollama", "--url", "http://a"]])
def test_what_is_no_url_of_a_server(words: list[str], config: Path) -> None:
    assert main(["add", *words, "--config", str(config)]) == BAD_USAGE
    assert config.read_text() == CONFIG


def test_a_cloud_whose_key_is_there_is_named(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-1")
    assert main(["add", "cloud", "--config", str(config)]) == BAD_USAGE
    said = capsys.readouterr().err
    assert "OPENROUTER_API_KEY is set: engine-router add https://openrouter.ai/api/v1 --model" in said
    assert "sk-1" not in said


def test_a_relative_folder_is_written_as_a_whole_path(
    config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "here" / "models").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    config.write_text("")
    words = ["llama.cpp", "--scan", "models", "--scan", "huggingface"]
    assert main(["add", *words, "--config", str(config)]) == 0
    (engine,) = load_config(config).engines.values()
    assert isinstance(engine, ProcessConfig)
    assert engine.scan == (str(tmp_path / "here" / "models"), "huggingface")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ollama"], "engine ollama is at http://127.0.0.1:11434 already"),
        (["lms"], "engine lmstudio is at http://127.0.0.1:1234 already"),
        (
            ["llama.cpp", "--scan", "{folder}", "--scan", "huggingface"],
            "engine llamacpp scans {folder} already",
        ),
        (["llama.cpp", "--path", "{folder}"], "engine llamacpp scans {folder} already"),
    ],
)
def test_what_is_there_already_is_not_added_again(
    words: list[str], said: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = config.with_name("models")
    folder.mkdir()
    config.write_text("")
    words = [word.replace("{folder}", str(folder)) for word in words]
    assert main(["add", *words, "--config", str(config)]) == 0
    before = config.read_text()
    for dry in ([], ["--dry-run"]):
        assert main(["add", *words, "--config", str(config), *dry]) == BAD_USAGE
        assert said.replace("{folder}", str(folder)) in capsys.readouterr().err
    assert config.read_text() == before
    assert main(["add", *words, "--config", str(config), "--name", "another"]) == 0
    assert "another" in load_config(config).engines


def test_a_folder_that_is_not_there_is_not_scanned(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nope = config.with_name("nope")
    for words in (["--scan", str(nope)], ["--scan", str(nope), "--dry-run"], ["--path", f"{nope}/"]):
        assert main(["add", "llama.cpp", *words, "--config", str(config)]) == BAD_USAGE
        assert f"--scan {nope}: there is no such folder" in capsys.readouterr().err
    assert main(["add", "llama.cpp", "--scan", str(config), "--config", str(config)]) == BAD_USAGE
    assert "that is a file, not a folder; --path takes it" in capsys.readouterr().err
    assert config.read_text() == CONFIG


def test_variables_that_are_set_where_the_router_starts_are_no_faults(config: Path) -> None:
    config.write_text(f'{CONFIG}[server]\napi_keys = ["${{env:NOT_SET_HERE}}"]\n')
    assert main(["add", "lms", "--config", str(config), "--dry-run"]) == 0
    assert main(["add", "lms", "--config", str(config)]) == 0
    assert "[engines.lmstudio]" in config.read_text()


def test_a_file_is_made_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a" / "engines.toml"
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(path))
    assert main(["add", "lms"]) == 0
    assert path.read_text().startswith(f"{HEAD}\n# LM Studio")
    assert capsys.readouterr().out.startswith(f"engine lmstudio written to the new file {path}\n")
    assert main(["check"]) == 0


def test_a_dry_run_shows_the_block_and_writes_nothing(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["add", "mlx", "--path", "u/Some-4bit", "--name", "my mlx", "--dry-run"]
    assert main([*words, "--config", str(config)]) == 0
    shown = capsys.readouterr()
    assert '\n[engines."my mlx"]\n' in shown.out
    assert '\n[models.some-4bit]\nengine = "my mlx"\n' in shown.out
    assert "note: " in shown.err
    assert [*config.parent.iterdir()] == [config]
    assert config.read_text() == CONFIG
    assert main([*words, "--config", str(config.with_name("new.toml"))]) == 0
    assert [*config.parent.iterdir()] == [config]


def test_keys_are_not_shown_and_not_for_others_to_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "api_tokens.yml").write_text('admin_key: "secret-1"\napi_key: secret-2\n')
    path = tmp_path / "engines.toml"
    words = ["add", "tabby", "--model", "m", "--path", str(tmp_path), "--config", str(path)]
    assert main([*words, "--dry-run"]) == main(words) == 0
    assert "secret-" not in "".join(capsys.readouterr())
    assert {"secret-1", "secret-2"} <= {*re.findall(r"secret-\d", path.read_text())}
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["vllm"], BAD_USAGE, "vllm needs --path: for example --path Qwen/Qwen3-32B-AWQ"),
        (["localai"], BAD_USAGE, "localai needs --path: for example --path /models --model qwen3-8b"),
        ([], BAD_USAGE, "add needs a KIND of engine, such as llama.cpp: engine-router presets lists them"),
        (["lama"], BAD_USAGE, "there is no preset 'lama'; did you mean llama.cpp?"),
        (
            ["vllm", "--path", "x/taken"],
            BAD_USAGE,
            "a model 'taken' is there already; give this one another id",
        ),
        (["vllm", "--path", "x/y", "--port", "0"], BAD_USAGE, "leave --port out"),
        (["lms", "--name", "ollama"], BAD_CONFIG, "engines.ollama: is there already; nothing was changed\n"),
        (["lms", "--name", " "], BAD_CONFIG, "a name with at least one visible character"),
        (["vllm", "--path", "/m/{port}.gguf"], BAD_USAGE, "the router would fill in {port}"),
        (
            ["vllm", "--path", "u/m", "--model", "${env:HOME}"],
            BAD_USAGE,
            "the router would fill in ${env:HOME}",
        ),
        (["ollama", "--scan", "x"], BAD_USAGE, "ollama has no use for --scan"),
    ],
)
def test_what_cannot_be(
    words: list[str], code: int, said: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["add", *words, "--config", str(config)]) == code
    assert said in capsys.readouterr().err
    assert config.read_text() == CONFIG
    assert [*config.parent.iterdir()] == [config]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[engines", "line 1"),
        ('[engines.a]\ntype = "ollama"\nport = 1\n', "engines.a.port"),
        ("engines = 1\n", "is not a table"),
    ],
)
def test_a_file_with_faults_stays_as_it_is(
    text: str, said: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(text)
    assert main(["add", "lmstudio", "--config", str(config)]) == BAD_CONFIG
    assert said in capsys.readouterr().err
    assert config.read_text() == text


def test_a_folder_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["add", "ollama", "--config", str(tmp_path)]) == BAD_CONFIG
    assert "Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answers", "model"), [("u/Model-1B\n", "model-1b"), ("u/x\nignored\n", "x"), ("\n", None)]
)
def test_what_is_missing_is_asked_for_on_a_terminal(
    answers: str, model: str | None, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answers))
    shown = Terminal()
    monkeypatch.setattr("sys.stdout", shown)
    errors = Terminal()
    monkeypatch.setattr("sys.stderr", errors)
    code = main(["add", "sglang", "--config", str(config)])
    assert errors.getvalue().startswith("File, folder or repository of the model (such as Qwen/Qwen3-14B): ")
    if model is None:
        assert code == BAD_USAGE
        assert config.read_text() == CONFIG
    else:
        assert load_config(config).engines["sglang"].models == (model,)


@pytest.fixture
def unified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "is_unified_machine", lambda: True)
    monkeypatch.setattr("sys.platform", "linux")


def test_the_machine_s_own_notes_are_in_the_block_and_on_the_screen(
    config: Path, unified: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["add", "llama.cpp", "--path", "u/m", "--config", str(config)]) == 0
    out = capsys.readouterr().out
    assert 'note: The GPU uses the main memory here: add "--load-mode", "none" to argv' in out
    assert '# The GPU uses the main memory here: add "--load-mode", "none" to argv' in config.read_text()


def test_the_presets_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(presets.presets()) + 3
    assert lines[-1].startswith("engine-router presets KIND shows")
    assert main(["presets", "TabbyAPI"]) == 0
    assert "[engines.tabby]\n" in capsys.readouterr().out
    assert main(["presets", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["presets"]
    assert [entry["kind"] for entry in listed] == [*presets.presets()]
    assert main(["presets", "vllm", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown in listed
    assert shown["needs"] == ["path"]
    assert main(["presets", "nothing"]) == BAD_USAGE
    assert "there is no preset 'nothing'" in capsys.readouterr().err
