"""Engines of type `process`: servers that the router starts and stops itself, with all that they start."""
