"""The commands for files of models."""

from __future__ import annotations

import argparse

from engine_router.cli.parser_options import Adder, add_address, add_json

_MOST_TOKENS = 1_000_000


def _lengths(words: str) -> tuple[int, ...]:
    """Return the lengths of prompts, in tokens."""
    return tuple(_tokens(word) for word in words.split(","))


def _tokens(word: str) -> int:
    if not word.strip().isascii() or not word.strip().isdigit() or not 1 <= int(word) <= _MOST_TOKENS:
        raise argparse.ArgumentTypeError(f"expected a number of tokens from 1 to {_MOST_TOKENS:,}")
    return int(word)


def add_models(command: Adder) -> None:
    """Add pull, rm and bench."""
    pull = command(
        "pull",
        "download a model from Hugging Face",
        "Download a model into Hugging Face's own cache, where every program finds it: the parts and the projector of\n"
        "a GGUF model (Q4_K_M or the nearest quantisation, unless you name one), or a safetensors repository.\n"
        "Repeat the command to resume an interrupted download.\n"
        "A running router downloads as a job, and pauses it while a model is starting. Gated models need a token\n"
        "(HF_TOKEN, or `hf auth login`) where the download runs.",
        "pull hf:unsloth/Qwen3-8B-GGUF",
        "pull hf:unsloth/Qwen3-8B-GGUF:Q6_K",
        "pull https://huggingface.co/Qwen/Qwen3-8B",
        "pull https://example.org/model.gguf --to ~/models",
        variables=(
            ("HF_TOKEN", "the token for gated models"),
            ("HF_HOME, HF_HUB_CACHE", "the folder of Hugging Face's cache"),
            ("HF_ENDPOINT", "another hub"),
        ),
    )
    pull.add_argument(
        "name", metavar="NAME", help="hf:user/repo, hf:user/repo:QUANT, hf:user/repo/FILE, or a URL"
    )
    pull.add_argument("--revision", metavar="REV", default="", help="branch, tag or commit (default: main)")
    pull.add_argument("--no-mmproj", action="store_true", help="leave out the projector for images and sound")
    pull.add_argument(
        "--to",
        metavar="DIR",
        default="",
        help="folder for the file of a plain URL (default: llama.cpp's cache)",
    )
    pull.add_argument(
        "--no-wait", action="store_true", help="let the running router download it, and return at once"
    )
    rm = command(
        "rm",
        "remove a model's files from the disk",
        "Remove the files of a model, given its name in the router or on Hugging Face. Files that other revisions in the\n"
        "cache use are kept. Lists the files and asks first. Unload a resident model before: engine-router unload.",
        "rm qwen3-8b:q4_k_m",
        "rm hf:unsloth/Qwen3-8B-GGUF:Q6_K",
        "rm hf:unsloth/Qwen3-8B-GGUF --yes",
    )
    rm.add_argument(
        "name", metavar="MODEL", help="a model, or hf:user/repo, hf:user/repo:QUANT, hf:user/repo/FILE"
    )
    rm.add_argument("-y", "--yes", action="store_true", help="remove without asking")
    bench = command(
        "bench",
        "measure a model: start, speed, memory",
        "Start a model anew, and measure how long that takes, how fast it reads prompts of several lengths and writes answers\n"
        "to them, and how much memory it took. Prompts are random words, so that no cache knows them. The router remembers\n"
        "the figures: engine-router models MODEL and the status page show them.",
        "bench qwen3-30b",
        "bench qwen3-30b --contexts 1024,8192,32768 --tokens 256",
        "bench qwen3-30b --no-load --json",
    )
    bench.add_argument("model", metavar="MODEL", help="a model id or alias")
    bench.add_argument(
        "--contexts",
        metavar="N,N",
        type=_lengths,
        help="lengths of the prompts in tokens (default: 512,4096)",
    )
    bench.add_argument(
        "--tokens", metavar="N", type=_tokens, default=128, help="most tokens of each answer (default: 128)"
    )
    bench.add_argument(
        "--rounds",
        metavar="N",
        type=int,
        choices=range(1, 21),
        default=2,
        help="prompts of each length (default: 2)",
    )
    bench.add_argument("--no-load", action="store_true", help="do not unload and start the model first")
    add_address(bench)
    add_json(bench)
    for calling in (pull, rm):
        calling.add_argument("--no-router", action="store_true", help="do not use a running router")
        add_address(calling)
        add_json(calling)
