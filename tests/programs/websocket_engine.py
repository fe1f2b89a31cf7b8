"""An engine with WebSockets: websocket_engine.py PORT. It tells what it was asked, echoes, and closes when it is told."""

import json
import sys

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import websocket
from quart_trio import QuartTrio

app = QuartTrio("engine")


@app.get("/health")
async def health() -> str:
    return "{}"


@app.websocket("/<path:rest>")
async def talk(rest: str) -> tuple[str, int] | None:
    if rest == "refused":
        return "not here", 418
    protocols = websocket.requested_subprotocols
    sys.stderr.write(f"connected {rest}\n")
    try:
        await websocket.accept(subprotocol=protocols[0] if protocols else None)
        told = {
            "path": f"/{rest}",
            "query": websocket.query_string.decode(),
            "headers": {name.lower(): value for name, value in websocket.headers.items()},
            "protocols": protocols,
        }
        await websocket.send(json.dumps(told))
        while True:
            message = await websocket.receive()
            if isinstance(message, str) and message.startswith("close"):
                await websocket.close(int(message.removeprefix("close")), "as you wish")
                return None
            await websocket.send(message)
    finally:
        sys.stderr.write(f"left {rest}\n")


config = Config()
config.bind = [f"127.0.0.1:{sys.argv[1]}"]
trio.run(serve, app, config)
