"""What engines say when a request is too long for them, and what each dialect's clients hear of it."""

from __future__ import annotations

import json
import re

import pytest

from engine_router.dialects import ANTHROPIC, OLLAMA, OPENAI
from engine_router.dialects.engine_errors import broken, refused
from engine_router.dialects.keep_alive import keep_alive_for
from engine_router.errors import ContextTooLong, EngineBroke, EngineRefused, RouterError

# The words of each engine; then tokens of the request, those of its answer, and the context.
OVERFLOWS = {
    "llama.cpp": (
        "request (2018 tokens) exceeds the available context size (256 tokens), try increasing it",
        (2018, 0, 256),
    ),
    "llama.cpp, embedding": (
        "input (2002 tokens) is too large to process. increase the physical batch size (current batch size: 512)",
        (2002, 0, 512),
    ),
    "vLLM": (
        "You passed 5001 input tokens and requested 100 output tokens. However, the model's context length is only 4096 tokens, resulting in a maximum input length of 3996 tokens. Please reduce the length of the input.",
        (5001, 100, 4096),
    ),
    "vLLM, the answer": (
        "'max_tokens' or 'max_completion_tokens' is too large: 5000. This model's maximum context length is 4096 tokens and your request has 2000 input tokens (5000 > 4096 - 2000).",
        (2000, 5000, 4096),
    ),
    "OpenAI, llama-cpp-python": (
        "This model's maximum context length is 512 tokens. However, you requested 700 tokens (600 in the messages, 100 in the completion). Please reduce the length of the messages or completion.",
        (600, 100, 512),
    ),
    "OpenAI, the prompt": (
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 10085 tokens.",
        (10085, 0, 8192),
    ),
    "vLLM, earlier": (
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096. Make sure that",
        (5000, 0, 4096),
    ),
    "SGLang": (
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        (5000, 0, 4096),
    ),
    "SGLang, the sum": (
        "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of 4600 tokens: 4000 tokens from the input messages and 600 tokens for the completion. Please reduce",
        (4000, 600, 4096),
    ),
    "llama-cpp-python": ("Requested tokens (600) exceed context window of 512", (600, 0, 512)),
    "TabbyAPI": ("Prompt length 5000 is greater than max_seq_len 4096", (5000, 0, 4096)),
    "TGI": (
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens and 500 `max_new_tokens`",
        (4000, 500, 4096),
    ),
    "LM Studio": (
        "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with context length of only 4096 tokens, which is not enough.",
        (5000, 0, 4096),
    ),
    "Ollama": ("the input length exceeds the context length", (None, 0, None)),
    "llama.cpp, earlier": (
        "the request exceeds the available context size. try increasing it",
        (None, 0, None),
    ),
}
each_overflow = pytest.mark.parametrize(("words", "tokens"), OVERFLOWS.values(), ids=OVERFLOWS)
# As Claude Code reads it.
TOO_LONG = re.compile(r"prompt is too long[^0-9]*(\d+)\s*tokens?\s*>\s*(\d+)")
NO_ROOM = re.compile(r"input length and `max_tokens` exceed context limit: (\d+) \+ (\d+) > (\d+)")


@each_overflow
@pytest.mark.parametrize("status", [400, 500])
def test_a_request_that_is_too_long_is_told_in_the_words_of_each_dialect(
    words: str, tokens: tuple[int | None, int, int | None], status: int
) -> None:
    error = refused("big", status, json.dumps({"error": {"message": words}}).encode())
    assert isinstance(error, ContextTooLong)
    assert (error.prompt, error.answer, error.limit) == tokens
    assert (error.status, error.retryable) == (400, False)
    check_openai(OPENAI.error(error)["error"], *tokens)
    said = ANTHROPIC.error(error)["error"]
    assert said["type"] == "invalid_request_error"
    check_anthropic(said["message"], *tokens)
    assert "the input length exceeds the context length" in OLLAMA.error(error)["error"]


def check_openai(said: dict[str, str], prompt: int | None, answer: int, limit: int | None) -> None:
    assert (said["code"], said["type"]) == ("context_length_exceeded", "invalid_request_error")
    if prompt is not None:
        assert f"maximum context length is {limit} tokens" in said["message"]
        assert str(prompt) in said["message"]
        assert not answer or str(prompt + answer) in said["message"]


def check_anthropic(message: str, prompt: int | None, answer: int, limit: int | None) -> None:
    if prompt is None or limit is None:
        assert message.startswith("prompt is too long")
    elif answer and prompt <= limit:
        found = NO_ROOM.match(message)
        assert found
        assert tuple(map(int, found.groups())) == (prompt, answer, limit)
    else:
        found = TOO_LONG.match(message)
        assert found
        assert tuple(map(int, found.groups())) == (prompt, limit)


@each_overflow
def test_so_it_is_inside_a_stream(words: str, tokens: tuple[int | None, int, int | None]) -> None:
    error = broken("big", ValueError(words))
    assert isinstance(error, ContextTooLong)
    assert (error.prompt, error.answer, error.limit) == tokens
    failed = failed_response(error)
    assert failed["error"]["code"] == "context_length_exceeded"  # Codex compacts the conversation then


def failed_response(error: RouterError) -> dict[str, dict[str, str]]:
    frames = keep_alive_for("/v1/responses", "m").failure(error).split(b"\n\n")
    events = [json.loads(frame.split(b"data: ")[1]) for frame in frames if frame]
    (failed,) = [event["response"] for event in events if event["type"] == "response.failed"]
    response: dict[str, dict[str, str]] = failed
    return response


@pytest.mark.parametrize(
    "words",
    [
        "out of memory",
        "temperature must be at most 2",
        "unknown parameter: context_length",
        "cannot allocate a context of size 4096",
        "",
    ],
)
def test_other_words_stay_what_they_are(words: str) -> None:
    error = refused("big", 422, json.dumps({"error": {"message": words}}).encode())
    assert (type(error), error.status) == (EngineRefused, 422)
    assert type(broken("big", ValueError(words))) is EngineBroke
