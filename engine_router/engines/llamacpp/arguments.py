"""The command line of the llama.cpp server: `llama-server`'s flag names, read by argparse.

An option's ``dest`` is the field of ``xllamacpp.CommonParams`` that it sets, with dots for nested fields.
Options that were not given leave no trace in the namespace, so llama.cpp's own defaults stay in force. The few
values that need more than an assignment are turned into fields by `engine_router.engines.llamacpp.parameters`.
"""

import argparse
from typing import Final

from engine_router.engines.llamacpp import values
from engine_router.engines.llamacpp.generation import SWITCH, add_chat, add_sampling, add_speculation
from engine_router.engines.llamacpp.listening import add_endpoints, add_listening
from engine_router.engines.llamacpp.values import EXPERTS_ON_CPU

PROG: Final = "python -m engine_router.llamacpp"

_DESCRIPTION: Final = """\
llama.cpp's HTTP server for one GGUF model. The flags have the names and meanings of llama-server; a flag that
is not given has llama.cpp's default."""

_EPILOG: Final = """\
GET /health answers 503 while the model loads and 200 once it is ready. SIGTERM and SIGINT end the process at
once: with exit code 0 when the model is loaded, by the signal itself while it is still loading.

exit codes: 0 ended by SIGTERM or SIGINT, 1 the server could not start, 2 wrong usage"""

