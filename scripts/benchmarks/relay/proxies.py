"""What is measured: nothing in between, nginx, llama-swap, local-engine-router, and ours, each with its own defaults.

Where a default would favour ours, the rival gets the better setting: local-engine-router and llama-swap log warnings
only, local-engine-router has its picker of models off, llama-swap admits as many requests at once as there are;
nginx neither logs nor buffers and keeps its connections to the upstream.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.environments import LER_VERSION, Missing, run, say, version_of
from benchmarks.lab import Lab

DIRECT, NGINX, LLAMA_SWAP, LER, OURS, TIER_ONE = "direct", "nginx", "llama-swap", "ler", "ours", "tier one"
REMOTE, BESIDE = "remote", "beside"
NAMES = (DIRECT, NGINX, LLAMA_SWAP, LER, OURS, TIER_ONE, REMOTE)
SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin")
# One more than streams at once, so that nginx never opens a connection anew.
NGINX_KEPT = 600
INSTALL_NGINX = ("apt-get", "install", "--yes", "--no-install-recommends", "nginx-light")
INSTALL_S = 120.0


@dataclass(frozen=True)
class Setting:
    """What a proxy is started with.

    Attributes:
        stem: its files begin with this.
        flag: a number of its own, by which the upstream knows what this proxy has loaded.
    """

    lab: Lab
    stem: Path
    port: int
    upstream: int
    flag: int


@dataclass(frozen=True)
class Proxy:
    """One of those that are measured.

    Attributes:
        argv: writes its configuration and returns its command; absent where there is nothing to start.
        relays_ollama: it passes on Ollama's dialect to an engine that speaks it.
        translates: it can answer Ollama's dialect from an engine that speaks OpenAI's.
        audio_path: where a long binary answer can be asked for.
    """

    name: str
    title: str
    version: str
    argv: Callable[[Setting], list[str]] | None = None
    relays_ollama: bool = True
    translates: bool = False
    audio_path: str = "/v1/audio/speech"


def direct() -> Proxy:
    """Return the way without a proxy."""
    return Proxy(DIRECT, "direct", "")


def nginx() -> Proxy | None:
    """Return nginx, if it is installed or can be: by apt-get, where this user may."""
    found = _found_nginx() or _installed_nginx()
    if found is None:
        return None
    shown = subprocess.run([found, "-v"], capture_output=True, text=True, check=False).stderr
    version = shown.strip().rpartition("/")[2]

    def argv(setting: Setting) -> list[str]:
        config = setting.stem.with_suffix(".conf")
        config.write_text(_nginx_config(setting), "utf-8")
        return [found, "-p", str(setting.lab.folder), "-e", "stderr", "-c", str(config)]

    return Proxy(NGINX, "nginx", version, argv)


def _found_nginx() -> str | None:
    return shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), *SYSTEM_FOLDERS]))


def _installed_nginx() -> str | None:
    program = shutil.which(INSTALL_NGINX[0])
    if program is None or sys.platform != "linux" or os.geteuid() != 0:
        return None
    say(f"installing nginx: {' '.join(INSTALL_NGINX)}")
    # What is installed must not begin to serve.
    surroundings = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            [program, *INSTALL_NGINX[1:]],
            env=surroundings,
            capture_output=True,
            timeout=INSTALL_S,
            check=False,
        )
    return _found_nginx()


def _nginx_config(setting: Setting) -> str:
    folder = f"{setting.stem}-tmp"
    temporary = "\n".join(
        f"  {kind}_temp_path {folder}-{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""  # a worker as nobody could not enter our folder
    return f"""daemon off;
{user}
worker_processes 1;
pid {setting.stem}.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
{temporary}
  access_log off;
  client_max_body_size 0;
  keepalive_requests 1000000000;
  upstream engine {{
    server 127.0.0.1:{setting.upstream};
    keepalive {NGINX_KEPT};
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{setting.port};
    location / {{
      proxy_pass http://engine;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""


def llama_swap() -> Proxy | None:
    """Return llama-swap, if its program is on PATH or named by the variable LLAMA_SWAP."""
    found = shutil.which(os.environ.get("LLAMA_SWAP", "llama-swap"))
    if found is None:
        return None
    shown = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
    version = shown.strip().partition("version: ")[2].partition(",")[0] or "unknown"

    def argv(setting: Setting) -> list[str]:
        config = setting.stem.with_suffix(".yaml")  # JSON is YAML
        model = {
            "cmd": "sleep 1000000",
            "proxy": f"http://127.0.0.1:{setting.upstream}",
            "checkEndpoint": "none",
            "concurrencyLimit": 10_000,
        }
        together = {"swap": False, "exclusive": False, "members": ["relay", "native"]}
        settings = {
            "logLevel": "warn",
            "models": {"relay": model, "native": model},
            "groups": {"together": together},
        }
        config.write_text(json.dumps(settings), "utf-8")
        return [found, "--config", str(config), "--listen", f"127.0.0.1:{setting.port}"]

    return Proxy(LLAMA_SWAP, "llama-swap", version, argv, relays_ollama=False)


def ler(python: Path) -> Proxy:
    """Return local-engine-router. Its one engine counts as active from the start, because it answers."""

    def argv(setting: Setting) -> list[str]:
        config = setting.stem.with_suffix(".yaml")  # JSON is YAML
        engine = {
            "type": "generic_process",
            "base_url": f"http://127.0.0.1:{setting.upstream}",
            "start_cmd": ["false"],
            "ready_path": "/health",
        }
        settings = {
            "port": setting.port,
            "log_file": f"{setting.stem}.log",
            "log_level": "WARNING",
            "state_file": f"{setting.stem}.json",
            "routing_mode": "manual",
            "engines": {"relay": engine},
            "models": [{"id": model, "engine": "relay"} for model in ("relay", "native")],
        }
        config.write_text(json.dumps(settings), "utf-8")
        return [str(python), "-m", "router", "--config", str(config)]

    version = version_of(python, "local-engine-router")
    title = f"LER {version}" if version != LER_VERSION else f"LER {LER_VERSION}"
    # It has no audio routes; a plain completion goes the same way through it.
    return Proxy(LER, title, version, argv, audio_path="/v1/completions")


def ours(python: Path) -> list[Proxy]:
    """Return ours: as it is by default, without its fast path where it has one, and in front of remotes where it has these."""
    version = version_of(python, "engine-router")
    found = [_ours(python, OURS, "ours", version, _our_config)]
    if _has(python, "hasattr(c.ServerConfig, 'fast_path')"):
        slow = partial(_our_config, server="fast_path = false")
        found.append(_ours(python, TIER_ONE, "ours, tier one", version, slow))
    if _has(python, "hasattr(c, 'RemoteConfig')"):
        found.append(_ours(python, REMOTE, "ours, remote", version, _remote_config))
    return found


def beside(python: Path, checkout: Path) -> Proxy:
    """Return ours as another checkout has it, run by the same interpreter: the code before a change, say.

    Raises:
        Missing: there is no engine_router in it.
    """
    root = checkout.resolve()
    if not (root / "engine_router" / "__init__.py").is_file():
        raise Missing(f"--beside names {checkout}, which has no engine_router")
    commit = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    words = ["env", f"PYTHONPATH={root}"]
    return _ours(python, BESIDE, "ours, beside", commit.stdout.strip() or root.name, _our_config, words)


def _ours(
    python: Path,
    name: str,
    title: str,
    version: str,
    config_of: Callable[[Setting], str],
    words: Sequence[str] = (),
) -> Proxy:
    def argv(setting: Setting) -> list[str]:
        config = setting.stem.with_suffix(".toml")
        config.write_text(config_of(setting), "utf-8")
        return [*words, str(python), "-m", "engine_router", "serve", "--config", str(config)]

    return Proxy(name, title, version, argv, translates=True)


def _our_config(setting: Setting, server: str = "") -> str:
    """Two engines at the one upstream, each in a pool of its own so that no swap happens."""
    url = f"http://127.0.0.1:{setting.upstream}"
    return f"""state_file = "{setting.stem}.state"
[server]
port = {setting.port}
{server}
[pools.other]
gauge = "none"
[engines.relay]
type = "http"
base_url = "{url}"
models = ["relay"]
load = {{ path = "/flag/{setting.flag}/load" }}
unload = {{ path = "/flag/{setting.flag}/unload" }}
loaded = {{ path = "/flag/{setting.flag}/loaded", key = "data" }}
[engines.native]
type = "ollama"
base_url = "{url}"
models = ["native"]
pool = "other"
headers = {{ x-bench-flag = "{setting.flag + 1}" }}
"""


def _remote_config(setting: Setting) -> str:
    """Two remotes at the one upstream, one that speaks OpenAI's dialect and one that speaks Ollama's, each with a key."""
    url = f"http://127.0.0.1:{setting.upstream}"
    return f"""state_file = "{setting.stem}.state"
[server]
port = {setting.port}
[engines.relay]
type = "remote"
base_url = "{url}/v1"
api_key = "the-key-of-a-benchmark"
models = ["relay"]
discover = false
[engines.native]
type = "remote"
base_url = "{url}"
dialects = ["ollama"]
models = ["native"]
discover = false
"""


def _has(python: Path, what: str) -> bool:
    """Tell whether what an expression says of the configuration `c` is true of a version of ours."""
    return (
        run(python, "-c", f"import engine_router.config as c; raise SystemExit(not ({what}))").returncode == 0
    )
