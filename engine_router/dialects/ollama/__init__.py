"""Ollama's dialect, also in front of an engine that speaks OpenAI's.

`dialect` is loaded with the package, `load_only` with the proxy; `answers.translate` when a request needs it.
"""
