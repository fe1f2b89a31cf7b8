"""Residency: who is in memory, who waits, and what has to happen next.

`ledger` decides and is pure; `supervisor` is the one task that acts on it; `lease` is what a request holds. It knows
engines only through `engines.base`.
"""
