"""Models: what is known of them before, and while, an engine serves them."""
