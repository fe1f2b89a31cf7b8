"""A small model with random weights that llama.cpp loads and generates real tokens from.

The model is of the architecture ``llama`` and has one token for each byte, so every text can be read. What it
generates is no language, but it looks like one: lower-case words of alternating consonants and vowels, with
commas and full stops. The weights are random except in two places. The first few numbers of each embedding say
what kind of character the token is, and no layer writes to these; the output weights turn them into the
probabilities of the characters that may follow. Everything else adds noise that depends on the prompt and on
the seed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Weights = npt.NDArray[np.float32]

_PROG: Final = "python -m engine_router.engines.llamacpp.tiny"

_HEAD_WIDTH: Final = 64
_BOS: Final = 256
_EOS: Final = 257
_VOCABULARY: Final = 258

_VOWELS: Final = "aeiou"
_CONSONANTS: Final = "tnsrldcmpbgvfkhwjz"

# Relative frequencies of the letters, in the order above; the rare ones differ little.
_VOWEL_WEIGHTS: Final = (8, 12, 7, 8, 3)
_CONSONANT_WEIGHTS: Final = (9, 7, 6, 6, 4, 4, 3, 3, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1)

# The probability of each kind of character after each kind, and of the end of the text after a full stop.
_KINDS: Final = ("space", "vowel", "consonant", "comma", "stop")
_FOLLOWS: Final = {
    "space": {"vowel": 0.25, "consonant": 0.75},
    "vowel": {"consonant": 0.6, "space": 0.28, "vowel": 0.04, "comma": 0.03, "stop": 0.05},
    "consonant": {"vowel": 0.84, "space": 0.12, "consonant": 0.04},
    "comma": {"space": 1.0},
    "stop": {"space": 0.9, "end": 0.1},
}
_IMPOSSIBLE: Final = -25.0  # natural logarithm; far below what the noise can lift

# Sizes of the parts of the last layer's output, as squares of lengths: the kind is 1.
_NOISE_OF_EMBEDDING: Final = 0.25
_NOISE_OF_LAYERS: Final = 0.2
_NOISE_OF_LOGITS: Final = 0.7  # standard deviation

_CHAT_TEMPLATE: Final = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def write_tiny_gguf(
    path: str | Path,
    *,
    name: str = "tiny",
    layers: int = 2,
    width: int = 64,
    seed: int = 0,
    context_length: int = 2048,
) -> Path:
    """Write a model file; the same arguments give the same weights.

    The layers take about ``40 * layers * width**2`` bytes and the vocabulary ``2064 * width``: the defaults make
    0.5 MB, ``layers=5, width=1024`` makes 212 MB.

    Args:
        path: the file to write; an existing one is replaced once the new one is complete.
        name: the model's name in its metadata.
        layers: transformer blocks, at least 1.
        width: the length of an embedding, a multiple of 64.
        seed: what the random weights depend on.
        context_length: the tokens of context that the metadata promise.

    Returns:
        The path.

    Raises:
        ValueError: a size is out of range.
        ImportError: the packages ``gguf`` or ``numpy`` are not installed.
        OSError: the file cannot be written.
    """
    if layers < 1 or context_length < 1 or seed < 0:
        raise ValueError("layers and context_length must be at least 1, seed at least 0")
    if width < _HEAD_WIDTH or width % _HEAD_WIDTH:
        raise ValueError(f"width must be a multiple of {_HEAD_WIDTH}: {width}")
    target = Path(path)
    partial = target.with_name(f"{target.name}.partial")
    try:
        _write(partial, name=name, layers=layers, width=width, seed=seed, context_length=context_length)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _write(path: Path, *, name: str, layers: int, width: int, seed: int, context_length: int) -> None:
    # Imported here because both packages are optional, and slow to import.
    import gguf  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_context_length(context_length)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(width // _HEAD_WIDTH)
    writer.add_head_count_kv(width // _HEAD_WIDTH)
    writer.add_rope_dimension_count(_HEAD_WIDTH)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(_VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*_byte_tokens(), "<s>", "</s>"])
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * 2)
    writer.add_token_merges(["a b"])  # llama.cpp wants a list; this pair makes no token of the vocabulary
    writer.add_bos_token_id(_BOS)
    writer.add_eos_token_id(_EOS)
    writer.add_add_bos_token(False)
    writer.add_chat_template(_CHAT_TEMPLATE)

    shapes = _shapes(layers, width)
    for tensor, shape in shapes.items():
        writer.add_tensor_info(tensor, shape, np.dtype(np.float32), 4 * math.prod(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    # One tensor at a time, so that a large file needs no large memory.
    for weights in _weights(shapes, layers, width, np.random.default_rng(seed)):
        writer.write_tensor_data(weights)
    writer.close()


def _shapes(layers: int, width: int) -> dict[str, tuple[int, ...]]:
    """Name the tensors and their shapes, in the order in which they are written."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (_VOCABULARY, width),
        "output_norm.weight": (width,),
        "output.weight": (_VOCABULARY, width),
    }
    for layer in range(layers):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (width,),
            f"blk.{layer}.attn_q.weight": (width, width),
            f"blk.{layer}.attn_k.weight": (width, width),
            f"blk.{layer}.attn_v.weight": (width, width),
            f"blk.{layer}.attn_output.weight": (width, width),
            f"blk.{layer}.ffn_norm.weight": (width,),
            f"blk.{layer}.ffn_gate.weight": (2 * width, width),
            f"blk.{layer}.ffn_up.weight": (2 * width, width),
            f"blk.{layer}.ffn_down.weight": (width, 2 * width),
        }
    return shapes


