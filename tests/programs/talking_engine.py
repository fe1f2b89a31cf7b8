"""An engine without a model that speaks OpenAI's dialect fluently: it says what the last message asks it to say.

Usage: talking_engine.py PORT [delay=SECONDS] [fail=TEXT] [native=messages,responses]

delay: how long it takes until it listens. fail: what it writes, after that time, before it exits with code 3.
native: endpoints that it has beside chat completions, completions and embeddings. There it says greetings only.

Words in the last message of the user:

tools N   calls the first tool N times; the arguments come in several chunks, and as one text where it is whole
think     thinks first
report    answers with the request as it came, as JSON; so does a request that ends with a tool's result
json      answers with a JSON object in a form of its own
long      stops because there is no more space
slowly    rests for a while between the chunks
break     breaks off in the middle

Without any of these it says a greeting, which has characters of two, three and four bytes; a stop sequence ends it.
"""

import base64
import json
import struct
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

OPTIONS = dict(word.split("=", 1) for word in sys.argv[2:])
GREETING = ("Grü", "ße → ", "😀", ", my friend")
USAGE = {
    "prompt_tokens": 30,
    "completion_tokens": 9,
    "total_tokens": 39,
    "prompt_tokens_details": {"cached_tokens": 10},
    "completion_tokens_details": {"reasoning_tokens": 4},
}
TIMES = {"prompt_n": 20, "prompt_ms": 50.0, "cache_n": 10, "predicted_n": 9, "predicted_ms": 90.0}
STREAM = "text/event-stream"
REST_S = 0.2


class Said(NamedTuple):
    """What the model says: the deltas of its message, why it stopped, and the stop sequence that it met."""

    deltas: list[dict[str, Any]]
    reason: str = "stop"
    stop: str | None = None


def text_of(content: object) -> str:
    if isinstance(content, list):
        return " ".join(part.get("text", "") for part in content)
    return str(content or "")


def wish_of(request: dict[str, Any]) -> str:
    messages = request.get("messages") or [{"role": "user", "content": request.get("prompt")}]
    if messages[-1]["role"] == "tool":
        return "report"
    return next((text_of(said["content"]) for said in reversed(messages) if said["role"] == "user"), "")


def said(request: dict[str, Any], wish: str) -> Said:
    words = wish.split()
    if "tools" in words:
        return Said(calls(request, int(words[words.index("tools") + 1])), "tool_calls")
    if "think" in words:
        thoughts = [{"reasoning_content": "Let me "}, {"reasoning_content": "see: ü"}]
        return Said([*thoughts, {"content": "It is "}, {"content": "so"}])
    if "report" in words:
        return Said([{"content": json.dumps(request)}])
    if "json" in words:
        return Said([{"content": '{"city": '}, {"content": '"Zürich"}'}])
    texts, stop = list(GREETING), None
    for sequence in [
        *([request.get("stop")] if isinstance(request.get("stop"), str) else request.get("stop") or [])
    ]:
        if sequence in "".join(texts):
            texts, stop = ["".join(texts).partition(sequence)[0]], sequence
    return Said([{"content": text} for text in texts], "length" if "long" in words else "stop", stop)


def calls(request: dict[str, Any], count: int) -> list[dict[str, Any]]:
    name = request["tools"][0]["function"]["name"]
    deltas = [{"content": "I ask."}] if count > 1 else []
    for index in range(count):
        begin = {
            "index": index,
            "id": f"call_{index}",
            "type": "function",
            "function": {"name": name, "arguments": ""},
        }
        arguments = json.dumps({"city": f"Zürich {index}", "days": [1, 2]}, ensure_ascii=False)
        pieces = [arguments[start : start + 7] for start in range(0, len(arguments), 7)]
        rest = [{"index": index, "function": {"arguments": piece}} for piece in pieces]
        deltas += [{"tool_calls": [call]} for call in (begin, *rest)]
    return deltas


