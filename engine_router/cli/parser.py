"""The commands and their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from engine_router import __version__
from engine_router.cli.command_parser import CommandParser

EXIT_CODES = """\
exit codes:
  0    ok
  1    failed
  2    bad configuration or usage
  3    router not reachable
  130  interrupted (143 after a second SIGTERM)"""


# The modules of the commands; any other command is a module of its own name.
_MODULES = {
    **dict.fromkeys(
        ("models", "queue", "residents", "failed", "reload", "rescan", "reset", "pin", "unpin", "cancel"),
        "one_call",
    ),
    **dict.fromkeys(("use", "load", "unload"), "loading"),
    "import": "import_models",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; a parsed command line has the command's module in `module`."""
    parser = CommandParser(
        prog="engine-router",
        description="One port in front of many local engines that share one memory.",
        epilog=f"{EXIT_CODES}\n\nFirst steps: engine-router demo, then engine-router COMMAND --help.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"engine-router {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", parser_class=argparse.ArgumentParser
    )
    parser.commands = commands.choices

    def command(name: str, summary: str, details: str, *examples: str) -> argparse.ArgumentParser:
        shown = "\n".join(f"  engine-router {example}" for example in examples)
        added = commands.add_parser(
            name,
            help=summary,
            description=details,
            epilog=f"{'example' if len(examples) == 1 else 'examples'}:\n{shown}\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(module=f"engine_router.cli.{_MODULES.get(name, name)}", command=name)
        return added

    _add_running(command)
    _add_checking(command)
    _add_showing(command)
    _add_control(command)
    _add_models(command)
    return parser


Adder = Callable[..., argparse.ArgumentParser]


def _add_running(command: Adder) -> None:
    serve = command(
        "serve",
        "run the router",
        "Run the router until Ctrl-C or SIGTERM: then requests in flight may end, and every engine that the\n"
        "router started is stopped. A second signal ends everything at once.",
        "serve",
        "serve --config ~/engines.toml --port 8080",
    )
    _add_config(serve)
    serve.add_argument("--host", help="address to listen on, instead of server.host")
    serve.add_argument(
        "--port", type=_port, help="port to listen on, instead of server.port; 0 takes a free one"
    )
    serve.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        help="instead of log.level; debug shows every request",
    )
    demo = command(
        "demo",
        "try it with two tiny models, nothing to download",
        "Write two tiny models, run the router in front of two real llama.cpp servers, and say how to talk to\n"
        "it. Needs the extra: pip install 'engine-router[llamacpp]'.",
        "demo",
        "demo --once",
    )
    demo.add_argument("--once", action="store_true", help="chat with each model, show the swaps, and end")
    demo.add_argument("--port", type=_port, default=0, help="port to listen on; a free one by default")
    demo.add_argument("--keep", metavar="DIR", help="write the models and engines.toml there, and leave them")


def _add_checking(command: Adder) -> None:
    check = command(
        "check",
        "check the configuration and say what is in it",
        "Check the configuration: every fault at once, and warnings about what will not work on this machine.",
        "check",
        "check --config ~/engines.toml --json",
        "check --strict",
    )
    imports = command(
        "import",
        "write the models of a folder into engines.toml",
        "Look through folders for models that a template can serve (an engine whose argv has {path}), and show them as\n"
        "tables for engines.toml, with their projectors; with --write, put them there. They stay whatever becomes of\n"
        "their files. To have models come and go with their files, use `scan` instead.",
        "import ~/models",
        "import /mnt/nas/models --engine llama --write",
    )
    imports.add_argument("folder", metavar="DIR", nargs="+", help="or huggingface, llamacpp, lmstudio")
    imports.add_argument(
        "--engine", metavar="NAME", help="the template that serves them; the only one by default"
    )
    imports.add_argument(
        "--write", action="store_true", help="add them to engines.toml, which is checked first"
    )
    _add_config(imports)
    _add_config(check)
    check.add_argument("--strict", action="store_true", help="exit with 1 if there are warnings")
    _add_json(check)
    command(
        "schema",
        "print the JSON Schema of engines.toml, for editors",
        "Print the JSON Schema of engines.toml. Editors that know it complete keys and show what is wrong.",
        "schema > engines.schema.json",
    )


def _add_showing(command: Adder) -> None:
    status = command(
        "status",
        "show what is resident, who waits, and the last swap",
        "Show what is resident, who waits, and what the last swap took.",
        "status",
        "status --json",
    )
    models = command(
        "models",
        "list the models that clients can ask for",
        "List the models that clients can ask for, with the engine and the state of each.",
        "models",
        "models --url http://192.168.1.20:8077",
    )
    discover = command(
        "discover",
        "ask the engines for their models, and show where each is known from",
        "Ask every engine, or one, for its models, and show each with where it is known from: the configuration, a\n"
        "folder, the engine's command (argv), or its list, now (live) or earlier (last seen); and which engine serves\n"
        "an id that two of them have. No engine is started.",
        "discover",
        "discover llama --json",
    )
    discover.add_argument("name", metavar="ENGINE", nargs="?", help="default: all of them")
    use = command(
        "use",
        "make a model resident now",
        "Make a model, or an engine, resident, and wait until it is. It takes its turn like any request.\n"
        "Ctrl-C gives up the wait, and the start too where nobody else wants it.",
        "use qwen3-30b",
    )
    use.add_argument("name", metavar="MODEL|ENGINE", help="a model id or alias, or the name of an engine")
    unload = command(
        "unload",
        "stop what is resident and free its memory",
        "Let running requests end, then stop what is resident: everything, or one model or engine.",
        "unload qwen3-30b",
        "unload --all",
    )
    which = unload.add_mutually_exclusive_group()
    which.add_argument("name", metavar="MODEL|ENGINE", nargs="?", help="default: everything")
    which.add_argument("--all", action="store_true", help="everything, in so many words")
    logs = command(
        "logs",
        "show what an engine or a model wrote",
        "Show the last lines that an engine wrote; for a model, its own lines only, where each has its own process.",
        "logs llama -n 50",
        "logs qwen3-30b -f",
    )
    logs.add_argument("name", metavar="MODEL|ENGINE", help="a name that is both is the engine's")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what it writes, until Ctrl-C")
    logs.add_argument("-n", "--lines", type=_count, default=200, metavar="N", help="how many (default: 200)")
    reload = command(
        "reload",
        "have the router read its configuration again",
        "Have the router read its configuration again. A file with any fault is refused as a whole. Engines that\n"
        "changed start anew once their requests are done; everything else goes on undisturbed.",
        "reload",
    )
    rescan = command(
        "rescan",
        "have the router look through its folders of models",
        "Have the router look through the folders that its engines `scan`, and ask engines that run for their models.\n"
        "Shows what is new, what is gone, and which files cannot be served, and why.",
        "rescan",
    )
    for calling in (status, models, discover, use, unload, logs, reload, rescan):
        _add_address(calling)
    for answering in (status, models, discover, use, unload, reload, rescan):
        _add_json(answering)


def _add_control(command: Adder) -> None:
    queue = command(
        "queue",
        "show who waits, and what for",
        "Show every request that waits: its place, how long it has waited, what has to happen first, and how\n"
        "long that takes as far as is known.",
        "queue",
        "queue --json",
    )
    residents = command(
        "residents",
        "show what is in memory, and which requests use it",
        "Show what is in memory: what it takes, since when it is idle, when it goes by itself, and the requests\n"
        "that use it.",
        "residents",
    )
    failed = command(
        "failed",
        "show what failed, why, and when it is tried again",
        "Show the models that could not be started, or died, and have not worked since. See also: reset.",
        "failed",
    )
    load = command(
        "load",
        "make a model resident, and say how long it shall stay",
        "Make a model resident and wait until it is, in turn like any request. With --no-wait the router goes\n"
        "on with it alone, and the command ends at once.",
        "load qwen3-30b",
        "load qwen3-30b --keep-alive 1h --no-wait",
    )
    load.add_argument("name", metavar="MODEL|ENGINE", help="a model id or alias, or the name of an engine")
    load.add_argument(
        "--keep-alive",
        metavar="TIME",
        help='how long it shall stay when nobody uses it: seconds, or "30m", "2h"; -1 for ever',
    )
    load.add_argument("--no-wait", action="store_true", help="do not wait until it is there")
    reset = command(
        "reset",
        "forget that a model failed, so that it is tried again at once",
        "Forget that a model failed, so that the next request for it starts it. One that could not be stopped is "
        "taken to be gone: see to that first.",
        "reset qwen3-30b",
    )
    pin = command(
        "pin",
        "protect a model from eviction",
        "Once a model is resident, neither evict it nor stop it when idle, until the router ends.",
        "pin qwen3-30b",
    )
    unpin = command("unpin", "take a model's pin away", "Let a model be stopped again.", "unpin qwen3-30b")
    cancel = command(
        "cancel",
        "end one request",
        "End one request, or one job: it gives back what it holds, and its client is told. The ids are shown by\n"
        "engine-router queue and engine-router residents.",
        "cancel r12",
    )
    cancel.add_argument("id", metavar="ID", help="such as r12, or j3 for a job")
    events = command(
        "events",
        "show what happens, as it happens",
        "Show everything that happens in the router from now on, until Ctrl-C.",
        "events",
        "events --json | jq .",
    )
    for naming in (reset, pin, unpin):
        naming.add_argument("name", metavar="MODEL", help="a model id or alias")
    for calling in (queue, residents, failed, load, reset, pin, unpin, cancel, events):
        _add_address(calling)
        _add_json(calling)


def _add_models(command: Adder) -> None:
    pull = command(
        "pull",
        "download a model from Hugging Face",
        "Download a model into Hugging Face's own cache, where every program finds it: the parts and the projector of\n"
        "a GGUF model (Q4_K_M, or what is nearest, unless a quantisation is named), or a safetensors repository.\n"
        "A download that breaks off, or is ended with Ctrl-C, goes on from there when the command is repeated.\n"
        "A running router downloads as a job, and pauses it while a model is starting. Gated models need a token\n"
        "(HF_TOKEN, or `hf auth login`) where the download runs.",
        "pull hf:unsloth/Qwen3-8B-GGUF",
        "pull hf:unsloth/Qwen3-8B-GGUF:Q6_K",
        "pull https://huggingface.co/Qwen/Qwen3-8B",
        "pull https://example.org/model.gguf --to ~/models",
    )
    pull.add_argument(
        "name", metavar="NAME", help="hf:user/repo, hf:user/repo:QUANT, hf:user/repo/FILE, or a URL"
    )
    pull.add_argument("--revision", metavar="REV", default="", help="branch, tag or commit (default: main)")
    pull.add_argument("--no-mmproj", action="store_true", help="leave out the projector for images and sound")
    pull.add_argument(
        "--to",
        metavar="DIR",
        default="",
        help="folder for the file of a plain URL (default: llama.cpp's cache)",
    )
    pull.add_argument(
        "--no-wait", action="store_true", help="leave it to the running router, and end at once"
    )
    rm = command(
        "rm",
        "remove a model's files from the disk",
        "Remove the files of a model: by its name, or by its name on Hugging Face, whose cache keeps what other\n"
        "revisions use. Shows what goes, and asks first. A model that is resident is unloaded first: engine-router\n"
        "unload.",
        "rm qwen3-8b:q4_k_m",
        "rm hf:unsloth/Qwen3-8B-GGUF:Q6_K",
        "rm hf:unsloth/Qwen3-8B-GGUF --yes",
    )
    rm.add_argument(
        "name", metavar="NAME", help="a model, or hf:user/repo, hf:user/repo:QUANT, hf:user/repo/FILE"
    )
    rm.add_argument("-y", "--yes", action="store_true", help="do not ask")
    for calling in (pull, rm):
        calling.add_argument(
            "--no-router", action="store_true", help="do it without the router, even if one is running"
        )
        _add_address(calling)
        _add_json(calling)


def _add_address(parser: argparse.ArgumentParser) -> None:
    address = parser.add_argument_group("which router")
    address.add_argument("--url", help="default: $ENGINE_ROUTER_URL, else host and port of the configuration")
    address.add_argument(
        "--api-key",
        metavar="KEY",
        help="default: $ENGINE_ROUTER_API_KEY, else the first of server.api_keys",
    )
    _add_config(address)


def _add_config(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="default: $ENGINE_ROUTER_CONFIG, ./engines.toml, the user's configuration folder, /etc/engine-router",
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _port(text: str) -> int:
    port = _count(text)
    if port > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port: 0 to 65535")
    return port


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)
