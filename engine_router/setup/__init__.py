"""Setting the router up: `engines.toml` is written, and changed without the loss of a comment."""
