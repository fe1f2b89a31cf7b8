"""``python -m engine_router.llamacpp``: a stand-in for ``llama-server``."""

import sys

from engine_router.engines.llamacpp.server import main

if __name__ == "__main__":
    sys.exit(main())
