"""The hot path: see README.md in this folder."""
