"""Models that nothing but an engine's command, or its last list, tells of: their names, before and after it has run."""

from __future__ import annotations

import math

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_discovery import registry, where

from engine_router.config import Config, parse_config
from engine_router.engines.base import ResidentId
from engine_router.errors import UnknownModel
from engine_router.models.last_seen import (
    FORGET_AFTER_S,
    SeenModels,
    engine_mark,
    seen_as_json,
    seen_from_json,
)
from engine_router.models.registry import ModelRegistry, Target
from engine_router.models.served_names import ServedModel

ENGINES = """
[engines.llama]
type = "process"
argv = ["llama-server", "-m", "/w/Qwen3-8B-Q4_K_M.gguf", "--port", "{port}"]

[engines.vllm]
type = "process"
argv = "vllm serve /w/coder --served-model-name coder code --lora-modules sql=/l --port {port}"

[engines.mlx]
type = "process"
argv = "mlx_lm.server --model /w/mlx --port {port}"
discover = false

[engines.ollama]
type = "ollama"

[aliases]
gpt-4o = "Qwen3-8B-Q4_K_M"
"""
STOPPED = ["Qwen3-8B-Q4_K_M", "coder", "sql", "mlx"]


def ids(found: ModelRegistry) -> list[str]:
    return [target.model for target in found.targets()]


def origins(found: ModelRegistry, engine: str) -> dict[str, str]:
    return {known.target.model: " ".join(known.origins) for known in found.known_ids(engine)}


def test_models_of_engines_that_never_ran_are_known() -> None:
    found = registry(ENGINES)
    assert ids(found) == [target.model for target in found.offered()] == STOPPED
    assert {target.origin for target in found.targets()} == {"argv"}
    for name in (
        "Qwen3-8B-Q4_K_M", "Qwen3-8B-Q4_K_M.gguf", "qwen3-8b:q4_k_m", "/w/Qwen3-8B-Q4_K_M.gguf", "gpt-4o",
        "Qwen3-8B-Q4_K_M:latest",
    ):  # fmt: skip
        assert where(found.resolve(name)) == ("Qwen3-8B-Q4_K_M", "llama", "Qwen3-8B-Q4_K_M")
    for name in ("coder", "code", "/w/coder"):
        assert where(found.resolve(name)) == ("coder", "vllm", "coder")
    assert where(found.resolve("sql")) == ("sql", "vllm", "sql")
    assert where(found.resolve("mlx")) == ("mlx", "mlx", "/w/mlx")
    assert {target.model: target.aliases for target in found.targets() if target.aliases} == {
        "Qwen3-8B-Q4_K_M": ("gpt-4o",),
        "coder": ("code",),
    }
    assert found.is_name("coder")
    assert found.is_name("code")
    assert not found.is_name("/w/coder")


@pytest.mark.parametrize(
    "name", ["qwen3-8b-q4_k_m", "other/Qwen3-8B-Q4_K_M.gguf", "Qwen3-8B", "coder:7b", "gguf", ""]
)
def test_no_name_is_invented(name: str) -> None:
    with pytest.raises(UnknownModel):
        registry(ENGINES).resolve(name)


def test_close_matches_are_among_a_command_s_names() -> None:
    with pytest.raises(UnknownModel) as caught:
        registry(ENGINES).resolve("codex")
    assert set(caught.value.suggestions) == {"coder", "code"}


@pytest.mark.parametrize(
    "listed", ["Qwen3-8B-Q4_K_M.gguf", "/w/Qwen3-8B-Q4_K_M.gguf", "/elsewhere/Qwen3-8B-Q4_K_M.gguf", "gpt-x"]
)
def test_an_id_stays_when_the_engine_calls_its_one_model_something_else(listed: str) -> None:
    found = registry(ENGINES, llama=[listed])
    assert ids(found) == STOPPED
    for name in (listed, *STOPPED[:1], "gpt-4o", "Qwen3-8B-Q4_K_M.gguf"):
        assert where(found.resolve(name)) == ("Qwen3-8B-Q4_K_M", "llama", listed)
    assert origins(found, "llama") == {"Qwen3-8B-Q4_K_M": "argv live"}
    found.set_silent("llama")
    assert origins(found, "llama") == {"Qwen3-8B-Q4_K_M": "argv last seen"}


