"""Engines: how each kind is started, loaded, probed, put to sleep and stopped.

`base` is the protocol that residency knows; `build` makes engines from the configuration. `process/` owns its servers,
`remote/` controls servers and daemons that run by themselves, `sleep/` gives memory back without a stop.
"""
