"""The pools that engines and models take from, by their configuration: faults, shares, the GPUs that they get."""

from __future__ import annotations

import pytest

from engine_router.config import parse_config
from engine_router.config.diff import compare
from engine_router.config.memories import planned_together, spans_of
from engine_router.config.template import ModelArguments, TemplateModels
from engine_router.engines.base import ResidentId
from engine_router.engines.container.creation import creation
from engine_router.errors import ConfigError
from engine_router.models.config_warnings import warnings
from engine_router.residency.settings import traits_of

POOLS = """
[pools.gpu0]
mode = "budget"
budget_gb = 23
[pools.gpu1]
mode = "budget"
budget_gb = 23
gpu = 1
"""
ENGINE = """
[engines.gguf]
type = "process"
argv = "llama-server -m {path} --port {port}"
pools = ["gpu0"]
"""
LARGE = """
[models.large]
engine = "gguf"
path = "/large.gguf"
"""


@pytest.mark.parametrize(
    ("more", "place", "words"),
    [
        (
            LARGE + 'pools = ["gpu0", "gpu2"]',
            "models.large.pools[1]",
            'no pool is called "gpu2"; did you mean "gpu1"?',
        ),
        (LARGE + 'pools = ["gpu0", "gpu0"]', "models.large.pools[1]", '"gpu0" is named twice'),
        (
            LARGE + 'pools = ["gpu0", "gpu1"]\nmemory_gb = { gpu0 = 3 }',
            "models.large.memory_gb",
            "names no amount for gpu1; give one for each of its pools",
        ),
        (LARGE + "memory_gb = { gpu1 = 3 }", "models.large.memory_gb.gpu1", "its pools are gpu0"),
        (LARGE + "memory_gb = {}", "models.large.memory_gb", "expected a number of GB, got {}"),
        (
            ENGINE.replace("gguf]", "other]") + 'pool = "gpu1"',
            "engines.other.pools",
            "give either pool or pools",
        ),
    ],
    ids=["unknown", "twice", "share missing", "share of another", "no share", "pool and pools"],
)
def test_faults_of_pools_name_place_and_remedy(more: str, place: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(POOLS + ENGINE + more)
    assert (place, words) in caught.value.faults


def test_what_a_model_takes_of_each_pool() -> None:
    config = parse_config(
        POOLS + ENGINE + LARGE + 'pools = ["gpu0", "gpu1"]\nmemory_gb = { gpu1 = 20, gpu0 = 18 }'
    )
    traits = traits_of(config, ResidentId("gguf", "large"))
    assert (traits.pools, traits.declared_needs) == (
        ("gpu0", "gpu1"),
        {"gpu0": 18 * 10**9, "gpu1": 20 * 10**9},
    )
    even = parse_config(POOLS + ENGINE + LARGE + 'pools = ["gpu0", "gpu1"]\nmemory_gb = 30')
    assert traits_of(even, ResidentId("gguf", "large")).declared_needs == {
        "gpu0": 15 * 10**9,
        "gpu1": 15 * 10**9,
    }
    assert planned_together(config.pools, spans_of(config).values()) == [("gpu0", "gpu1")]


def test_check_says_where_a_model_fits_over_two() -> None:
    config = parse_config(POOLS + ENGINE + LARGE + "memory_gb = 40")
    (found,) = [words for place, words in warnings(config) if place == "models.large.memory_gb"]
    assert found == (
        "40 is more than the 23 of pools.gpu0.budget_gb: it can never be loaded; "
        'over 2 pools it can: pools = ["gpu0", "gpu1"] in place of pool'
    )


def test_a_reload_cannot_connect_pools() -> None:
    apart = parse_config(POOLS + ENGINE + LARGE)
    with pytest.raises(ConfigError, match="gpu0 and gpu1 were not planned together so far"):
        compare(apart, parse_config(POOLS + ENGINE + LARGE + 'pools = ["gpu0", "gpu1"]'), "engines.toml")


def test_gpus_are_filled_in() -> None:
    text = ENGINE.replace("--port", "--devices {gpus} --port") + 'env = { CUDA_VISIBLE_DEVICES = "{gpus}" }\n'
    config = parse_config(
        POOLS + text + LARGE + 'pools = ["gpu0", "gpu1"]\n[models.small]\nengine = "gguf"\npath = "/s"'
    )
    models = TemplateModels("gguf", config)
    assert [models.arguments(name).gpus for name in ("large", "small")] == ["0,1", "0"]
    with pytest.raises(ConfigError, match="would name a GPU twice"):
        parse_config(POOLS.replace("gpu = 1", "") + text + LARGE + 'pools = ["gpu0", "gpu1"]')


@pytest.mark.parametrize(
    ("is_podman", "wanted"), [(False, ["0", "1"]), (True, ["nvidia.com/gpu=0", "nvidia.com/gpu=1"])]
)
def test_a_container_gets_the_gpus_of_its_pools(is_podman: bool, wanted: list[str]) -> None:
    config = parse_config(
        POOLS
        + '[engines.c]\ntype = "container"\nimage = "x"\nports = ["{port}:80"]\ngpus = "{gpus}"\npools = ["gpu0", "gpu1"]'
    )
    arguments: ModelArguments = TemplateModels("c", config).arguments("")
    values = {"port": "1", **arguments.values("")}
    body = creation(config.engines["c"], arguments, values, {}, is_podman=is_podman)  # type: ignore[arg-type]
    assert [request["DeviceIDs"] for request in body["HostConfig"]["DeviceRequests"]] == [wanted]
