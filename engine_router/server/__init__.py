"""The server: the accept loop, the fast HTTP/1.1 tier, and Hypercorn for whatever is unusual. See README.md in this folder."""
