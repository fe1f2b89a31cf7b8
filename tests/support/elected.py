"""Routers of which one leads, as processes, and a client that asks one until it is answered."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx
import trio
from attrs import define, field
from test_cli import command

from support.ports import free_port

CONFIG = """
state_file = {state}
[server]
host = ["127.0.0.1"]
port = {port}
[leader_election]
lease = "engine-router"
duration_s = 3
kubeconfig = {kubeconfig}
address = "http://127.0.0.1:{port}"
[pools.default]
gauge = "none"
[engines.vllm]
type = "kubernetes"
workload = "deployment/vllm"
kubeconfig = {kubeconfig}
base_url = {url}
models = ["m"]
"""


@define(eq=False)
class ElectedRouter:
    """A router of several, as a process that can be started again.

    Attributes:
        name: with which its identity in the Lease begins.
        is_judged: it has not been told to end, or been kept from noticing anything, since it was started.
    """

    folder: Path
    name: str
    kubeconfig: Path
    service_url: str
    port: int = field(factory=free_port)
    is_judged: bool = True
    _process: trio.Process | None = None
    _starts: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def process(self) -> trio.Process:
        assert self._process is not None
        return self._process

    @property
    def log(self) -> str:
        """What it has written since it was started."""
        return self._log.read_text("utf-8", "replace")

    @property
    def leads(self) -> bool:
        """True while it does what only a leader may, as far as it says itself."""
        return self.is_judged and self.process.poll() is None and " leading\n" in self.log

    @property
    def _log(self) -> Path:
        return self.folder / f"{self.name}-{self._starts}.log"

    async def start(self) -> None:
        fields: dict[str, Any] = {
            "state": str(self.folder / self.name / "state"),
            "kubeconfig": str(self.kubeconfig),
            "url": self.service_url,
        }
        text = CONFIG.format(port=self.port, **{key: json.dumps(value) for key, value in fields.items()})
        (self.folder / self.name).mkdir(exist_ok=True)
        path = self.folder / f"{self.name}.toml"
        path.write_text(text, "utf-8")
        self._starts += 1
        self.is_judged = True
        with self._log.open("w") as log:
            self._process = await trio.lowlevel.open_process(
                command("serve", "--config", path), stderr=log, env={**os.environ, "POD_NAME": self.name}
            )


@define(eq=False)
class Answered:
    """How a client fared until it had its answer.

    Attributes:
        text: the answer.
        refusals: the headers of the answers with 503.
        cuts: connections that ended without an answer, once the router had answered at all.
        took_s: seconds.
    """

    text: str = ""
    refusals: list[httpx.Headers] = field(factory=list)
    cuts: int = 0
    took_s: float = 0.0


async def ask(url: str) -> Answered:
    """Ask for a chat until it is answered, and wait as each 503 says."""
    answered, began = Answered(), trio.current_time()
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    async with httpx.AsyncClient(trust_env=False, timeout=200) as client:
        while True:
            try:
                answer = await client.post(f"{url}/v1/chat/completions", json=body)
            except httpx.ConnectError:  # it does not listen yet
                await trio.sleep(0.1)
                continue
            except httpx.TransportError:
                answered.cuts += 1
                continue
            if answer.status_code == 200:
                answered.text = str(answer.json()["choices"][0]["message"]["content"])
                answered.took_s = trio.current_time() - began
                return answered
            assert answer.status_code == 503, answer.text
            answered.refusals.append(answer.headers)
            await trio.sleep(float(answer.headers["retry-after"]))
