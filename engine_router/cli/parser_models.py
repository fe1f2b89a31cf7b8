"""The commands for files of models."""

from __future__ import annotations

from engine_router.cli.parser_options import Adder, add_address, add_json


def add_models(command: Adder) -> None:
    """Add pull and rm."""
    pull = command(
        "pull",
        "download a model from Hugging Face",
        "Download a model into Hugging Face's own cache, where every program finds it: the parts and the projector of\n"
        "a GGUF model (Q4_K_M, or what is nearest, unless a quantisation is named), or a safetensors repository.\n"
        "A download that breaks off, or is ended with Ctrl-C, goes on from there when the command is repeated.\n"
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
        "--no-wait", action="store_true", help="leave it to the running router, and end at once"
    )
    rm = command(
        "rm",
        "remove a model's files from the disk",
        "Remove the files of a model: by its name, or by its name on Hugging Face, whose cache keeps what other\n"
        "revisions use. Shows what goes, and asks first. A model that is resident is unloaded first: engine-router\n"
        "unload.",
        "rm qwen3-8b:q4_k_m",
        "rm hf:unsloth/Qwen3-8B-GGUF:Q6_K",
        "rm hf:unsloth/Qwen3-8B-GGUF --yes",
    )
    rm.add_argument(
        "name", metavar="MODEL", help="a model, or hf:user/repo, hf:user/repo:QUANT, hf:user/repo/FILE"
    )
    rm.add_argument("-y", "--yes", action="store_true", help="do not ask")
    for calling in (pull, rm):
        calling.add_argument(
            "--no-router", action="store_true", help="do it without the router, even if one is running"
        )
        add_address(calling)
        add_json(calling)
