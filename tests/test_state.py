"""What is remembered between runs: written whole or not at all, and read with suspicion."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from engine_router import open_router
from engine_router.config import parse_config
from engine_router.engines.base import ResidentId
from engine_router.events import RouterNotice
from engine_router.guards.atomic_file import write_atomically
from engine_router.models.last_seen import SeenModels
from engine_router.residency.measurements import (
    Footprint,
    Measurement,
    Measurements,
    default_state_file,
    read_state,
    save_state,
)

A = ResidentId("a", "llama")
SEEN = SeenModels(("llama", "qwen"), 1000.0, "mark")


def full_state() -> Measurements:
    state = Measurements()
    state.residents["a/llama"] = Measurement(2**36, 0.75, 2**35, 12.5, 1.0, 0.25, 0.75)
    state.residents["wide"] = Measurement(
        3, shares={"gpu0": Footprint(1, 0.5), "gpu1": Footprint(2, None, 1)}
    )
    state.set_models("a", SEEN)
    return state


def test_a_state_survives_its_file() -> None:
    state = Measurements.from_json(full_state().to_json())
    assert state.residents == full_state().residents
    assert state.models == full_state().models
    assert not state.changed


def test_measurements_of_an_unknown_resident_are_empty_and_can_be_filled() -> None:
    state = Measurements()
    state.of(A).start_s = 3.0
    assert state.of(A) == Measurement(start_s=3.0)


def test_only_changes_of_the_models_are_changes() -> None:
    state = full_state()
    state.changed = False
    state.set_models("a", attrs.evolve(SEEN, is_live=True))
    assert state.changed  # it is seen anew
    state.changed = False
    state.set_models("a", attrs.evolve(SEEN, is_live=True, at=1030.0))
    assert not state.changed
    state.set_models("a", attrs.evolve(SEEN, names=("llama",), is_live=True, at=1060.0))
    assert state.changed


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", "{}", '{"version": 1}', '{"version": 1, "residents": [], "models": {}}',
     '{"version": 2, "residents": {}}', "[" * 100_000, '{"version": 1, "residents": {"a": 7}, "models": {}}'],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_damaged_text_is_an_empty_state(text: str) -> None:
    assert Measurements.from_json(text).to_json() == Measurements().to_json()


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1", "true", '"7"', "[]", "1e400", "9" * 400, "null"])
@pytest.mark.parametrize(
    "key",
    [
        "footprint_bytes",
        "release_ratio",
        "start_s",
        "stop_s",
        "settle_s",
        "sleep_freed_bytes",
        "wake_s",
    ],
)
def test_a_figure_that_cannot_have_been_measured_is_left_out_alone(key: str, value: str) -> None:
    text = (
        f'{{"version": 1, "models": {{}}, "residents": {{"a": {{"{key}": {value}}}, "b": {{"start_s": 2}}}}}}'
    )
    state = Measurements.from_json(text)
    assert state.of(ResidentId("a")) == Measurement()
    assert state.of(ResidentId("b")) == Measurement(start_s=2.0)


def test_what_a_newer_router_wrote_beside_is_left_out() -> None:
    data = json.loads(full_state().to_json())
    data["residents"]["a/llama"]["colour"] = "blue"
    data["more"] = 1
    assert Measurements.from_json(json.dumps(data)).residents == full_state().residents


def test_a_share_above_the_whole_was_not_measured() -> None:
    text = '{"version": 1, "models": {}, "residents": {"a": {"release_ratio": 1.5}}}'
    assert Measurements.from_json(text).of(ResidentId("a")).release_ratio is None


@pytest.mark.parametrize(
    ("measured", "missing_bytes", "sleeps"),
    [
        (Measurement(), None, True),
        (Measurement(), 10**12, True),
        (Measurement(100, start_s=60.0, sleep_freed_bytes=75, wake_s=1.0), None, True),
        (Measurement(100, start_s=60.0, sleep_freed_bytes=74, wake_s=1.0), None, False),
        (Measurement(100, start_s=60.0, sleep_freed_bytes=30, wake_s=1.0), 30, True),
        (Measurement(100, start_s=60.0, sleep_freed_bytes=99, wake_s=1.0), 100, False),
        (Measurement(100, start_s=60.0, sleep_freed_bytes=99, wake_s=60.0), None, False),
        (Measurement(100, sleep_freed_bytes=99, wake_s=60.0), None, True),
        (Measurement(sleep_freed_bytes=0, wake_s=1.0), None, True),
        (Measurement(sleep_freed_bytes=0, wake_s=1.0), 1, False),
    ],
)
def test_the_cheaper_exit_that_frees_enough(
    measured: Measurement, missing_bytes: float | None, sleeps: bool
) -> None:
    missing = None if missing_bytes is None else {"default": missing_bytes}
    assert measured.prefers_sleep(missing) is sleeps


_SLEPT = Measurement(100, start_s=60.0, sleep_freed_bytes=50, wake_s=10.0)


@pytest.mark.parametrize(
    ("measured", "wanted_bytes", "cache_s", "rest_s", "sleeps"),
    [
        # It wakes more slowly than it starts, and has nothing to read again then.
        (Measurement(100, start_s=60.0, sleep_freed_bytes=99, wake_s=70.0), None, 5.0, None, False),
        (Measurement(100, start_s=60.0, sleep_freed_bytes=99, wake_s=70.0), None, 20.0, None, True),
        # Sleep frees half: the rest is worth another start, unless it is known what it costs.
        (_SLEPT, None, 9.0, None, False),
        (_SLEPT, None, 11.0, None, True),
        (_SLEPT, 80, 30.0, 90.0, False),
        (_SLEPT, 80, 30.0, 70.0, True),
        (_SLEPT, 80, 30.0, math.inf, False),
        (_SLEPT, 50, 0.0, math.inf, True),
        (Measurement(100, sleep_freed_bytes=50), 80, 500.0, 1.0, False),
    ],
)
def test_the_cheaper_exit_counts_what_the_cache_holds(
    measured: Measurement, wanted_bytes: float | None, cache_s: float, rest_s: float | None, sleeps: bool
) -> None:
    missing = None if wanted_bytes is None else {"default": wanted_bytes}
    assert measured.prefers_sleep(missing, cache_s=cache_s, rest_s=rest_s) is sleeps


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(residents=json_values, models=json_values)
def test_no_json_is_too_strange(residents: object, models: object) -> None:
    text = json.dumps({"version": 1, "residents": residents, "models": models})
    state = Measurements.from_json(text)
    for measured in state.residents.values():
        for number in (measured.start_s, measured.stop_s, measured.settle_s, measured.release_ratio):
            assert number is None or math.isfinite(number)


def test_an_absent_or_binary_file_is_an_empty_state(tmp_path: Path) -> None:
    assert read_state(tmp_path / "none.json").to_json() == Measurements().to_json()
    assert read_state(tmp_path).to_json() == Measurements().to_json()
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    assert read_state(tmp_path / "binary.json").to_json() == Measurements().to_json()


def test_the_state_file_lies_in_a_folder_of_its_own() -> None:
    assert default_state_file().name == "state.json"
    assert "engine-router" in default_state_file().parts


def test_a_file_is_replaced_as_a_whole_and_its_folder_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "state.json"
    write_atomically(path, "one")
    with path.open(encoding="utf-8") as reader:  # keeps what it opened
        write_atomically(path, "two, and longer")
        assert reader.read() == "one"
    assert path.read_text("utf-8") == "two, and longer"
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


async def test_only_a_changed_state_is_written(tmp_path: Path) -> None:
    path, state = tmp_path / "state.json", full_state()
    await save_state(state, path)
    assert read_state(path).residents == state.residents
    path.unlink()
    await save_state(state, path)
    assert not path.exists()
    state.touch()
    await save_state(state, path)
    assert path.exists()


async def test_what_could_not_be_written_is_written_the_next_time(tmp_path: Path) -> None:
    blocked, state = tmp_path / "file", full_state()
    blocked.write_text("a file, where a folder should be", "utf-8")
    with pytest.raises(OSError, match="file"):
        await save_state(state, blocked / "state.json")
    await save_state(state, tmp_path / "state.json")
    assert read_state(tmp_path / "state.json").residents == state.residents


async def test_a_cancelled_save_is_not_forgotten(tmp_path: Path) -> None:
    path, state = tmp_path / "state.json", full_state()
    with trio.CancelScope() as scope:
        scope.cancel()
        await save_state(state, path)
    assert state.changed or path.exists()


async def test_the_file_of_a_newer_router_is_told_of_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    text = '{"version": 2, "residents": {"a": "in another form"}}'
    path.write_text(text)
    config = parse_config(
        f'state_file = "{path}"\n[engines.a]\ntype = "process"\nargv = ["true", "{{port}}"]\nmodels = ["m"]\n'
    )
    with trio.fail_after(60):
        async with open_router(config) as router:
            notices = router.hub.subscribe(RouterNotice)
            router.state.of(ResidentId("a")).start_s = 1.0
            router.state.touch()
            await router.save()
            notice = await anext(notices)
            assert isinstance(notice, RouterNotice)
            assert f"{path} was written by a newer engine-router (format 2)" in notice.message
    assert path.read_text() == text


def test_what_the_first_version_wrote_is_read() -> None:
    text = (
        '{"version": 1, "residents": {"a": {"footprint_bytes": 7, "start_s": 2.5, "stop_s": 0.1, "settle_s": 0.2}},'
        ' "models": {"o": ["m"]}}'
    )
    state = Measurements.from_json(text)
    assert state.of(ResidentId("a")) == Measurement(footprint_bytes=7, start_s=2.5, stop_s=0.1, settle_s=0.2)
    assert state.models["o"].names == ("m",)
