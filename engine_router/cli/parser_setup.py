"""The commands that add engines to a configuration, and make the router a service."""

from __future__ import annotations

from engine_router.cli.parser_options import Adder, add_config, add_json, count, port


def add_setting_up(command: Adder) -> None:
    """Add add, presets and service."""
    _add_service(command)
    add = command(
        "add",
        "add an engine to engines.toml",
        "Add an engine to engines.toml from a preset: its command, how long it may take, how it says that it is ready.\n"
        "The file is checked before it is written, and keeps its comments; its former state stays beside it as .bak.\n"
        "Without a file, one is made. What is missing is asked for on a terminal.",
        "add llama.cpp --path ~/models/qwen3-30b-q4_k_m.gguf",
        "add llama.cpp --scan ~/models --scan huggingface",
        "add vllm --path Qwen/Qwen3-32B-AWQ --model qwen3-32b",
        "add ollama",
        "add https://openrouter.ai/api/v1 --model anthropic/claude-sonnet-4.5",
        "add tabbyapi --model Qwen3-8B-exl3 --port 5000 --dry-run",
    )
    add.add_argument(
        "kind",
        metavar="KIND|URL",
        nargs="?",
        help="such as llama.cpp, vllm, ollama: engine-router presets lists them; or the base URL of a server elsewhere",
    )
    add.add_argument("--name", metavar="NAME", help="what the engine is called (default: as its kind)")
    add.add_argument(
        "--model", metavar="ID", help="what clients call the model (default: by its file or repository)"
    )
    add.add_argument(
        "--path", metavar="FILE|DIR|REPO", help="the model: a file, a folder, or user/repo of Hugging Face"
    )
    add.add_argument(
        "--port",
        type=port,
        metavar="N",
        help="where the engine listens (default: a free port, or its usual one)",
    )
    add.add_argument(
        "--scan",
        metavar="DIR",
        action="append",
        default=[],
        help="serve every model in this folder, or in huggingface, llamacpp or lmstudio; may be given repeatedly",
    )
    add.add_argument("--url", metavar="URL", help="remote only: the base URL, as an OpenAI client has it")
    add.add_argument("--dry-run", action="store_true", help="show what would be added, and write nothing")
    add_config(add)
    presets = command(
        "presets",
        "list the engines that can be added, or show what one of them adds",
        "List the engines that engine-router add knows, or show the block that one of them adds to engines.toml, with\n"
        "a model for example.",
        "presets",
        "presets vllm",
        "presets --json",
    )
    presets.add_argument("kind", metavar="KIND", nargs="?", help="default: list all of them")
    add_json(presets)


def _add_service(command: Adder) -> None:
    service = command(
        "service",
        "have the router start by itself: install, uninstall, status, start, stop, restart, logs",
        "Install the router as a service: a systemd unit of yours (or of the machine, with --system) on Linux, an agent\n"
        "of launchd on macOS, a scheduled task on Windows. It starts the configuration that is found now, with the PATH\n"
        "and the library paths of this shell. Installing it again brings it up to date; what you edited stays.\n"
        "Uninstalling takes away what was installed, never the configuration; with --purge also what a --system service\n"
        "has learned and fetched, and its user.",
        "service install",
        "service install --print",
        "service install --system --config /etc/engine-router/engines.toml",
        "service logs --follow",
        "service uninstall",
    )
    service.add_argument(
        "action",
        choices=("install", "uninstall", "status", "start", "stop", "restart", "logs"),
        help="what to do",
    )
    service.add_argument(
        "--system", action="store_true", help="a service of the machine, not of yours (Linux, as root)"
    )
    service.add_argument(
        "--as",
        dest="run_as",
        metavar="USER",
        help="whom a --system service runs as (default: engine-router, made now)",
    )
    service.add_argument(
        "--no-linger",
        action="store_true",
        help="install: run only while you are logged in, as systemd does by itself",
    )
    service.add_argument("--dry-run", action="store_true", help="show the steps, and take none")
    service.add_argument(
        "--print", action="store_true", help="install: print the service's file, and do nothing"
    )
    service.add_argument(
        "--force", action="store_true", help="install: replace a file that was edited (it stays as .bak)"
    )
    service.add_argument(
        "--purge",
        action="store_true",
        help="uninstall --system: also its state, the models that it fetched, and its user",
    )
    service.add_argument("--follow", action="store_true", help="logs: go on with what is written from now on")
    service.add_argument(
        "--lines", type=count, metavar="N", default=100, help="logs: how many (default: 100)"
    )
    add_config(service)
