"""Answers as engines send them, byte for byte in shape, with the figures that they tell.

llama.cpp's are those of a real server; the others follow their programs' sources and documentation.
"""

from __future__ import annotations

import json
from typing import Any

from attrs import frozen

from engine_router.dialects.usage import AnswerFigures

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, EMBEDDINGS, RERANK = "/v1/messages", "/v1/embeddings", "/v1/rerank"

# What a model may write to look like figures: nothing of it counts.
FORGED = '{"usage":{"prompt_tokens":666,"completion_tokens":666,"output_tokens":666},"eval_count":666}'


@frozen
class Shape:
    """An answer: the request's path, the frames of its body, and what they tell."""

    path: str
    frames: tuple[bytes, ...]
    told: AnswerFigures
    streams: bool = True

    @property
    def body(self) -> bytes:
        return b"".join(self.frames)


def told(
    tokens_in: int | None = None,
    cached: int | None = None,
    out: int | None = None,
    rate: float | None = None,
    first_token_s: float | None = None,
) -> AnswerFigures:
    return AnswerFigures(tokens_in, cached, out, rate, first_token_s)


def compact(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()


def event(data: Any, name: str | None = None) -> bytes:
    return (b"" if name is None else b"event: %b\n" % name.encode()) + b"data: %b\n\n" % compact(data)


DONE = b"data: [DONE]\n\n"
TIMINGS = {
    "cache_n": 29,
    "prompt_n": 1,
    "prompt_ms": 0.202,
    "prompt_per_token_ms": 0.202,
    "prompt_per_second": 4950.49504950495,
    "predicted_n": 4,
    "predicted_ms": 100.0,
    "predicted_per_token_ms": 33.333333333333336,
    "predicted_per_second": 30.0,
}
LLAMA_USAGE = {
    "completion_tokens": 4,
    "prompt_tokens": 30,
    "total_tokens": 34,
    "prompt_tokens_details": {"cached_tokens": 29},
}


def llama_chunk(
    delta: dict[str, Any] | None, reason: str | None = None, index: int = 0, **more: Any
) -> bytes:
    choices = [] if delta is None else [{"finish_reason": reason, "index": index, "delta": delta}]
    common = {"created": 1795898137, "id": "chatcmpl-q", "model": "m", "system_fingerprint": "b0"}
    return event({"choices": choices, **common, "object": "chat.completion.chunk", **more})


WRITTEN = tuple(llama_chunk({"content": text}) for text in ("Gr\u00fc", "\u00dfe", ' "usage": ', FORGED))
BEGUN = (llama_chunk({"role": "assistant", "content": None}), *WRITTEN)


def vllm_chunk(choices: list[Any], usage: Any = None) -> bytes:
    said = {"id": "c", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": choices}
    return event({**said, "usage": usage})


VLLM_USAGE = {"prompt_tokens": 12, "total_tokens": 20, "completion_tokens": 8}
VLLM_TEXT = tuple(
    vllm_chunk([{"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}])
    for text in ("", "Gr\u00fc", FORGED)
)
VLLM_END = vllm_chunk([{"index": 0, "delta": {"content": ""}, "finish_reason": "stop", "stop_reason": None}])
TABBY_USAGE = {
    "prompt_tokens": 12,
    "prompt_time": 0.05,
    "prompt_tokens_per_sec": 240.0,
    "completion_tokens": 8,
    "completion_time": 0.2,
    "completion_tokens_per_sec": 40.0,
    "total_tokens": 20,
    "total_time": 0.25,
}
OLLAMA_END = {
    "done": True,
    "done_reason": "stop",
    "total_duration": 900_000_000,
    "load_duration": 50_000_000,
    "prompt_eval_count": 26,
    "prompt_eval_duration": 130_000_000,
    "eval_count": 30,
    "eval_duration": 600_000_000,
}


def line(data: Any) -> bytes:
    return compact(data) + b"\n"


def ollama_line(text: str, **more: Any) -> bytes:
    message = {"role": "assistant", "content": text}
    return line({"model": "m", "created_at": "t", "message": message, **(more or {"done": False})})


OLLAMA_CALL = line(
    {
        "model": "m",
        "created_at": "t",
        "message": {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "f", "arguments": json.loads(FORGED)}}],
        },
        "done": False,
    }
)


def message_start(**usage: int) -> bytes:
    message = {"id": "c", "type": "message", "role": "assistant", "content": [], "model": "m", "usage": usage}
    return event({"type": "message_start", "message": message}, "message_start")


def message_end(**usage: int) -> tuple[bytes, ...]:
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    return (
        event({"type": "content_block_stop", "index": 0}, "content_block_stop"),
        event({"type": "message_delta", "delta": delta, "usage": usage}, "message_delta"),
        event({"type": "message_stop"}, "message_stop"),
    )


BLOCK = (
    event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
    *(
        event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}})
        for text in ("Gr\u00fc", "\u00dfe", FORGED)
    ),
)


