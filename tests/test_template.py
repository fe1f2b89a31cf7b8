"""Templates: what a model fills into its engine's command, and what families add to models."""

from __future__ import annotations

import subprocess

import pytest

from engine_router.config import ModelConfig, parse_config
from engine_router.config.families import matches, with_family
from engine_router.config.model import FamilyConfig
from engine_router.config.template import ModelArguments, fill_command, model_command
from engine_router.errors import ConfigError
from engine_router.models.weights import launch_of

ARGV = ("srv", "-m", "{path}", "--mmproj", "{mmproj}", "--ctx={ctx}", "-c", "{ctx}", "--port", "{port}")


def command(argv: tuple[str, ...], arguments: ModelArguments) -> list[str]:
    return model_command(argv, arguments, {"port": "9", **arguments.values("m")})


def test_every_placeholder_has_its_value() -> None:
    arguments = ModelArguments(path="/w", mmproj="/p", context_length=4096, args=("--jinja", "-ngl", "9"))
    assert command(ARGV, arguments) == [
        *[
            "srv",
            "-m",
            "/w",
            "--mmproj",
            "/p",
            "--ctx=4096",
            "-c",
            "4096",
            "--port",
            "9",
            "--jinja",
            "-ngl",
            "9",
        ]
    ]


def test_an_option_without_a_value_goes_with_its_name() -> None:
    assert command(ARGV, ModelArguments(path="/w")) == ["srv", "-m", "/w", "--port", "9"]


def test_only_the_name_of_an_option_goes_with_it() -> None:
    assert command(("srv", "serve", "{ctx}"), ModelArguments()) == ["srv", "serve"]
    assert command(("srv", "-v", "--ctx={ctx}"), ModelArguments()) == ["srv", "-v"]
    assert command(("srv", "--a=b", "{ctx}"), ModelArguments()) == ["srv", "--a=b"]


def test_words_of_a_models_own_stand_where_they_are_wanted() -> None:
    arguments = ModelArguments(args=("--name", "{model}", "two words"))
    assert command(("srv", "{args}", "{port}"), arguments) == ["srv", "--name", "m", "two words", "9"]
    assert command(("bash", "-c", "srv {args}"), ModelArguments(args=("-a", "two words"))) == [
        *["bash", "-c", "srv -a 'two words'"]
    ]
    assert command(("srv", "{args}"), ModelArguments()) == ["srv"]


CONFIG = """
[engines.t]
type = "process"
argv = ["llama-server", "-m", "{path}", "--mmproj", "{mmproj}", "-c", "{ctx}", "--port", "{port}"]
models = []
[engines.s]
type = "process"
argv = "llama-server -m /w/s.gguf --port {port}"
models = ["qwen-s"]
[models.qwen]
engine = "t"
path = "/w/q.gguf"
aliases = ["q"]
args = ["--own"]
set = { temperature = 1.0 }
[models.gemma]
engine = "t"
path = "/w/g.gguf"
mmproj = "/w/p.gguf"
context_length = 512
[families.all]
match = "*"
context_length = 4096
set = { temperature = 0.5, top_k = 20 }
[families.q]
match = ["QWEN*"]
args = ["--jinja"]
pinned = true
"""


def test_families_say_what_models_do_not() -> None:
    models = parse_config(CONFIG).models
    assert models["qwen"].args == ("--jinja", "--own")
    assert models["qwen"].context_length == 4096
    assert models["qwen"].set == {"temperature": 1.0, "top_k": 20}
    assert models["qwen"].pinned is True
    assert models["gemma"].context_length == 512
    assert models["gemma"].args == ()
    assert models["gemma"].pinned is None


def test_families_reach_the_models_that_an_engine_names() -> None:
    assert parse_config(CONFIG).models["qwen-s"] == ModelConfig(
        engine="s", args=("--jinja",), pinned=True, context_length=4096, set={"temperature": 0.5, "top_k": 20}
    )


def test_the_last_family_counts_most() -> None:
    families = {
        "one": FamilyConfig(match=("*",), group=("one",), memory_gb=1.0),
        "two": FamilyConfig(match=("m*",), group=("two",)),
    }
    assert with_family("m", ModelConfig(engine="t"), families).group == ("two",)
    assert with_family("m", ModelConfig(engine="t"), families).memory_gb == 1.0
    assert with_family("n", ModelConfig(engine="t"), families).group == ("one",)


@pytest.mark.parametrize(
    ("pattern", "is_meant"),
    [
        ("qwen3*", True),
        ("Qwen3-8B:*", True),
        ("*/qwen3-8b-gguf", True),
        ("qwen", False),
        ("qwen?-8b:q4", True),
    ],
)
def test_a_family_is_known_by_a_name_or_an_alias(pattern: str, is_meant: bool) -> None:
    family = FamilyConfig(match=(pattern,))
    assert matches(family, "qwen3-8b:q4", ("someone/Qwen3-8B-GGUF",)) is is_meant


def test_what_is_known_of_a_launch_follows_from_the_filled_command() -> None:
    config = parse_config(CONFIG)
    qwen, gemma = (launch_of(config, "t", model) for model in ("qwen", "gemma"))
    assert (str(qwen.path), qwen.context_length, qwen.vision) == ("/w/q.gguf", 4096, False)
    assert (str(gemma.path), gemma.context_length, gemma.vision) == ("/w/g.gguf", 512, True)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (
            'argv = "srv {model} --port {port}"\nscan = ["~/models"]',
            "engines.t.scan",
            "needs {path} in argv, for the file of the model that is started",
        ),
        (
            'argv = "srv {args} --port {port}"',
            "engines.t.argv",
            "{args} is filled in only beside {path} or {model}, which start it once for each model",
        ),
        (
            'argv = "srv --port {port}"\n[models.a]\nengine = "t"\nargs = ["-x"]',
            "models.a.args",
            'without effect: the argv of engine "t" has no {model} or {path}; write it into that argv',
        ),
        (
            'argv = "srv {path} {port}"\nscan_formats = ["onnx"]',
            "engines.t.scan_formats[0]",
            'expected "gguf" or "safetensors", got "onnx"',
        ),
        (
            'argv = "srv {path} {port}"\n[models.a]\nengine = "t"\npath = "/a"\nfound = true',
            "models.a.found",
            None,
        ),
        ('argv = "srv {path} {port}"\n[families.q]\nmatch = []', "families.q.match", None),
    ],
)
def test_faults(text: str, place: str, words: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f'[engines.t]\ntype = "process"\n{text}')
    ((found, said),) = caught.value.faults
    assert found == place
    assert words is None or said == words


@pytest.mark.parametrize(
    "script",
    ["printf %s {path}", "printf %s '{path}'", 'printf %s "{path}"', 'echo a\\"b >&2; printf %s {path}'],
)
@pytest.mark.parametrize(
    "path",
    [
        "/plain.gguf",
        "/$(echo no).gguf",
        "/`echo no`.gguf",
        "/a'b\"c.gguf",
        "/a b;echo no.gguf",
        "/$HOME\\.gguf",
    ],
)
def test_a_shell_runs_nothing_of_a_files_name(script: str, path: str) -> None:
    command = model_command(("sh", "-c", script), ModelArguments(), {"path": path})
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == path


def test_what_is_no_script_is_filled_in_as_it_is() -> None:
    assert fill_command(("srv", "-c", "{path}"), {"path": "/$(x)"}) == ["srv", "-c", "/$(x)"]
    assert fill_command(("/bin/bash", "-lc", "srv {path}"), {"path": "/$(x)"}) == [
        "/bin/bash",
        "-lc",
        "srv '/$(x)'",
    ]
