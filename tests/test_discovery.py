"""From the name that a client sends to the resident and the name that the engine knows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.simulated_engine import SimulatedEngine
from support.simulated_memory import SimulatedMemory

from engine_router.config import parse_config
from engine_router.engines.base import ResidentId
from engine_router.errors import UnknownModel
from engine_router.models.last_seen import SeenModels
from engine_router.models.registry import ModelRegistry, Target

ENGINES = """
[engines.vllm]
type = "systemd"
unit = "vllm.service"
base_url = "http://127.0.0.1:8000"
models = ["qwen3-30b", "tagged:7b", "plain"]

[engines.ollama]
type = "ollama"
models = ["llama3:latest"]

[engines.template]
type = "process"
argv = ["serve", "{model}", "--port", "{port}"]

[models."coder"]
engine = "template"
upstream = "org/coder.gguf"
aliases = ["gpt-4o", "code"]

[models."small"]
engine = "ollama"
upstream = "gemma3:latest"

[models."own"]
engine = "template"

[aliases]
default = "qwen3-30b"
"tool:latest" = "coder"
"""


def registry(text: str = ENGINES, **listed: list[str]) -> ModelRegistry:
    config = parse_config(text)
    memory = SimulatedMemory()
    engines: Mapping[str, Any] = {
        name: SimulatedEngine(name, memory, by_model=name in ("ollama", "template"))
        for name in config.engines
    }
    found = ModelRegistry(config, engines)
    for engine, models in listed.items():
        found.set_listed(engine, models)
    return found


def where(target: Target) -> tuple[str, str, str]:
    return target.model, str(target.resident), target.upstream


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3-30b", ("qwen3-30b", "vllm", "qwen3-30b")),
        ("qwen3-30b:latest", ("qwen3-30b", "vllm", "qwen3-30b")),
        ("tagged:7b", ("tagged:7b", "vllm", "tagged:7b")),
        ("llama3", ("llama3:latest", "ollama/llama3:latest", "llama3:latest")),
        ("llama3:latest", ("llama3:latest", "ollama/llama3:latest", "llama3:latest")),
        ("coder", ("coder", "template/org/coder.gguf", "org/coder.gguf")),
        ("gpt-4o", ("coder", "template/org/coder.gguf", "org/coder.gguf")),
        ("gpt-4o:latest", ("coder", "template/org/coder.gguf", "org/coder.gguf")),
        ("tool", ("coder", "template/org/coder.gguf", "org/coder.gguf")),
        ("tool:latest", ("coder", "template/org/coder.gguf", "org/coder.gguf")),
        ("default", ("qwen3-30b", "vllm", "qwen3-30b")),
        ("small", ("small", "ollama/gemma3:latest", "gemma3:latest")),
        ("own", ("own", "template/own", "own")),
    ],
)
def test_what_is_configured_is_found_by_every_name(name: str, expected: tuple[str, str, str]) -> None:
    target = registry().resolve(name)
    assert where(target) == expected
    assert not target.is_listed_only


@pytest.mark.parametrize(
    "name",
    ["qwen3", "Qwen3-30b", "tagged", "tagged:8b", "llama3:8b", "", ":latest", "org/coder.gguf", "nonsense"],
)
def test_no_other_name_is_served_by_a_substitute(name: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        registry().resolve(name)
    assert caught.value.model == name
    assert f"model '{name}' not found" in str(caught.value)


def test_close_matches_are_named() -> None:
    with pytest.raises(UnknownModel, match="qwen3-30b") as caught:
        registry().resolve("qwen3-30")
    assert caught.value.suggestions[0] == "qwen3-30b"
    with pytest.raises(UnknownModel) as caught:
        registry().resolve("gpt-4")
    assert "gpt-4o" in caught.value.suggestions
    with pytest.raises(UnknownModel) as caught:
        registry(vllm=["mistral-small"]).resolve("mistral-smal")
    assert caught.value.suggestions == ("mistral-small",)
    with pytest.raises(UnknownModel) as caught:
        registry().resolve("zzzzzz")
    assert caught.value.suggestions == ()


def test_what_engines_list_is_found_too() -> None:
    found = registry(ollama=["phi4:latest", "phi4:14b"], vllm=["lora-1"])
    assert where(found.resolve("phi4")) == ("phi4:latest", "ollama/phi4:latest", "phi4:latest")
    assert where(found.resolve("phi4:14b")) == ("phi4:14b", "ollama/phi4:14b", "phi4:14b")
    assert where(found.resolve("lora-1:latest")) == ("lora-1", "vllm", "lora-1")
    assert found.resolve("lora-1").is_listed_only
    found.set_listed("vllm", [])
    with pytest.raises(UnknownModel):
        found.resolve("lora-1")
    assert list(found.listed("ollama")) == ["phi4:latest", "phi4:14b"]
    assert list(found.listed("template")) == []


def test_the_configuration_wins_over_what_an_engine_says() -> None:
    found = registry(ollama=["qwen3-30b", "coder", "gpt-4o", "default", "plain:latest"])
    assert found.resolve("qwen3-30b").engine == "vllm"
    assert found.resolve("coder").engine == "template"
    assert found.resolve("gpt-4o").model == "coder"
    assert found.resolve("default").model == "qwen3-30b"
    assert found.resolve("plain").engine == "vllm"
    assert found.resolve("plain:latest").engine == "ollama"  # exactly what it is called there


def test_the_first_engine_wins_over_the_second() -> None:
    found = registry(ollama=["both"], vllm=["both"])
    assert found.resolve("both").engine == "vllm"
    assert [target.engine for target in found.targets() if target.model == "both"] == ["vllm"]


def test_every_model_is_listed_once_and_the_configured_ones_first() -> None:
    found = registry(
        vllm=["qwen3-30b", "lora"], ollama=["llama3:latest", "gemma3:latest", "phi4:latest", "lora"]
    )
    targets = found.targets()
    assert [target.model for target in targets] == [
        "qwen3-30b",
        "tagged:7b",
        "plain",
        "llama3:latest",
        "coder",
        "small",
        "own",
        "lora",
        "phi4:latest",
    ]
    assert [target.model for target in targets if target.is_listed_only] == ["lora", "phi4:latest"]
    aliases = {target.model: target.aliases for target in targets if target.aliases}
    assert {model: sorted(names) for model, names in aliases.items()} == {
        "qwen3-30b": ["default"],
        "coder": ["code", "gpt-4o", "tool:latest"],
    }
    names = [name for target in found.offered() for name in (target.model, *target.aliases)]
    assert len(names) == len(set(names)) == 9 + 4


def test_every_listed_name_resolves_to_its_model() -> None:
    found = registry(vllm=["lora"], ollama=["phi4:latest", "coder", "gemma3:latest"])
    for target in found.targets():
        for name in (target.model, *target.aliases):
            assert found.resolve(name) == target


def test_a_template_has_a_resident_for_each_model() -> None:
    found = registry()
    assert found.resolve("coder").resident == ResidentId("template", "org/coder.gguf")
    assert found.resolve("own").resident == ResidentId("template", "own")
    assert found.resolve("plain").resident == found.resolve("tagged:7b").resident == ResidentId("vllm")


@given(st.text(), st.lists(st.text(min_size=1), max_size=4))
def test_any_name_is_found_or_unknown(name: str, listed: list[str]) -> None:
    found = registry(ollama=listed)
    try:
        target = found.resolve(name)
    except UnknownModel:
        assert name not in listed
    else:
        assert name.removesuffix(":latest") in {
            known.removesuffix(":latest") for known in (target.model, *target.aliases)
        }


# What an engine calls a configured model

OWN_NAMES = """
[engines.llama]
type = "process"
argv = ["llama-server", "-m", "/w/one.gguf", "--port", "{port}"]
models = ["one"]

