"""OpenAI's `/v1/responses` in front of an engine that has chat completions only."""
