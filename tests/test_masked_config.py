"""A configuration's text for those who may see it, but not the secrets in it; it may be no TOML."""

from __future__ import annotations

import subprocess
import sys

import pytest
from test_reload import engine, text

from engine_router.config.masked import masked_config

SECRETS = """
[server]
api_keys = [
  "literal-one", # literal-one again
  { name = "n", key = "literal-two", models = ["a]b"] },
]
[[server.more.api_keys]]
name = "visible-name"
key = 'literal-three'
[server.key_priorities]
literal-four = "high"
[engines.a]
argv = ["llama-server", "--api-key",
  "literal-five", "--port", "{port}"]
headers = { Authorization = "Bearer literal-six", X-Thing = "literal-seven" }
base_url = "http://user:literal-eight@host:1"
[engines.a.headers]
X-Other = "literal-nine"
[engines.a.env]
HF_TOKEN = "literal-ten"
CUDA_VISIBLE_DEVICES = "0"
[engines.b]
argv = "vllm serve --api-key=literal-eleven --port 1"
"""


def test_no_secret_is_left_in_a_masked_text() -> None:
    masked = masked_config(SECRETS)
    assert "literal" not in masked
    for plain in ("visible-name", 'CUDA_VISIBLE_DEVICES = "0"', "--port", "[engines.b]", "llama-server"):
        assert plain in masked, plain


def test_a_text_that_is_no_toml_is_masked_as_well() -> None:
    masked = masked_config(SECRETS + "\n[[[ broken")
    assert "literal" not in masked


@pytest.mark.parametrize(
    "broken",
    [
        '[server]\napi_keys = [\n  "literal-one",\n  { name = "b", key = "literal-two" },\n\n  "literal-six",\n',
        '[server]\napi_keys = ["literal-one", "literal-two\n  "literal-six"]\n',
        '[server]\napi_keys = ["a]\n  "literal-six"]\n',
        '[server]\napi_keys = """\nliteral-one\n',
        '[engines.b]\nheaders = { X-Thing = "literal-one",\n X-Other = "literal-two"\n',
        "[server]\napi_keys = [\n" + "".join(f'  "literal-{number}",\n' for number in range(600)),
        "x = [\n" * 30 + '[server]\napi_keys = [\n  "literal-one",\n  ["literal-two"],\n]\n',
    ],
)
def test_a_secret_without_an_end_is_hidden_up_to_the_next_table(broken: str) -> None:
    masked = masked_config(f'{broken}[engines.a]\nmodels = ["plain"]\n')
    assert "literal" not in masked
    assert masked.endswith('[engines.a]\nmodels = ["plain"]\n')


@pytest.mark.parametrize("line", ["headers = [", "api_keys = [", "x = [[[", "x = {"])
def test_a_text_of_many_values_without_an_end_is_read_once(line: str) -> None:
    # From each of them to its end, or for hundreds of lines: minutes, in which a thread takes half of the router's time.
    words = (
        "import sys; from engine_router.config.masked import masked_config; "
        "from engine_router.config.places import places; "
        "text = '[engines.a]\\n' + sys.argv[1] * 80_000; "
        "masked_config(text); assert places(text, ['engines.a']) == [(1, 1)]"
    )
    assert subprocess.run([sys.executable, "-c", words, f"{line}\n"], timeout=60, check=False).returncode == 0


def test_what_has_no_secrets_stays_as_it_is() -> None:
    plain = text(engine("a"))
    assert masked_config(plain) == plain
