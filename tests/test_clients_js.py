"""The official JavaScript clients, in Node, against a router that runs. They come from npm, where it can be reached."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest
from attrs import frozen
from talking import DELAY_S, GREETING, IDLE_S, LAST_LINE, PATIENT, WAITING, At, serving, starts, talker

FOLDER = Path(__file__).parent / "js"
INSTALL_TIMEOUT_S = 90
LIMIT_S = 30
# What asks for text, in which program, and whether it streams.
TEXTS = {
    ("openai", "chat"): False,
    ("openai", "chatStream"): True,
    ("openai", "completionStream"): True,
    ("openai", "response"): False,
    ("openai", "responseStream"): True,
    ("anthropic", "message"): False,
    ("anthropic", "messageStream"): True,
    ("ollama", "chat"): False,
    ("ollama", "chatStream"): True,
    ("ollama", "generate"): False,
    ("ollama", "generateStream"): True,
}
# What the clients raise: told before anything was sent, and in a stream. A connection that breaks is `fetch`'s error.
ERRORS = {
    "openai": ("InternalServerError", "APIError"),
    "anthropic": ("ServiceUnavailableError", "APIError"),
    "ollama": ("ResponseError", "Error"),
}
BROKEN = "TypeError"
CALLS = {
    count: [
        [f"call_{index}", "weather", {"city": f"Zürich {index}", "days": [1, 2]}] for index in range(count)
    ]
    for count in (1, 2)
}


@frozen
class Told:
    """What came of a question: an answer, or an error's kind, message and status; and when, in seconds."""

    answer: str | None
    error: dict[str, str | int | None] | None
    after_s: float


