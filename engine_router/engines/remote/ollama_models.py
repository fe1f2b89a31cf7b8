"""Models as an Ollama daemon tells of them: which names mean the same model, and how `/api/ps` lists it. Pure."""

from __future__ import annotations

import datetime as dt
import re
from typing import Final

from attrs import frozen

from engine_router.engines.readiness import as_text, dig

REGISTRY: Final = "registry.ollama.ai"
NAMESPACE: Final = "library"

# What is left of the largest duration that Go has is for ever; nobody asks for a century.
_FOR_EVER_S = 100 * 365 * 86400
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)")


def normal_name(model: str) -> str:
    """Return the one spelling that stands for all names of a model: short, and in lower case.

    To Ollama case means nothing, nor does what a name leaves out: `registry.ollama.ai/library/` at its beginning
    and `:latest` at its end. `:local` says that the model shall not run at ollama.com.
    """
    name = model.strip().lower().removesuffix(":local")
    parts = name.rpartition("://")[2].split("/")
    if len(parts) == 3 and parts[0] == REGISTRY:
        del parts[0]
    if len(parts) == 2 and parts[0] == NAMESPACE:
        del parts[0]
    return "/".join(parts).removesuffix(":latest")


@frozen
class Session:
    """A model in memory, by its entry in `/api/ps`.

    Attributes:
        left_s: seconds until it is unloaded if nobody uses it; None where that is never, or not told.
        context: the tokens of context that it was loaded with; 0 where that is not told.
    """

    left_s: float | None
    context: int

    @classmethod
    def read(cls, entry: object) -> Session:
        """Read an entry, whatever it lacks."""
        context, moment = dig(entry, "context_length"), _MOMENT.fullmatch(as_text(dig(entry, "expires_at")))
        left_s = None
        if moment is not None:
            until = dt.datetime.fromisoformat(moment[1] + moment[2].replace("Z", "+00:00"))
            left_s = (until - dt.datetime.now(dt.timezone.utc)).total_seconds()
        if left_s is not None and left_s > _FOR_EVER_S:
            left_s = None
        return cls(left_s, context if isinstance(context, int) else 0)
