"""Engines of each kind: started, loaded, probed, put to sleep and stopped.

`base` is the protocol, and all that `residency/` may import from here. `build` makes engines from the configuration,
for the composition. `started/` has what engines share that the router starts itself, `process/` those whose process is
its own, `container/` those that Docker or Podman run, `remote/` servers and daemons that run by themselves, `sleep/` what both need to give memory back without a stop, `llamacpp/` a server to try the router with.
Anybody may use what does no I/O of its own accord: `command_options`, `first_of`, `backoff`, `ports`, `remote.client`.
"""
