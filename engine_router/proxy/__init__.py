"""The proxy: one client's request on its way to an engine, and the answer on its way back.

Both tiers of the server and `web/` import from here; the room imports neither, and no socket is opened in it.

- `handler`: `ProxyHandler` answers a proxied request; `ProxyHandler.enter` is how any other route gets a lease for a client.
- `snapshot`: the configuration in force, with everything that is derived from it.
- `access`: names, keys, pages of other sites, priorities. `routes`: the proxied paths.
- `request_body`, `streamed_body`: `IncomingRequest` and its body. `response_body`: the body of the answer.
- `forward_plan`, `exchange`: the plan of a request, and its exchange with the engine; `load_only` for one that only loads.
- `wait_status`: what a request waits for, in words.
"""
