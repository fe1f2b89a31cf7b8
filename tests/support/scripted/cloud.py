"""A server in a cloud: OpenAI's, Anthropic's and Ollama's endpoints below a path, for whoever has its key."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

import trio

from support.scripted.server import Answer, Call, Handler, Json, Script, ScriptedServer, as_json, event_of


class ScriptedCloud(ScriptedServer):
    """A cloud. It holds no memory, and knows how many requests it answers.

    Attributes:
        path: what its OpenAI base URL has behind the host.
        active, most_active: how many chats it answers now, and answered at once.
        left: how many chats ended because their caller left.
        gate: chats wait for it; None for no wait.
    """

    def __init__(self, *models: str, path: str = "/api/v1", script: Script | None = None) -> None:
        super().__init__(*models, script=script)
        self.path = path
        self.active = self.most_active = self.left = 0
        self.gate: trio.Event | None = None

    def routes(self) -> Mapping[str, Handler]:
        """Map `METHOD /path` to handlers."""
        return {
            f"POST {self.path}/chat/completions": self._chat,
            f"POST {self.path}/messages": self._messages,
            f"GET {self.path}/models": self.openai_models,
        }

    async def make_ready(self, call: Call) -> Answer | None:
        """Answer at once: every model is there."""
        if call.model not in self.models:
            return as_json({"error": {"message": f"model '{call.model}' not found", "code": 404}}, 404)
        return None

    async def _chat(self, call: Call) -> Answer:
        self.active += 1
        self.most_active = max(self.active, self.most_active)
        try:
            if self.gate is not None:
                await self.gate.wait()
            return await self.openai_chat(call)
        except trio.Cancelled:
            self.left += 1
            raise
        finally:
            self.active -= 1

    async def _messages(self, call: Call) -> Answer:
        text = {"type": "text", "text": "native"}
        head = {"id": "msg_1", "type": "message", "role": "assistant", "model": call.model}
        usage = {"input_tokens": 1, "output_tokens": 1}
        if call.body.get("stream") is True:
            return Answer(
                content_type="text/event-stream", pieces=_message_events({**head, "usage": usage}, text)
            )
        return as_json({**head, "content": [text], "stop_reason": "end_turn", "usage": usage})


async def _message_events(message: Json, block: Json) -> AsyncGenerator[bytes, None]:
    """Yield a message of one block of text as events."""
    delta = {"type": "text_delta", "text": block["text"]}
    for event in (
        {"type": "message_start", "message": {**message, "content": []}},
        {"type": "content_block_start", "index": 0, "content_block": {**block, "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": message["usage"]},
        {"type": "message_stop"},
    ):
        yield b"event: %b\n%b" % (str(event["type"]).encode(), event_of(event))


async def endless(model: str) -> AsyncGenerator[bytes, None]:
    """Yield a stream of chat chunks that never ends."""
    while True:
        choice = {"index": 0, "delta": {"content": "on "}, "finish_reason": None}
        yield event_of({"id": "c", "object": "chat.completion.chunk", "model": model, "choices": [choice]})
        await trio.sleep(0.01)
