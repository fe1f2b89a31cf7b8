"""The parameters of llama.cpp that parsed options ask for."""

import argparse
from collections.abc import Mapping
from typing import Any, Final

import xllamacpp

# Fields whose values are members of an enumeration: its name and what its members' names begin with.
_ENUMS: Final = {
    "cache_type_k": ("ggml_type", "GGML_TYPE_"),
    "cache_type_v": ("ggml_type", "GGML_TYPE_"),
    "flash_attn_type": ("llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_"),
    "load_mode": ("llama_load_mode", "LLAMA_LOAD_MODE_"),
    "numa": ("ggml_numa_strategy", "GGML_NUMA_STRATEGY_"),
    "pooling_type": ("llama_pooling_type", "LLAMA_POOLING_TYPE_"),
    "reasoning_format": ("common_reasoning_format", "COMMON_REASONING_FORMAT_"),
    "rope_scaling_type": ("llama_rope_scaling_type", "LLAMA_ROPE_SCALING_TYPE_"),
    "split_mode": ("llama_split_mode", "LLAMA_SPLIT_MODE_"),
}

# Members whose names differ from what the command line calls them.
_MEMBERS: Final = {
    ("flash_attn_type", "on"): "ENABLED",
    ("flash_attn_type", "off"): "DISABLED",
    ("load_mode", "dio"): "DIRECT_IO",
}

# Sampling defaults that a model's own file may set, unless the command line marks them as the user's.
_USERS_SAMPLING: Final = {
    "sampling.temp": "TEMP",
    "sampling.top_k": "TOP_K",
    "sampling.top_p": "TOP_P",
    "sampling.min_p": "MIN_P",
    "sampling.penalty_repeat": "PENALTY_REPEAT",
}

_REASONING: Final = {"on": 1, "off": 0, "auto": -1}


def build_parameters(options: argparse.Namespace) -> xllamacpp.CommonParams:
    """Make the parameters that the command line asks for.

    Raises:
        ValueError: a value is one that this build of llama.cpp does not know.
    """
    params = xllamacpp.CommonParams()
    fields = _combined(vars(options))
    for field, value in fields.items():
        _assign(params, field, _as_field(field, value))
    for field in _USERS_SAMPLING.keys() & fields.keys():
        member = f"COMMON_PARAMS_SAMPLING_CONFIG_{_USERS_SAMPLING[field]}"
        params.sampling.user_sampling_config |= int(xllamacpp.common_params_sampling_config[member])
    return params


def _combined(given: Mapping[str, Any]) -> dict[str, Any]:
    """Add the fields that follow from others, and take out options that are no fields."""
    fields = dict(given)
    if fields.pop("rerank", False):
        fields |= {"embedding": True, "pooling_type": "rank"}
    if "timeout" in fields:
        fields["timeout_read"] = fields["timeout_write"] = fields.pop("timeout")
    if "cpuparams.n_threads" in fields:
        fields.setdefault("cpuparams_batch.n_threads", fields["cpuparams.n_threads"])
    if "reasoning" in fields:
        switch = fields.pop("reasoning")
        fields["enable_reasoning"] = _REASONING[switch]
        if switch != "auto":
            thinking = {"enable_thinking": "true" if switch == "on" else "false"}
            fields["default_template_kwargs"] = thinking | fields.get("default_template_kwargs", {})
    if "speculative.draft.mparams.path" in fields:
        fields.setdefault("speculative.types", ["draft-simple"])
    return fields


def _as_field(field: str, value: Any) -> Any:
    """Turn an option's value into the type of its field."""
    if field in _ENUMS:
        enum, prefix = _ENUMS[field]
        return _member(enum, prefix, _MEMBERS.get((field, value), value))
    if field == "speculative.types":
        return [_member("common_speculative_type", "COMMON_SPECULATIVE_TYPE_", name) for name in value]
    if field == "tensor_buft_overrides":
        return ",".join(value)
    if field == "lora_adapters":
        return [xllamacpp.CommonAdapterLoraInfo(path, scale) for path, scale in value]
    return value


def _member(enum: str, prefix: str, name: str) -> Any:
    member = prefix + name.upper().replace("-", "_").replace("+", "_")
    try:
        return vars(xllamacpp)[enum][member]
    except KeyError:
        raise ValueError(f"this build of llama.cpp does not know {name!r}") from None


def _assign(params: Any, field: str, value: Any) -> None:
    """Set a field by its dotted name; the fields are named once, where the options are declared."""
    *owners, name = field.split(".")
    for owner in owners:
        params = getattr(params, owner)
    setattr(params, name, value)
