"""The client leg: requests to engines, over pooled connections.

- `client`: `Upstream` and `Exchange`, for the traffic of clients. `forwarding`: the requests of clients as an engine gets
  them (`EngineRequests`), and the headers of its answers. `http1`: requests and responses without sockets.
- `control_client`, `control_answers`, `control_errors`: the router's own calls; `control_http`: httpx, which makes them.
- `socket_stream`: a connected socket, which the server uses too. `connect` belongs to `client` alone.
"""
