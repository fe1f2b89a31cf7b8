"""The parameters of engines beyond OpenAI's, and the name by which each kind of engine knows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple


class EngineTraits(NamedTuple):
    """The traits of an engine that a translation for it depends on.

    Attributes:
        kind: what people call it, such as "vLLM"; empty where it is not known.
        context_length: tokens of context that a request may use; None where it is not known.
    """

    kind: str = ""
    context_length: int | None = None


# The names of each kind for Ollama's. Some engines refuse what they do not know, so that is left out.
_LLAMA_CPP: Final = {
    name: name
    for name in (
        "top_k",
        "min_p",
        "typical_p",
        "repeat_penalty",
        "repeat_last_n",
        "mirostat",
        "mirostat_tau",
        "mirostat_eta",
    )
}
_HUGGING_FACE: Final = {"top_k": "top_k", "min_p": "min_p", "repeat_penalty": "repetition_penalty"}
_NAMES: Final[Mapping[str, Mapping[str, str]]] = {
    "vLLM": _HUGGING_FACE,
    "SGLang": _HUGGING_FACE,
    "MLX": _HUGGING_FACE,
    "MAX": _HUGGING_FACE,
    "TabbyAPI": _HUGGING_FACE,
    "transformers": {},
}


def named_for(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options, by Ollama's names, under the names by which a kind of engine knows them.

    An engine of a kind that is not known here is taken for a relative of llama.cpp, as most are.
    """
    names = _NAMES.get(kind, _LLAMA_CPP)
    return {names[name]: value for name, value in options.items() if name in names}


def truncation_for(traits: EngineTraits, num_ctx: int | None) -> dict[str, Any]:
    """Return what makes an engine cut texts that are too long to embed; only vLLM can be told to.

    Args:
        num_ctx: tokens to which they are to be cut; None for as many as the model takes.
    """
    if traits.kind != "vLLM":
        return {}
    # vLLM refuses a length that is larger than its context, which Ollama cuts.
    fits = num_ctx is not None and traits.context_length is not None and num_ctx <= traits.context_length
    return {"truncate_prompt_tokens": num_ctx if fits else -1}
