"""Models: names, facts, files, endpoints, and estimates of memory, before and while an engine serves them.

Imports engines, dialects and what is below them; nothing of residency.
"""
