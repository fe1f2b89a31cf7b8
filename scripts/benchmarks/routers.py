"""The two routers as the benchmarks run them: the same engines, each router with its own default settings."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import client
from benchmarks.environments import version_of
from benchmarks.lab import Failed, Lab, await_health, free_ports

OURS = "engine_router"
LER = "local-engine-router"


@dataclass(frozen=True)
class Program:
    """An installed router."""

    name: str
    python: Path
    version: str


def ours(python: Path) -> Program:
    return Program(OURS, python, version_of(python, "engine-router"))


def ler(python: Path) -> Program:
    return Program(LER, python, version_of(python, "local-engine-router"))


@dataclass(frozen=True)
class Router:
    """A router at work.

    Attributes:
        names: what its engines call themselves in the log of starts, by the model they serve.
    """

    program: Program
    port: int
    process: subprocess.Popen[bytes]
    names: Mapping[str, str]


class Engines:
    """What each engine is run with; called once for each router, because each needs its own ports.

    Args:
        python: runs the engines.
        models: the models, one for each engine.
    """

    def __init__(self, python: Path, models: Sequence[str]) -> None:
        self.python = python
        self.models = models

    def argv(self, lab: Lab, name: str, model: str, port: int) -> list[str]:
        """Return the command of the engine for a model, which calls itself `name` in the log of starts."""
        raise NotImplementedError


class InstantEngines(Engines):
    """Engines that cost next to nothing; `fault` makes them exit at once or hang."""

    PROGRAM = Path(__file__).with_name("instant_engine.py")

    def __init__(self, python: Path, models: Sequence[str], fault: str | None = None) -> None:
        super().__init__(python, models)
        self.fault = fault

    def argv(self, lab: Lab, name: str, model: str, port: int) -> list[str]:
        words = [str(self.python), "-I", "-S", str(self.PROGRAM), model, str(port), str(lab.log), name]
        return [*words, self.fault] if self.fault else words


class LlamaEngines(Engines):
    """llama.cpp's server on tiny models.

    With one thread: llama.cpp's threads wait for each other by spinning, so that on a busy machine the
    start of a tiny model takes 0.1 or 0.5 s by chance.
    """

    PROGRAM = Path(__file__).with_name("logged.py")

    def argv(self, lab: Lab, name: str, model: str, port: int) -> list[str]:
        note = [str(self.python), "-I", "-S", str(self.PROGRAM), name, str(lab.log)]
        serve = [str(self.python), "-m", "engine_router.llamacpp", "-m", str(self.file(lab, model))]
        return [*note, *serve, "--alias", model, "--port", str(port), "-t", "1"]

    def file(self, lab: Lab, model: str) -> Path:
        """Return the model's file, which is written when it is not there yet."""
        path = lab.folder / f"{model}.gguf"
        if not path.exists():
            argv = [str(self.python), "-m", "engine_router.engines.llamacpp.tiny", str(path), "--name", model]
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, cwd=lab.folder)
        return path


def open_router(lab: Lab, program: Program, engines: Engines, label: str, *, fast: bool = True) -> Router:
    """Start a router in front of engines; `label` names its files, `fast` is for ours: with the fast tier.

    Raises:
        Failed: it did not start.
    """
    port, *ports = free_ports(1 + len(engines.models))
    names = {model: f"{label}/{program.name}/{model}" for model in engines.models}
    commands = {
        model: (engines.argv(lab, names[model], model, engine_port), engine_port)
        for model, engine_port in zip(engines.models, ports, strict=True)
    }
    stem = lab.folder / f"{label}-{program.name}"
    if program.name == OURS:
        config = stem.with_suffix(".toml")
        config.write_text(our_config(port, commands, stem.with_suffix(".state"), fast=fast), "utf-8")
        argv = [str(program.python), "-m", "engine_router", "serve", "--config", str(config)]
    else:
        config = stem.with_suffix(".yaml")
        config.write_text(ler_config(port, commands, stem), "utf-8")
        argv = [str(program.python), "-m", "router", "--config", str(config)]
    process = lab.spawn(argv, output=f"{stem.name}.out")
    try:
        await_health(process, port, program.name)
    except Failed as error:
        said = (lab.folder / f"{stem.name}.out").read_text(errors="replace").splitlines()[-5:]
        raise Failed("\n".join([str(error), *said])) from None
    return Router(program, port, process, names)


Commands = Mapping[str, tuple[Sequence[str], int]]
"""By model: an engine's argv and its port."""


def our_config(port: int, commands: Commands, state: Path, *, fast: bool = True) -> str:
    """Return an engines.toml. A JSON string or list of strings is one of TOML too."""
    lines = [f"state_file = {json.dumps(str(state))}", "[server]", f"port = {port}"]
    lines += [] if fast else ["fast_path = false"]
    for model, (argv, engine_port) in commands.items():
        lines += [
            f"[engines.{model}]",
            'type = "process"',
            f"argv = {json.dumps(argv)}",
            f'base_url = "http://127.0.0.1:{engine_port}"',
            f"models = [{json.dumps(model)}]",
        ]
    return "\n".join([*lines, ""])


def ler_config(port: int, commands: Commands, stem: Path) -> str:
    """Return a config.yaml for local-engine-router: JSON, which is YAML too."""
    config = {
        "port": port,
        "log_file": f"{stem}.log",
        "state_file": f"{stem}.json",
        "engines": {
            model: {
                "type": "generic_process",
                "base_url": f"http://127.0.0.1:{engine_port}",
                "start_cmd": list(argv),
                "ready_path": "/health",
            }
            for model, (argv, engine_port) in commands.items()
        },
        "models": [{"id": model, "engine": model} for model in commands],
    }
    return json.dumps(config, indent=1)


def last_swap(router: Router) -> dict[str, Any]:
    """Return what engine_router tells of its last swap; of others, which may say something by the same name, nothing."""
    if router.program.name != OURS:
        return {}
    status = client.get(router.port, "/status")
    last = status.get("last_swap") if isinstance(status, dict) else None
    return dict(last) if isinstance(last, dict) else {}
