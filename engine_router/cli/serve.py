"""`engine-router serve`."""

from __future__ import annotations

import argparse
import contextlib
import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs

from engine_router import __version__
from engine_router.cli.exit_codes import CommandFailed
from engine_router.cli.formatting import counted
from engine_router.cli.log import LogThread, end_logging, start_logging
from engine_router.cli.running import run_router
from engine_router.cli.terminal import say
from engine_router.config import Config, ServerConfig, find_config, load_config
from engine_router.config.kinds import Port
from engine_router.reload import ConfigSource
from engine_router.router import Router
from engine_router.server.serve import CannotListen, listen

logger = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> int:
    """Run the router until a signal comes.

    Raises:
        ConfigError: the configuration has faults.
        CommandFailed: the address, or the log file, cannot be used.
    """
    path = find_config(options.config)
    config = _read(path, options, None)

    with contextlib.ExitStack() as stack:
        sockets = open_sockets(config.server, options.port, stack)
        port = sockets[0].getsockname()[1]
        config = attrs.evolve(config, server=attrs.evolve(config.server, port=port))
        log = start_logging(config.log, level=options.log_level)
        stack.callback(end_logging, log)
        return run_router(
            config,
            sockets,
            announce=lambda router, urls: _announce(router, urls, path, log),
            last_words=lambda: end_logging(log),
            source=ConfigSource(str(path), lambda: _read(path, options, port)),
        )


def open_sockets(
    server: ServerConfig, port: int | None, stack: contextlib.ExitStack
) -> Sequence[socket.socket]:
    """Open the listening sockets, closed with `stack` whether or not they were ever served.

    Raises:
        CommandFailed: the address cannot be used.
    """
    try:
        sockets = listen(server, port)
    except CannotListen as error:
        raise CommandFailed(str(error)) from None
    for sock in sockets:
        stack.callback(sock.close)
    return sockets


def _read(path: Path, options: argparse.Namespace, port: Port | None) -> Config:
    """Read the configuration, with what the command line says instead of it; `port` is the one that is open."""
    config = load_config(path)
    server = config.server
    if options.host is not None:
        server = attrs.evolve(server, host=(options.host,))
    if options.port is not None and port is not None:
        server = attrs.evolve(server, port=port)
    return attrs.evolve(config, server=server)


def _announce(router: Router, urls: Sequence[str], path: Path, log: LogThread) -> None:
    """Announce that the router serves: a banner for a person, or a line of the JSON log."""
    engines, models = len(router.engines), len(router.registry.targets())
    if router.config.log.format == "json":
        logger.info(
            "serving",
            extra={
                "fields": {
                    "event": "serving",
                    "version": __version__,
                    "urls": list(urls),
                    "config": str(path),
                    "engines": engines,
                    "models": models,
                }
            },
        )
        return
    here = local_url(urls[0])
    more = " (and looks for more in folders)" if router.scans.is_active and router.scans.at is None else ""
    banner = (
        f"engine-router {__version__} serves {counted(engines, 'engine')} with {counted(models, 'model')}{more} "
        f"at {', '.join(urls)}\n"
        f"  configuration  {path}\n"
        f"  OpenAI         {here}/v1        (Anthropic: {here})\n"
        f"  Ollama         {here}\n"
        f"  status page    {here}/          (or: engine-router status)\n"
        f"Ctrl-C stops it, and every engine that it started."
    )
    log.write(banner) if router.config.log.file is None else _print(banner)


def _print(banner: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        say(banner, to=sys.stderr)


def local_url(url: str) -> str:
    """Return a URL that this machine can use for one that may name every address of it."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
