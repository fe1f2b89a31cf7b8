"""One request's way: body, plan, lease, exchange, answer, keep-alive frames, credentials and access.

Both tiers of the server and `web/` call it; it knows neither. `handler` is where a request enters.
"""
