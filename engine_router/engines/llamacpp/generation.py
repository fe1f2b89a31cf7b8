"""The options of the llama.cpp server that say how it generates: chats, sampling, speculative decoding."""

import argparse
from typing import Final

from engine_router.engines.llamacpp import values

SWITCH: Final = ("on", "off", "auto")


def add_chat(group: argparse._ArgumentGroup) -> None:
    """Add the options of chats: templates, tools, reasoning."""
    add = group.add_argument
    add("--jinja", dest="use_jinja", action="store_true", help="use the chat template as it is (default)")
    add(
        "--no-jinja",
        dest="use_jinja",
        action="store_false",
        help="use llama.cpp's approximation of the template",
    )
    add(
        "--chat-template",
        metavar="TEMPLATE",
        help="a Jinja template, or the name of one that llama.cpp knows",
    )
    add(
        "--chat-template-file",
        dest="chat_template",
        type=values.text_of,
        metavar="FILE",
        help="the same from a file",
    )
    add(
        "--chat-template-kwargs",
        dest="default_template_kwargs",
        type=values.template_values,
        metavar="JSON",
        help="values for the template, a JSON object",
    )
    add(
        "--reasoning-format",
        choices=("none", "auto", "deepseek", "deepseek-legacy"),
        help="where the model's thoughts go: none leaves them in the text (default: deepseek)",
    )
    add("-rea", "--reasoning", choices=SWITCH, help="whether the model thinks first (default: auto)")
    add(
        "--reasoning-budget",
        dest="sampling.reasoning_budget_tokens",
        type=values.whole,
        metavar="N",
        help="most tokens of thought; -1 is no limit (default: -1)",
    )


def add_sampling(group: argparse._ArgumentGroup) -> None:
    """Add the options of sampling, for requests that do not say."""
    add = group.add_argument
    add(
        "-s",
        "--seed",
        dest="sampling.seed",
        type=values.natural,
        metavar="N",
        help="seed (default: a new one each time)",
    )
    add("--temp", "--temperature", dest="sampling.temp", type=values.number, metavar="N", help="temperature")
    add("--top-k", dest="sampling.top_k", type=values.whole, metavar="N", help="most tokens to choose from")
    add(
        "--top-p",
        dest="sampling.top_p",
        type=values.number,
        metavar="N",
        help="most probability to choose from",
    )
    add(
        "--min-p",
        dest="sampling.min_p",
        type=values.number,
        metavar="N",
        help="least probability, against the best token",
    )
    add(
        "--repeat-penalty",
        dest="sampling.penalty_repeat",
        type=values.number,
        metavar="N",
        help="1 is no penalty",
    )
    add(
        "--presence-penalty",
        dest="sampling.penalty_present",
        type=values.number,
        metavar="N",
        help="0 is no penalty",
    )
    add(
        "--frequency-penalty",
        dest="sampling.penalty_freq",
        type=values.number,
        metavar="N",
        help="0 is no penalty",
    )


def add_speculation(group: argparse._ArgumentGroup) -> None:
    """Add the options of speculative decoding: the draft model and how it is used."""
    add = group.add_argument
    add(
        "-md",
        "--model-draft",
        dest="speculative.draft.mparams.path",
        metavar="FILE",
        help="the draft model's GGUF",
    )
    add(
        "--spec-type",
        dest="speculative.types",
        type=values.parts,
        metavar="TYPE[,TYPE]",
        help="how tokens are guessed, for instance draft-mtp or ngram-simple (with -md: draft-simple)",
    )
    add(
        "-ngld",
        "--gpu-layers-draft",
        dest="speculative.draft.n_gpu_layers",
        type=values.gpu_layers,
        metavar="N|auto|all",
        help="layers of the draft model to keep on the GPU (default: auto)",
    )
    add(
        "--draft-max",
        "--spec-draft-n-max",
        dest="speculative.draft.n_max",
        type=values.natural,
        metavar="N",
        help="most tokens to guess at once",
    )
    add(
        "--draft-min",
        "--spec-draft-n-min",
        dest="speculative.draft.n_min",
        type=values.natural,
        metavar="N",
        help="fewest tokens worth a guess",
    )
    add(
        "--draft-p-min",
        "--spec-draft-p-min",
        dest="speculative.draft.p_min",
        type=values.number,
        metavar="N",
        help="least probability of a guessed token",
    )
