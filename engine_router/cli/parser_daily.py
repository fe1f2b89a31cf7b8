"""The commands that talk to models: chats and client programs; and the help for a shell and its user."""

from __future__ import annotations

import argparse

from engine_router.cli.clients import NAMES
from engine_router.cli.completions import LIVE, SHELLS
from engine_router.cli.parser_options import Adder, add_address
from engine_router.guards.foreign_text import printable

_SHELLS = f"{', '.join(SHELLS[:-1])} or {SHELLS[-1]}"


def _shell(word: str) -> str:
    """Return a shell, or what a shell's script asks for: that is nothing to be typed, so errors do not offer it."""
    if word not in (*SHELLS, *LIVE):
        raise argparse.ArgumentTypeError(f"there is no script for {printable(word[:40])}, only for {_SHELLS}")
    return word


def add_daily(command: Adder) -> None:
    """Add run, launch, completion and help."""
    run = command(
        "run",
        "chat with a model, or ask it once",
        "Chat with a model in the terminal. With a PROMPT or text on standard input, print one answer and exit. Piped or\n"
        "redirected input is appended to the PROMPT. The model is loaded on demand; while it loads, progress is shown.\n\n"
        "In a chat, /help lists the commands: /set, /show, /model, /image, /clear, /save, /bye. Enclose a message of\n"
        'several lines in """. An image file (PNG, JPEG, WebP, GIF) named in a message is sent with it. Ctrl-C stops the\n'
        "answer, Ctrl-D ends the chat. Thoughts of reasoning models are dimmed on a terminal and omitted elsewhere.",
        "run qwen3-30b",
        'run qwen3-30b "Why is the sky blue?"',
        'git diff | engine-router run qwen3-30b "Write a commit message" --set temperature=0',
        'run qwen3-vl "What is on it?" --image photo.jpg',
        "run qwen3-30b --system 'Answer in one word.' --json < question.txt",
        words="prompt",
        variables=(("ENGINE_ROUTER_HISTORY", "history file of chats; empty: keep no history"),),
    )
    run.add_argument("model", metavar="MODEL", nargs="?", help="a model id or alias")
    run.add_argument("prompt", metavar="PROMPT", nargs="*", help="the question; without one, start a chat")
    run.add_argument("--system", metavar="TEXT", help="system prompt")
    run.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        help="a setting, like /set in a chat: temperature, top_p, top_k, min_p, max_tokens, seed, stop, think ...",
    )
    run.add_argument("--image", metavar="FILE", action="append", help="send an image with the prompt")
    run.add_argument("--hide-thinking", action="store_true", help="hide the thoughts of reasoning models")
    run.add_argument("--verbose", action="store_true", help="show tokens and speed after each answer")
    run.add_argument("--raw", action="store_true", help="no colours")
    run.add_argument(
        "--json", action="store_true", help="print one object: text, finish_reason, usage, timings"
    )
    add_address(run)
    launch = command(
        "launch",
        "start a client that uses the router",
        "Start a client program that is set up to use the router and a model. Most clients take environment variables or\n"
        "arguments. For the others, launch asks before it changes their settings file; it keeps the other settings and\n"
        "a backup. Without a CLIENT, list the clients. Arguments after -- are passed to the client.\n\n"
        "Without --model, launch uses the router's default_model, the resident model, or the only model; otherwise it\n"
        "asks.",
        "launch claude",
        "launch codex --model qwen3-30b -- exec 'fix the tests'",
        "launch opencode --print",
        "launch crush --yes",
        rest="arguments",
    )
    launch.add_argument("client", metavar="CLIENT", nargs="?", choices=NAMES, help=", ".join(NAMES))
    launch.add_argument("-m", "--model", metavar="MODEL", help="a model id or alias")
    launch.add_argument(
        "--print", action="store_true", help="only print the variables, settings and command, as shell code"
    )
    launch.add_argument("-y", "--yes", action="store_true", help="change settings files without asking")
    add_address(launch)
    completion = command(
        "completion",
        "print a completion script for a shell",
        "Print a completion script for bash, zsh or fish. It completes commands, options, files, and the models of the\n"
        "running router.",
        'eval "$(engine-router completion bash)"        # in ~/.bashrc',
        "source <(engine-router completion zsh)         # in ~/.zshrc, after compinit",
        "engine-router completion fish | source         # in ~/.config/fish/config.fish",
    )
    completion.add_argument("shell", metavar="SHELL", type=_shell, help=_SHELLS)
    add_address(completion)
    helps = command(
        "help",
        "show the help page of a command",
        "Show the help page of a command, as its --help does. Without a COMMAND, list the commands.",
        "help run",
    )
    helps.add_argument("topic", metavar="COMMAND", nargs="?", help="default: list all commands")
