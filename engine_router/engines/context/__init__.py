"""The context that an engine keeps: what it has read of conversations, saved before it stops, restored when they go on.

`slots` knows which conversation is in which slot of a llama.cpp server, and `placement` puts requests into them, so that
no owner's requests meet another's. `store` has the files of those that were saved, which `sealing` encrypts, and `running`
saves and restores them while the server runs. `figures` counts what that was worth. `keeper` holds it all together for one
router.
"""