def _weights(
    shapes: dict[str, tuple[int, ...]], layers: int, width: int, random: np.random.Generator
) -> Iterator[Weights]:
    """Yield the tensors in the order of `shapes`."""
    import numpy as np  # noqa: PLC0415

    kinds = len(_KINDS)
    for name, shape in shapes.items():
        if name.endswith("norm.weight"):
            yield np.ones(shape, dtype=np.float32)
            continue
        weights = random.standard_normal(shape, dtype=np.float32)
        if name == "token_embd.weight":
            weights *= math.sqrt(_NOISE_OF_EMBEDDING / width)
            weights[:, :kinds] = _kind_of_tokens()
        elif name == "output.weight":
            # The last norm scales what it gets to the length sqrt(width), of which the kind has this part.
            total = 1 + _NOISE_OF_EMBEDDING + _NOISE_OF_LAYERS
            weights *= _NOISE_OF_LOGITS / math.sqrt(width * (1 - 1 / total))
            weights[:, :kinds] = np.array(_logits(), dtype=np.float32).T / math.sqrt(width / total)
        elif name.endswith(("attn_output.weight", "ffn_down.weight")):
            weights *= math.sqrt(_NOISE_OF_LAYERS / (2 * layers * width * shape[1]))
            weights[:kinds] = 0  # no layer changes what kind of character it was
        else:
            weights *= 1 / math.sqrt(width)
        yield weights


def _byte_tokens() -> list[str]:
    """Name the 256 bytes as GPT-2's vocabulary does: by themselves, or from U+0100 on if they do not print."""
    stand_in = iter(range(0x100, 0x200))
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    return [chr(byte if byte in prints else next(stand_in)) for byte in range(256)]


def _kind_of_tokens() -> list[list[float]]:
    """Give each token a row with a 1 at its kind; what is no letter and no mark counts as a space."""
    rows = [[1.0, 0.0, 0.0, 0.0, 0.0] for _ in range(_VOCABULARY)]
    for kind, characters in enumerate(("", _VOWELS, _CONSONANTS + "qxy", ",;:", ".!?")):
        for character in characters + characters.upper():
            rows[ord(character)] = [float(index == kind) for index in range(len(_KINDS))]
    return rows


def _logits() -> list[list[float]]:
    """Give each kind a row with the logarithms of the probabilities of the next token."""
    ends: dict[str, dict[int, float]] = {
        "space": {ord(" "): 1.0},
        "vowel": _shares(_VOWELS, _VOWEL_WEIGHTS),
        "consonant": _shares(_CONSONANTS, _CONSONANT_WEIGHTS),
        "comma": {ord(","): 1.0},
        "stop": {ord("."): 1.0},
        "end": {_EOS: 1.0},
    }
    rows = []
    for kind in _KINDS:
        row = [_IMPOSSIBLE] * _VOCABULARY
        for follower, probability in _FOLLOWS[kind].items():
            for token, share in ends[follower].items():
                row[token] = math.log(probability * share)
        rows.append(row)
    return rows


def _shares(letters: str, weights: Sequence[int]) -> dict[int, float]:
    return {ord(letter): weight / sum(weights) for letter, weight in zip(letters, weights, strict=True)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a model file as the command line asks.

    Args:
        arguments: the command line without the program's name; None takes it from the process.

    Returns:
        0, or 1 after one line on stderr that says what failed.

    Raises:
        SystemExit: with code 2 for wrong usage, 0 after ``--help``.
    """
    parser = argparse.ArgumentParser(
        prog=_PROG,
        description="Write a small GGUF model with random weights, for trials and tests.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar="PATH", help="the file to write")
    parser.add_argument("--name", default="tiny", help="the model's name in its metadata")
    parser.add_argument("--layers", type=int, default=2, help="transformer blocks, 40 * WIDTH**2 bytes each")
    parser.add_argument("--width", type=int, default=64, help="length of an embedding, a multiple of 64")
    parser.add_argument("--seed", type=int, default=0, help="what the random weights depend on")
    parser.add_argument("--context-length", type=int, default=2048, help="tokens of context")
    options = parser.parse_args(arguments)
    try:
        path = write_tiny_gguf(**vars(options))
    except ImportError as error:
        fault = f"{error}: pip install 'engine-router[llamacpp]'"
    except (OSError, ValueError) as error:
        fault = str(error)
    else:
        sys.stdout.write(f"{path}: {path.stat().st_size / 1e6:.1f} MB\n")
        return 0
    sys.stderr.write(f"{_PROG}: error: {fault}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
