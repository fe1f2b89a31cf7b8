"""The commands that talk to models: chats, clients that are started for the router, and helps for the shell."""

from __future__ import annotations

from engine_router.cli.clients import NAMES
from engine_router.cli.completions import LIVE, SHELLS
from engine_router.cli.parser_options import Adder, add_address


def add_daily(command: Adder) -> None:
    """Add run, launch, completion and help."""
    run = command(
        "run",
        "chat with a model, or ask it once",
        "Chat with a model on the terminal, or ask it once: with a PROMPT, or with text on standard input, the\n"
        "answer is printed, and the command ends. A pipe or a file on standard input is added to the PROMPT. The\n"
        "model is loaded if it has to be, in turn like any request, and the wait is shown.\n\n"
        "In a chat, /help shows the commands: /set, /show, /model, /image, /clear, /save, /bye. A message of several\n"
        'lines stands between """ and """. The path of an image (PNG, JPEG, WebP, GIF) in a message sends the\n'
        "image. Ctrl-C ends an answer, Ctrl-D the chat. What a model thinks is dimmed on a terminal, and left out\n"
        "elsewhere.",
        "run qwen3-30b",
        'run qwen3-30b "Why is the sky blue?"',
        'git diff | engine-router run qwen3-30b "Write a commit message" --set temperature=0',
        'run qwen3-vl "What is on it?" --image photo.jpg',
        "run qwen3-30b --system 'Answer in one word.' --json < question.txt",
        words="prompt",
        variables=(("ENGINE_ROUTER_HISTORY", "the file that keeps what was typed in chats; empty: none"),),
    )
    run.add_argument("model", metavar="MODEL", nargs="?", help="a model id or alias")
    run.add_argument("prompt", metavar="PROMPT", nargs="*", help="what is asked; without it: a chat")
    run.add_argument("--system", metavar="TEXT", help="what the model is told before everything else")
    run.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        help="a setting, as /set in the chat: temperature, top_p, top_k, min_p, max_tokens, seed, stop, think ...",
    )
    run.add_argument("--image", metavar="FILE", action="append", help="send an image with the prompt")
    run.add_argument("--hide-thinking", action="store_true", help="do not show what the model thinks")
    run.add_argument("--verbose", action="store_true", help="show tokens and speed after each answer")
    run.add_argument("--raw", action="store_true", help="no colours")
    run.add_argument(
        "--json", action="store_true", help="print one object: text, finish_reason, usage, timings"
    )
    add_address(run)
    launch = command(
        "launch",
        "start a client that uses the router",
        "Start a client with the variables and arguments by which it finds the router and a model. Clients that want\n"
        "a file of their own get what they need put into it, after a question; everything else in it stays, and the\n"
        "former file is kept beside it. Without a CLIENT, list them. What stands behind -- goes to the client.\n\n"
        "The model is --model, else the router's default_model, the one that is resident, or the only one; else you\n"
        "are asked.",
        "launch claude",
        "launch codex --model qwen3-30b -- exec 'fix the tests'",
        "launch opencode --print",
        "launch crush --yes",
        rest="arguments",
    )
    launch.add_argument("client", metavar="CLIENT", nargs="?", choices=NAMES, help=", ".join(NAMES))
    launch.add_argument("-m", "--model", metavar="MODEL", help="a model id or alias")
    launch.add_argument(
        "--print", action="store_true", help="only show the variables, the file and the command, for a shell"
    )
    launch.add_argument("-y", "--yes", action="store_true", help="do not ask before a file is changed")
    add_address(launch)
    completion = command(
        "completion",
        "print a script with which a shell completes commands",
        "Print a script with which bash, zsh or fish completes commands, options, files, and the names of the models\n"
        "that the running router has ($ENGINE_ROUTER_URL, or the configuration).",
        'eval "$(engine-router completion bash)"        # in ~/.bashrc',
        "source <(engine-router completion zsh)         # in ~/.zshrc, after compinit",
        "engine-router completion fish | source         # in ~/.config/fish/config.fish",
    )
    completion.add_argument("shell", metavar="SHELL", choices=(*SHELLS, *LIVE), help="bash, zsh or fish")
    add_address(completion)
    helps = command(
        "help",
        "show how a command is used",
        "Show how a command is used, as its --help does; without a command, list them.",
        "help run",
    )
    helps.add_argument("topic", metavar="COMMAND", nargs="?", help="default: the list of all")
