"""Setting the router up: what this machine has, and `engines.toml` written and changed without the loss of a comment."""
