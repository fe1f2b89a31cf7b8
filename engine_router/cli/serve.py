"""`engine-router serve`."""

from __future__ import annotations

import argparse
import contextlib
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from engine_router import __version__
from engine_router.cli.exit_codes import CommandFailed
from engine_router.cli.folders import absent_folders
from engine_router.cli.formatting import counted
from engine_router.cli.log import LogThread, end_logging, start_logging
from engine_router.cli.running import run_router
from engine_router.cli.terminal import say
from engine_router.config import Config, ServerConfig, find_config, load_config, parse_config
from engine_router.config.kinds import Port
from engine_router.errors import ConfigError
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
    origin, load = _configuration(options)
    config = _read(load, options, None)

    with contextlib.ExitStack() as stack:
        sockets = open_sockets(config.server, options.port, stack)
        port = sockets[0].getsockname()[1]
        config = attrs.evolve(config, server=attrs.evolve(config.server, port=port))
        log = start_logging(config.log, level=options.log_level)
        stack.callback(end_logging, log)
        return run_router(
            config,
            sockets,
            announce=lambda router, urls: _announce(router, urls, origin, log),
            last_words=lambda: end_logging(log),
            source=ConfigSource(origin, lambda: _read(load, options, port)),
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


def _configuration(options: argparse.Namespace) -> tuple[str, Callable[[], Config]]:
    """Return where the configuration comes from, and what reads it: a file, or the folders of `--scan`.

    Raises:
        ConfigError: there is none, and none is made.
        CommandFailed: the folders cannot be served.
    """
    if options.scan:
        if options.config is not None:
            raise CommandFailed("--scan needs no configuration: give --config or --scan, not both", 2)
        from engine_router.setup.model_blocks import scan_config  # noqa: PLC0415 - few need it

        for folder in absent_folders(options.scan):
            say(f"warning: {folder}: there is no such folder (yet)", to=sys.stderr)
        try:
            text = scan_config(options.scan)
        except ValueError as error:
            raise CommandFailed(str(error)) from None
        return "--scan", lambda: parse_config(text, source="--scan")
    try:
        path = find_config(options.config)
    except ConfigError:
        if options.config is not None or not sys.stdin.isatty():
            raise
        path = _made_now()
    return str(path), lambda: load_config(path)


def _made_now() -> Path:
    """Offer to make a configuration, and return where it is.

    Raises:
        ConfigError: there is still none.
    """
    from engine_router.cli import init  # noqa: PLC0415 - few need it
    from engine_router.cli.questions import Questions  # noqa: PLC0415

    say("There is no engines.toml yet.")
    if Questions().yes("Look at this machine, and make one now (engine-router init)?", default=True):
        init.run(
            argparse.Namespace(
                example=False,
                scan=None,
                json=False,
                detect_only=False,
                config=None,
                yes=False,
                offers_service=False,  # it is about to be served here
            )
        )
    return find_config()


def _read(load: Callable[[], Config], options: argparse.Namespace, port: Port | None) -> Config:
    """Read the configuration, with what the command line says instead of it; `port` is the one that is open."""
    config = load()
    server = config.server
    if options.host is not None:
        server = attrs.evolve(server, host=(options.host,))
    if options.port is not None and port is not None:
        server = attrs.evolve(server, port=port)
    return attrs.evolve(config, server=server)


def _announce(router: Router, urls: Sequence[str], origin: str, log: LogThread) -> None:
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
                    "config": origin,
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
        f"  configuration  {origin}\n"
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
