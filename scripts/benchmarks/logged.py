"""Note a start, then become another program.

    python -I -S logged.py NAME START_LOG PROGRAM [ARGUMENT ...]

A file of its own imports little, so that what is measured is the program's start.
"""

import os
import sys
import time


def main(name: str, log: str, *argv: str) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(handle, f"{name} {os.getpid()} {time.monotonic()}\n".encode())
    os.close(handle)
    os.execv(argv[0], argv)


if __name__ == "__main__":
    main(*sys.argv[1:])
