"""Engines of type `container`: servers that Docker or Podman run for the router.

`container_engine` is the engine, for `engines.build`. `daemon` makes the calls of Docker's API over its UNIX socket,
`running_container` is one container from its creation to its removal, `ownership` tells which router a container belongs
to, and `removal` is the program that removes one when its router has died: it needs nothing but the standard library.
"""