@pytest.fixture(scope="module")
def folder() -> Path:
    """The programs, beside the packages that they need."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("Node and npm are not installed")
    files = sorted(FOLDER.iterdir())
    packages = FOLDER / "package.json"
    digest = hashlib.sha256(packages.read_bytes()).hexdigest()[:12]
    folder = Path(platformdirs.user_cache_dir("engine-router-tests")) / f"js-{digest}"
    if not (folder / "node_modules").exists():
        install(npm, packages, folder)
    for file in files:
        shutil.copy(file, folder)
    return folder


def install(npm: str, packages: Path, folder: Path) -> None:
    """Install into a folder beside the one that is wanted, so that there is never half of it."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shutil.copy(packages, partial)
    command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
    try:
        subprocess.run(
            command, cwd=partial, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm had installed nothing after {INSTALL_TIMEOUT_S} s")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"npm could not install the clients: {error.stderr.strip()[-300:]}")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def ask(folder: Path, at: At, asked: dict[tuple[str, str], str]) -> dict[tuple[str, str], Told]:
    """Let the programs ask, each all that it is to ask at once."""
    programs = {}
    for program in sorted({program for program, _ in asked}):
        common = {"url": at.url, "model": at.model, "idle_s": at.idle_s, "retries": at.retries}
        cases = [
            {**common, "name": way, "ask": way.partition(" ")[0], "text": text}
            for (its, way), text in asked.items()
            if its == program
        ]
        programs[program] = subprocess.Popen(
            ["node", f"{program}.js", json.dumps(cases)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    told = {}
    for program, process in programs.items():
        with process:
            try:
                out, complaints = process.communicate(timeout=LIMIT_S)
            finally:
                process.kill()
        assert process.returncode == 0, complaints.decode()
        told |= {(program, way): Told(**outcome) for way, outcome in json.loads(out).items()}
    return told


def test_answers_tools_vectors_and_lists(folder: Path) -> None:
    asked = dict.fromkeys(TEXTS, "hello")
    for program in ERRORS:
        asked |= {
            (program, f"{way} {count}"): f"tools {count}"
            for way in ("tools", "toolsStream")
            for count in CALLS
        }
    asked |= dict.fromkeys([("openai", "vectors"), ("anthropic", "tokens"), ("ollama", "vectors")], "hello")
    with serving(talker("talker")) as running:
        at = At(running.url, "talker")
        told = ask(folder, at, asked)
        models = ask(folder, at, {("ollama", "models"): ""})["ollama", "models"]
    assert {key: outcome.error for key, outcome in told.items() if outcome.error} == {}
    assert {told[key].answer for key in TEXTS} == {GREETING}
    for (program, way), outcome in told.items():
        if way.startswith("tools"):
            calls = CALLS[int(way[-1])]
            assert json.loads(outcome.answer) == [call[1:] if program == "ollama" else call for call in calls]
    assert json.loads(told["openai", "vectors"].answer) == [[3, 4, 0]]
    assert json.loads(told["ollama", "vectors"].answer) == [[pytest.approx(0.6), pytest.approx(0.8), 0]]
    assert int(told["anthropic", "tokens"].answer) > 0
    assert json.loads(models.answer) == [["talker"], ["talker"], ["completion"]]


@pytest.mark.parametrize("shows", [False, True], ids=["quiet", "progress"])
def test_a_cold_start_longer_than_the_clients_limit(folder: Path, shows: bool) -> None:
    with serving(
        talker("slow", f"delay={DELAY_S + 1}"), server={**WAITING, "show_progress": shows}
    ) as running:
        told = ask(folder, At(running.url, "slow", IDLE_S), dict.fromkeys(TEXTS, "hello"))
    assert {key: outcome.error for key, outcome in told.items() if outcome.error} == {}
    assert {outcome.answer for outcome in told.values()} == {GREETING}
    assert min(outcome.after_s for outcome in told.values()) > IDLE_S


def test_without_frames_a_client_would_give_up(folder: Path) -> None:
    with serving(talker("slow", f"delay={DELAY_S + 1}"), server=PATIENT) as running:
        told = ask(folder, At(running.url, "slow", IDLE_S), dict.fromkeys(TEXTS, "hello"))
    assert {outcome.answer for outcome in told.values()} == {None}


@pytest.fixture(scope="module", params=["at once", "after a wait"])
def failing(request: pytest.FixtureRequest) -> Iterator[tuple[bool, At]]:
    waits = request.param == "after a wait"
    options = [f"delay={DELAY_S + 1}" if waits else "delay=0", f"fail=ggml: 40 GiB wanted\n{LAST_LINE}"]
    with serving(talker("broken", *options), server=WAITING if waits else PATIENT) as running:
        yield waits, At(running.url, "broken", IDLE_S if waits else 20)
        assert starts(running.router, "broken") == 1


def test_a_failing_start(folder: Path, failing: tuple[bool, At]) -> None:
    """After blanks have been sent all that can be done is to break the connection."""
    waits, at = failing
    told = ask(folder, at, dict.fromkeys(TEXTS, "hello"))
    for key, streams in TEXTS.items():
        error = told[key].error
        assert error is not None, key
        expected = ERRORS[key[0]][waits] if streams or not waits else BROKEN
        assert error["kind"] == expected, (key, error)
        if streams or not waits:
            assert LAST_LINE in str(error["message"]), key
        if not waits:
            assert error["status"] == 503


def test_a_client_that_retries_starts_nothing_twice(folder: Path) -> None:
    """Told at once, it is told not to retry; what would be retried is a start that is not remembered."""
    retrying = dict.fromkeys([("openai", "chat"), ("anthropic", "messageStream")], "hello")
    with serving(
        talker("broken", f"fail={LAST_LINE}"), server=PATIENT, scheduling={"failed_start_memory_s": 0}
    ) as running:
        for count, key in enumerate(retrying, 1):
            error = ask(folder, At(running.url, "broken", retries=2), {key: "hello"})[key].error
            assert LAST_LINE in str(error["message"])
            assert starts(running.router, "broken") == count


def test_an_answer_that_breaks_off(folder: Path) -> None:
    with serving(talker("talker")) as running:
        told = ask(folder, At(running.url, "talker"), dict.fromkeys(TEXTS, "break"))
    for key, streams in TEXTS.items():
        error = told[key].error
        assert error is not None, key
        if streams:
            assert "engine 'talker' broke off" in str(error["message"]), key
