"""Engines of each kind: started, loaded, probed, put to sleep and stopped.

`base` is the protocol, and all that `residency/` may import from here. `build` makes engines from the configuration,
for the composition. `process/` has engines whose process is the router's own, `remote/` servers and daemons that run by
themselves, `sleep/` what both need to give memory back without a stop, `llamacpp/` a server to try the router with.
Anybody may use what does no I/O of its own accord: `command_options`, `first_of`, `backoff`, `ports`, `remote.client`.
"""
