"""TabbyAPI, as its wiki and the routes in its `endpoints/core/router.py` describe it (2026)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

from support.scripted.server import Answer, Call, Handler, ScriptedServer, as_json, event_of

API_KEY = "tabby-api-key"
ADMIN_KEY = "tabby-admin-key"
NOTHING_LOADED = "No models are currently loaded."


class ScriptedTabby(ScriptedServer):
    """TabbyAPI: one model at a time.

    - `POST /v1/model/load {"model_name"}` needs the admin key and answers with a stream of progress events,
      the last of which says `finished`, or with an event `{"error": {"message"}}`. An unknown model is
      refused with 400. A loaded model is replaced.
    - `POST /v1/model/unload` needs the admin key; with nothing loaded it is refused with 503.
    - `GET /v1/model` describes the loaded model; with nothing loaded it is refused with 503.
    - `GET /v1/models` lists the whole folder for the admin key, and only the loaded model for the API key.
    """

    def routes(self) -> Mapping[str, Handler]:
        """Map `METHOD /path` to handlers."""
        return {
            **super().routes(),
            "GET /health": self.health,
            "GET /v1/model": self.current,
            "GET /v1/models": self.list,
            "POST /v1/model/load": self.load_model,
            "POST /v1/model/unload": self.unload_model,
        }

    async def health(self, _call: Call) -> Answer:
        """Answer that the server runs; it says nothing about models."""
        return as_json({"status": "healthy"})

    async def current(self, call: Call) -> Answer:
        """Describe the loaded model."""
        if refusal := self._locked(call, API_KEY, ADMIN_KEY) or self._empty():
            return refusal
        return as_json({"id": next(iter(self.loaded)), "object": "model", "owned_by": "tabbyAPI"})

    async def list(self, call: Call) -> Answer:
        """List models, as many as the key allows."""
        if refusal := self._locked(call, API_KEY, ADMIN_KEY):
            return refusal
        names = self.models if self._locked(call, ADMIN_KEY) is None else list(self.loaded)
        return as_json({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})

    async def load_model(self, call: Call) -> Answer:
        """Load a model and stream the progress."""
        if refusal := self._locked(call, ADMIN_KEY):
            return refusal
        model = call.body.get("model_name") or ""
        if model not in self.models:
            detail = "Could not find the model path for load. Check model name or config.yml?"
            return as_json({"detail": detail}, 400)
        return Answer(content_type="text/event-stream", pieces=self._progress(model))

    async def unload_model(self, call: Call) -> Answer:
        """Unload whatever is loaded."""
        if refusal := self._locked(call, ADMIN_KEY) or self._empty():
            return refusal
        if self.script.unload_error is not None:
            return as_json({"detail": self.script.unload_error}, 500)
        for instance in tuple(self.loaded):
            self.unload(instance)
        return as_json(None)

    async def make_ready(self, call: Call) -> Answer | None:
        """See that a model is loaded; by default TabbyAPI loads nothing for a chat request."""
        return self._empty()

    async def _progress(self, model: str) -> AsyncGenerator[bytes, None]:
        event = {"model_type": "model", "modules": 2}
        yield event_of({**event, "module": 1, "status": "processing"})
        self.loaded.clear()
        if self.script.load_error is not None:
            yield event_of({"error": {"message": self.script.load_error, "trace": None}})
            return
        await self.load(model)
        yield event_of({**event, "module": 2, "status": "processing"})
        yield event_of({**event, "module": 2, "status": "finished"})

    def _locked(self, call: Call, *keys: str) -> Answer | None:
        sent = {call.headers.get("x-admin-key"), call.headers.get("x-api-key")}
        sent.add(call.headers.get("authorization", "").removeprefix("Bearer "))
        return None if sent & set(keys) else as_json({"detail": "Please provide an admin key"}, 401)

    def _empty(self) -> Answer | None:
        return None if self.loaded else as_json({"detail": NOTHING_LOADED}, 503)
