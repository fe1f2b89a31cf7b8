"""Anthropic's dialect, also in front of an engine that has OpenAI's chat completions only."""
