"""The context that an engine keeps: what it has read of conversations, saved before it stops, restored when they go on.

`slots` knows which conversation is in which slot of a llama.cpp server, `store` the files of those that were saved,
and `running` puts a request into the slot, and its conversation back, while the server runs. `keeper` holds it all
together for one router.
"""
