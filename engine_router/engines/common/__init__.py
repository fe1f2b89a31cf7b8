"""What the engines that are controlled from outside have in common: their life, their calls, their words.

These engines do not own a process. They ask a server (HTTP) or a manager (systemd) to load and to unload,
and then look whether it has happened. Three rules follow from that, and live here once:

- Asking is not doing. A load or an unload counts only when the engine's own list confirms it.
- An error while asking says nothing. It is never read as "nothing is loaded"; only a refused connection
  is an answer by itself, because where nobody listens no server holds memory.
- A stop may come at any moment, in the middle of a load too. It interrupts the load, and what may have been
  loaded until then is unloaded like anything else.
"""

from engine_router.engines.common.answers import Listed, Reply, fill, read_listing
from engine_router.engines.common.commands import Completed, run_command
from engine_router.engines.common.life import LOG_TAIL_LINES, SLEEPS, Life, Rest, Stop, lead, unless
from engine_router.engines.common.masks import engine_mask
from engine_router.engines.common.server import BadAnswer, NotListening, Server, worth_repeating

__all__ = [
    "LOG_TAIL_LINES",
    "SLEEPS",
    "BadAnswer",
    "Completed",
    "Life",
    "Listed",
    "NotListening",
    "Reply",
    "Rest",
    "Server",
    "Stop",
    "engine_mask",
    "fill",
    "lead",
    "read_listing",
    "run_command",
    "unless",
    "worth_repeating",
]
