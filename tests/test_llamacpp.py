"""Real llama.cpp servers on tiny models."""

import importlib.util
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from support.ports import free_port

from engine_router.engines.llamacpp.tiny import write_tiny_gguf

WHEELS = ("gguf", "numpy", "xllamacpp")
MISSING = [name for name in WHEELS if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(MISSING), reason=f"needs the extra llamacpp (missing: {', '.join(MISSING)})"),
]

LOADED_WITHIN = 200.0  # seconds, on a machine that is busy with something else
STOPPED_WITHIN = 200.0  # seconds
CHAT = {"messages": [{"role": "user", "content": "Good morning"}], "max_tokens": 40, "ignore_eos": True}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "engine_router.llamacpp", *map(str, arguments)]


@contextmanager
def starting(model: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """Start a server without waiting for it, and leave nothing behind."""
    port = free_port()
    process = subprocess.Popen(command("-m", model, "--port", str(port), "-lv", "0", *arguments))
    try:
        # The server closes what is idle for 5 s, which a busy machine makes of any two requests: none is kept.
        limits = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=200, trust_env=False, limits=limits
        ) as client:
            yield process, client
    finally:
        process.kill()
        process.wait()


def health(client: httpx.Client) -> int | None:
    try:
        return client.get("/health").status_code
    except httpx.TransportError:
        return None


def await_health(process: subprocess.Popen[bytes], client: httpx.Client, status: int) -> None:
    deadline = time.monotonic() + LOADED_WITHIN
    while health(client) != status:
        assert process.poll() is None, "the server ended by itself"
        assert time.monotonic() < deadline, f"/health never said {status}"
        time.sleep(0.01)


@contextmanager
def running(model: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    with starting(model, *arguments) as (process, client):
        await_health(process, client, 200)
        yield process, client


def refused(*arguments: str | Path) -> tuple[int, list[str]]:
    """Run a server that cannot start; return its exit code and the lines on stderr."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=200, check=False)
    return done.returncode, done.stderr.splitlines()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 212 MB, slow enough to interrupt."""
    path = tmp_path_factory.mktemp("models") / "large.gguf"
    return write_tiny_gguf(path, layers=5, width=1024, context_length=8192)


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[httpx.Client]:
    with running(model, "--alias", "pocket") as (_process, client):
        yield client


def printable(text: str) -> bool:
    return text.isascii() and text.isprintable()


# The server


def test_it_answers_a_chat_with_real_usage_and_timings(client: httpx.Client) -> None:
    answer = client.post("/v1/chat/completions", json=CHAT).raise_for_status().json()

    assert answer["model"] == "pocket"
    text = answer["choices"][0]["message"]["content"]
    assert len(text) == answer["usage"]["completion_tokens"] == 40
    assert printable(text)
    assert answer["usage"]["prompt_tokens"] == len("user: Good morning\nassistant: ")
    assert answer["timings"]["predicted_per_second"] > 0


def test_it_streams_a_chat(client: httpx.Client) -> None:
    with client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        data = [line.removeprefix("data: ") for line in response.iter_lines() if line]

    assert data[-1] == "[DONE]"
    chunks = [json.loads(line) for line in data[:-1]]
    pieces = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]]
    assert sum(map(bool, pieces)) > 1
    assert printable("".join(pieces))


def test_it_answers_what_llama_server_answers(client: httpx.Client) -> None:
    models = client.get("/v1/models").raise_for_status().json()
    assert [entry["id"] for entry in models["data"]] == ["pocket"]
    assert client.get("/props").raise_for_status().json()["total_slots"] == 4
    assert len(client.get("/slots").raise_for_status().json()) == 4
    completion = client.post("/v1/completions", json={"prompt": "Once", "max_tokens": 5}).raise_for_status()
    assert completion.json()["choices"][0]["text"]
    assert client.post("/v1/embeddings", json={"input": "x"}).status_code == 501


def test_it_reads_text_beyond_ascii(client: httpx.Client) -> None:
    tokens = client.post("/tokenize", json={"content": "ü"}).raise_for_status().json()["tokens"]
    assert bytes(tokens).decode() == "ü"
    assert client.post("/detokenize", json={"tokens": tokens}).raise_for_status().json()["content"] == "ü"


