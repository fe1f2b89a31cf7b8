"""The commands that run a router, or look at its configuration."""

from __future__ import annotations

from engine_router.cli.parser_options import Adder, add_address, add_config, add_json, port

IMPORTED = (
    *("llama-swap", "llamacpp", "local-engine-router", "llama-router", "routermodelcustom"),
    *("openwebui-router", "large-model-proxy"),
)
"""Routers whose configurations can be imported."""


def add_running(command: Adder) -> None:
    """Add serve and demo."""
    serve = command(
        "serve",
        "run the router",
        "Run the router until Ctrl-C or SIGTERM. It then lets running requests finish, and stops every engine that it\n"
        "started. A second signal stops everything at once.",
        "serve",
        "serve --config ~/engines.toml --port 8080",
        "serve --scan ~/models",
    )
    add_config(serve)
    serve.add_argument(
        "--scan",
        metavar="DIR",
        action="append",
        help="serve the GGUF models in this folder, or in huggingface, llamacpp or lmstudio, without any file",
    )
    serve.add_argument("--host", help="address to listen on, instead of server.host")
    serve.add_argument(
        "--port", type=port, help="port to listen on, instead of server.port; 0 takes a free one"
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
    demo.add_argument("--port", type=port, default=0, help="port to listen on; a free one by default")
    demo.add_argument("--keep", metavar="DIR", help="write the models and engines.toml there, and leave them")


def add_checking(command: Adder) -> None:
    """Add check, import and schema."""
    init = command(
        "init",
        "look at this machine, and write a configuration for what it has",
        "Look at this machine (memory, GPUs, engines that run, programs, folders of models), show what is found, ask\n"
        "what cannot be known, and write engines.toml. Nothing is started or changed by looking.",
        "init",
        "init --yes",
        "init --detect-only --json",
        "init --scan /mnt/models",
    )
    init.add_argument(
        "--yes", action="store_true", help="ask nothing: take what is proposed, replace no file"
    )
    init.add_argument(
        "--no-service",
        dest="offers_service",
        action="store_false",
        help="do not offer to install the service",
    )
    init.add_argument("--detect-only", action="store_true", help="only show what is found")
    init.add_argument("--scan", metavar="DIR", action="append", help="another folder with models")
    init.add_argument(
        "--example", action="store_true", help="print engines.toml.example, which shows all that can be said"
    )
    init.add_argument(
        "--config",
        metavar="FILE",
        help="where to write; default: engines.toml in the platform's configuration folder",
    )
    add_json(init)
    check = command(
        "check",
        "check the configuration and summarize it",
        "Check the configuration: report every error at once, and warn about what will not work on this machine.",
        "check",
        "check --config ~/engines.toml --json",
        "check --strict",
    )
    doctor = command(
        "doctor",
        "examine this machine and the configuration",
        "Say what works here and what does not, each with its remedy: packages, GPUs, the gauge beside a second source,\n"
        "engines' programs and versions, ports, files of models, memory that they need, access, disks. With --start, a\n"
        "model is started as well.",
        "doctor",
        "doctor --start qwen3-8b",
        "doctor --json",
    )
    doctor.add_argument("--start", metavar="MODEL", help="start this model, and say how long that takes")
    add_address(doctor)
    add_json(doctor)
    imports = command(
        "import",
        "take over another router's configuration, or the models of a folder",
        "FILE: read the configuration of llama-swap, llama.cpp (presets, .ini), local-engine-router, llama-router,\n"
        "RouterModelCustom, the Open WebUI router (both of its files) or large-model-proxy, and show it as an\n"
        "engines.toml, with a report of what is carried over, approximated and lost; with --write, put it there. What\n"
        "engines.toml has already stays as it is. Secrets are not printed.\n\n"
        "DIR: look through folders for models that a template can serve (an engine whose argv has {path}), and show\n"
        "them as tables for engines.toml, with their projectors; with --write, put them there. They stay whatever\n"
        "becomes of their files. To have models come and go with their files, use `scan` instead.",
        "import ~/llama-swap/config.yaml",
        "import config.yaml --from llama-swap --report",
        "import presets.ini --models-dir ~/models --write",
        "import ~/models",
        "import /mnt/nas/models --engine llama --write",
    )
    imports.add_argument(
        "folder",
        metavar="FILE|DIR",
        nargs="+",
        help="a file, or folders: also huggingface, llamacpp, lmstudio",
    )
    imports.add_argument(
        "--write", action="store_true", help="put it into engines.toml, which is checked first"
    )
    imports.add_argument(
        "--from",
        dest="source",
        choices=IMPORTED,
        metavar="ROUTER",
        help=f"whose FILE it is, if its content does not show that: {', '.join(IMPORTED)}",
    )
    imports.add_argument(
        "--report", action="store_true", help="show what becomes of every key of FILE, and no TOML"
    )
    imports.add_argument(
        "--models-dir", metavar="DIR", help="what llama-server's --models-dir was, for llama.cpp's presets"
    )
    imports.add_argument(
        "--engine", metavar="NAME", help="the template that serves the models of DIR; the only one by default"
    )
    add_json(imports)
    add_config(imports)
    add_config(check)
    check.add_argument("--strict", action="store_true", help="exit with 1 if there are warnings")
    add_json(check)
    command(
        "schema",
        "print the JSON Schema of engines.toml, for editors",
        "Print the JSON Schema of engines.toml. Editors use it to complete keys and to mark mistakes.",
        "schema > engines.schema.json",
    )
