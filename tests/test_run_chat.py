"""`engine-router run`: one answer for scripts, and chats on a real terminal, through a router in front of engines."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.background import Running
from support.client_harness import GREETING, serving, table, talker
from test_cli import SOON_S, command, posix

from engine_router.cli import main
from engine_router.cli.address import RouterAddress
from engine_router.cli.chat.answer import Answer, receive
from engine_router.cli.chat.images import MAX_IMAGE_BYTES, data_url, find_images, kind_of
from engine_router.cli.chat.screen import Screen
from engine_router.cli.chat.settings import Settings
from engine_router.cli.exit_codes import CommandFailed

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture(scope="module")
def router() -> Iterator[Running]:
    with serving(talker("talker"), talker("slow", "delay=1.5"), talker("lost", "fail=no weights")) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_ROUTER_HISTORY", "")
    for name in ("ENGINE_ROUTER_URL", "ENGINE_ROUTER_API_KEY", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


def ask(
    router: Running, *words: str | Path, given: str | bytes | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run the command without a terminal."""
    return subprocess.run(
        command("run", "--url", router.url, *words),
        input=given.encode() if isinstance(given, str) else given,
        stdin=subprocess.DEVNULL if given is None else None,
        capture_output=True,
        timeout=SOON_S,
        check=False,
        env={**os.environ, **environ},
    )  # type: ignore[return-value]


def told(done: subprocess.CompletedProcess[Any], code: int = 0) -> str:
    assert done.returncode == code, done.stderr
    return str((done.stderr if code else done.stdout).decode())


# One answer.


def test_a_prompt_is_answered(router: Running) -> None:
    assert told(ask(router, "talker", "say", "hello")) == f"{GREETING}\n"


def test_words_behind_options_belong_to_the_prompt(router: Running) -> None:
    request = json.loads(
        told(ask(router, "talker", "please", "--system", "Be brief.", "report", "--", "--now"))
    )
    assert [said["content"] for said in request["messages"]] == ["Be brief.", "please report --now"]
    assert request["stream_options"] == {"include_usage": True}


def test_what_is_piped_in_is_the_prompt_or_follows_it(router: Running) -> None:
    request = json.loads(told(ask(router, "talker", given="report this\n")))
    assert request["messages"] == [{"role": "user", "content": "report this"}]
    request = json.loads(told(ask(router, "talker", "report", "it:", given="\ufeffdiff\n+a")))
    assert request["messages"][0]["content"] == "report it:\n\ndiff\n+a"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("", "standard input is empty"),
        (b"\xff\xfe", "standard input is not UTF-8 text"),
    ],
)
def test_input_that_cannot_be_asked(router: Running, given: str | bytes, complaint: str) -> None:
    assert complaint in told(ask(router, "talker", given=given), 2)


def test_settings_are_sent(router: Running) -> None:
    given = ["temperature=0.5", "max_tokens=7", "seed=3", "stop=END", "think=off", "top_k=4"]
    request = json.loads(told(ask(router, "talker", "report", *(f"--set={pair}" for pair in given))))
    assert request["temperature"] == 0.5
    assert (request["max_tokens"], request["seed"], request["stop"], request["top_k"]) == (7, 3, "END", 4)
    assert request["reasoning_effort"] == "none"
    assert request["chat_template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("pair", "complaint"),
    [
        ("temperature", "NAME=VALUE is wanted"),
        ("temperature=hot", "temperature must be a number"),
        ("temperature=nan", "temperature must be a number"),
        ("max_tokens=0", "max_tokens must be a whole number from 1 on"),
        ("heat=1", "there is no setting heat; there are system, think, temperature"),
        ("think=maybe", "think must be on, off, low, medium or high"),
    ],
)
def test_settings_that_cannot_be(pair: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "m", "hello", "--set", pair, "--url", "http://127.0.0.1:1"]) == 2
    assert complaint in capsys.readouterr().err


