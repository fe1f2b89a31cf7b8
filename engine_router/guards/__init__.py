"""Guards against whatever comes from outside: limits, masking of secrets, cleaning of foreign text, bounded commands.

Anything may import from here; nothing here imports another room.
"""