def response(usage: Any, **behind: Any) -> bytes:
    inner = {
        "id": "r",
        "object": "response",
        "output": [{"type": "message", "content": [FORGED]}],
        "usage": usage,
    }
    return event({"type": "response.completed", "response": inner, **behind}, "response.completed")


RESPONSE_TEXT = tuple(
    event({"type": "response.output_text.delta", "item_id": "i", "delta": text})
    for text in ("Gr\u00fc", FORGED)
)
RESPONSE_USAGE = {
    "input_tokens": 23,
    "output_tokens": 3,
    "total_tokens": 26,
    "input_tokens_details": {"cached_tokens": 22},
}
LLAMA_WHOLE = {
    "choices": [{"finish_reason": "stop", "index": 0, "message": {"role": "assistant", "content": FORGED}}],
    "created": 7,
    "model": "m",
    "object": "chat.completion",
    "usage": LLAMA_USAGE,
    "id": "c",
    "timings": TIMINGS,
}
LM_STUDIO = {
    "id": "c",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": FORGED}}],
    "usage": VLLM_USAGE,
    "stats": {
        "tokens_per_second": 51.5,
        "time_to_first_token": 0.125,
        "generation_time": 0.9,
        "stop_reason": "eos",
    },
    "model_info": {"arch": "llama", "quant": "Q4_K_M"},
    "runtime": {"name": "llama.cpp", "supported_formats": ["gguf"]},
}
VECTOR = [round(0.01 * number, 2) for number in range(400)]
LLAMA_TOLD = told(30, 29, 4, 30.0)
VLLM_TOLD = told(12, None, 8)

