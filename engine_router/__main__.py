"""``python -m engine_router``: the command line."""

import sys

from engine_router.cli import main

if __name__ == "__main__":
    sys.exit(main())
