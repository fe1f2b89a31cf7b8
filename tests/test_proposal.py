"""What `engine-router init` proposes for what it has found on a machine."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from test_detection import hardware, spark

from engine_router.config import OllamaConfig, ProcessConfig, SystemdConfig, parse_config
from engine_router.models.found import with_found
from engine_router.models.scan import FoundModel
from engine_router.setup.detection import Detection
from engine_router.setup.listeners import Listener, Listeners
from engine_router.setup.model_blocks import scan_config
from engine_router.setup.programs import Program
from engine_router.setup.proposal import propose

LLAMA = Program("llamacpp", ("llama-server",), True)


def found_model(place: str, model_format: str = "gguf") -> FoundModel:
    return FoundModel(
        engine="models",
        name="m",
        aliases=(),
        path=Path("/m"),
        format=model_format,
        mmproj=None,
        size_bytes=1,
        place=place,  # type: ignore[arg-type]
    )


def test_folders_of_models_get_a_template(tmp_path: Path) -> None:
    spark(tmp_path)
    detection = Detection(
        hardware=hardware(tmp_path),
        programs=(LLAMA, Program("vllm", ("vllm",), True)),
        places=("huggingface", "lmstudio", "/my models"),
        models=(
            found_model("huggingface"),
            found_model("/my models"),
            found_model("huggingface", "safetensors"),
        ),
    )
    proposal = propose(detection)
    config = parse_config(proposal.text(proposal.blocks, host="127.0.0.1", port=1, key=None))
    llama, vllm = config.engines["llama"], config.engines["vllm"]
    assert isinstance(llama, ProcessConfig)
    assert isinstance(vllm, ProcessConfig)
    assert llama.scan == ("huggingface", "/my models")
    assert "--no-mmap" in llama.argv  # GB10 reads mapped files ten times as slowly
    assert vllm.scan == ("huggingface",)
    assert vllm.ready_check == "model:{model}"
    assert config.server.watch_config


def test_what_runs_already_is_proposed_once() -> None:
    def at(path: str, *aliases: str) -> FoundModel:
        return attrs.evolve(found_model("/my models"), name=path, aliases=aliases, path=Path(path))

    llama = running("llamacpp", argv=("llama-server", "-m", "../my models/a.gguf"), cwd="/somewhere")
    repository = running("vllm", argv=("vllm", "serve", "Some/Repo"), base_url="http://127.0.0.1:5001")
    detection = Detection(
        programs=(LLAMA,),
        places=("lmstudio", "/my models"),
        models=(
            at("/my models/a.gguf"),
            at("/my models/b.gguf"),
            at("/my models/c", "some/repo"),
            found_model("lmstudio"),
        ),
        listeners=Listeners((llama, repository, running("lmstudio", base_url="http://127.0.0.1:5002"))),
    )
    proposal = propose(detection)
    assert proposal.blocks[0].summary == "llama.cpp: 1 model in /my models, huggingface"
    config = parse_config(proposal.text(proposal.blocks, host="127.0.0.1", port=1, key=None))
    found = (attrs.evolve(model, engine="llama") for model in detection.models[:3])
    whole_config = with_found(config, found)
    assert [name for name, model in whole_config.models.items() if model.found] == ["/my models/b.gguf"]
    # A router of llama.cpp's own that serves the whole folder.
    whole = running("llamacpp-router", argv=("llama-server", "--models-dir", "my models"), cwd="/")
    proposal = propose(attrs.evolve(detection, listeners=Listeners((whole,))))
    assert "/my models" not in "".join(block.summary for block in proposal.blocks if block.name == "llama")


def test_of_two_engines_with_a_model_of_one_name_the_first_has_it() -> None:
    argv = ("llama-server", "-m", "/m/a.gguf")
    both = [running("llamacpp", argv=argv, base_url=f"http://127.0.0.1:{port}") for port in (5000, 5001)]
    proposal = propose(Detection(listeners=Listeners(tuple(both))))
    config = parse_config(proposal.text(proposal.blocks, host="127.0.0.1", port=1, key=None))
    assert [engine.models for engine in config.engines.values()] == [("a",), ()]


@pytest.mark.parametrize("alias", [(), ("--alias", "mine")])
def test_the_model_of_a_unit_that_runs_is_not_listed_beside_its_file(alias: tuple[str, ...]) -> None:
    found = attrs.evolve(found_model("/m"), name="a:q4_k_m", path=Path("/m/a-Q4_K_M.gguf"))
    other = attrs.evolve(found_model("/m"), name="b", path=Path("/m/b.gguf"))
    argv = ("llama-server", "-m", "a-Q4_K_M.gguf", *alias)
    unit = running("llamacpp", argv=argv, cwd="/m", unit="llama.service", is_user_unit=True)
    detection = Detection(
        programs=(LLAMA,), places=("/m",), models=(found, other), listeners=Listeners((unit,))
    )
    proposal = propose(detection)
    assert proposal.blocks[0].summary == "llama.cpp: 1 model in /m, huggingface"
    config = parse_config(proposal.text(proposal.blocks, host="127.0.0.1", port=1, key=None))
    ((name, model),) = config.models.items()
    assert (model.engine, model.path) == ("llamacpp", "/m/a-Q4_K_M.gguf")
    assert not alias or name == "mine"
    whole = with_found(config, [attrs.evolve(one, engine="llama") for one in (found, other)])
    assert [*whole.models] == [name, "b"]


def running(kind: str | None, **more: object) -> Listener:
    return attrs.evolve(Listener(kind=kind, base_url="http://127.0.0.1:5000"), **more)  # type: ignore[arg-type]


def test_engines_that_run() -> None:
    engines = (
        running("ollama"),
        running("lmstudio"),
        running("tabbyapi"),
        running("llamacpp-router"),
        running(
            "vllm",
            argv=("vllm", "serve", "Qwen/Q", "--served-model-name", "q"),
            unit="vllm.service",
            is_user_unit=True,
        ),
        running("vllm", argv=("vllm", "serve", "Qwen/Q", "--served-model-name", "q2"), cwd="/w"),
    )
    proposal = propose(Detection(listeners=Listeners(engines)))
    config = parse_config(proposal.text(proposal.blocks, host="0.0.0.0", port=1, key="secret"))
    assert list(config.engines) == ["ollama", "lmstudio", "tabbyapi", "llamacpp-router", "vllm", "vllm-2"]
    unit, process = config.engines["vllm"], config.engines["vllm-2"]
    assert isinstance(config.engines["ollama"], OllamaConfig)
    assert isinstance(unit, SystemdConfig)
    assert (unit.unit, unit.scope) == ("vllm.service", "user")
    assert isinstance(process, ProcessConfig)
    assert (process.models, process.cwd) == (("q2",), "/w")
    assert config.server.api_keys == ("secret",)


@pytest.mark.parametrize(
    ("listener", "words"),
    [
        (running("engine-router"), "an engine-router at http://127.0.0.1:5000 serves its own models"),
        (running("vllm", argv=("vllm",), container="abc"), "runs in container abc"),
        (running("vllm"), "belongs to another user"),
        (running("openai", argv=("srv", "--api-key", "hush")), "(its command: srv --api-key ***)"),
    ],
)
def test_what_is_left_out_is_told(listener: Listener, words: str) -> None:
    proposal = propose(Detection(listeners=Listeners((listener,))))
    assert not proposal.blocks
    assert words in proposal.left_out[0]


def test_a_folder_without_any_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("engine_router.setup.model_blocks.find_programs", lambda: (LLAMA,))
    config = parse_config(scan_config([str(tmp_path), "huggingface"]))
    engine = config.engines["llama"]
    assert isinstance(engine, ProcessConfig)
    assert engine.scan == (str(tmp_path), "huggingface")
    monkeypatch.setattr("engine_router.setup.model_blocks.find_programs", lambda: ())
    with pytest.raises(ValueError, match="no llama-server is installed"):
        scan_config([str(tmp_path)])