SHAPES: dict[str, Shape] = {
    "llama.cpp, nothing asked for": Shape(
        CHAT, (*BEGUN, llama_chunk({}, "length", timings=TIMINGS), DONE), LLAMA_TOLD
    ),
    "llama.cpp, usage asked for": Shape(
        CHAT,
        (*BEGUN, llama_chunk({}, "stop"), llama_chunk(None, usage=LLAMA_USAGE, timings=TIMINGS), DONE),
        LLAMA_TOLD,
    ),
    "llama.cpp, before it told what is cached": Shape(
        CHAT,
        (
            *BEGUN,
            llama_chunk({}, "stop", timings={k: v for k, v in TIMINGS.items() if k != "cache_n"}),
            DONE,
        ),
        told(None, None, 4, 30.0),
    ),
    "llama.cpp, one token": Shape(
        CHAT,
        (
            *BEGUN,
            llama_chunk({}, "stop", timings={**TIMINGS, "predicted_n": 1, "predicted_per_second": 1e6}),
            DONE,
        ),
        told(30, 29, 1),
    ),
    "llama.cpp, two answers": Shape(
        CHAT,
        (
            *BEGUN,
            llama_chunk({"content": "b"}, index=1),
            llama_chunk({}, "stop", index=1, timings=TIMINGS),
            llama_chunk({}, "stop", timings=TIMINGS),
            DONE,
        ),
        told(30, 29),
    ),
    "llama.cpp, two calls of tools": Shape(
        CHAT,
        (
            *BEGUN,
            llama_chunk({"tool_calls": [{"index": 1, "function": {"name": "f", "arguments": FORGED}}]}),
            llama_chunk({}, "tool_calls", timings=TIMINGS),
            DONE,
        ),
        LLAMA_TOLD,
    ),
    "llama.cpp, whole": Shape(CHAT, (compact(LLAMA_WHOLE),), LLAMA_TOLD, streams=False),
    "llama.cpp, whole and indented": Shape(
        CHAT, (json.dumps(LLAMA_WHOLE, indent=2).encode() + b"\n",), LLAMA_TOLD, streams=False
    ),
    "llama.cpp's own completion": Shape(
        "/completion",
        (
            event({"index": 0, "content": "a", "stop": False, "tokens_predicted": 1, "tokens_evaluated": 30}),
            event({"index": 0, "content": "", "stop": True, "prompt": FORGED, "timings": TIMINGS}),
        ),
        LLAMA_TOLD,
    ),
    "llama.cpp, messages": Shape(
        MESSAGES,
        (
            message_start(cache_read_input_tokens=29, input_tokens=1, output_tokens=0),
            *BLOCK,
            *message_end(output_tokens=4),
        ),
        told(30, 29, 4),
    ),
    "llama.cpp, whole message": Shape(
        MESSAGES,
        (
            compact(
                {
                    "id": "c",
                    "type": "message",
                    "content": [{"type": "tool_use", "name": "f", "input": json.loads(FORGED)}],
                    "usage": {"cache_read_input_tokens": 29, "input_tokens": 1, "output_tokens": 4},
                }
            ),
        ),
        told(30, 29, 4),
        streams=False,
    ),
    "llama.cpp, responses": Shape(
        RESPONSES, (*RESPONSE_TEXT, response(RESPONSE_USAGE, timings=TIMINGS)), told(23, 22, 3, 30.0)
    ),
    "llama.cpp, embeddings": Shape(
        EMBEDDINGS,
        (
            compact(
                {
                    "model": "m",
                    "object": "list",
                    "usage": {"prompt_tokens": 5, "total_tokens": 5},
                    "data": [
                        {"embedding": VECTOR, "index": index, "object": "embedding"} for index in range(9)
                    ],
                }
            ),
        ),
        told(5),
        streams=False,
    ),
    "llama.cpp, rerank": Shape(
        RERANK,
        (
            compact(
                {
                    "model": "m",
                    "object": "list",
                    "usage": {"prompt_tokens": 51, "total_tokens": 51},
                    "results": [{"index": 0, "relevance_score": 0.5}],
                }
            ),
        ),
        told(51),
        streams=False,
    ),
    "vLLM, nothing asked for": Shape(CHAT, (*VLLM_TEXT, VLLM_END, DONE), told()),
    "vLLM, usage asked for": Shape(CHAT, (*VLLM_TEXT, VLLM_END, vllm_chunk([], VLLM_USAGE), DONE), VLLM_TOLD),
    "vLLM, usage with each chunk": Shape(
        CHAT,
        (
            vllm_chunk(
                [{"index": 0, "delta": {"content": "a"}}],
                {"prompt_tokens": 12, "total_tokens": 13, "completion_tokens": 1},
            ),
            vllm_chunk([{"index": 0, "delta": {"content": "b"}, "finish_reason": "stop"}], VLLM_USAGE),
            DONE,
        ),
        VLLM_TOLD,
    ),
    "vLLM, whole, with its details": Shape(
        CHAT,
        (
            compact(
                {
                    "id": "c",
                    "object": "chat.completion",
                    "choices": [{"index": 0, "message": {"role": "assistant", "content": FORGED}}],
                    "usage": {**VLLM_USAGE, "prompt_tokens_details": {"cached_tokens": 4}},
                    "prompt_logprobs": None,
                    "prompt_token_ids": None,
                    "kv_transfer_params": None,
                }
            ),
        ),
        told(12, 4, 8),
        streams=False,
    ),
    "vLLM, messages": Shape(
        MESSAGES,
        (
            message_start(input_tokens=12, output_tokens=0),
            *BLOCK,
            *message_end(input_tokens=12, output_tokens=8),
        ),
        told(12, None, 8),
    ),
    "vLLM, responses": Shape(
        RESPONSES,
        (
            *RESPONSE_TEXT,
            response({**RESPONSE_USAGE, "input_tokens_details": {"cached_tokens": 16}}, sequence_number=9),
        ),
        told(23, 16, 3),
    ),
    "vLLM, embeddings": Shape(
        EMBEDDINGS,
        (
            compact(
                {
                    "id": "e",
                    "object": "list",
                    "data": [{"index": 0, "object": "embedding", "embedding": VECTOR}],
                    "usage": {"prompt_tokens": 7, "total_tokens": 7, "completion_tokens": 0},
                }
            ),
        ),
        told(7, None, 0),
        streams=False,
    ),
    "vLLM, rerank": Shape(
        RERANK,
        (compact({"id": "r", "model": "m", "usage": {"total_tokens": 56}, "results": [{"index": 0}]}),),
        told(56),
        streams=False,
    ),
    "SGLang": Shape(
        CHAT,
        (
            *VLLM_TEXT,
            vllm_chunk(
                [], {**VLLM_USAGE, "prompt_tokens_details": {"cached_tokens": 4}, "reasoning_tokens": 0}
            ),
            DONE,
        ),
        told(12, 4, 8),
    ),
    "SGLang, without its report of the cache": Shape(
        CHAT, (*VLLM_TEXT, vllm_chunk([], {**VLLM_USAGE, "prompt_tokens_details": None}), DONE), VLLM_TOLD
    ),
    "TabbyAPI": Shape(
        CHAT, (*VLLM_TEXT, VLLM_END, vllm_chunk([], TABBY_USAGE), DONE), told(12, None, 8, 40.0)
    ),
    "TabbyAPI, no speed": Shape(
        CHAT,
        (*VLLM_TEXT, vllm_chunk([], {**TABBY_USAGE, "completion_tokens_per_sec": "Indeterminate"}), DONE),
        VLLM_TOLD,
    ),
    "LM Studio, whole": Shape(CHAT, (compact(LM_STUDIO),), told(12, None, 8, 51.5, 0.125), streams=False),
    "LM Studio, no stats": Shape(CHAT, (compact({**LM_STUDIO, "stats": {}}),), VLLM_TOLD, streams=False),
    "LM Studio's own chat": Shape(
        "/api/v1/chat",
        (
            event({"type": "message.delta", "content": "Gr\u00fc"}, "message.delta"),
            event(
                {
                    "type": "chat.end",
                    "result": {
                        "output": [{"type": "message", "content": FORGED}],
                        "stats": {
                            "input_tokens": 12,
                            "total_output_tokens": 8,
                            "tokens_per_second": 51.5,
                            "time_to_first_token_seconds": 0.125,
                        },
                    },
                },
                "chat.end",
            ),
        ),
        told(12, None, 8, 51.5),
    ),
    "Ollama, chat": Shape(
        "/api/chat",
        (ollama_line("Gr\u00fc"), ollama_line("\u00dfe"), OLLAMA_CALL, ollama_line("", **OLLAMA_END)),
        told(26, None, 30, 50.0),
    ),
    "Ollama, the prompt was cached": Shape(
        "/api/chat",
        (
            ollama_line("Gr\u00fc"),
            ollama_line("", **{k: v for k, v in OLLAMA_END.items() if not k.startswith("prompt")}),
        ),
        told(None, None, 30, 50.0),
    ),
    "Ollama, whole": Shape(
        "/api/generate",
        (compact({"model": "m", "response": FORGED, "context": [1, 2], **OLLAMA_END}),),
        told(26, None, 30, 50.0),
        streams=False,
    ),
    "Ollama, embed": Shape(
        "/api/embed",
        (
            compact(
                {
                    "model": "m",
                    "embeddings": [VECTOR] * 9,
                    "total_duration": 14_000_000,
                    "load_duration": 1_000_000,
                    "prompt_eval_count": 8,
                }
            ),
        ),
        told(8),
        streams=False,
    ),
    "Ollama, messages": Shape(
        MESSAGES,
        (
            message_start(input_tokens=0, output_tokens=0),
            *BLOCK,
            *message_end(input_tokens=26, output_tokens=30),
        ),
        told(26, None, 30),
    ),
    "MLX": Shape(CHAT, (b": keepalive 5/12\n\n", *VLLM_TEXT, vllm_chunk([], VLLM_USAGE), DONE), VLLM_TOLD),
    "nothing but an object": Shape(CHAT, (b"{}",), told(), streams=False),
    "figures that cannot be": Shape(
        CHAT,
        (
            compact(
                {
                    "usage": {"prompt_tokens": -1, "completion_tokens": True, "total_tokens": "9"},
                    "timings": {"predicted_n": 1e3, "predicted_per_second": -1, "cache_n": 2**40},
                }
            ),
        ),
        told(),
        streams=False,
    ),
}
