"""llama.cpp's HTTP server in a process of its own, run through the wheel ``xllamacpp``."""

import argparse
import errno
import importlib.metadata
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from engine_router.engines.llamacpp.arguments import PROG, build_parser

_GGUF_MAGIC: Final = b"GGUF"
_INSTALL: Final = "pip install 'engine-router[llamacpp]'"
# What the dynamic linker says of a library that is missing: the wheel is there, and the system has to bring the rest.
_MISSING_LIBRARY: Final = re.compile(r"(?P<name>lib\S+\.so\S*): cannot open shared object file: No such file")
_LIBRARIES: Final = {"libgomp.so.1": "apt install libgomp1, or dnf install libgomp"}


class StartError(Exception):
    """The server cannot start; the message says why and what helps, in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal ends the process.

    Args:
        arguments: the command line without the program's name; None takes it from the process.

    Returns:
        1 when the server could not start, after one line on stderr that says why. While it serves, this
        function does not return: SIGTERM and SIGINT end the process with exit code 0.

    Raises:
        SystemExit: with code 2 for wrong usage, 0 after ``--help`` and ``--version``, 1 where there is no version.
    """
    parser = build_parser()
    parser.add_argument(
        "--version", action=_ShowVersion, nargs=0, help="show the version of llama.cpp's wheel"
    )
    options = parser.parse_args(arguments)
    # The wheel holds the interpreter's lock while it loads, so a handler written in Python would run only when
    # the model is there. Until then the signals act as they do on a process without handlers.
    _set_signals(signal.SIG_DFL)
    try:
        _check(options)
        _serve(options)
    except StartError as error:
        sys.stderr.write(f"{PROG}: error: {error}\n")
        return 1


class _ShowVersion(argparse.Action):
    """The option ``--version``: it imports the wheel, so it also tells whether a model could be served."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        _namespace: argparse.Namespace,
        _values: object,
        _option: str | None = None,
    ) -> NoReturn:
        try:
            import xllamacpp  # noqa: F401, PLC0415 - optional
        except ImportError as error:
            parser.exit(1, f"{PROG}: error: {_import_fault(error)}\n")
        parser.exit(0, f"llama.cpp of xllamacpp {importlib.metadata.version('xllamacpp')}\n")


def _serve(options: argparse.Namespace) -> NoReturn:
    try:
        # Imported here because the wheel is optional, and --help has to work without it.
        import xllamacpp  # noqa: PLC0415

        from engine_router.engines.llamacpp.parameters import build_parameters  # noqa: PLC0415
    except ImportError as error:
        raise StartError(_import_fault(error)) from error
    path = vars(options)["model.path"]
    try:
        # Returns when the model is loaded. It answers in threads of its own for as long as the name holds it.
        _server = xllamacpp.Server(build_parameters(options))
    except ValueError as error:
        raise StartError(f"llama.cpp refuses an option ({error}): see --help") from error
    except (RuntimeError, MemoryError) as error:
        raise StartError(f"llama.cpp could not load {path}; its messages above say why") from error
    _wait_for_the_end()


def _import_fault(error: ImportError) -> str:
    if missing := _MISSING_LIBRARY.search(str(error)):
        name = missing["name"]
        remedy = _LIBRARIES.get(name, "install the package of your system that has it")
        return f"llama.cpp needs the system library {name}, which is not installed: {remedy}"
    return f"the wheel xllamacpp cannot be imported ({error}): {_INSTALL}"


def _wait_for_the_end() -> NoReturn:
    # A signal that comes just before a sleep begins is noticed only after it. A byte in a socket waits.
    waiting, waking = socket.socketpair()
    waking.setblocking(False)
    signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
    _set_signals(_end)
    while True:
        waiting.recv(1)


def _set_signals(handler: signal.Handlers | Callable[[int, FrameType | None], NoReturn]) -> None:
    signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGINT, handler)
    if sys.platform == "win32":
        signal.signal(signal.SIGBREAK, handler)


def _end(_signal: int, _frame: FrameType | None) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: the C++ destructor waits for the batch in progress, which for a long prompt can be a minute.
    os._exit(0)


def _check(options: argparse.Namespace) -> None:
    """Find the faults that llama.cpp would report in many lines, or not at all."""
    given = vars(options)
    for field in ("model.path", "mmproj.path", "speculative.draft.mparams.path"):
        if field in given:
            _check_model(Path(given[field]))
    for path, _scale in given.get("lora_adapters", []):
        _check_model(Path(path))
    for host in options.hostnames:
        if not host.endswith(".sock"):  # llama.cpp takes such an address for a Unix socket
            _check_address(host, options.port)


def _check_model(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(len(_GGUF_MAGIC))
    except FileNotFoundError:
        raise StartError(f"{path} does not exist: give the path of a GGUF file") from None
    except IsADirectoryError:
        raise StartError(f"{path} is a folder: give the path of a GGUF file in it") from None
    except OSError as error:
        raise StartError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    if magic != _GGUF_MAGIC:
        raise StartError(f"{path} is not a GGUF file: llama.cpp reads models in the GGUF format only")


def _check_address(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            if os.name == "posix":  # elsewhere this option lets two processes share a port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise StartError(f"{host} is no address of this machine: choose another --host") from error
    except OSError as error:
        raise StartError(_address_fault(error, host, port)) from error


def _address_fault(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop what listens there or choose another --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine: choose another --host"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} is not permitted: choose a --port of 1024 or more"
    return f"cannot listen on port {port} of {host}: {error.strerror}"
