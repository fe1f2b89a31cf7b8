"""OpenAI's dialect, and what all translations know of its chat completions."""
