"""Anthropic's dialect, also in front of an engine that has OpenAI's chat completions only.

`dialect` is loaded with the package; `answers.translate` and `tokens.count_tokens_body` when a request needs them.
"""