def test_what_a_running_engine_does_not_list_is_not_known_any_more() -> None:
    """A request for it would have a model stopped, this engine started, and end in its 404."""
    found = registry(ENGINES, vllm=["coder", "code", "lora-2"])
    assert [name for name in ids(found) if name not in STOPPED] == ["lora-2"]
    assert found.resolve("code").model == "coder"
    with pytest.raises(UnknownModel):
        found.resolve("sql")
    assert origins(found, "vllm") == {"coder": "argv live", "lora-2": "live"}
    found.set_listed("vllm", ["sql", "more"])
    assert where(found.resolve("sql")) == ("sql", "vllm", "sql")
    for name in ("coder", "code", "/w/coder"):
        with pytest.raises(UnknownModel):
            found.resolve(name)
    found.set_listed("vllm", [])  # says nothing
    assert ids(found) == STOPPED
    found.set_listed("vllm", ["code"])  # it was started under the second name only
    assert where(found.resolve("coder")) == ("coder", "vllm", "code")


def test_a_list_of_all_that_is_in_a_cache_takes_nothing_away() -> None:
    found = registry(ENGINES.replace("discover = false\n", ""), mlx=["mlx-community/other"])
    assert ids(found) == [*STOPPED, "mlx-community/other"]
    assert where(found.resolve("mlx")) == ("mlx", "mlx", "/w/mlx")


def test_exact_ids_come_before_spellings_of_files() -> None:
    found = registry(ENGINES, ollama=["Qwen3-8B-Q4_K_M.gguf:latest", "coder:latest"])
    assert found.resolve("Qwen3-8B-Q4_K_M.gguf").engine == "ollama"
    assert found.resolve("Qwen3-8B-Q4_K_M").engine == "llama"
    assert found.resolve("coder").engine == "vllm"
    assert found.resolve("coder:latest").engine == "ollama"


CONFIGURED = """
[engines.vllm]
type = "process"
argv = "vllm serve /w/qwen --port {port}"
models = ["q"]

[engines.llama]
type = "process"
argv = ["llama-server", "-m", "/w/one.gguf", "-a", "raw", "--port", "{port}"]

[engines.two]
type = "process"
argv = "vllm serve Q/x --served-model-name a b --lora-modules sql=/l --port {port}"
models = ["b"]

[engines.template]
type = "process"
argv = "vllm serve {path} --served-model-name x --port {port}"

[models.one]
engine = "llama"
upstream = "raw"
[models.fixed]
engine = "template"
path = "/w/fixed"
"""


def test_a_command_s_names_of_a_configured_model_are_names_of_that() -> None:
    found = registry(CONFIGURED)
    assert ids(found) == ["q", "b", "one", "fixed", "sql"]
    # vLLM refuses the id of the configuration: its own name is used before it has listed anything.
    assert where(found.resolve("q")) == ("q", "vllm", "/w/qwen")
    assert where(found.resolve("qwen")) == ("q", "vllm", "/w/qwen")
    assert where(found.resolve("one.gguf")) == ("one", "llama", "raw")
    assert where(found.resolve("a")) == ("b", "two", "b")
    assert [target.origin for target in found.targets()] == [*["configured"] * 4, "argv"]
    assert origins(found, "vllm") == {"q": "configured argv"}
    found.set_listed("vllm", ["q"])
    assert where(found.resolve("q")) == ("q", "vllm", "q")
    assert origins(found, "vllm") == {"q": "configured argv live"}


def test_models_of_folders_say_so() -> None:
    config = parse_config(CONFIGURED)
    found = {**config.models, "fixed": attrs.evolve(config.models["fixed"], found=True)}
    after = ModelRegistry(attrs.evolve(config, models=found), registry(CONFIGURED)._engines)
    assert after.resolve("fixed").origin == "folder"
    assert origins(after, "template") == {"fixed": "folder"}


def test_a_name_that_two_engines_have_is_the_first_one_s() -> None:
    text = (
        ENGINES
        + '[engines.again]\ntype = "process"\nargv = "llama-server -m /w/coder.gguf -a coder,mine --port {port}"\n'
    )
    found = registry(text, ollama=["coder", "phi4:latest"])
    assert found.resolve("coder").engine == "vllm"
    assert found.resolve("mine").engine == "again"
    assert found.shadowed() == {("vllm", "ollama"): ["coder"], ("vllm", "again"): ["coder"]}
    assert ids(found).count("coder") == 1
    assert [known.target.engine for known in found.known_ids("again")] == ["again"]


# Lists that are remembered

NOW = 1_700_000_000.0


def remembered(text: str = ENGINES, **seen: SeenModels) -> ModelRegistry:
    found = registry(text)
    found.learn(seen, NOW)
    return found


def mark(config: Config, engine: str) -> str:
    return engine_mark(config.engines[engine])


