"""`engine-router demo`: two tiny models behind a router, to be tried without a download."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from engine_router.cli.demo_once import GIBBERISH, chat_with_each
from engine_router.cli.exit_codes import CommandFailed
from engine_router.cli.log import end_logging, start_logging
from engine_router.cli.running import run_router
from engine_router.cli.serve import open_sockets
from engine_router.cli.terminal import say
from engine_router.config import load_config
from engine_router.engines.ports import ClaimedPort
from engine_router.router import Router

MODELS = ("tiny-a", "tiny-b")
WHEELS = ("gguf", "numpy", "xllamacpp")
# Large enough that a start takes a moment, small enough that nobody waits.
LAYERS, WIDTH = 4, 256


def run(options: argparse.Namespace) -> int:
    """Run the demonstration.

    Raises:
        CommandFailed: the extra is not installed, or the folder or the port cannot be used.
    """
    missing = [wheel for wheel in WHEELS if importlib.util.find_spec(wheel) is None]
    if missing:
        raise CommandFailed(
            f"the demo needs {', '.join(missing)}, for a real llama.cpp: pip install 'engine-router[llamacpp]'"
        )
    with _terminable(), _folder(options.keep) as folder:
        port = ClaimedPort()
        port.release()  # the router itself is about to take it
        path = _prepare(folder, options.port or port.number)
        code = _serve(path, folder, once=options.once, keep=options.keep is not None)
    if options.keep is not None:
        say(f"\nkept in {folder}; run it again with: {own_command()} serve --config {path}")
    return code


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the preparations as Ctrl-C does, so that nothing is left behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _folder(keep: str | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="engine-router-demo-", ignore_cleanup_errors=True) as name:
            yield Path(name)
        return
    folder = Path(keep).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandFailed(f"{keep} cannot be used: {error.strerror or error}") from None
    yield folder


def _prepare(folder: Path, port: int) -> Path:
    """Write the models and the configuration; return the latter."""
    from engine_router.engines.llamacpp.tiny import write_tiny_gguf  # noqa: PLC0415 - needs the extra

    say(f"writing {' and '.join(MODELS)} to {folder}")
    try:
        for seed, model in enumerate(MODELS):
            write_tiny_gguf(folder / f"{model}.gguf", name=model, layers=LAYERS, width=WIDTH, seed=seed)
        path = folder / "engines.toml"
        path.write_text(_toml(folder, port), encoding="utf-8")
    except OSError as error:
        raise CommandFailed(f"{folder} cannot be written: {error.strerror or error}") from None
    return path


def _toml(folder: Path, port: int) -> str:
    """Return the configuration. A JSON string is a TOML string, too."""
    lines = [f"state_file = {json.dumps(str(folder / 'state.json'))}", "", "[server]", f"port = {port}"]
    for model in MODELS:
        argv = [sys.executable, "-m", "engine_router.llamacpp", "--model", str(folder / f"{model}.gguf")]
        # More threads would spin against each other: the models are tiny, and two cores may be all there is.
        argv += ["--alias", model, "--threads", "1", "--port", "{port}", "--metrics"]
        listed = ",\n".join(f"  {json.dumps(word)}" for word in argv)
        lines += ["", f"[engines.{model}]", 'type = "process"', f"argv = [\n{listed},\n]"]
        lines += [f'models = ["{model}"]']
    return "\n".join(lines) + "\n"


def _serve(path: Path, folder: Path, *, once: bool, keep: bool) -> int:
    config = load_config(path)
    with contextlib.ExitStack() as stack:
        sockets = open_sockets(config.server, None, stack)
        log = start_logging(config.log, level="warning" if once else None)
        stack.callback(end_logging, log)

        def last_words() -> None:
            end_logging(log)
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)

        end = "Ctrl-C ends it." if keep else "Ctrl-C ends it and leaves nothing behind."
        return run_router(
            config,
            sockets,
            announce=lambda router, urls: None if once else log.write(_banner(router, urls[0], end)),
            last_words=last_words,
            job=chat_with_each if once else None,
        )


def own_command() -> str:
    """Return how this very program is called in another terminal: by its name where it is found on PATH."""
    called = Path(sys.argv[0])
    if called.stem != "engine-router":
        return f"{shlex.quote(sys.executable)} -m engine_router"
    found = shutil.which("engine-router")
    if found is not None and Path(found).resolve() == called.resolve():
        return "engine-router"
    return shlex.quote(str(called.absolute()))


def _banner(router: Router, url: str, end: str) -> str:
    first, second = router.config.engines
    say = '"messages":[{"role":"user","content":"Hello"}]'
    return f"""
Two engines, one memory: asking for the other model swaps them. In another terminal, try

  curl -N {url}/v1/chat/completions -d '{{"model":"{first}","stream":true,"max_tokens":60,{say}}}'
  curl -N {url}/api/chat -d '{{"model":"{second}","options":{{"num_predict":60}},{say}}}'
  curl {url}/v1/models
  {own_command()} status --url {url}

or look at {url}/ in a browser. {GIBBERISH}
{end}
"""
