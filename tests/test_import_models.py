"""`engine-router import`: the models of a folder as tables of the configuration."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine_router.cli import main
from engine_router.cli.exit_codes import BAD_CONFIG, FAILED
from engine_router.config import load_config, parse_config
from engine_router.engines.llamacpp.tiny import write_tiny_gguf
from engine_router.errors import ConfigError

CONFIG = """# mine
[engines.llama]
type = "process"
argv = "llama-server -m {path} --alias {model} --port {port}"
[models.kept]
engine = "llama"
path = "%s/kept-1b-Q8_0.gguf"
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "the models"
    (folder / "deep").mkdir(parents=True)
    write_tiny_gguf(folder / "kept-1b-Q8_0.gguf", layers=1)
    shutil.copy(folder / "kept-1b-Q8_0.gguf", folder / "deep" / 'Qu"ote-7B-Q4_K_M.gguf')
    (folder / "half-1b-Q8_0.gguf").write_bytes((folder / "kept-1b-Q8_0.gguf").read_bytes()[:-9])
    (tmp_path / "engines.toml").write_text(CONFIG % folder)
    return folder


def test_new_models_are_shown_as_tables(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = models.parent / "engines.toml"
    assert main(["import", str(models), "--config", str(config)]) == 0
    shown = capsys.readouterr()
    assert "half-1b-Q8_0.gguf" in shown.err
    whole = parse_config(config.read_text() + shown.out)
    assert len(whole.models) == 2
    (added,) = whole.models.keys() - {"kept"}
    assert whole.models[added].path == str(models / "deep" / 'Qu"ote-7B-Q4_K_M.gguf')
    assert load_config(config).models.keys() == {"kept"}  # nothing was written


def test_the_variables_of_the_configuration_need_not_be_set(models: Path) -> None:
    config = models.parent / "engines.toml"
    more = """
[server]
api_keys = ["${env:NOT_SET_KEY}"]
[engines.far]
type = "process"
argv = "serve --api-key ${env:NOT_SET_TOKEN}"
base_url = "${env:NOT_SET_URL}"
[engines.near]
type = "ollama"
base_url = "http://${env:NOT_SET_HOST}:11434"
"""
    config.write_text(config.read_text() + more)
    assert main(["import", str(models), "--config", str(config)]) == 0
    assert main(["import", str(models), "--config", str(config), "--write"]) == 0
    assert more in config.read_text()
    assert main(["add", "lms", "--config", str(config)]) == 0
    # Serving needs them.
    with pytest.raises(ConfigError) as caught:
        load_config(config)
    assert {words.split()[3] for _, words in caught.value.faults} == {
        f"NOT_SET_{name}" for name in ("KEY", "URL", "TOKEN", "HOST")
    }


def test_what_a_command_serves_is_not_imported(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = models.parent / "engines.toml"
    file = models / "deep" / 'Qu"ote-7B-Q4_K_M.gguf'
    config.write_text(
        config.read_text()
        + f"[engines.runs]\ntype = 'process'\nargv = ['llama-server', '-m', '{file}']\n"
        + "base_url = 'http://127.0.0.1:9000'\n"
    )
    assert main(["import", str(models), "--config", str(config)]) == 0
    assert capsys.readouterr().out == "# nothing new is found\n"


def test_they_are_written_once(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = models.parent / "engines.toml"
    before = config.read_text()
    assert main(["import", str(models), "--config", str(config), "--write"]) == 0
    assert capsys.readouterr().out.startswith(f"1 model added to {config}")
    assert config.with_name("engines.toml.bak").read_text() == before
    assert config.read_text().startswith(before.rstrip())
    after = config.read_text()
    assert main(["import", str(models), "--config", str(config), "--write"]) == 0
    assert capsys.readouterr().out == f"nothing new is found; {config} stays as it is\n"
    assert config.read_text() == after
    # They stay, whatever becomes of their files.
    shutil.rmtree(models)
    assert len(load_config(config).models) == 2


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["nowhere"], FAILED, "engine-router: nowhere: there is no such file or folder"),
        ([".", "--engine", "other"], BAD_CONFIG, "engine 'other' cannot serve them: its argv needs {path}"),
    ],
)
def test_what_cannot_be(
    models: Path,
    options: list[str],
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(models.parent)
    assert main(["import", *options]) == code
    assert words in capsys.readouterr().err


def test_two_engines_could_serve_them(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = models.parent / "engines.toml"
    config.write_text(config.read_text() + '[engines.b]\ntype = "process"\nargv = "b {path} {port}"\n')
    assert main(["import", str(models), "--config", str(config)]) == BAD_CONFIG
    assert "--engine llama or --engine b" in capsys.readouterr().err
    assert main(["import", str(models), "--config", str(config), "--engine", "b"]) == 0
    assert 'engine = "b"' in capsys.readouterr().out


def test_a_path_that_is_not_there_is_named_before_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = str(tmp_path / "config.yaml")
    assert main(["import", absent, "--config", str(tmp_path / "engines.toml")]) == FAILED
    assert capsys.readouterr().err == f"engine-router: {absent}: there is no such file or folder\n"
