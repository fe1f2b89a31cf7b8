"""Clients that `engine-router launch` starts: what each has to be told, as data, and how their files are changed."""

NAMES = (
    "claude", "codex", "opencode", "aider", "qwen", "crush", "cline", "goose", "copilot", "vscode", "droid", "open-webui",
    "ollama",
)  # fmt: skip
"""The names of the clients in `table.py`, which a help page need not load."""