def test_it_serves_embeddings_when_asked_to(model: Path) -> None:
    with running(model, "--embeddings", "--pooling", "mean") as (_process, client):
        answer = client.post("/v1/embeddings", json={"input": ["a", "b"]}).raise_for_status().json()

    first, second = (entry["embedding"] for entry in answer["data"])
    assert len(first) == len(second) == 64
    assert first != second


def test_its_flags_reach_llama_cpp(model: Path) -> None:
    flags = (
        "-c 1024 -np 2 -t 1 -b 128 -ub 64 --no-mmap -fa on -ctk q8_0 -ctv q8_0 -ngl 0 --metrics --no-slots"
    )
    more = '--temp 0.5 --top-k 7 --reasoning off --api-key one,two --chat-template-kwargs {"a":1} -fit off'
    with running(model, *flags.split(), *more.split()) as (_process, client):
        assert client.get("/props").status_code == 401
        client.headers["Authorization"] = "Bearer two"
        props = client.get("/props").raise_for_status().json()
        assert client.get("/metrics").text.startswith("# HELP llamacpp:")
        assert client.get("/slots").status_code == 501

    assert props["total_slots"] == 2
    settings = props["default_generation_settings"]
    assert settings["n_ctx"] == 512
    assert (settings["params"]["temperature"], settings["params"]["top_k"]) == (0.5, 7)


def test_it_guesses_with_a_draft_model(model: Path) -> None:
    with running(model, "-md", str(model), "--draft-max", "4") as (_process, client):
        answer = client.post("/v1/chat/completions", json=CHAT).raise_for_status().json()
    assert answer["timings"]["draft_n"] > 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_even_while_it_answers(model: Path, number: signal.Signals) -> None:
    endless = {**CHAT, "max_tokens": -1, "stream": True}
    with (
        running(model, "-c", "200000") as (process, client),
        client.stream("POST", "/v1/chat/completions", json=endless) as response,
    ):
        next(response.iter_bytes())
        process.send_signal(number)
        assert process.wait(STOPPED_WITHIN) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_a_signal_ends_it_at_once_while_it_reads_a_long_prompt(large: Path) -> None:
    prompt = {"prompt": "word " * 1600, "max_tokens": 1}
    with running(large, "-t", "1", "-b", "8192", "-ub", "8192") as (process, client):
        asking = httpx.Timeout(30, read=0.5)  # half a second into the batch, which takes many
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/completions", json=prompt, timeout=asking)
        process.terminate()
        assert process.wait(STOPPED_WITHIN) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_a_signal_ends_it_while_it_loads(large: Path) -> None:
    with starting(large, "--no-mmap") as (process, client):
        await_health(process, client, 503)
        process.terminate()
        # By the signal itself; 0 if the machine was fast enough to load the model meanwhile.
        assert process.wait(STOPPED_WITHIN) in {-signal.SIGTERM, 0}


# What cannot start


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    code, lines = refused("-m", tmp_path / "none.gguf")
    assert code == 1
    (line,) = lines
    assert line.endswith("none.gguf does not exist: give the path of a GGUF file")


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    code, (line,) = refused("-m", tmp_path)
    assert code == 1
    assert "is a folder" in line


@pytest.mark.parametrize("flag", ["-m", "--mmproj", "-md", "--lora"])
def test_a_file_that_is_not_gguf_is_named(model: Path, tmp_path: Path, flag: str) -> None:
    other = tmp_path / "model.safetensors"
    other.write_bytes(b"\x00" * 100)
    code, (line,) = refused("-m", model, flag, other)
    assert code == 1
    assert "model.safetensors is not a GGUF file" in line


