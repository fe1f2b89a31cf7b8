"""Completion for shells: what the command line has, as data, and a script made of that for each shell."""

SHELLS = ("bash", "zsh", "fish")
LIVE = ("models", "engines", "names")
"""What the scripts ask the running router for."""
