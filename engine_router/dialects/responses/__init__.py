"""OpenAI's `/v1/responses` in front of an engine that has chat completions only.

`answers.translate` is all that other rooms import, when a request needs it.
"""
