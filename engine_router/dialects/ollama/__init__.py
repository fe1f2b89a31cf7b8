"""Ollama's dialect, also in front of an engine that speaks OpenAI's."""
