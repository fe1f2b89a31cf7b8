"""GGUF files for tests: headers as real ones have them, and weights that take no room on the disk."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

Value = int | bool | float | str | Sequence[int] | Sequence[str]

MODEL: dict[str, Value] = {
    "general.type": "model",
    "general.file_type": 15,
    "qwen3.context_length": 40960,
    "qwen3.block_count": 12,
    "qwen3.embedding_length": 1024,
    "qwen3.attention.head_count": 16,
    "qwen3.attention.head_count_kv": 8,
    "tokenizer.chat_template": "{% if tools %}{{ tools }}{% endif %}",
}


def gguf_file(
    path: Path,
    architecture: str = "qwen3",
    keys: Mapping[str, Value] | None = None,
    *,
    tensors: int = 100,
    vocabulary: int = 3,
    cut: int = 0,
) -> Path:
    """Write a GGUF file.

    Args:
        keys: those of its header, besides `general.architecture`; by default those of a small model.
        tensors: how many it has, of 4 KB each.
        vocabulary: how many tokens, and merges, its tokenizer has.
        cut: so many bytes at its end are missing.
    """
    found: dict[str, Value] = {"general.architecture": architecture} if architecture else {}
    found |= MODEL if keys is None else keys
    if vocabulary:
        found["tokenizer.ggml.tokens"] = [f"tok{number}" for number in range(vocabulary)]
        found["tokenizer.ggml.merges"] = [f"to k{number}" for number in range(vocabulary)]
    data = [b"GGUF", struct.pack("<IQQ", 3, tensors, len(found))]
    data += [_text(key) + _value(value) for key, value in found.items()]
    data += [
        _text(f"blk.{number}.weight") + struct.pack("<IQIQ", 1, 1024, 0, 4096 * number)
        for number in range(tensors)
    ]
    header = b"".join(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(header)
        if tensors:
            file.truncate(-(-len(header) // 32) * 32 + 4096 * tensors - cut)
    return path


def projector_file(path: Path, **clip: Value) -> Path:
    """Write a projector; `projector_type="gemma3"`, `vision__projection_dim=2560` become keys of `clip`."""
    keys = {f"clip.{key.replace('__', '.')}": value for key, value in clip.items()}
    return gguf_file(path, "clip", {"clip.has_vision_encoder": True, **keys}, tensors=4, vocabulary=0)


def split_files(folder: Path, stem: str, parts: int, keys: Mapping[str, Value] | None = None) -> list[Path]:
    """Write a model in several files."""
    found = []
    for number in range(parts):
        own: dict[str, Value] = {"split.no": number, "split.count": parts, "split.tensors.count": 100 * parts}
        path = folder / f"{stem}-{number + 1:05}-of-{parts:05}.gguf"
        all_keys = {**(MODEL if keys is None else keys), **own} if number == 0 else own
        found.append(
            gguf_file(path, "qwen3" if number == 0 else "", all_keys, vocabulary=3 if number == 0 else 0)
        )
    return found


def safetensors_file(path: Path, *, cut: int = 0) -> Path:
    """Write a file of safetensors with one tensor of 4 KB."""
    header = json.dumps(
        {"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [1024], "data_offsets": [0, 4096]}}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header.encode())
        file.truncate(8 + len(header) + 4096 - cut)
    return path


def safetensors_folder(folder: Path, parts: int = 1) -> Path:
    """Write a folder of safetensors as transformers does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}')
    if parts == 1:
        safetensors_file(folder / "model.safetensors")
        return folder
    names = [f"model-{part:05}-of-{parts:05}.safetensors" for part in range(1, parts + 1)]
    for name in names:
        safetensors_file(folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(enumerate(names))}))
    return folder


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Value) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    kind = 8 if value and isinstance(value[0], str) else 5
    items = [_text(item) if isinstance(item, str) else struct.pack("<i", item) for item in value]
    return struct.pack("<IIQ", 9, kind, len(items)) + b"".join(items)
