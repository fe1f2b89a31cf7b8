"""Engines that are controlled from outside: servers over HTTP, the Ollama daemon, units of systemd.

`http_engine`, `ollama_engine` and `systemd_engine` are for `engines.build`; other rooms may import `client`, which asks
a server, and `ollama_models`.

These engines do not own a process. They ask a server (HTTP) or a manager (systemd) to load and to unload,
and then look whether it has happened. Three rules follow from that, and live here once:

- Asking is not doing. A load or an unload counts only when the engine's own list confirms it.
- An error while asking says nothing. It is never read as "nothing is loaded"; only a refused connection
  is an answer by itself, because where nobody listens no server holds memory.
- A stop may come at any moment, in the middle of a load too. It interrupts the load, and what may have been
  loaded until then is unloaded like anything else.
"""
