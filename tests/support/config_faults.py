"""Configuration files, and the faults that they are found to have."""

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import strategies as st

from engine_router.config import (
    parse_config,
)
from engine_router.config.schema import json_schema, reference
from engine_router.errors import ConfigError

SCHEMA = json_schema()

VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

ENGINE = '[engines.a]\ntype = "process"\nargv = "serve {port}"\n'

HTTP = '[engines.h]\ntype = "http"\nbase_url = "http://127.0.0.1:5000"\n'

CALLS = 'unload = { path = "/u" }\nloaded = { path = "/l" }\n'


def faults_of(text: str | bytes) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    return list(caught.value.faults)


VLLM = """
[pools.default]
unified = false
[engines.v]
type = "process"
argv = "vllm serve some/model --port {port} --enable-sleep-mode"
env = { VLLM_SERVER_DEV_MODE = "1" }
sleep = { kind = "vllm" }
"""

SGLANG = """
[pools.default]
unified = false
[engines.s]
type = "process"
argv = "python -m sglang.launch_server --port {port} --enable-memory-saver --enable-weights-cpu-backup"
sleep = { kind = "sglang" }
"""

KEYS = st.sampled_from(
    sorted(
        {key for _, key, _, _ in reference()}
        | {"server", "log", "engines", "pools", "models", "load", "loaded"}
    )
) | st.text(max_size=4)