def whole_message(deltas: list[dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    for delta in deltas:
        for key in ("content", "reasoning_content"):
            if key in delta:
                message[key] = message.get(key, "") + delta[key]
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                message.setdefault("tool_calls", []).append({**call, "function": dict(call["function"])})
            else:
                message["tool_calls"][-1]["function"]["arguments"] += call["function"]["arguments"]
    return message


def event(data: object, name: str | None = None) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def named(*events: dict[str, Any]) -> list[bytes]:
    return [event(each, each["type"]) for each in events]


class Talk(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wish = ""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.answer({"object": "list", "data": [{"id": "talker", "object": "model"}]})
        else:
            self.answer({"status": "ok"})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        path = self.path.partition("?")[0]
        handlers = {
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.completion,
            "/v1/embeddings": self.embeddings,
        }
        if path.removeprefix("/v1/") in OPTIONS.get("native", "").split(","):
            handlers |= {"/v1/messages": self.message, "/v1/responses": self.response}
        if path not in handlers:
            self.answer({"error": {"message": f"there is no {path}"}}, 404)
        elif path.endswith(("messages", "responses")) and not request:
            self.answer({"error": {"message": "the request is empty"}}, 400)
        else:
            handlers[path](request)

    # OpenAI's dialect.

    def chat(self, request: dict[str, Any]) -> None:
        self.wish = wish_of(request)
        deltas, reason, stop = said(request, self.wish)
        about = {"id": "chatcmpl-1", "created": 7, "model": request["model"]}
        ending = {"finish_reason": reason, **({"stop_reason": stop} if stop else {})}
        if not request.get("stream"):
            choice = {"index": 0, "message": whole_message(deltas), **ending}
            self.answer(
                {**about, "object": "chat.completion", "choices": [choice], "usage": USAGE, "timings": TIMES}
            )
            return
        about["object"] = "chat.completion.chunk"
        choices = [
            {"index": 0, "delta": delta, "finish_reason": None} for delta in ({"role": "assistant"}, *deltas)
        ]
        choices.append({"index": 0, "delta": {}, **ending})
        self.stream([event({**about, "choices": [choice]}) for choice in choices] + self.last(request, about))

    def completion(self, request: dict[str, Any]) -> None:
        self.wish = wish_of(request)
        deltas, reason, _ = said(request, self.wish)
        texts = [delta["content"] for delta in deltas]
        about = {"id": "cmpl-1", "object": "text_completion", "created": 7, "model": request["model"]}
        if not request.get("stream"):
            choice = {"index": 0, "text": "".join(texts), "logprobs": None, "finish_reason": reason}
            self.answer({**about, "choices": [choice], "usage": USAGE, "timings": TIMES})
            return
        choices = [{"index": 0, "text": text, "logprobs": None, "finish_reason": None} for text in texts]
        choices.append({"index": 0, "text": "", "logprobs": None, "finish_reason": reason})
        self.stream([event({**about, "choices": [choice]}) for choice in choices] + self.last(request, about))

    def last(self, request: dict[str, Any], about: dict[str, Any]) -> list[bytes]:
        wanted = (request.get("stream_options") or {}).get("include_usage")
        usage = [event({**about, "choices": [], "usage": USAGE, "timings": TIMES})] if wanted else []
        return [*usage, event("[DONE]")]

    def embeddings(self, request: dict[str, Any]) -> None:
        texts = request["input"] if isinstance(request["input"], list) else [request["input"]]
        data = []
        for index, _ in enumerate(texts):
            vector: object = [3.0, 4.0, float(index)]
            if request.get("encoding_format") == "base64":
                vector = base64.b64encode(struct.pack("<3f", 3.0, 4.0, float(index))).decode()
            data.append({"object": "embedding", "index": index, "embedding": vector})
        usage = {"prompt_tokens": 5, "total_tokens": 5}
        self.answer({"object": "list", "model": request["model"], "data": data, "usage": usage})

    # Endpoints that only some engines have.

    def message(self, request: dict[str, Any]) -> None:
        self.wish = wish_of(request)
        about = {"id": "msg_1", "type": "message", "role": "assistant", "model": request["model"]}
        ending = {"stop_reason": "end_turn", "stop_sequence": None}
        usage = {"input_tokens": 20, "cache_read_input_tokens": 10, "output_tokens": 9}
        if not request.get("stream"):
            content = [{"type": "text", "text": "".join(GREETING)}]
            self.answer({**about, "content": content, **ending, "usage": usage})
            return
        start = {**about, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        deltas = [{"type": "text_delta", "text": text} for text in GREETING]
        self.stream(
            named(
                {"type": "message_start", "message": start},
                {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
                *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
                {"type": "content_block_stop", "index": 0},
                {"type": "message_delta", "delta": ending, "usage": {"output_tokens": 9}},
                {"type": "message_stop"},
            )
        )

    def response(self, request: dict[str, Any]) -> None:
        given = request["input"]
        self.wish = text_of(given if isinstance(given, str) else given[-1]["content"])
        text = {"type": "output_text", "text": "".join(GREETING), "annotations": []}
        item = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [text],
        }
        about = {
            "id": "resp_1",
            "object": "response",
            "created_at": 7,
            "model": request["model"],
            "tools": [],
        }
        about |= {"parallel_tool_calls": True, "tool_choice": "auto"}
        begun = {**about, "status": "in_progress", "output": [], "usage": None}
        usage = {"input_tokens": 30, "output_tokens": 9, "total_tokens": 39}
        usage |= {
            "input_tokens_details": {"cached_tokens": 10},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        ended = {**about, "status": "completed", "output": [item], "usage": usage}
        if not request.get("stream"):
            self.answer(ended)
            return
        at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        empty = {**text, "text": ""}
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": begun},
            {"type": "response.in_progress", "response": begun},
            {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}},
            {"type": "response.content_part.added", **at, "part": empty},
            *(
                {"type": "response.output_text.delta", **at, "delta": delta, "logprobs": []}
                for delta in GREETING
            ),
            {"type": "response.output_text.done", **at, "text": text["text"], "logprobs": []},
            {"type": "response.content_part.done", **at, "part": text},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": "response.completed", "response": ended},
        ]
        self.stream(named(*({**each, "sequence_number": number} for number, each in enumerate(events))))

    # On the wire.

    def answer(self, data: object, status: int = 200) -> None:
        body = json.dumps(data, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if "break" in self.wish.split() else body)
        self.close_connection = "break" in self.wish.split()

    def stream(self, events: list[bytes]) -> None:
        """Send a stream in pieces that end anywhere, in the middle of a character too."""
        self.send_response(200)
        self.send_header("Content-Type", STREAM)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        words = self.wish.split()
        if "break" in words:
            events = [*events[: len(events) // 2], events[len(events) // 2][:20]]
        for data in events:
            middle = data.find(b"\xf0\x9f") + 1 or len(data) // 2
            self.piece(data[:middle])
            self.piece(data[middle:])
            time.sleep(REST_S if "slowly" in words else 0)
        self.close_connection = "break" in words
        if not self.close_connection:
            self.wfile.write(b"0\r\n\r\n")

    def piece(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # a client more than these has to knock again, a second later


def main() -> None:
    sys.stdout.write("reading the weights\n")
    sys.stdout.flush()
    time.sleep(float(OPTIONS.get("delay", "0")))
    if "fail" in OPTIONS:
        sys.stdout.write(OPTIONS["fail"] + "\n")
        sys.stdout.flush()
        sys.exit(3)
    Server(("127.0.0.1", int(sys.argv[1])), Talk).serve_forever()


main()