def test_a_remembered_list_counts_until_it_is_too_old() -> None:
    for age_s, is_known in ((0.0, True), (FORGET_AFTER_S - 1, True), (FORGET_AFTER_S + 1, False)):
        found = remembered(ollama=SeenModels(("phi4:latest",), NOW - age_s))
        assert (ids(found) == [*STOPPED, "phi4:latest"]) is is_known
    target = remembered(ollama=SeenModels(("phi4:latest",), NOW - 5)).resolve("phi4")
    assert target.origin == "last seen"
    assert target.is_listed_only
    assert [
        known.seen_at for known in remembered(ollama=SeenModels(("x",), NOW - 5)).known_ids("ollama")
    ] == [NOW - 5]


def test_a_list_of_what_was_another_server_is_not_believed() -> None:
    """An engine that is configured to start another model does not serve the one that it had before."""
    config = parse_config(ENGINES)
    names = ("old", "older")
    same, other = SeenModels(names, NOW, mark(config, "llama")), SeenModels(names, NOW, "another")
    assert ids(remembered(llama=same)) == [*names, *STOPPED[1:]]
    assert ids(remembered(llama=other)) == STOPPED
    assert ids(remembered(llama=SeenModels(names, NOW))) == [*names, *STOPPED[1:]]  # an older router's
    changed = parse_config(ENGINES.replace("/w/Qwen3", "/w/Qwen4"))
    assert mark(changed, "llama") != mark(config, "llama")
    assert mark(changed, "vllm") == mark(config, "vllm")


def test_the_memory_of_lists_survives_its_file_in_both_forms() -> None:
    seen = {"a": SeenModels(("x", "y"), 5.0, "mark"), "b": SeenModels((), 6.0)}
    written = seen_as_json(seen)
    assert written["models"] == {"a": ["x", "y"], "b": []}  # what older routers read
    assert seen_from_json({"a": ["x", "y"], "b": []}, written["seen"], NOW) == seen
    assert seen_from_json({"a": ["x"]}, None, NOW) == {"a": SeenModels(("x",), NOW)}


@pytest.mark.parametrize(
    "note",
    [None, 7, [], {"at": "1"}, {"at": True}, {"at": math.nan}, {"at": -1}, {"at": 1e400}, {"at": NOW + 9}],
)
def test_damaged_notes_are_as_of_now(note: object) -> None:
    assert seen_from_json({"a": ["x", 7, "", "x", "n" * 600]}, {"a": note}, NOW) == {
        "a": SeenModels(("x",), NOW)
    }


# Whatever commands and lists say

NAMES = st.sampled_from(["a", "b", "a:latest", "c", "/w/a.gguf", "a.gguf", "sql", "x"])


@given(
    st.lists(NAMES, max_size=3, unique=True),
    st.lists(NAMES, max_size=3, unique=True),
    st.lists(NAMES, max_size=3, unique=True),
)
def test_every_known_id_is_listed_once_and_leads_to_its_model(
    given_names: list[str], llama: list[str], ollama: list[str]
) -> None:
    names = ",".join(given_names)
    text = ENGINES.replace('"--port", "{port}"]', f'"--alias", "{names}", "--port", "{{port}}"]').replace(
        "gpt-4o", "x"
    )
    found = registry(text, llama=llama, ollama=ollama)
    targets: list[Target] = found.targets()
    shown = [target.model for target in targets]
    assert len(shown) == len(set(shown))
    for target in targets:
        assert found.resolve(target.model).model == target.model
        assert found.is_name(target.model)
    for name in llama:
        assert found.resolve(name).engine in ("llama", "vllm")
    for engine in ("llama", "vllm", "ollama"):
        for known in found.known_ids(engine):
            assert known.origins
            assert known.target.engine == engine


def test_models_in_files_are_known_once_they_are_read() -> None:
    text = '[engines.router]\ntype = "process"\nargv = "llama-server --models-preset /w/p.ini --port {port}"\nmodels = ["a"]\n'
    found = registry(text)
    assert ids(found) == ["a"]
    served = found.served("router")
    assert served.in_files
    models = (ServedModel(name="a", upstream="a"), ServedModel(name="b", upstream="b", aliases=("c",)))
    found.learn_files({"router": attrs.evolve(served, models=models), "gone": served})
    assert ids(found) == ["a", "b"]
    assert found.resolve("c").resident == ResidentId("router")
    assert origins(found, "router") == {"a": "configured argv", "b": "argv"}
    found.set_listed("router", ["a", "d"])
    assert ids(found) == ["a", "d"]