def test_an_incomplete_file_ends_it_with_a_pointer_to_the_log(model: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.gguf"
    half.write_bytes(model.read_bytes()[:300_000])
    code, lines = refused("-m", half, "--port", str(free_port()))
    assert code == 1
    # llama.cpp logs by a thread of its own, which may have the last word.
    assert any(line.endswith("half.gguf; its messages above say why") for line in lines)
    assert any("corrupted or incomplete" in line for line in lines)
    assert not any("Traceback" in line for line in lines)


def test_a_port_in_use_is_named(model: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, (line,) = refused("-m", model, "--port", str(port))
    assert code == 1
    assert line.endswith(
        f"port {port} on 127.0.0.1 is in use: stop what listens there or choose another --port"
    )


def test_a_missing_wheel_is_named_with_its_remedy(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "xllamacpp.py").write_text("raise ImportError('no such wheel')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, (line,) = refused("-m", model, "--port", str(free_port()))
    assert code == 1
    assert "xllamacpp" in line
    assert line.endswith("pip install 'engine-router[llamacpp]'")


def without_a_library(folder: Path) -> None:
    """Write a wheel that fails as the real one does on a system without OpenMP."""
    fault = "libgomp.so.1: cannot open shared object file: No such file or directory"
    (folder / "xllamacpp.py").write_text(f"raise ImportError({fault!r})")


def test_a_missing_library_of_the_system_is_named_with_its_package(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_a_library(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for arguments in (("-m", model, "--port", str(free_port())), ("--version",)):
        code, (line,) = refused(*arguments)
        assert code == 1
        assert "the system library libgomp.so.1, which is not installed" in line
        assert line.endswith("apt install libgomp1, or dnf install libgomp")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ([], "required: -m/--model"),
        (["-m", "x", "--bogus"], "unrecognized arguments: --bogus"),
        (["-m", "x", "--port", "70000"], "a port is a number from 0 to 65535: 70000"),
        (["-m", "x", "-ngl", "many"], "must be a whole number: many"),
        (["-m", "x", "--temp", "warm"], "must be a number: warm"),
        (["-m", "x", "--chat-template-kwargs", "[1]"], "must be a JSON object: [1]"),
        (["-m", "x", "--chat-template-file", "no/such"], "cannot read no/such"),
    ],
)
def test_wrong_usage_is_code_2(arguments: list[str], fault: str) -> None:
    code, lines = refused(*arguments)
    assert code == 2
    assert fault in lines[-1]


def test_a_value_that_llama_cpp_refuses_is_named(model: Path) -> None:
    code, lines = refused("-m", model, "--port", str(free_port()), "--spec-type", "crystal-ball")
    assert code == 1
    assert "crystal-ball" in lines[-1]


# Tiny models


def test_a_tiny_model_depends_on_its_seed_alone(model: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again.gguf", tmp_path / "other.gguf"
    write_tiny_gguf(again)
    write_tiny_gguf(other, seed=1)
    assert again.read_bytes() == model.read_bytes()
    assert other.read_bytes() != model.read_bytes()
    assert other.stat().st_size == model.stat().st_size < 600_000
    assert sorted(tmp_path.iterdir()) == [again, other]  # no partial file is left


def test_width_and_layers_scale_the_file(tmp_path: Path) -> None:
    size_bytes = write_tiny_gguf(tmp_path / "wide.gguf", layers=3, width=512).stat().st_size
    assert size_bytes == pytest.approx(40 * 3 * 512**2 + 2064 * 512, rel=0.01)


@pytest.mark.parametrize(
    "sizes", [{"layers": 0}, {"width": 0}, {"width": 100}, {"seed": -1}, {"context_length": 0}]
)
def test_sizes_out_of_range_are_refused(tmp_path: Path, sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        write_tiny_gguf(tmp_path / "tiny.gguf", **sizes)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_the_command_line_writes_a_model(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    arguments = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "engine_router.engines.llamacpp.tiny",
        str(path),
        "--seed",
        "3",
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout == f"{path}: 0.5 MB\n"
    assert path.read_bytes().startswith(b"GGUF")
    done = subprocess.run(
        [*arguments, "--width", "65"], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 1
    assert done.stderr.endswith("error: width must be a multiple of 64: 65\n")


def test_importing_the_package_imports_nothing_heavy() -> None:
    modules = (
        "engine_router.llamacpp, engine_router.engines.llamacpp.tiny, engine_router.engines.llamacpp.server"
    )
    code = f"import sys, {modules}; print([name for name in {WHEELS} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True
    )
    assert done.stdout == "[]\n"
