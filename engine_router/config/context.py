"""`[context]`: what is kept on disk of the conversations that engines have read, and for how long."""

from __future__ import annotations

from attrs import frozen

from engine_router.config.kinds import Count, Deadline, Gigabytes, Name
from engine_router.config.options import option


@frozen(kw_only=True, repr=False)
class ContextConfig:
    """`[context]`: the limits of what engines with keep_context save."""

    max_gb: Gigabytes = option(
        20.0, "Disk space for saved conversations, in GB; above it those unused for longest are removed."
    )
    max_days: Count = option(7, "Days after which a saved conversation is removed; 0: only max_gb counts.")
    min_free_gb: Gigabytes = option(5.0, "Free disk space, in GB, below which nothing is saved.")
    save_timeout_s: Deadline = option(
        10.0,
        "Seconds that a stop waits for conversations to be saved, and a request for its own to be restored.",
    )
    encryption_key: Name | None = option(
        None,
        "Key that encrypts saved conversations (extra encryption); ${env:NAME} keeps it out of the file. Absent: they are not "
        "encrypted.",
    )
    plain_dir: Name | None = option(
        None,
        "With encryption_key: folder where llama.cpp writes and reads a conversation, not encrypted, for the moments of a save "
        "or a restore; best one in memory, such as /dev/shm/engine-router. Absent: the folder of the saved ones.",
    )
    shared_by: tuple[Name, ...] = option(
        (),
        "Names of keys that may use each other's saved conversations, where their beginnings are the same. Other keys use "
        "only their own.",
    )
