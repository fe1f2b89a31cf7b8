"""`engine-router init`, and `serve` where there is no configuration yet."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.ports import free_port

from engine_router.cli import init, main
from engine_router.cli.exit_codes import BAD_CONFIG, FAILED
from engine_router.cli.folders import lasting
from engine_router.cli.questions import Questions
from engine_router.config import RemoteConfig, load_config
from engine_router.engines.llamacpp.tiny import write_tiny_gguf
from engine_router.models.scan import FoundModel
from engine_router.setup.clouds import CLOUDS, clouds_in
from engine_router.setup.detection import Detection
from engine_router.setup.listeners import Listener, Listeners
from engine_router.setup.programs import Program

MODEL = FoundModel(
    engine="models",
    name="m",
    aliases=(),
    path=Path("/m"),
    format="gguf",
    mmproj=None,
    size_bytes=1,
    place="/m",
)
FOUND = Detection(
    programs=(Program("llamacpp", ("llama-server",), True),),
    places=("/m",),
    models=(MODEL,),
    listeners=Listeners(
        (Listener(kind="ollama", base_url="http://127.0.0.1:11434"),), ("what listens on 9",)
    ),
    unknown=("what listens on 9",),
)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Have a machine found, and return where the configuration goes."""

    async def detect(_folders: tuple[str, ...]) -> Detection:
        return FOUND

    monkeypatch.setattr(init, "detect", detect)
    return tmp_path / "deep" / "engines.toml"