_CACHE_TYPES: Final = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
_ALL_VERBOSE: Final = 2**31 - 1  # the largest C int: every message


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; parsing exits with code 2 and the usage on stderr when the arguments are wrong."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        usage="%(prog)s -m FILE [--port N] [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    _add_model(parser.add_argument_group("model"))
    add_listening(parser.add_argument_group("listening"))
    _add_context(parser.add_argument_group("context and batches"))
    _add_placement(parser.add_argument_group("memory and devices"))
    add_endpoints(parser.add_argument_group("endpoints"))
    add_chat(parser.add_argument_group("chat"))
    add_sampling(parser.add_argument_group("sampling, where the request does not say"))
    add_speculation(parser.add_argument_group("speculative decoding"))
    _add_logging(parser.add_argument_group("log"))
    return parser


def _add_model(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("-m", "--model", dest="model.path", metavar="FILE", required=True, help="the GGUF file to serve")
    add("-mm", "--mmproj", dest="mmproj.path", metavar="FILE", help="the multimodal projector of the model")
    add(
        "--no-mmproj-offload",
        dest="mmproj_use_gpu",
        action="store_false",
        help="keep the projector off the GPU",
    )
    add(
        "-a",
        "--alias",
        dest="model_alias",
        type=values.names,
        metavar="NAME[,NAME]",
        help="the model's names in answers; the first in alphabetical order is used (default: from the file)",
    )
    add(
        "--lora",
        dest="lora_adapters",
        action="extend",
        type=values.adapters,
        metavar="FILE[,FILE]",
        help="LoRA adapters to apply in full",
    )
    add(
        "--lora-scaled",
        dest="lora_adapters",
        action="extend",
        type=values.scaled_adapters,
        metavar="FILE:SCALE[,...]",
        help="LoRA adapters to apply by a factor",
    )


def _add_context(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "-c",
        "--ctx-size",
        dest="n_ctx",
        type=values.natural,
        metavar="N",
        help="tokens of context, shared by all slots (default: 0, what the model was trained with)",
    )
    add(
        "-np",
        "--parallel",
        dest="n_parallel",
        type=values.whole,
        default=-1,
        metavar="N",
        help="slots: requests answered at the same time (default: -1, four slots that share the whole context)",
    )
    add(
        "-kvu",
        "--kv-unified",
        dest="kv_unified",
        action="store_true",
        help="let all slots share one KV cache",
    )
    add(
        "-b",
        "--batch-size",
        dest="n_batch",
        type=values.natural,
        metavar="N",
        help="logical batch (default: 2048)",
    )
    add(
        "-ub",
        "--ubatch-size",
        dest="n_ubatch",
        type=values.natural,
        metavar="N",
        help="physical batch (default: 512)",
    )
    add(
        "-n",
        "--predict",
        "--n-predict",
        dest="n_predict",
        type=values.whole,
        metavar="N",
        help="most tokens of one answer",
    )
    add(
        "-t",
        "--threads",
        dest="cpuparams.n_threads",
        type=values.whole,
        metavar="N",
        help="threads that generate",
    )
    add(
        "-tb",
        "--threads-batch",
        dest="cpuparams_batch.n_threads",
        type=values.whole,
        metavar="N",
        help="threads that read prompts (default: as --threads)",
    )
    for key in "kv":
        add(
            f"-ct{key}",
            f"--cache-type-{key}",
            dest=f"cache_type_{key}",
            choices=_CACHE_TYPES,
            help=f"number format of the {key.upper()} half of the KV cache (default: f16)",
        )
    add(
        "-cram",
        "--cache-ram",
        dest="cache_ram_mib",
        type=values.whole,
        metavar="MIB",
        help="prompt cache in memory",
    )
    add(
        "--cache-reuse",
        dest="n_cache_reuse",
        type=values.whole,
        metavar="N",
        help="smallest chunk to reuse by shifting",
    )
    add(
        "-ctxcp",
        "--ctx-checkpoints",
        dest="n_ctx_checkpoints",
        type=values.whole,
        metavar="N",
        help="checkpoints a slot",
    )
    add("--swa-full", action="store_true", help="keep the whole cache of sliding-window layers")
    add(
        "--context-shift",
        dest="ctx_shift",
        action="store_true",
        help="drop the oldest tokens of a full context",
    )
    add("--no-context-shift", dest="ctx_shift", action="store_false", help="stop at a full context (default)")
    add(
        "--rope-scaling",
        dest="rope_scaling_type",
        choices=("none", "linear", "yarn"),
        help="how RoPE is scaled",
    )
    add("--rope-freq-base", type=values.number, metavar="N", help="base frequency of RoPE")
    add(
        "--rope-freq-scale",
        type=values.number,
        metavar="N",
        help="factor on RoPE's frequencies; 1/N spreads them N times",
    )
    add(
        "--yarn-orig-ctx",
        type=values.natural,
        metavar="N",
        help="context the model was trained with, for YaRN",
    )


def _add_placement(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "-ngl",
        "--gpu-layers",
        "--n-gpu-layers",
        dest="n_gpu_layers",
        type=values.gpu_layers,
        metavar="N|auto|all",
        help="layers to keep on the GPU (default: auto)",
    )
    add(
        "-fa",
        "--flash-attn",
        dest="flash_attn_type",
        choices=SWITCH,
        nargs="?",
        const="on",
        help="flash attention",
    )
    add(
        "-fit",
        "--fit",
        dest="fit_params",
        type=values.on_off,
        metavar="on|off",
        help="fit what is not set to free memory",
    )
    add(
        "-sm",
        "--split-mode",
        dest="split_mode",
        choices=("none", "layer", "row", "tensor"),
        help="over several GPUs",
    )
    add(
        "-ts",
        "--tensor-split",
        dest="tensor_split",
        type=values.shares,
        metavar="N,N,...",
        help="share of each GPU",
    )
    add(
        "-mg",
        "--main-gpu",
        dest="main_gpu",
        type=values.natural,
        metavar="N",
        help="the GPU to use with --split-mode none",
    )
    add(
        "-lm",
        "--load-mode",
        dest="load_mode",
        choices=("auto", "none", "mmap", "mlock", "mmap+mlock", "dio"),
        help="how the file is read: mapped, copied, locked in memory, or around the page cache",
    )
    add("--mmap", dest="load_mode", action="store_const", const="mmap", help="as --load-mode mmap")
    add("--no-mmap", dest="load_mode", action="store_const", const="none", help="as --load-mode none")
    add(
        "--mlock",
        dest="load_mode",
        action="store_const",
        const="mmap+mlock",
        help="as --load-mode mmap+mlock",
    )
    add(
        "-ot",
        "--override-tensor",
        dest="tensor_buft_overrides",
        action="extend",
        type=values.parts,
        metavar="PATTERN=BUFFER[,...]",
        help="keep the tensors whose names match in this buffer, for instance CPU",
    )
    add(
        "-cmoe",
        "--cpu-moe",
        dest="tensor_buft_overrides",
        action="append_const",
        const=EXPERTS_ON_CPU,
        help="keep all experts in main memory",
    )
    add(
        "-ncmoe",
        "--n-cpu-moe",
        dest="tensor_buft_overrides",
        action="extend",
        type=values.experts_of_layers,
        metavar="N",
        help="keep the experts of the first N layers in main memory",
    )
    add(
        "-nkvo",
        "--no-kv-offload",
        dest="no_kv_offload",
        action="store_true",
        help="keep the KV cache off the GPU",
    )
    add("--numa", choices=("distribute", "isolate", "numactl"), help="how threads spread over NUMA nodes")
    add(
        "--no-warmup",
        dest="warmup",
        action="store_false",
        help="do not run the model once before it is ready",
    )
    add(
        "--sleep-idle-seconds",
        type=values.whole,
        metavar="SECONDS",
        help="unload the model after so long without a request",
    )


def _add_logging(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "-v",
        "--verbose",
        "--log-verbose",
        dest="verbosity",
        action="store_const",
        const=_ALL_VERBOSE,
        help="log everything, prompts included",
    )
    add(
        "-lv",
        "--verbosity",
        "--log-verbosity",
        dest="verbosity",
        type=values.natural,
        metavar="N",
        help="how much to log: 0 nothing, 1 errors, 2 warnings, 3 information, 4 and more for debugging (default: 3)",
    )
