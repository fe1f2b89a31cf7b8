"""Ollama, as `docs/api.md` of its repository describes it (2026)."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections.abc import AsyncGenerator, Callable, Mapping

import trio

from support.scripted.server import CREATED, Answer, Call, Handler, Json, ScriptedServer, as_json

DEFAULT_CONTEXT = 4096


def full_name(model: str) -> str:
    """Return a name with its tag, without what goes without saying before it."""
    name = model.strip().removesuffix(":local")
    name = re.sub(r"^(registry\.ollama\.ai/)?library/(?=[^/]+$)", "", name, flags=re.IGNORECASE)
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def seconds(keep_alive: object) -> float:
    """Read a `keep_alive`: seconds, or a duration in one unit; what is negative means for ever."""
    if isinstance(keep_alive, str):
        amount, unit = re.fullmatch(r"(-?[0-9.]+)(s|m|h)?", keep_alive).groups()  # type: ignore[union-attr]
        keep_alive = float(amount) * {"h": 3600, "m": 60}.get(unit, 1)
    kept_s = float(str(keep_alive))
    return math.inf if kept_s < 0 else kept_s


class ScriptedOllama(ScriptedServer):
    """Ollama: models come and go by `keep_alive`.

    - `POST /api/generate` without a prompt loads the model, or unloads it when `keep_alive` is 0; otherwise
      it and `POST /api/chat` answer, as NDJSON unless `stream` is false. A caller that leaves aborts a load.
    - A request for another `options.num_ctx` loads the model again, to be kept for five minutes if the request
      says nothing of that, as none to `/v1` can. The model is not listed while it loads.
    - `GET /api/ps` lists what is in memory, `GET /api/tags` what has been pulled, with full names.
    - `POST /api/show`, `GET /api/version`, `POST /api/embed`.
    - An unknown model gets 404 `{"error": "model 'x' not found"}`. Case means nothing in names.

    Attributes:
        remote: models that run at another host: they are never in memory here.
        embedders: models that answer /api/generate with 400, because they can only embed.
        keep_alive: what the last request for each model asked for.
        default_keep_s: for how many seconds a model stays that is loaded by a request that does not say it.
        kept_s: for how many seconds each model stays after a request; infinity for ever. Where that is none, a
            request to `/v1` leaves it unloaded.
        contexts: the context that each was loaded with.
    """

    def __init__(self, *models: str, embedders: tuple[str, ...] = ()) -> None:
        super().__init__(*(full_name(model) for model in (*models, *embedders)))
        self.embedders = {full_name(model) for model in embedders}
        self.remote: set[str] = set()
        self.keep_alive: dict[str, object] = {}
        self.default_keep_s = 300.0
        self.kept_s: dict[str, float] = {}
        self.contexts: dict[str, int] = {}

    def found(self, name: str) -> str | None:
        """Return the model that a name means."""
        return {model.lower(): model for model in self.models}.get(full_name(name).lower())

    def routes(self) -> Mapping[str, Handler]:
        """Map `METHOD /path` to handlers."""
        return {
            **super().routes(),
            "GET /api/version": self.version,
            "GET /api/tags": self.tags,
            "GET /api/ps": self.ps,
            "POST /api/show": self.show,
            "POST /api/generate": self.generate,
            "POST /api/chat": self.chat,
            "POST /api/embed": self.embed,
        }

    async def version(self, _call: Call) -> Answer:
        """Tell the version."""
        return as_json({"version": "0.33.0"})

    async def tags(self, _call: Call) -> Answer:
        """List what has been pulled."""
        return as_json({"models": [_entry(model) for model in self.models]})

    async def ps(self, _call: Call) -> Answer:
        """List what is in memory."""
        return as_json({"models": [{**_entry(model), **self._session(model)} for model in self.loaded]})

    def _session(self, model: str) -> Json:
        kept_s, until = self.kept_s.get(model, self.default_keep_s), "2318-01-01T00:00:00Z"
        if kept_s < math.inf:
            moment = dt.datetime.now(dt.timezone.utc) + dt.timedelta(seconds=kept_s)
            until = moment.isoformat().replace("+00:00", "Z")
        context = self.contexts.get(model, DEFAULT_CONTEXT)
        return {"expires_at": until, "size_vram": 1_000_000, "context_length": context}

    async def show(self, call: Call) -> Answer:
        """Describe a model."""
        model = self.found(call.model or call.body.get("name") or "")
        if model is None:
            return _not_found(call.model)
        kind = "embedding" if model in self.embedders else "completion"
        return as_json({"details": _entry(model)["details"], "model_info": {}, "capabilities": [kind]})

    async def generate(self, call: Call) -> Answer:
        """Load, unload or answer."""
        model = self.found(call.model)
        if model is None:
            return _not_found(call.model)
        if not call.body.get("prompt") and call.body.get("keep_alive") == 0:
            return self._leave(call, {"response": ""})
        if model in self.embedders:
            return as_json({"error": f'"{call.model}" does not support generate'}, 400)
        if refusal := await self.make_ready(call):
            return refusal
        if not call.body.get("prompt"):
            more = {"remote_model": "x", "remote_host": "https://ollama.com"} if model in self.remote else {}
            return as_json({**_head(call), **more, "response": "", "done": True, "done_reason": "load"})
        return await self._say(call, lambda word: {"response": word})

    async def chat(self, call: Call) -> Answer:
        """Load, unload or answer a conversation."""
        empty: Json = {"message": {"role": "assistant", "content": ""}}
        if self.found(call.model) is None:
            return _not_found(call.model)
        if not call.body.get("messages") and call.body.get("keep_alive") == 0:
            return self._leave(call, empty)
        if refusal := await self.make_ready(call):
            return refusal
        if not call.body.get("messages"):
            return as_json({**_head(call), **empty, "done": True, "done_reason": "load"})
        return await self._say(call, lambda word: {"message": {"role": "assistant", "content": word}})

    async def openai_chat(self, call: Call) -> Answer:
        """Answer a chat request in OpenAI's shape."""
        answer = await super().openai_chat(call)
        model = self.found(call.model)
        if model is not None and self.kept_s.get(model) == 0:
            self.loaded.pop(model, None)
        return answer

    async def embed(self, call: Call) -> Answer:
        """Embed a text, or load the model for an empty one."""
        if refusal := await self.make_ready(call):
            return refusal
        return as_json({"model": call.model, "embeddings": [[0.1, 0.2]] if call.body.get("input") else []})

    async def make_ready(self, call: Call) -> Answer | None:
        """Load the model of a request where it is not in memory, or has another context there."""
        model = self.found(call.model)
        if model is None:
            return _not_found(call.model)
        if self.script.load_error is not None:
            return as_json({"error": self.script.load_error}, 500)
        if model in self.remote:
            return None
        asked = call.body if call.path.startswith("/api/") else {}
        context = (asked.get("options") or {}).get("num_ctx", DEFAULT_CONTEXT)
        if self.contexts.get(model, context) != context:
            self.loaded.pop(model, None)
        if model not in self.loaded:
            await self.load(model)
            self.kept_s[model], self.contexts[model] = self.default_keep_s, context
        if asked.get("keep_alive") is not None:
            self.keep_alive[model] = asked["keep_alive"]
            self.kept_s[model] = seconds(asked["keep_alive"])
        return None

    def _leave(self, call: Call, empty: Json) -> Answer:
        if self.script.unload_error is not None:
            return as_json({"error": self.script.unload_error}, 500)
        self.unload(self.found(call.model) or "")
        return as_json({**_head(call), **empty, "done": True, "done_reason": "unload"})

    async def _say(self, call: Call, piece: Callable[[str], Json]) -> Answer:
        end = {"done": True, "done_reason": "stop", "eval_count": self.script.words, "prompt_eval_count": 1}
        if call.body.get("stream") is False:
            return as_json({**_head(call), **piece("".join(self.words(call.model))), **end})
        return Answer(content_type="application/x-ndjson", pieces=self._lines(call, piece, end))

    async def _lines(
        self, call: Call, piece: Callable[[str], Json], end: Json
    ) -> AsyncGenerator[bytes, None]:
        for word in self.words(call.model):
            await trio.sleep(self.script.word_s)
            yield _line({**_head(call), **piece(word), "done": False})
        yield _line({**_head(call), **piece(""), **end})


def _entry(model: str) -> Json:
    details = {"format": "gguf", "family": "llama", "parameter_size": "1B", "quantization_level": "Q4_0"}
    return {"name": model, "model": model, "size": 1_000_000, "digest": "0" * 64, "details": details}


def _head(call: Call) -> Json:
    return {"model": call.model, "created_at": CREATED}


def _line(data: Json) -> bytes:
    return json.dumps(data).encode() + b"\n"


def _not_found(model: str) -> Answer:
    return as_json({"error": f"model '{model}' not found"}, 404)
