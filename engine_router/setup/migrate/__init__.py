"""Other routers' configurations: each format is read into one `Draft`, which is rendered as an `engines.toml`, with a report."""
