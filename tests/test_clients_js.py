"""The official JavaScript clients, in Node, against a router that runs. They come from npm, where it can be reached."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path

import platformdirs
import pytest
from attrs import asdict, frozen
from support.client_harness import (
    DELAY_S,
    GREETING,
    IDLE_S,
    LAST_LINE,
    PATIENT,
    WAITING,
    Target,
    serving,
    starts,
    talker,
)

from engine_router.router import Router

FOLDER = Path(__file__).parent / "js"
INSTALL_TIMEOUT_S = 90
LIMIT_S = 200
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
    f"tools {count}": [
        [f"call_{index}", "weather", {"city": f"Zürich {index}", "days": [1, 2]}] for index in range(count)
    ]
    for count in (1, 2)
}
WHOLE = {"openai": "chat", "anthropic": "message"}
OTHERS = {
    "openai": [("vectors", "hello")],
    "anthropic": [("tokens", "hello")],
    "ollama": [("vectors", "hello"), ("models", "hello")],
}
each_text = pytest.mark.parametrize(("program", "way"), TEXTS)


@frozen
class Case:
    """A question: a program's way to ask, and where it is in one scene."""

    scene: str
    program: str
    way: str
    at: Target
    text: str = "hello"

    @property
    def name(self) -> str:
        return f"{self.scene} {self.program} {self.way} {self.text}"


@frozen
class Told:
    """What came of a question: an answer, or an error's kind, message and status; and when, in seconds."""

    answer: str | None
    error: dict[str, str | int | None] | None
    after_s: float

    @property
    def answered(self) -> str:
        assert self.answer is not None, self.error
        return self.answer


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


Answers = dict[str, Told]


def run(folder: Path, cases: Sequence[Case]) -> Answers:
    """Let each program ask all that it is to ask at once, at the same time as the others."""
    processes = []
    for program in ERRORS:
        asked = [
            {"name": case.name, "ask": case.way, "text": case.text, **asdict(case.at)}
            for case in cases
            if case.program == program
        ]
        command = ["node", f"{program}.js", json.dumps(asked)]
        processes.append(
            subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        )
    answers = {}
    for process in processes:
        with process:
            try:
                out, complaints = process.communicate(timeout=LIMIT_S)
            finally:
                process.kill()
        assert process.returncode == 0, complaints.decode()
        answers |= {name: Told(**told) for name, told in json.loads(out).items()}
    return answers


@pytest.fixture(scope="module")
def answers(folder: Path) -> Iterator[Answers]:
    """All scenes are played at once, for Node takes longer to start than most of them take."""
    late, fails = f"delay={DELAY_S + 0.5}", f"fail=ggml: 40 GiB wanted\n{LAST_LINE}"
    forgets = {"failed_start_memory_s": 0}
    with ExitStack() as stack:

        def scene(
            *options: str, idle_s: float = 200, retries: int = 0, **sections: dict[str, object]
        ) -> Target:
            running = stack.enter_context(serving(talker("m", *options), **sections))
            routers[running.url] = running.router
            return Target(running.url, "m", idle_s, retries)

        routers: dict[str, Router] = {}
        scenes = {
            "here": scene(),
            "quiet": scene(late, idle_s=IDLE_S, server=WAITING),
            "progress": scene(late, idle_s=IDLE_S, server={**WAITING, "show_progress": True}),
            "nothing": scene("delay=60", idle_s=IDLE_S, server=PATIENT),
            "fails": scene(fails, server=PATIENT),
            "fails late": scene(late, fails, server=WAITING),
        }
        retried = {
            program: scene(fails, retries=2, server=PATIENT, scheduling=forgets)
            for program in ("openai", "anthropic")
        }
        cases = [Case(name, *key, at) for name, at in scenes.items() for key in TEXTS]
        cases += [Case("retried", program, WHOLE[program], at) for program, at in retried.items()]
        cases += [Case("breaks", *key, scenes["here"], "break") for key in TEXTS]
        cases += [
            Case("here", program, way, scenes["here"], text)
            for program in ERRORS
            for way, text in [*OTHERS[program], *product(["tools", "toolsStream"], CALLS)]
        ]
        told = run(folder, cases)
        for at in (scenes["fails"], scenes["fails late"], *retried.values()):
            assert starts(routers[at.url], "m") == 1
        yield told


@each_text
def test_an_answer(answers: Answers, program: str, way: str) -> None:
    assert answers[f"here {program} {way} hello"].answered == GREETING


@pytest.mark.parametrize("program", ERRORS)
@pytest.mark.parametrize("way", ["tools", "toolsStream"])
@pytest.mark.parametrize("text", CALLS)
def test_tools(answers: Answers, program: str, way: str, text: str) -> None:
    calls = [call[1:] if program == "ollama" else call for call in CALLS[text]]
    assert json.loads(answers[f"here {program} {way} {text}"].answered) == calls


def test_vectors_tokens_and_lists(answers: Answers) -> None:
    assert json.loads(answers["here openai vectors hello"].answered) == [[3, 4, 0]]
    normal = [[pytest.approx(0.6), pytest.approx(0.8), 0]]
    assert json.loads(answers["here ollama vectors hello"].answered) == normal
    assert int(answers["here anthropic tokens hello"].answered) > 0
    listed, _, capabilities = json.loads(answers["here ollama models hello"].answered)
    assert (listed, capabilities) == (["m"], ["completion"])


@each_text
@pytest.mark.parametrize("scene", ["quiet", "progress"])
def test_a_cold_start_longer_than_the_clients_limit(
    answers: Answers, scene: str, program: str, way: str
) -> None:
    assert answers[f"{scene} {program} {way} hello"].answered == GREETING


@each_text
def test_without_frames_a_client_would_give_up(answers: Answers, program: str, way: str) -> None:
    told = answers[f"nothing {program} {way} hello"]
    assert told.error is not None
    assert told.after_s < 60


@each_text
def test_a_failing_start_before_anything_was_sent(answers: Answers, program: str, way: str) -> None:
    error = answers[f"fails {program} {way} hello"].error
    assert error is not None
    assert (error["kind"], error["status"]) == (ERRORS[program][0], 503)
    assert LAST_LINE in str(error["message"])


@each_text
def test_a_failing_start_after_a_wait(answers: Answers, program: str, way: str) -> None:
    error = answers[f"fails late {program} {way} hello"].error
    assert error is not None
    if TEXTS[program, way]:
        assert error["kind"] == ERRORS[program][1]
        assert LAST_LINE in str(error["message"])
    else:  # after blanks all that can be done is to break the connection
        assert error["kind"] == BROKEN


@pytest.mark.parametrize("program", ["openai", "anthropic"])
def test_a_client_that_retries_is_told_not_to(answers: Answers, program: str) -> None:
    """Every retry would have started the engine again, which the fixture sees it did not."""
    error = answers[f"retried {program} {WHOLE[program]} hello"].error
    assert error is not None
    assert LAST_LINE in str(error["message"])


@each_text
def test_an_answer_that_breaks_off(answers: Answers, program: str, way: str) -> None:
    error = answers[f"breaks {program} {way} break"].error
    assert error is not None
    if TEXTS[program, way]:
        assert "engine 'm' broke off" in str(error["message"])
