"""Scripted servers: engines that load no weights, but speak as their documentation says the real ones do.

They listen on real sockets of the loopback interface, are up within a few milliseconds, remember every call,
and can be told to misbehave. The tests of the engines use them, and end-to-end tests of the router, for
which they answer chat requests too.

    async with ScriptedOllama("qwen3:4b").running() as ollama:
        ...  # ollama.base_url, ollama.calls, ollama.loaded
"""

from support.scripted.llamacpp import ScriptedLlamaRouter
from support.scripted.lmstudio import ScriptedLMStudio
from support.scripted.ollama import ScriptedOllama
from support.scripted.server import Answer, Call, Script, ScriptedServer, as_json
from support.scripted.supervised import SupervisedResident, supervised, until
from support.scripted.tabby import ScriptedTabby

__all__ = [
    "Answer",
    "Call",
    "Script",
    "ScriptedLMStudio",
    "ScriptedLlamaRouter",
    "ScriptedOllama",
    "ScriptedServer",
    "ScriptedTabby",
    "SupervisedResident",
    "as_json",
    "supervised",
    "until",
]
