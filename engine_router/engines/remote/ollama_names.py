"""Names of Ollama's models: which of them mean the same model to its daemon. Pure."""

from __future__ import annotations

from typing import Final

REGISTRY: Final = "registry.ollama.ai"
NAMESPACE: Final = "library"


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
