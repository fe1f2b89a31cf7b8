"""The command line of the llama.cpp server: `llama-server`'s flag names in one table, read by argparse.

Options that were not given leave no trace in the namespace, so llama.cpp's own defaults stay in force. The few
values that need more than an assignment are turned into fields by `engine_router.engines.llamacpp.parameters`.
"""

import argparse
from collections.abc import Callable
from typing import Any, Final

from engine_router.engines.llamacpp import values

PROG: Final = "python -m engine_router.llamacpp"

_DESCRIPTION: Final = """\
llama.cpp's HTTP server for one GGUF model. The flags have the names and meanings of llama-server; a flag that
is not given has llama.cpp's default."""

_EPILOG: Final = """\
GET /health answers 503 while the model loads and 200 once it is ready. SIGTERM and SIGINT end the process at
once: with exit code 0 when the model is loaded, by the signal itself while it is still loading.

exit codes: 0 ended by SIGTERM or SIGINT, 1 the server could not start, 2 wrong usage"""

# Each option has two lines: its flags, the field of `xllamacpp.CommonParams` that it sets (with dots for nested
# fields) and its value; then its help. The value is one of:
#     =VALUE           what the flag stands for, one of `_CONSTANTS` or the word itself; +=VALUE adds it to a list
#     A|B|C            one of these; with `?` at the end the flag alone means the first
#     reader:METAVAR   what a function of `values` reads; reader+ adds to a list
_OPTIONS: Final = r"""
[model]
-m --model  model.path  text:FILE
    the GGUF file to serve
-mm --mmproj  mmproj.path  text:FILE
    the multimodal projector of the model
--no-mmproj-offload  mmproj_use_gpu  =false
    keep the projector off the GPU
-a --alias  model_alias  names:NAME[,NAME]
    the model's names in answers; the first in alphabetical order is used (default: from the file)
--lora  lora_adapters  adapters+:FILE[,FILE]
    LoRA adapters to apply in full
--lora-scaled  lora_adapters  scaled_adapters+:FILE:SCALE[,...]
    LoRA adapters to apply by a factor
[listening]
--host  hostnames  parts:ADDRESS[,ADDRESS]
    addresses to listen on; 0.0.0.0 opens the server to the network (default: 127.0.0.1)
--port  port  port
    TCP port; 0 picks a free one (default: 8080)
--api-key  api_keys  parts+:KEY[,KEY]
    keys, one of which each request must carry as a bearer token
--api-key-file  api_keys  lines_of+:FILE
    a file with one such key per line
--api-prefix  api_prefix  text:PREFIX
    path that comes before every endpoint's path
--ssl-key-file  ssl_file_key  text:FILE
    the private key for HTTPS, PEM
--ssl-cert-file  ssl_file_cert  text:FILE
    the certificate for HTTPS, PEM
-to --timeout  timeout  natural:SECONDS
    limit of one read or write (default: 3600)
--threads-http  n_threads_http  whole
    threads that handle requests
[context and batches]
-c --ctx-size  n_ctx  natural
    tokens of context, shared by all slots (default: 0, what the model was trained with)
-np --parallel  n_parallel  whole
    slots: requests answered at the same time (default: -1, four slots that share the whole context)
-kvu --kv-unified  kv_unified  =true
    let all slots share one KV cache
-b --batch-size  n_batch  natural
    logical batch (default: 2048)
-ub --ubatch-size  n_ubatch  natural
    physical batch (default: 512)
-n --predict --n-predict  n_predict  whole
    most tokens of one answer
-t --threads  cpuparams.n_threads  whole
    threads that generate
-tb --threads-batch  cpuparams_batch.n_threads  whole
    threads that read prompts (default: as --threads)
-ctk --cache-type-k  cache_type_k  f32|f16|bf16|q8_0|q4_0|q4_1|iq4_nl|q5_0|q5_1
    number format of the K half of the KV cache (default: f16)
-ctv --cache-type-v  cache_type_v  f32|f16|bf16|q8_0|q4_0|q4_1|iq4_nl|q5_0|q5_1
    number format of the V half of the KV cache (default: f16)
-cram --cache-ram  cache_ram_mib  whole:MIB
    prompt cache in memory
--cache-reuse  n_cache_reuse  whole
    smallest chunk to reuse by shifting
-ctxcp --ctx-checkpoints  n_ctx_checkpoints  whole
    checkpoints a slot
--swa-full  swa_full  =true
    keep the whole cache of sliding-window layers
--context-shift  ctx_shift  =true
    drop the oldest tokens of a full context
--no-context-shift  ctx_shift  =false
    stop at a full context (default)
--rope-scaling  rope_scaling_type  none|linear|yarn
    how RoPE is scaled
--rope-freq-base  rope_freq_base  number
    base frequency of RoPE
--rope-freq-scale  rope_freq_scale  number
    factor on RoPE's frequencies; 1/N spreads them N times
--yarn-orig-ctx  yarn_orig_ctx  natural
    context the model was trained with, for YaRN
[memory and devices]
-ngl --gpu-layers --n-gpu-layers  n_gpu_layers  gpu_layers:N|auto|all
    layers to keep on the GPU (default: auto)
-fa --flash-attn  flash_attn_type  on|off|auto?
    flash attention
-fit --fit  fit_params  on_off:on|off
    fit what is not set to free memory
-sm --split-mode  split_mode  none|layer|row|tensor
    over several GPUs
-ts --tensor-split  tensor_split  shares:N,N,...
    share of each GPU
-mg --main-gpu  main_gpu  natural
    the GPU to use with --split-mode none
-lm --load-mode  load_mode  auto|none|mmap|mlock|mmap+mlock|dio
    how the file is read: mapped, copied, locked in memory, or around the page cache
--mmap  load_mode  =mmap
    as --load-mode mmap
--no-mmap  load_mode  =none
    as --load-mode none
--mlock  load_mode  =mmap+mlock
    as --load-mode mmap+mlock
-ot --override-tensor  tensor_buft_overrides  parts+:PATTERN=BUFFER[,...]
    keep the tensors whose names match in this buffer, for instance CPU
-cmoe --cpu-moe  tensor_buft_overrides  +=EXPERTS_ON_CPU
    keep all experts in main memory
-ncmoe --n-cpu-moe  tensor_buft_overrides  experts_of_layers+
    keep the experts of the first N layers in main memory
-nkvo --no-kv-offload  no_kv_offload  =true
    keep the KV cache off the GPU
--numa  numa  distribute|isolate|numactl
    how threads spread over NUMA nodes
--no-warmup  warmup  =false
    do not run the model once before it is ready
--sleep-idle-seconds  sleep_idle_seconds  whole:SECONDS
    unload the model after so long without a request
[endpoints]
--embedding --embeddings  embedding  =true
    serve embeddings
--pooling  pooling_type  none|mean|cls|last|rank
    how the vectors of a text's tokens become one (default: what the model says)
--rerank --reranking  rerank  =true
    serve reranking; implies --embedding and --pooling rank
--metrics  endpoint_metrics  =true
    serve GET /metrics for Prometheus
--props  endpoint_props  =true
    allow POST /props
--slots  endpoint_slots  =true
    serve GET /slots (default)
--no-slots  endpoint_slots  =false
    do not serve GET /slots
--slot-save-path  slot_save_path  folder:FOLDER
    where slots are saved to and restored from
--no-ui --no-webui  ui  =false
    do not serve the web page
[chat]
--jinja  use_jinja  =true
    use the chat template as it is (default)
--no-jinja  use_jinja  =false
    use llama.cpp's approximation of the template
--chat-template  chat_template  text:TEMPLATE
    a Jinja template, or the name of one that llama.cpp knows
--chat-template-file  chat_template  text_of:FILE
    the same from a file
--chat-template-kwargs  default_template_kwargs  template_values:JSON
    values for the template, a JSON object
--reasoning-format  reasoning_format  none|auto|deepseek|deepseek-legacy
    where the model's thoughts go: none leaves them in the text (default: deepseek)
-rea --reasoning  reasoning  on|off|auto
    whether the model thinks first (default: auto)
--reasoning-budget  sampling.reasoning_budget_tokens  whole
    most tokens of thought; -1 is no limit (default: -1)
[sampling, where the request does not say]
-s --seed  sampling.seed  natural
    seed (default: a new one each time)
--temp --temperature  sampling.temp  number
    temperature
--top-k  sampling.top_k  whole
    most tokens to choose from
--top-p  sampling.top_p  number
    most probability to choose from
--min-p  sampling.min_p  number
    least probability, against the best token
--repeat-penalty  sampling.penalty_repeat  number
    1 is no penalty
--presence-penalty  sampling.penalty_present  number
    0 is no penalty
--frequency-penalty  sampling.penalty_freq  number
    0 is no penalty
[speculative decoding]
-md --model-draft  speculative.draft.mparams.path  text:FILE
    the draft model's GGUF
--spec-type  speculative.types  parts:TYPE[,TYPE]
    how tokens are guessed, for instance draft-mtp or ngram-simple (with -md: draft-simple)
-ngld --gpu-layers-draft  speculative.draft.n_gpu_layers  gpu_layers:N|auto|all
    layers of the draft model to keep on the GPU (default: auto)
--draft-max --spec-draft-n-max  speculative.draft.n_max  natural
    most tokens to guess at once
--draft-min --spec-draft-n-min  speculative.draft.n_min  natural
    fewest tokens worth a guess
--draft-p-min --spec-draft-p-min  speculative.draft.p_min  number
    least probability of a guessed token
[log]
-v --verbose --log-verbose  verbosity  =EVERYTHING
    log everything, prompts included
-lv --verbosity --log-verbosity  verbosity  natural
    how much to log: 0 nothing, 1 errors, 2 warnings, 3 information, 4 and more for debugging (default: 3)
"""