[engines.template]
type = "process"
argv = ["vllm", "serve", "{path}", "--port", "{port}"]

[engines.kobold]
type = "systemd"
unit = "k.service"
base_url = "http://127.0.0.1:1"
models = ["k"]

[engines.ollama]
type = "ollama"
models = ["o"]

[models.two]
engine = "template"
path = "/w/two"
[models.two-hot]
engine = "template"
path = "/w/two"
[models.three]
engine = "template"
path = "/w/three"
upstream = "3"
"""


def ids(found: ModelRegistry) -> list[str]:
    return [target.model for target in found.targets()]


CONFIGURED = ["one", "k", "o", "two", "two-hot", "three"]


@pytest.mark.parametrize("listed", ["/w/one.gguf", "one.gguf", "gpt-x", "/elsewhere/one"])
def test_the_one_id_that_an_engine_of_one_model_lists_is_that_model(listed: str) -> None:
    found = registry(OWN_NAMES, llama=[listed])
    assert ids(found) == CONFIGURED
    assert where(found.resolve("one")) == ("one", "llama", listed)
    assert where(found.resolve(listed)) == ("one", "llama", listed)
    found.set_listed("llama", ["one"])
    assert where(found.resolve("one")) == ("one", "llama", "one")
    assert ids(found) == CONFIGURED


def test_an_engine_that_lists_more_lists_other_models() -> None:
    found = registry(OWN_NAMES, llama=["/w/one.gguf", "lora"])
    assert ids(found) == [*CONFIGURED, "lora"]
    assert where(found.resolve("one")) == ("one", "llama", "/w/one.gguf")
    assert where(found.resolve("lora")) == ("lora", "llama", "lora")


def test_paths_of_a_template_are_its_models() -> None:
    found = registry(OWN_NAMES, template=["/w/two", "/w/three", "/w/four"])
    assert ids(found) == [*CONFIGURED, "/w/four"]
    assert where(found.resolve("two")) == ("two", "template/two", "/w/two")
    assert where(found.resolve("two-hot")) == ("two-hot", "template/two-hot", "/w/two")
    # What the configuration says is what counts.
    assert where(found.resolve("three")) == ("three", "template/3", "3")


def test_a_unit_of_one_model_may_call_it_what_it_likes() -> None:
    found = registry(OWN_NAMES, kobold=["koboldcpp/x"])
    assert ids(found) == CONFIGURED
    assert where(found.resolve("k")) == ("k", "kobold", "koboldcpp/x")


def test_what_an_ollama_daemon_lists_beside_is_another_model() -> None:
    assert ids(registry(OWN_NAMES, ollama=["p:latest"])) == [*CONFIGURED, "p:latest"]


def test_an_own_name_outlives_a_reload() -> None:
    config = parse_config(OWN_NAMES)
    before = registry(OWN_NAMES, llama=["gpt-x"])
    after = ModelRegistry(config, before._engines)
    after.learn({"llama": SeenModels(tuple(before.listed("llama")), time.time())})
    assert where(after.resolve("one")) == ("one", "llama", "gpt-x")