def test_thoughts_are_left_out_of_what_programs_read(router: Running) -> None:
    assert told(ask(router, "talker", "think")) == "It is so\n"
    said = json.loads(told(ask(router, "talker", "think", "--json")))
    assert said["text"] == "It is so"
    assert said["thinking"] == "Let me see: ü"
    assert (said["model"], said["finish_reason"]) == ("talker", "stop")
    assert said["usage"]["completion_tokens"] == 9
    assert said["timings"]["engine"]["predicted_n"] == 9
    assert said["timings"]["total_s"] >= said["timings"]["first_s"] >= 0


def test_what_an_answer_cost(router: Running) -> None:
    done = ask(router, "talker", "hello", "--verbose")
    assert told(done) == f"{GREETING}\n"
    assert re.search(r"30 tokens read, 9 written, .*first after .* s, .* s in all", done.stderr.decode())


def test_an_answer_that_is_cut_off_is_told(router: Running) -> None:
    done = ask(router, "talker", "long")
    assert told(done) == f"{GREETING}\n"
    assert "cut off: max_tokens" in done.stderr.decode()


def test_failures_have_exit_codes(router: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no weights" in told(ask(router, "lost", "hello"), 1)
    assert "nobody" in told(ask(router, "nobody", "hello"), 1)
    broken = ask(router, "talker", "break")
    assert broken.returncode == 1
    assert not broken.stdout.endswith(b"friend\n")
    assert main(["run", "m", "hello", "--url", "http://127.0.0.1:1"]) == 3
    assert "no router answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "run needs the name of a model"),
        (["m", "--json"], "--json needs a PROMPT"),
        (["m"], "needs a PROMPT, or text on standard input"),
        (["m", "look", "--image", "/no/such.png"], "/no/such.png: there is no such file"),
    ],
)
def test_what_is_missing(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert main(["run", *words, "--url", "http://127.0.0.1:1"]) in (1, 2)
    assert complaint in capsys.readouterr().err


def test_run_without_a_model_names_serve(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == 2
    assert "engine-router serve" in capsys.readouterr().err


# Images.


def test_images_are_sent_with_the_prompt(router: Running, tmp_path: Path) -> None:
    (tmp_path / "a cat.png").write_bytes(PNG)
    escaped = str(tmp_path / "a cat.png").replace(" ", "\\ ")
    request = json.loads(told(ask(router, "talker", f"report {escaped} please")))
    text, image = request["messages"][0]["content"]
    assert re.fullmatch(r"report +please", text["text"])
    assert image["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(PNG).decode()
    request = json.loads(told(ask(router, "talker", "report", "--image", str(tmp_path / "a cat.png"))))
    assert [part["type"] for part in request["messages"][0]["content"]] == ["text", "image_url"]


def test_paths_in_what_is_piped_in_are_not_opened(router: Running, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(PNG)
    request = json.loads(told(ask(router, "talker", given=f"report {tmp_path}/x.png")))
    assert request["messages"][0]["content"] == f"report {tmp_path}/x.png"


@pytest.mark.parametrize("form", ["{}", '"{}"', "'{}'", "file://{}"])
def test_paths_are_found(form: str, tmp_path: Path) -> None:
    path = tmp_path / "x.JPG"
    path.write_bytes(b"\xff\xd8\xff")
    assert find_images(f"what is {form.format(path)}") == ("what is", [path])
    assert find_images(f"what is {path}.not") == (f"what is {path}.not", [])
    assert find_images("it's 5 o'clock in nowhere.png") == ("it's 5 o'clock in nowhere.png", [])


def test_only_images_that_servers_take(tmp_path: Path) -> None:
    for data, kind in (
        (PNG, "image/png"),
        (b"GIF89a", "image/gif"),
        (b"RIFF0000WEBP", "image/webp"),
        (b"\xff\xd8\xff", "image/jpeg"),
        (b"<svg/>", None),
        (b"RIFF0000WAVE", None),
    ):
        assert kind_of(data) == kind
    (tmp_path / "x.png").write_bytes(b"#!/bin/sh")
    with pytest.raises(CommandFailed, match=r"no image of a kind that servers take: PNG, JPEG, WebP or GIF"):
        data_url(tmp_path / "x.png")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    with pytest.raises(CommandFailed, match=r"larger than 21 MB"):
        data_url(tmp_path / "large.png")


# Odd streams.


@contextlib.contextmanager
def answering(*parts: bytes, kind: str = "text/event-stream") -> Iterator[RouterAddress]:
    """Serve one answer, in the parts given, to everything that is posted; the connection ends it."""

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client:
                    while not client.recv(65536).endswith(b"}"):
                        pass
                    client.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n\r\n".encode())
                    for part in parts:
                        client.sendall(part)
                    client.shutdown(socket.SHUT_RDWR)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield RouterAddress(f"http://127.0.0.1:{listener.getsockname()[1]}", None)
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def data(**members: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": members}]}).encode() + b"\n\n"


def received(address: RouterAddress) -> Answer:
    answer = Answer()
    screen = Screen(shows_thoughts=True, has_colours=False)
    receive(address, {"model": "m", "messages": []}, answer, screen, quiet=True)
    screen.end()
    return answer


DONE = b"data: [DONE]\n\n"


def test_frames_that_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    odd = (
        b": keepalive\n\n",
        b"event: ping\r\ndata: {}\r\n\r\n",
        b'data: {"choices": []}\n\ndata: {"choices": null}\n\ndata: {"choices": [1]}\n\n',
        b'data: {"choices": [{"delta": null}]}\n\ndata: {"choices": [{"delta": {"content": null, "x": [1]}}]}\n\n',
        data(reasoning="Hm\r\n"),
        data(content="\n\nA"),
        data(content="B")[:20],
        data(content="B")[20:],
        DONE,
    )
    with answering(*odd) as address:
        answer = received(address)
    assert (answer.thinking, answer.text) == ("Hm\r\n", "\n\nAB")
    assert capsys.readouterr().out == "[thinking]\nHm\n[answer]\nAB\n"


def test_an_answer_in_one_piece(capsys: pytest.CaptureFixture[str]) -> None:
    whole = {
        "choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}],
        "usage": {"total_tokens": 2},
    }
    with answering(b"  ", json.dumps(whole).encode(), kind="application/json") as address:
        assert received(address).usage == {"total_tokens": 2}
    assert capsys.readouterr().out == "Hello\n"


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ([data(content="A")], "the answer broke off"),
        ([data(content="A"), b'data: {"error": {"message": "no\\u001b[2J room"}}\n\n'], r"no\\x1b\[2J room"),
        ([b'data: {"error": "plain"}\n\n'], "plain"),
        ([b"data: [1]\n\n"], "not JSON in OpenAI's form"),
        ([b"data: {oh\n\n"], "not JSON in OpenAI's form"),
        ([b"data: " + b"x" * 17_000_000], "a piece of the answer is too long"),
    ],
)
def test_streams_that_fail(parts: list[bytes], complaint: str) -> None:
    with answering(*parts) as address, pytest.raises(CommandFailed, match=complaint):
        received(address)


def test_a_stream_whose_last_word_was_said_is_whole() -> None:
    last = b'data: {"choices": [{"delta": {"content": "A"}, "finish_reason": "stop"}]}\n\n'
    with answering(last) as address:
        assert received(address).text == "A"


def test_a_model_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]52;c;aGk=\x07\x1b[2J\u202eabc\rdef"
    with answering(data(reasoning_content=evil), data(content=evil), DONE) as address:
        received(address)
        shown = capsys.readouterr().out
    assert not set(shown) & set("\x1b\x07\r\u202e")
    assert shown.count("\\x1b]52;c;aGk=\\x07\\x1b[2J\\u202eabc\\x0ddef") == 2


def test_settings_are_taken_back() -> None:
    settings = Settings()
    settings.put("seed", "3")
    settings.put("think", "high")
    assert settings.members() == {
        "seed": 3,
        "reasoning_effort": "high",
        "chat_template_kwargs": {"enable_thinking": True},
    }
    settings.put("seed", "")
    settings.put("think", "")
    assert settings.members() == {}


# Chats on a terminal.


class Terminal:
    """A chat on a terminal of its own."""

    def __init__(self, router: Running, *words: str, **environ: str) -> None:
        import pty  # noqa: PLC0415 - POSIX only

        self._ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200", **environ}
        self.process = subprocess.Popen(
            command("run", "--url", router.url, *words),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509 - one system call, and nothing that locks
        )
        os.close(theirs)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def until(self, text: str, again: str = "") -> str:
        """Wait until a text is shown; returns what was shown up to there, and goes on behind it.

        `again` is typed while nothing comes: readline misses a Ctrl-C in the moment before it begins to wait.
        """
        deadline = time.monotonic() + SOON_S
        while text not in self.shown:
            assert time.monotonic() < deadline, repr(self.shown)
            if again and not select.select([self._ours], [], [], 1)[0]:
                self.type(again)
            if select.select([self._ours], [], [], 0.1)[0]:
                self.shown += self._read()
        before, _, self.shown = self.shown.partition(text)
        return before

    def end(self) -> int:
        with contextlib.suppress(OSError):  # so a terminal ends
            while piece := self._read():
                self.shown += piece
        os.close(self._ours)
        return self.process.wait(SOON_S)

    def _read(self) -> str:
        return os.read(self._ours, 65536).decode("utf-8", "replace")


def _take_terminal() -> None:
    import fcntl  # noqa: PLC0415 - POSIX only
    import termios  # noqa: PLC0415 - likewise

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@posix
def test_a_chat(router: Running, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(PNG)
    chat = Terminal(router, "talker", "--system", "Be brief.")
    chat.until("/bye ends")
    chat.until(">>> ")
    chat.type("think\n")
    assert "\x1b[2mLet me \x1b[22m" in chat.until("It is so")
    chat.until(">>> ")
    chat.type("/set temperature 0\n")
    chat.until(">>> ")
    chat.type('"""report\nof two lines"""\n')
    chat.until("... ")
    request = json.loads("{" + chat.until(">>> ").partition("{")[2])
    assert request["temperature"] == 0
    assert [(said["role"], said["content"]) for said in request["messages"]] == [
        ("system", "Be brief."),
        ("user", "think"),
        ("assistant", "It is so"),
        ("user", "report\nof two lines"),
    ]
    chat.type("/clear\n")
    chat.until(">>> ")
    chat.type(f"report {tmp_path}/x.png\n")
    chat.until("x.png)")
    assert '"type": "image_url"' in chat.until(">>> ")
    chat.type("/show\n")
    assert re.search(r"conversation +2 messages, 0 images", chat.until(">>> "))
    chat.type("/nonsense\n")
    chat.until("there is no /nonsense; /help shows")
    chat.type("/help\n")
    chat.until("/image FILE")
    chat.type(f"/save {tmp_path}/saved.json\n")
    chat.until("saved in")
    chat.type(f"/save {tmp_path}/saved.json\n")
    chat.until("is there already")
    chat.type("/bye\n")
    assert chat.end() == 0
    saved = json.loads((tmp_path / "saved.json").read_text("utf-8"))
    assert [said["role"] for said in saved["messages"]] == ["system", "user", "assistant"]


@posix
def test_ctrl_c_ends_the_answer_and_ctrl_d_the_chat(router: Running) -> None:
    chat = Terminal(router, "talker")
    chat.until(">>> ")
    chat.type("slowly\n")
    chat.until("Grü")
    chat.type("\x03")
    chat.until("(ended)")
    chat.until(">>> ")
    chat.type("unfinished")
    chat.until("unfinished")
    chat.until("/bye ends the chat", again="\x03")
    chat.until(">>> ")
    chat.type("report\n")
    assert '"role": "assistant"' in chat.until(">>> ")
    chat.type("\x04")
    assert chat.end() == 0


@posix
def test_a_chat_goes_on_after_a_failure_and_with_another_model(router: Running) -> None:
    chat = Terminal(router, "lost")
    chat.until(">>> ")
    chat.type("hello\n")
    chat.until("no weights")
    chat.until(">>> ")
    chat.type("/model nobody\n")
    chat.until("nobody")
    chat.until(">>> ")
    chat.type("/model\n")
    chat.until("* lost")
    chat.until(">>> ")
    chat.type("/model talker\n")
    chat.until("talker goes on with the conversation")
    chat.until(">>> ")
    chat.type("report\n")
    assert json.loads("{" + chat.until(">>> ").partition("{")[2])["messages"] == [
        {"role": "user", "content": "report"}
    ]
    chat.type("/set verbose on\n/set heat 1\n")
    chat.until("there is no setting heat")
    chat.type("hello\n")
    chat.until("9 written")
    chat.type("/quit\n")
    assert chat.end() == 0


@posix
def test_the_wait_for_a_model_is_shown(router: Running) -> None:
    assert main(["unload", "--all", "--url", router.url]) == 0
    chat = Terminal(router, "slow", "hello")
    chat.until("starting slow")
    chat.until(GREETING)
    assert chat.end() == 0
    assert main(["unload", "--all", "--url", router.url]) == 0
    done = ask(router, "slow", "hello")
    assert told(done) == f"{GREETING}\n"
    assert "starting slow" in done.stderr.decode()
    assert main(["unload", "--all", "--url", router.url]) == 0
    assert not ask(router, "slow", "hello", "--json").stderr


@posix
def test_a_chat_with_a_model_that_there_is_not(router: Running) -> None:
    chat = Terminal(router, "nobody")
    assert chat.end() == 1
    assert "nobody" in chat.shown


@posix
def test_ctrl_c_ends_one_answer_with_its_own_code(router: Running) -> None:
    with subprocess.Popen(
        command("run", "talker", "slowly", "--url", router.url),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as asking:
        assert asking.stdout is not None
        assert asking.stdout.read(1)
        asking.send_signal(signal.SIGINT)
        assert asking.wait(SOON_S) == 130


@posix
def test_raw_has_no_colours(router: Running) -> None:
    for words, environ in ((["--raw"], {}), ([], {"NO_COLOR": "1"})):
        chat = Terminal(router, "talker", "think", *words, **environ)
        assert chat.end() == 0
        assert "\x1b[2m" not in chat.shown
        assert chat.shown.endswith("[thinking]\r\nLet me see: ü\r\n[answer]\r\nIt is so\r\n")
    chat = Terminal(router, "talker", "think", "--hide-thinking")
    assert chat.end() == 0
    assert "Let me" not in chat.shown


@posix
@pytest.mark.skipif(sys.platform != "linux", reason="GNU readline")
def test_what_was_typed_comes_back_in_the_next_chat(router: Running, tmp_path: Path) -> None:
    path = tmp_path / "state" / "history"
    for typed in ("report first\n", "\x1b[A\n"):
        chat = Terminal(router, "talker", ENGINE_ROUTER_HISTORY=str(path))
        chat.until(">>> ")
        chat.type(typed)
        chat.until('"content": "report first"')
        chat.until(">>> ")
        chat.type("/bye\n")
        assert chat.end() == 0
        chat.shown = ""
        # The last line of the next chat is the message, not the command that ended this one.
        kept = [line for line in path.read_text("utf-8").splitlines() if line != "/bye"]
        path.write_text("".join(f"{line}\n" for line in kept))
    assert path.stat().st_mode & 0o777 == 0o600
    assert "report first" in path.read_text("utf-8")


@pytest.mark.real
def test_a_real_model_answers(tmp_path: Path) -> None:
    tiny = pytest.importorskip("engine_router.engines.llamacpp.tiny")
    pytest.importorskip("xllamacpp")
    tiny.write_tiny_gguf(tmp_path / "m.gguf", name="tiny")
    argv = [sys.executable, "-m", "engine_router.llamacpp", "-m", str(tmp_path / "m.gguf")]
    argv += ["--threads", "1", "--port", "{port}"]
    with serving(table("engines.tiny", type="process", argv=argv, models=["tiny"])) as running:
        done = ask(running, "tiny", "Hello", "--set", "max_tokens=8", "--set", "temperature=0", "--json")
        said = json.loads(told(done))
    assert said["finish_reason"] in ("length", "stop")
    assert said["usage"]["completion_tokens"] <= 8
    assert said["timings"]["tokens_per_s"] > 0