_CONSTANTS: Final = {
    "true": True,
    "false": False,
    "EVERYTHING": 2**31 - 1,  # the largest C int
    "EXPERTS_ON_CPU": values.EXPERTS_ON_CPU,
}

_READERS: Final[dict[str, Callable[[str], object]]] = {
    reader.__name__: reader
    for reader in (
        values.adapters,
        values.experts_of_layers,
        values.folder,
        values.gpu_layers,
        values.lines_of,
        values.names,
        values.natural,
        values.number,
        values.on_off,
        values.parts,
        values.port,
        values.scaled_adapters,
        values.shares,
        values.template_values,
        values.text,
        values.text_of,
        values.whole,
    )
}


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
    group: argparse._ActionsContainer = parser
    lines = iter(_OPTIONS.strip().splitlines())
    for line in lines:
        if line.startswith("["):
            group = parser.add_argument_group(line.strip("[]"))
            continue
        *flags, field, value = line.split()
        action = group.add_argument(*flags, dest=field, help=next(lines).strip(), **_settings(value))
        action.required = field == "model.path"
    parser.set_defaults(hostnames=["127.0.0.1"], port=8080, n_parallel=-1)
    return parser


def _settings(value: str) -> dict[str, Any]:
    """Return how argparse is told of an option's value; see the table."""
    if value.startswith("+="):
        return {"action": "append_const", "const": _CONSTANTS[value[2:]]}
    if value.startswith("="):
        return {"action": "store_const", "const": _CONSTANTS.get(value[1:], value[1:])}
    name, _, metavar = value.partition(":")
    reader = _READERS.get(name.removesuffix("+"))
    if reader is not None:
        return {
            "action": "extend" if name.endswith("+") else "store",
            "type": reader,
            "metavar": metavar or "N",
        }
    choices = value.removesuffix("?").split("|")
    return {"choices": choices, **({"nargs": "?", "const": choices[0]} if value.endswith("?") else {})}
