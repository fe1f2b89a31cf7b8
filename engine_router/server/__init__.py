"""The HTTP server: the accept loop, the fast HTTP/1.1 tier, and Hypercorn for whatever is unusual.

Import `serve` for `serve` and `listen`; everything else serves it. `web/` takes `fast_connection.LINGER_S` and
`ordinary_connection.Stalls`, which both tiers go by. README.md in this folder draws the hot path.
"""
