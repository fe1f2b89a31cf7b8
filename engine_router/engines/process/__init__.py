"""Engines of type `process`: servers that the router starts and stops itself, with all that they start.

`process_engine` is the engine, for `engines.build`. `process_tree` is the seam for what differs by platform; its
`Guardian` is started by the composition.
"""
