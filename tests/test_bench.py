"""The benchmark's own parts: that it measures what it says, without any claim about times."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from benchmarks import client, environments, routers, scrape, swap  # noqa: E402 - found through the line above
from benchmarks.lab import Lab, await_health, command_of, ended, free_ports, own_cost, own_exit  # noqa: E402
from benchmarks.report import Row, Summary, milliseconds, ratio, table  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the benchmark speaks of signals")

PYTHON = Path(sys.executable)


@pytest.fixture
def lab() -> Iterator[Lab]:
    place = Lab()
    yield place
    place.close()
    assert not place.folder.exists()


@pytest.fixture
def engines() -> routers.InstantEngines:
    return routers.InstantEngines(PYTHON, ["alpha"])


@pytest.fixture
def port(lab: Lab, engines: routers.InstantEngines) -> int:
    (port,) = free_ports(1)
    process = lab.spawn(engines.argv(lab, "test/alpha", "alpha", port))
    await_health(process, port, "the instant engine")
    return port


# The instant engine


def test_it_lists_its_model(port: int) -> None:
    assert client.get(port, "/v1/models")["data"][0]["id"] == "alpha"


def test_it_answers_as_json(port: int) -> None:
    answer = client.ask(port, client.chat("alpha"))

    assert answer.is_from("alpha")
    assert not answer.is_from("beta")
    assert json.loads(answer.body)["choices"][0]["message"]["content"] == "an instant answer"


def test_it_streams(port: int) -> None:
    answer = client.ask(port, client.chat("alpha", stream=True))
    events = answer.body.decode().strip().split("\n\n")

    assert events[-1] == "data: [DONE]"
    words = [json.loads(event[6:])["choices"][0]["delta"]["content"] for event in events[:-1]]
    assert "".join(words) == "an instant answer"


def test_an_answer_can_be_made_to_take_its_time(port: int) -> None:
    assert client.ask(port, client.chat("alpha", delay_ms=80)).took_s >= 0.08


def test_requests_are_in_flight_together(port: int) -> None:
    answers, total_s = client.ask_together(port, [client.chat("alpha", delay_ms=300)] * 5, 10)

    assert all(answer.is_from("alpha") for answer in answers)
    assert total_s < 5 * 0.3


def test_unknown_paths_are_refused(port: int) -> None:
    assert client.get(port, "/nowhere") == {"error": {"message": "no such path"}}


def test_a_page_is_probed_at_a_pace(port: int) -> None:
    assert 1 <= len(client.latencies(port, "/health", every_s=0.02, for_s=0.1)) <= 6


# The lab


def test_starts_are_counted_outside_of_the_routers(lab: Lab, engines: routers.InstantEngines) -> None:
    (port,) = free_ports(1)
    start_s, stop_s = own_cost(lab, engines.argv(lab, "some/name", "alpha", port), port)

    assert [name for name, _ in lab.starts()] == ["some/name"]
    assert start_s > 0
    assert stop_s > 0


def test_an_engine_can_exit_at_once(lab: Lab) -> None:
    exits = routers.InstantEngines(PYTHON, ["alpha"], "exit")
    argv = exits.argv(lab, "exits", "alpha", 1)

    assert own_exit(lab, argv) > 0
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 3


def test_an_engine_can_hang(lab: Lab) -> None:
    (port,) = free_ports(1)
    hangs = routers.InstantEngines(PYTHON, ["alpha"], "hang")
    lab.spawn(hangs.argv(lab, "hangs", "alpha", port))
    while not lab.starts():
        pass

    assert client.get(port, "/health", timeout_s=0.2) is None


def test_what_outlives_its_router_is_ended_and_strangers_are_not(
    lab: Lab, engines: routers.InstantEngines
) -> None:
    (port,) = free_ports(1)
    orphan = subprocess.Popen(engines.argv(lab, "orphan", "alpha", port))
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        await_health(orphan, port, "the orphan")
        with lab.log.open("a") as log:
            log.write(f"stranger {stranger.pid} 0\n")
        assert str(lab.folder) in command_of(orphan.pid)
        lab.end_leftovers()

        assert ended(orphan, 10)
        assert stranger.poll() is None
    finally:
        for process in (orphan, stranger):
            process.kill()
            process.communicate()


# The routers' configurations


def test_our_configuration_is_one(tmp_path: Path) -> None:
    from engine_router.config import ProcessConfig, parse_config  # noqa: PLC0415 - only this test needs it

    text = routers.our_config(8077, {"alpha": (["/bin/engine", "a 'b\" \\c"], 8081)}, tmp_path / "state")
    engine = parse_config(text).engines["alpha"]

    assert isinstance(engine, ProcessConfig)
    assert list(engine.argv) == ["/bin/engine", "a 'b\" \\c"]
    assert engine.base_url == "http://127.0.0.1:8081"


def test_the_rivals_configuration_leaves_its_settings_at_their_defaults(tmp_path: Path) -> None:
    config = json.loads(routers.ler_config(8077, {"alpha": (["/bin/engine"], 8081)}, tmp_path / "stem"))

    assert set(config) == {"port", "log_file", "state_file", "engines", "models"}
    assert set(config["engines"]["alpha"]) == {"type", "base_url", "start_cmd", "ready_path"}


# The report


def results(
    *, swaps: int, told: float, health: float, cost: float, first_byte: float = 0.002
) -> swap.Results:
    program = routers.Program(routers.OURS, PYTHON, "1")
    found = swap.Results([program])
    sample = swap.Swaps(
        swap=[cost + 1], plain=[1.0], cost=[cost], first_byte=[first_byte], phases={"stop": [0.1]}
    )
    own = swap.Own(start=[0.02], stop=[0.01])
    found.scenarios["instant engines"] = swap.Scenario(own, {routers.OURS: sample}, 1)
    for order in swap.ORDERS:
        found.together[order] = {routers.OURS: swap.Together([swaps], [1.0])}
    found.exits[routers.OURS] = swap.EarlyExit([told], 0, 1)
    found.own_exit = [0.02]
    found.health[routers.OURS] = [health]
    return found


def verdicts(found: swap.Results) -> list[bool]:
    return [entry["met"] for entry in swap.as_json(found)["requirements"]]


def test_requirements_that_are_met() -> None:
    assert verdicts(results(swaps=2, told=0.09, health=0.04, cost=0.17)) == [True] * 5


def test_requirements_that_are_missed() -> None:
    assert verdicts(results(swaps=3, told=0.11, health=0.06, cost=0.19, first_byte=0.004)) == [False] * 5


def test_no_error_at_all_is_a_missed_requirement() -> None:
    found = results(swaps=1, told=0.01, health=0.01, cost=0.1)
    found.exits[routers.OURS] = swap.EarlyExit([], 1)

    assert verdicts(found) == [True, True, True, False, True]


def test_the_table_stands_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    swap.tell(results(swaps=1, told=0.01, health=0.01, cost=0.1), 1.0)
    shown = capsys.readouterr().out

    assert re.search(r"swap overhead, instant engines +70\.0 ms +- +<= 0\.15 s +met", shown)
    assert "MISSED" not in shown


def test_summaries() -> None:
    ours, theirs = Summary.of([0.001, 0.003, 0.002]), Summary.of([0.004])

    assert Summary.of([]) is None
    assert milliseconds(ours) == "2.0 ms (1.0 to 3.0)"
    assert milliseconds(theirs) == "4.0 ms"
    assert milliseconds(None) == "-"
    assert ratio(ours, theirs) == pytest.approx(0.5)
    assert ratio(ours, None) is None


def test_a_heading_does_not_widen_the_columns() -> None:
    shown = table(["a", "b", "c", "d", "e", "f"], [Row("a very long heading"), Row("x", "1")])

    assert shown.splitlines() == ["a  b  c  d  e  f", "-  -  -  -  -  -", "", "a very long heading", "x  1"]


# The environments


def test_an_interpreter_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_ROUTER_PYTHON", sys.executable)

    assert environments.engine_router() == PYTHON
    assert environments.version_of(PYTHON, "pytest") == pytest.__version__


def test_a_wrong_interpreter_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LER_PYTHON", str(tmp_path / "none"))

    with pytest.raises(environments.Missing, match="LER_PYTHON"):
        environments.ler()


# The entry


def entry(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / "bench"), *arguments], capture_output=True, text=True, check=False
    )


def test_the_entry_says_what_it_can_do() -> None:
    assert entry("--help").returncode == 0
    assert "swap" in entry("--help").stdout
    assert entry().returncode == 2
    assert entry("nothing").returncode == 2
    assert "--without-ler" in entry("swap", "--help").stdout


# Scrapes


def test_scrapes_are_of_models_that_have_all_served(lab: Lab) -> None:
    found = scrape.measure(lab, routers.ours(PYTHON), count=3, rounds=2)

    samples = {name: {one.samples for one in scrapes} for name, scrapes in found.items()}
    assert max(samples.pop("nothing has served")) < min(min(counts) for counts in samples.values())
    assert len(samples["nothing has changed"]) == 1
    assert all(one.cpu_s > 0 and one.size > 0 for scrapes in found.values() for one in scrapes)
    named = {name for name, _ in lab.starts()}
    assert len(named) == 3