def answering(monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
    """Have somebody sit at the terminal."""
    left = iter(answers)
    monkeypatch.setattr(
        init,
        "Questions",
        lambda **more: Questions(**more, has_terminal=lambda: True, read=lambda: next(left)),
    )


def test_with_yes_nobody_is_asked(found: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--yes", "--config", str(found)]) == 0
    said = capsys.readouterr().out
    assert "what listens on 9" in said
    assert f"engine-router serve --config {found}" in said
    config = load_config(found)
    assert list(config.engines) == ["llama", "ollama"]
    assert config.server.host == ("127.0.0.1",)
    assert config.server.api_keys == ()


def test_a_cloud_whose_key_is_there_is_proposed_as_a_comment(
    found: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {cloud.variable: f"sk-{cloud.variable}" for cloud in CLOUDS}

    async def detect(_folders: tuple[str, ...]) -> Detection:
        return attrs.evolve(FOUND, clouds=clouds_in({**keys, "OTHER_API_KEY": "x"}))

    monkeypatch.setattr(init, "detect", detect)
    assert main(["init", "--yes", "--config", str(found)]) == 0
    shown = capsys.readouterr().out
    assert all(variable in shown and key not in shown for variable, key in keys.items())
    assert "cloud" not in str(load_config(found).engines)
    assert not any(isinstance(engine, RemoteConfig) for engine in load_config(found).engines.values())
    text = found.read_text()
    assert "sk-" not in text
    for variable, key in keys.items():
        monkeypatch.setenv(variable, key)
    found.write_text(re.sub("^#(?! )", "", text, flags=re.MULTILINE))
    remotes = {
        name: engine
        for name, engine in load_config(found).engines.items()
        if isinstance(engine, RemoteConfig)
    }
    assert {name: (engine.paid, engine.dialects, engine.api_key) for name, engine in remotes.items()} == {
        "openai": (True, ("openai",), "sk-OPENAI_API_KEY"),
        "anthropic": (True, ("anthropic",), "sk-ANTHROPIC_API_KEY"),
        "openrouter": (True, ("openai",), "sk-OPENROUTER_API_KEY"),
    }


def test_a_key_alone_serves_nothing(
    found: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def detect(_folders: tuple[str, ...]) -> Detection:
        return Detection(clouds=CLOUDS[:1])

    monkeypatch.setattr(init, "detect", detect)
    assert main(["init", "--yes", "--config", str(found)]) == FAILED
    assert "engine-router add https://api.openai.com/v1 --model" in capsys.readouterr().out
    assert not found.exists()


def test_a_file_that_is_there_stays(found: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found.parent.mkdir()
    found.write_text("# mine\n")
    assert main(["init", "--yes", "--config", str(found)]) == FAILED
    assert "is there already, and stays as it is" in capsys.readouterr().err
    assert found.read_text() == "# mine\n"


def test_what_is_asked(
    found: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found.parent.mkdir()
    found.write_text("# mine\n")
    # Replace it? yes. llama.cpp? what? yes. Ollama? no. The network? yes.
    answering(monkeypatch, "y", "what?", "", "n", "yes")
    assert main(["init", "--config", str(found)]) == 0
    said = capsys.readouterr().out
    config = load_config(found)
    assert list(config.engines) == ["llama"]
    assert config.server.host == ("0.0.0.0",)
    assert config.server.api_keys[0] in said
    assert (found.parent / "engines.toml.bak").read_text() == "# mine\n"


def test_nothing_is_replaced_unless_somebody_says_so(found: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found.parent.mkdir()
    found.write_text("# mine\n")
    answering(monkeypatch, "")
    assert main(["init", "--config", str(found)]) == FAILED
    assert found.read_text() == "# mine\n"


def test_all_that_was_found_may_be_left_out(found: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "n", "n")
    assert main(["init", "--config", str(found)]) == FAILED
    assert not found.exists()


def test_without_a_terminal_yes_has_to_be_said(found: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--config", str(found)]) == BAD_CONFIG
    assert "--yes takes what is proposed" in capsys.readouterr().err
    assert not found.exists()


def test_only_looking(found: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--detect-only", "--config", str(found)]) == 0
    assert "llama.cpp: 1 model in /m" in capsys.readouterr().out
    assert main(["init", "--json", "--config", str(found)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["models"] == {"/m": 1}
    assert data["engines"][0]["kind"] == "ollama"
    assert data["unknown"] == ["what listens on 9"]
    assert not found.exists()


def test_a_machine_without_anything(
    found: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def detect(_folders: tuple[str, ...]) -> Detection:
        return Detection()

    monkeypatch.setattr(init, "detect", detect)
    assert main(["init", "--yes", "--config", str(found)]) == FAILED
    assert "engine-router pull" in capsys.readouterr().out
    assert not found.exists()


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--example"]) == 0
    assert "[engines." in capsys.readouterr().out


def test_serve_says_how_a_configuration_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["serve"]) == BAD_CONFIG
    assert "engine-router init" in capsys.readouterr().err
    assert main(["serve", "--scan", ".", "--config", "x"]) == BAD_CONFIG
    assert "not both" in capsys.readouterr().err


# The whole, with the real llama.cpp


def environment(home: Path) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "HF_", "LLAMA_"))
    }
    return {**kept, "HOME": str(home)}


def chat(port: int, model: str, *, loads: bool = False) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    deadline = time.monotonic() + 100
    while True:
        try:
            with urllib.request.urlopen(request, timeout=100) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            if error.code != 503 or not loads or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_from_an_empty_home_to_the_first_answer(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    home, models = tmp_path / "home", tmp_path / "home" / "models"
    models.mkdir(parents=True)
    write_tiny_gguf(models / "Alpha-1B-Q8_0.gguf")
    write_tiny_gguf(models / "Beta-1B-Q4_K_M.gguf", seed=1)
    running, port = free_port(), free_port()
    command = [sys.executable, "-m", "engine_router"]
    server = [sys.executable, "-m", "engine_router.llamacpp", "-m", str(models / "Alpha-1B-Q8_0.gguf")]
    server += ["--alias", "running", "--host", "127.0.0.1", "--port", str(running)]
    processes = [subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)]
    try:
        assert "choices" in chat(running, "running", loads=True)
        made = subprocess.run(
            [*command, "init", "--yes"],
            env=environment(home),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        assert f"llama.cpp at http://127.0.0.1:{running}" in made.stdout
        processes.append(
            subprocess.Popen([*command, "serve", "--port", str(port)], env=environment(home), cwd=tmp_path)
        )
        # Both files, by their short names, and what ran already, by its own.
        for model in ("alpha-1b:q8_0", "beta-1b"):
            assert chat(port, model)["choices"][0]["finish_reason"]
        # Each file is listed once, though one of them runs and lies in the folder, too.
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=100) as answer:
            ids = [entry["id"] for entry in json.load(answer)["data"]]
        assert len(ids) == len({"running", "beta-1b:q4_k_m"} | {*ids}) == 2, ids
        assert "llama.cpp: 1 model in" in made.stdout
        # What the router itself has started is nobody else's to be served.
        seen = subprocess.run(
            [*command, "init", "--json"], env=environment(home), capture_output=True, text=True, check=True
        )
        engines = json.loads(seen.stdout)["engines"]
        mine = {f"http://127.0.0.1:{place}" for place in (running, port)}
        assert [
            each for each in engines if str(models) in str(each["argv"]) and each["base_url"] not in mine
        ] == []
        assert chat(port, "running")["choices"][0]["finish_reason"]
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait()


def test_a_folder_is_served_without_any_file(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    write_tiny_gguf(tmp_path / "Alpha-1B-Q8_0.gguf")
    port = free_port()
    command = [sys.executable, "-m", "engine_router", "serve", "--scan", str(tmp_path), "--port", str(port)]
    process = subprocess.Popen(command, env=environment(tmp_path / "home"), cwd=tmp_path)
    try:
        assert chat(port, "alpha-1b")["choices"]
    finally:
        process.terminate()
        process.wait()


def test_an_answer_that_is_none_is_asked_for_again(
    found: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(monkeypatch, "banana", "n", "n")
    assert main(["init", "--config", str(found)]) == FAILED
    assert "Please answer y or n.\n" in capsys.readouterr().out


@pytest.mark.parametrize("fault", [EOFError, KeyboardInterrupt])
def test_a_question_that_is_left_ends_its_line(
    fault: type[BaseException],
    found: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def left() -> str:
        raise fault

    monkeypatch.setattr(
        init, "Questions", lambda **more: Questions(**more, has_terminal=lambda: True, read=left)
    )
    assert main(["init", "--config", str(found)]) != 0
    said = capsys.readouterr()
    assert said.out.endswith("[Y/n] \n")
    assert said.err in ("engine-router: no answer; nothing was written\n", "interrupted\n")
    assert not found.exists()


def test_a_folder_that_is_not_there_is_a_slip(found: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = str(found.parent / "nowhere")
    assert main(["init", "--yes", "--config", str(found), "--scan", nowhere]) == BAD_CONFIG
    assert f"{nowhere}: there is no such folder" in capsys.readouterr().err
    assert not found.exists()


def test_a_relative_folder_is_found_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [lasting(name) for name in ("models", "~/models", "huggingface")]
    assert names == [str(tmp_path / "models"), "~/models", "huggingface"]
