"""The options of remotes: what is refused, what is warned of, where requests go, and who sees a key."""

from __future__ import annotations

import pytest

from engine_router.config import RemoteConfig, parse_config
from engine_router.config.masked import masked_config
from engine_router.config.remote import own_headers
from engine_router.engines.masking import engine_mask
from engine_router.errors import ConfigError
from engine_router.models.config_warnings import warnings
from engine_router.upstream.address import RemoteAddress

KEY = "sk-the-owners-key"
CLOUD = f'[engines.cloud]\ntype = "remote"\nbase_url = "https://cloud.example/v1"\napi_key = "{KEY}"\nmodels = ["m"]\n'


@pytest.mark.parametrize(
    ("url", "origin", "chat", "messages", "tags"),
    [
        ("https://api.x.ai/v1", "https://api.x.ai", "/v1/chat/completions", "/v1/messages", "/v1/api/tags"),
        ("https://o.ai/api/v1/", "https://o.ai", "/api/v1/chat/completions", "/api/v1/messages", "/api/v1/api/tags"),
        ("https://api.x.ai", "https://api.x.ai", "/v1/chat/completions", "/v1/messages", "/api/tags"),
        ("https://z.ai/anthropic", "https://z.ai", "/anthropic/chat/completions", "/anthropic/v1/messages", "/anthropic/api/tags"),
        ("https://g.com/v1beta/openai/", "https://g.com", "/v1beta/openai/chat/completions", "/v1beta/openai/v1/messages", "/v1beta/openai/api/tags"),
        ("http://[2001:db8::7]:8080//llm//v1", "http://[2001:db8::7]:8080", "/llm/v1/chat/completions", "/llm/v1/messages", "/llm/v1/api/tags"),
    ],
)  # fmt: skip
def test_where_requests_go(url: str, origin: str, chat: str, messages: str, tags: str) -> None:
    config = parse_config(f'[engines.c]\ntype = "remote"\nbase_url = "{url}"')
    engine = config.engines["c"]
    assert isinstance(engine, RemoteConfig)
    address = RemoteAddress.of(engine)
    assert address.origin == origin
    assert address.target("/v1/chat/completions") == chat
    assert address.target("/v1/messages") == messages
    assert address.target("/api/tags") == tags
    assert address.target("/v1/messages?beta=true") == f"{messages}?beta=true"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://cloud.example/v1?key=x", "with nothing behind its path"),
        ("https://cloud.example/v1#x", "with nothing behind its path"),
        ("https://cloud.example/../v1", "with nothing behind its path"),
        ("https://cloud.example/a b", "with nothing behind its path"),
        ("https://user:pass@cloud.example/v1", "expected a URL"),
        ("ftp://cloud.example/v1", "expected a URL"),
        ("cloud.example/v1", "expected a URL"),
    ],
)
def test_a_base_url_that_is_none(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config(f'[engines.c]\ntype = "remote"\nbase_url = "{url}"')


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            'pool = "default"',
            "unknown key; it belongs to an engine of type process",
        ),
        ("memory_gb = 3", "unknown key"),
        ("pinned = true", "unknown key"),
        ("dialects = []", "names none"),
        ('dialects = ["gemini"]', "openai"),
        ("allow_default = true", "together with paid"),
        ("max_in_flight = -1", "zero or more"),
        ('[pools.remotes]\ngauge = "none"', "give this one another name"),
        ('api_key = "a\\nb"', "api_key"),
    ],
)
def test_what_a_remote_has_not(more: str, words: str) -> None:
    text = CLOUD.replace(f'api_key = "{KEY}"\n', "") if "api_key" in more else CLOUD
    with pytest.raises(ConfigError, match=words) as caught:
        parse_config(text + more)
    assert KEY not in str(caught.value)


def test_a_ca_file_is_for_https() -> None:
    with pytest.raises(ConfigError, match="ca_file"):
        parse_config('[engines.c]\ntype = "remote"\nbase_url = "http://c:1/v1"\nca_file = "x.pem"')


def test_engines_at_one_place_trust_the_same_authorities() -> None:
    one = '[engines.{}]\ntype = "remote"\nbase_url = "https://c:1/{}"\nca_file = "{}"\n'
    parse_config(one.format("a", "v1", "x.pem") + one.format("b", "v2", "x.pem"))
    with pytest.raises(ConfigError, match="at the same place"):
        parse_config(one.format("a", "v1", "x.pem") + one.format("b", "v2", "y.pem"))


# Keys.


def of(**more: object) -> RemoteConfig:
    return RemoteConfig(base_url="https://c/v1", api_key=KEY, **more)  # type: ignore[arg-type]


def test_a_key_is_sent_as_each_dialect_has_it() -> None:
    assert own_headers(of()) == {"Authorization": f"Bearer {KEY}"}
    assert own_headers(of(), to_messages=True) == {"x-api-key": KEY}
    assert own_headers(of(dialects=("anthropic",))).keys() == {"x-api-key", "anthropic-version"}
    assert own_headers(of(headers={"authorization": "Token x"})) == {"authorization": "Token x"}


def test_nobody_is_shown_a_key() -> None:
    assert KEY not in masked_config(CLOUD)
    assert KEY not in masked_config(f"{CLOUD}# {KEY}")
    mask = engine_mask(RemoteConfig(base_url="https://c/v1", headers=own_headers(of())))
    assert KEY not in mask(f"Incorrect API key provided: {KEY}")


# Warnings.


def found(text: str) -> dict[str, str]:
    return {
        place: words for place, words in warnings(parse_config(text)) if not place.startswith("state_file")
    }


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (CLOUD.replace("https", "http"), "engines.cloud.base_url", "goes over http"),
        (CLOUD + 'ca_file = "/nowhere/ca.pem"', "engines.cloud.ca_file", "there is no file"),
        (
            CLOUD + 'paid = true\n[server]\ndefault_model = "m"',
            "server.default_model",
            "no request without a model",
        ),
        (
            CLOUD + 'paid = true\nallow_default = true\n[server]\ndefault_model = "m"',
            "server.default_model",
            "every request without a model",
        ),
        (CLOUD + 'paid = true\n[aliases]\n"gpt-4o" = "m"', "aliases.gpt-4o", "costs money"),
        (
            CLOUD
            + 'paid = true\n[server]\napi_keys = [{ name = "n", key = "k", models = ["*"] }, "admin-key"]',
            "server.api_keys (n)",
            "no wildcard",
        ),
        (CLOUD + '[models.m]\nengine = "cloud"\nmemory_gb = 3', "models.m", "without effect"),
    ],
)
def test_it_is_warned_of(text: str, place: str, words: str) -> None:
    assert words in found(text)[place]


@pytest.mark.parametrize(
    "text",
    [
        CLOUD,
        CLOUD.replace("https://cloud.example", "http://192.168.1.7:8080"),
        CLOUD.replace("https://cloud.example", "http://box.lan:8080"),
        CLOUD + CLOUD.replace("cloud]", "other]").replace('["m"]', '["n"]'),
        CLOUD
        + 'paid = true\n[server]\napi_keys = [{ name = "n", key = "a-key-that-is-long-enough", models = ["m", "x*"] }, "an-admin-key-as-long"]',
    ],
)
def test_it_is_not_warned_of(text: str) -> None:
    assert found(text) == {}
