"""The identity of what saved context fits into: the same weights, the same build, the same sizes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from engine_router.config.process import SLOT_SAVE_PATH
from engine_router.engines.context.store import file_state

# What differs from one start to the next, or between computers, and says nothing of the context.
_BESIDE: Final = ("--port", "--host", "--api-key", SLOT_SAVE_PATH)
_WEIGHTS: Final = (".gguf", ".bin", ".safetensors")


def engine_digest(
    argv: Sequence[str], folder: Path, env: Mapping[str, str], props: Mapping[str, Any]
) -> tuple[str, tuple[str, int, int] | None]:
    """Return the digest of a running server, and the state of its model's file where that is known.

    Everything on its command line counts, with the size and the time of each file of weights that is named there, be it
    the model or an adapter, and of the program itself. A log that is named there counts by its name only. Blocks.

    Args:
        argv: the command that started it.
        folder: what paths in it are relative to.
        env: variables that were added for it.
        props: what it says of itself at `/props`.
    """
    model = props.get("model_path")
    weights = _state_of(model, folder) if isinstance(model, str) and model else None
    words = [word for at, word in enumerate(argv) if not _is_beside(argv, at)]
    program = shutil.which(argv[0]) if argv else None
    facts = {
        "argv": words,
        "files": [_state_of(part, folder) for word in words for part in _weights_in(word)],
        "program": None if program is None else _state_of(program, folder),
        "env": {name: value for name, value in sorted(env.items()) if name.startswith(("LLAMA_", "GGML_"))},
        "weights": weights,
        "build": props.get("build_info"),
        "slots": props.get("total_slots"),
        "context": _context_of(props),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest(), weights


def _weights_in(word: str) -> list[str]:
    """Return the files of weights in a word: a list, and each of it before a factor, as in `--lora-scaled FILE:0.5`."""
    parts = (path for part in word.split(",") for path in (part, part.rpartition(":")[0]))
    return [path.rpartition("=")[2] for path in parts if path.lower().endswith(_WEIGHTS)]


def _is_beside(argv: Sequence[str], at: int) -> bool:
    return argv[at].partition("=")[0] in _BESIDE or (at > 0 and argv[at - 1] in _BESIDE)


def _state_of(word: str, folder: Path) -> tuple[str, int, int] | None:
    """Return the state of the file that a word names; None where there is none."""
    try:
        path = folder / Path(word).expanduser()
        return file_state(str(path)) if path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # a name too long, or of nobody's home
        return None


def _context_of(props: Mapping[str, Any]) -> object:
    settings = props.get("default_generation_settings")
    return settings.get("n_ctx") if isinstance(settings, Mapping) else None
