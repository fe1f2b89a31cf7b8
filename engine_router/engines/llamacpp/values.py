"""Converters from the text of an option to its value.

Each raises `argparse.ArgumentTypeError`, which argparse turns into its message for wrong usage.
"""

import argparse
import json
from pathlib import Path
from typing import Final

# What matches the experts of a mixture-of-experts model, and the buffer to keep them in.
EXPERTS_ON_CPU: Final = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU"

# llama.cpp keeps one share per device in an array of this fixed length.
_TENSOR_SPLIT_LENGTH: Final = 128


def text(text: str) -> str:
    """Take the text as it is."""
    return text


def parts(text: str) -> list[str]:
    """Split a list at its commas."""
    return [part for part in text.split(",") if part]


def names(text: str) -> set[str]:
    """Split a list at its commas; no order."""
    return set(parts(text))


def whole(text: str) -> int:
    """Read a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number: {text}") from None


def natural(text: str) -> int:
    """Read a whole number of 0 or more."""
    count = whole(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f"must not be negative: {text}")
    return count


def port(text: str) -> int:
    """Read a TCP port."""
    count = whole(text)
    if not 0 <= count <= 65535:
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535: {text}")
    return count


def number(text: str) -> float:
    """Read a number with or without a fraction."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number: {text}") from None


def gpu_layers(text: str) -> int:
    """Read a count of layers, in llama.cpp's numbers for auto and all."""
    known = {"auto": -1, "all": -2}
    return known[text] if text in known else whole(text)


def on_off(text: str) -> bool:
    """Read a switch."""
    if text not in {"on", "off"}:
        raise argparse.ArgumentTypeError(f"must be on or off: {text}")
    return text == "on"


def shares(text: str) -> list[float]:
    """Read each device's share, filled up with zeros."""
    given = [number(part) for part in text.replace("/", ",").split(",")]
    if len(given) > _TENSOR_SPLIT_LENGTH:
        raise argparse.ArgumentTypeError(f"at most {_TENSOR_SPLIT_LENGTH} devices")
    return given + [0.0] * (_TENSOR_SPLIT_LENGTH - len(given))


def experts_of_layers(text: str) -> list[str]:
    """Read a count of layers; return what keeps their experts in main memory."""
    return [rf"blk\.{layer}{EXPERTS_ON_CPU}" for layer in range(natural(text))]


def adapters(text: str) -> list[tuple[str, float]]:
    """Read paths of adapters to apply in full."""
    return [(path, 1.0) for path in parts(text)]


def scaled_adapters(text: str) -> list[tuple[str, float]]:
    """Read pairs of a path and a factor."""
    pairs = (part.rpartition(":") for part in parts(text))
    return [(path, number(scale)) for path, _, scale in pairs]


def text_of(path: str) -> str:
    """Read a file's text."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read {path}: {error.strerror}") from error


def lines_of(path: str) -> list[str]:
    """Read a file's lines, without blank ones."""
    return [line.strip() for line in text_of(path).splitlines() if line.strip()]


def folder(text: str) -> str:
    """Read the path of an existing folder."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"not a folder: {text}")
    return text.rstrip("/") + "/"  # llama.cpp appends the file's name as it is


def template_values(text: str) -> dict[str, str]:
    """Read a JSON object; return its values as JSON, which is how llama.cpp holds them."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if type(values) is not dict:
        raise argparse.ArgumentTypeError(f"must be a JSON object: {text}")
    return {name: json.dumps(value) for name, value in values.items()}
