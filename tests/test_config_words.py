"""Configuration: how commands are split, what the environment fills in, and how mistakes are told."""

import contextlib
import json
import shlex
from pathlib import Path
from typing import get_args

import attrs
import hypothesis
import pytest
from hypothesis import strategies as st

from engine_router.config import HttpConfig, PoolConfig, ProcessConfig, load_config, parse_config
from engine_router.config.any_engine import ENGINE_TYPES
from engine_router.config.command_line import split_command
from engine_router.config.environment import COMMANDS, Environment
from engine_router.config.kinds import Argv
from engine_router.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
ENGINE = '[engines.a]\ntype = "process"\nargv = "serve {port}"\n'


def faults_of(text: str, **variables: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, environment=Environment(variables))
    return list(caught.value.faults)


def told(text: str, **variables: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, environment=Environment(variables))
    return str(caught.value)


def argv_of(written: str, **variables: str) -> tuple[str, ...]:
    text = f'[engines.a]\ntype = "process"\nbase_url = "http://127.0.0.1:80"\nargv = {written}'
    engine = parse_config(text, environment=Environment(variables)).engines["a"]
    assert isinstance(engine, ProcessConfig)
    return engine.argv


# Commands

COMMAND = r"""
  llama-server \
    -m '/models/my model.gguf' \   
    # the context
    --ctx-size 8192 \
    --jinja   # templates # of chats
    --alias a#b
"""  # noqa: W291 - the blank behind a backslash is what this is about


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (COMMAND, ["llama-server", "-m", "/models/my model.gguf", "--ctx-size", "8192", "--jinja", "--alias", "a#b"]),
        (COMMAND.replace("\n", "\r\n"), ["llama-server", "-m", "/models/my model.gguf", "--ctx-size", "8192", "--jinja", "--alias", "a#b"]),
        (r"serve C:\models\q.gguf", ["serve", r"C:\models\q.gguf"]),
        (r"serve -m=C:\models\(old)\{model}.gguf", ["serve", r"-m=C:\models\(old)\{model}.gguf"]),
        (r'serve "C:\Program Files\q.gguf" x', ["serve", r"C:\Program Files\q.gguf", "x"]),
        (r"serve \\nas\models\q.gguf", ["serve", r"\\nas\models\q.gguf"]),
        (r'serve "\\nas\my models\q.gguf"', ["serve", r"\\nas\my models\q.gguf"]),
        (r"C:\llama\server.exe", [r"C:\llama\server.exe"]),
        (r"a\ b \# \"q\" \\", ["a b", "#", '"q"', "\\"]),
        (r"grep \d+", ["grep", r"\d+"]),
        ('a"b c"d', ["ab cd"]),
        ("a '' b", ["a", "", "b"]),
        ("a b\\", ["a", "b"]),
        ("# nothing", []),
        ('"a\\\nb"', ["ab"]),
    ],
)  # fmt: skip
def test_a_command_string_is_split(text: str, words: list[str]) -> None:
    assert split_command(text) == words


@hypothesis.given(st.lists(st.text(st.sampled_from("ab '\"\\#$\n{}|C:"), max_size=8), max_size=5))
def test_what_python_quotes_for_a_shell_comes_back(words: list[str]) -> None:
    assert split_command(shlex.join(words)) == words


@hypothesis.given(st.text(st.sampled_from("ab '\"\\#$\n\r\t{}|C:é"), max_size=40))
def test_any_text_is_words_or_an_open_quote(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert "".join(split_command(text)).isprintable() or set("\n\r\t") & set(text)


def test_an_open_quote_is_told_with_its_line() -> None:
    ((place, words),) = faults_of("[engines.a]\ntype = 'process'\nargv = '''\nserve\n--x \"y {port}\n'''")
    assert place == "engines.a.argv"
    assert "a double quote in line 2 of it is not closed" in words


def test_home_in_commands_and_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    argv = ("serve", f"{tmp_path}/m.gguf", f"--model={tmp_path}/x", "a~/b", "~b", f"{tmp_path}")
    assert argv_of("'serve ~/m.gguf --model=~/x a~/b ~b ~'") == argv
    assert argv_of('["serve", "~/m.gguf", "--model=~/x", "a~/b", "~b", "~"]') == argv
    engine = parse_config(ENGINE + 'env = { HF_HOME = "~/hf", X = "a~/b" }').engines["a"]
    assert isinstance(engine, ProcessConfig)
    assert engine.env == {"HF_HOME": f"{tmp_path}/hf", "X": "a~/b"}


# The environment

EVERYWHERE = """
state_file = "${env:STATE}/s.json"
[server]
api_keys = ["${env:KEY}"]
key_priorities = { "${env:KEY}" = "high" }
[log]
file = "${env:STATE}/log"
[pools.default]
gauge = "command"
command = "read '${env:STATE}'"
[engines.a]
type = "process"
argv = '${env:BIN} -m "${env:STATE}/x y" --api-key ${env:KEY} --port {port}'
env = { TOKEN = "Bearer ${env:KEY}" }
headers = { Authorization = "Bearer ${env:KEY}" }
[engines.h]
type = "http"
base_url = "${env:URL}"
unload = { path = "/u", body = { key = ["${env:KEY}"] } }
loaded = { path = "/l" }
[models.m]
engine = "a"
path = "${env:STATE}/m.gguf"
set = { user = "${env:KEY}" }
"""
VARIABLES = {"STATE": "/a b/c", "KEY": "s3cret-key", "BIN": "C:\\x\\srv", "URL": "http://127.0.0.1:81"}


def test_the_environment_is_filled_in_wherever_a_string_stands() -> None:
    config = parse_config(EVERYWHERE, environment=Environment(VARIABLES))
    assert config.state_file == str(Path("/a b/c/s.json"))
    assert (config.server.api_keys, config.server.key_priorities) == (("s3cret-key",), {"s3cret-key": "high"})
    assert config.log.file == "/a b/c/log"
    assert config.pools["default"].command == ("read", "/a b/c")
    engine = config.engines["a"]
    assert isinstance(engine, ProcessConfig)
    assert engine.argv == ("C:\\x\\srv", "-m", "/a b/c/x y", "--api-key", "s3cret-key", "--port", "{port}")
    assert engine.env == {"TOKEN": "Bearer s3cret-key"}
    assert engine.headers["Authorization"] == "Bearer s3cret-key"
    assert config.engines["h"].base_url == "http://127.0.0.1:81"
    assert config.models["m"].set == {"user": "s3cret-key"}


def test_a_missing_variable_is_a_fault_with_its_place() -> None:
    variables = {name: value for name, value in VARIABLES.items() if name not in ("KEY", "URL")}
    found = dict(faults_of(EVERYWHERE, **variables))
    assert set(found) == {
        "server.api_keys[0]",
        'server.key_priorities."${env:KEY}"',
        "engines.a.argv",
        "engines.a.env.TOKEN",
        "engines.a.headers.Authorization",
        "engines.h.base_url",
        "engines.h.unload.body.key[0]",
        "models.m.set.user",
    }
    assert found["engines.h.base_url"].startswith("the environment variable URL is not set; set it where")


def test_a_reference_that_names_nothing() -> None:
    assert faults_of(ENGINE + 'cwd = "${env:}"') == [
        ("engines.a.cwd", "${env:} names no environment variable; write ${env:NAME}")
    ]


@pytest.mark.parametrize("secret", ["s3cret-key", "s" * 80, 'a"b\\c\nd' * 3])
@pytest.mark.parametrize(
    "text",
    [
        ENGINE + 'base_url = "x${env:KEY}"',
        ENGINE + 'pool = "${env:KEY}"',
        ENGINE + 'ready_check = "${env:KEY}"',
        ENGINE + 'stop_signal = ["${env:KEY}"]',
        ENGINE + 'headers = { x = "é${env:KEY}" }',
        ENGINE + '[server]\napi_keys = "${env:KEY}"',
        ENGINE + '[server]\nkey_priorities = { "${env:KEY}" = "highest" }',
        ENGINE + '[aliases]\n"${env:KEY}" = 1',
    ],
)
def test_what_the_environment_gave_is_not_in_a_message(text: str, secret: str) -> None:
    message = told(text, KEY=secret)
    assert "${env:KEY}" in message or "not shown" in message
    assert secret[:6] not in message
    assert json.dumps(secret)[1:-1] not in message


# Mistakes

MISTAKES = [
    # A name with a dot.
    (ENGINE + "[models.qwen3.5-8b]\nengine = 'a'", "models.qwen3.5-8b", 'a name with a dot has to be in quotes: [models."qwen3.5-8b"]', "[models.qwen3.5-8b]"),
    (ENGINE + "[engines.v0.1.2]\ntype = 'ollama'", "engines.v0.1.2", 'a name with a dot has to be in quotes: [engines."v0.1.2"]', "[engines.v0.1.2]"),
    (ENGINE + "[aliases]\ngpt-4.1 = 'x'", "aliases.gpt-4.1", 'a name with a dot has to be in quotes: "gpt-4.1" = ...', "gpt-4.1 = 'x'"),
    (ENGINE + "env = { A.B = 'x' }", "engines.a.env.A", 'expected a string in quotes, got a table; a key with a dot has to be in quotes: "A.B"', "env = ..."),
    # A key in the wrong table.
    ("port = 8080\n" + ENGINE, "port", "unknown key; move it into [server]", "port = 8080"),
    (ENGINE + "[server]\nmax_wait_s = 3", "server.max_wait_s", "unknown key; it belongs to [scheduling]", "max_wait_s = 3"),
    ('[engines.o]\ntype = "ollama"\nargv = "x"', "engines.o.argv", "unknown key; it belongs to an engine of type process", "argv = ..."),
    # Placeholders, and what only a shell does.
    ("[engines.a]\ntype = 'process'\nargv = 'serve {ports}'", "engines.a.argv", "{ports} is not filled in; write {port}", "argv = ..."),
    ("[engines.a]\ntype = 'process'\nargv = 'serve ${PORT}'", "engines.a.argv", "${PORT} is not filled in; write {port}", "argv = ..."),
    ("[engines.a]\ntype = 'process'\nargv = 'serve $PORT'", "engines.a.argv", "$PORT is not filled in; write {port}", "argv = ..."),
    ("[engines.a]\ntype = 'process'\nargv = 'A=1 B=2 serve {port}'", "engines.a.argv", 'A=... is no program, and no shell runs that would set it; write env = { A = "...", B = "..." }', "argv = ..."),
    ("[engines.a]\ntype = 'process'\nargv = 'cd /opt && serve {port}'", "engines.a.argv", 'cd is a command of the shell, and no shell runs; write cwd = "..." and the program alone', "argv = ..."),
    ("[engines.a]\ntype = 'process'\nargv = ['serve --port {port}']", "engines.a.argv", 'a list has one entry for each word: write ["program", "--option", ...], or one string without [ ]', "argv = ..."),
    # Names of other programs.
    ("[engines.a]\ntype = 'process'\nargv = 'x {port}'\ncmd = 'x'", "engines.a.cmd", "unknown key; did you mean argv?", "cmd = 'x'"),
    ("[engines.a]\ntype = 'llama.cpp'", "engines.a.type", 'expected one of "process", "container", "http", "ollama", "systemd", "kubernetes", "remote", got "llama.cpp"; did you mean "process"?', "type = 'llama.cpp'"),
    ("[engines.a]\ntype = 'lmstudio'", "engines.a.type", 'expected one of "process", "container", "http", "ollama", "systemd", "kubernetes", "remote", got "lmstudio"; did you mean "http"?', "type = 'lmstudio'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "place", "words", "line"), MISTAKES, ids=[words for _, _, words, _ in MISTAKES]
)
def test_a_mistake_is_told_with_its_line_and_a_remedy(text: str, place: str, words: str, line: str) -> None:
    assert faults_of(text) == [(place, words)]
    number = max(
        index
        for index, found in enumerate(text.split("\n"), 1)
        if found == line or (line.endswith("...") and found.startswith(line[:-3]))
    )
    message = told(text).split("\n")
    assert message[1:3] == [f"  {place}: {words}", f"{number:>6} | {line}"]
    assert set(message[3].partition("|")[2]) == {" ", "^"}


SYNTAX = [
    ("[engines.x]\n[engines.x]\n", "the table [engines.x] stands here and in line 1: put both together, or give this one another name", 2, "[engines.x]"),
    ("models = [qwen]\n", 'the value of models is not in quotes; text stands in quotes: models = "..."', 1, "models = [qwen]"),
    ("type = ollama\n", 'the value of type is not in quotes; text stands in quotes: type = "..."', 1, "type = ollama"),
    ("discover = True\n", "discover has no value that TOML knows; write discover = true", 1, "discover = True"),
    ("pinned =\n", "pinned has no value", 1, "pinned ="),
    ('cwd = "C:\\models"\n', "in double quotes a backslash begins an escape: use single quotes ('C:\\models')", 1, 'cwd = "C:\\models"'),
    ('cwd = "x\n', "a quote is not closed; text of several lines stands in '''", 1, 'cwd = "x'),
    ('cwd = "C:\\Users\\me"\n', "use single quotes ('C:\\models')", 1, 'cwd = "C:\\Users\\me"'),
    ("type = “ollama”\n", '“ is a typographic quote; replace all of these by plain ones (")', 1, "type = “ollama”"),
    ('cwd = "a "b""\n', 'text that contains " between single quotes', 1, 'cwd = "a "b""'),
    ("port = 8077;\n", "the value ends before this column; write one key on a line", 1, "port = 8077;"),
    ("a = 1\na = 2\n", "the key stands twice in its table: leave one of them", 2, "a = 2"),
    ("[server]\nport 80\n", "write key = value; a key with other characters than letters, digits, - and _ needs quotes", 2, "port 80"),
    ('[server]\napi_keys = ["abc", def]\n', "the value of api_keys is not in quotes", 2, "api_keys = ..."),
    ('[server]\napi_keys = [\n  "abc",\n  s3cret\n]\n', "is not TOML", 2, "api_keys = ..."),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words", "number", "line"), SYNTAX, ids=[text for text, *_ in SYNTAX])
def test_what_is_no_toml_is_told_with_its_line_and_a_remedy(
    text: str, words: str, number: int, line: str
) -> None:
    message = told(text)
    assert words in message
    shown = message.split("\n")
    assert f"{number:>6} | {line}" in shown
    assert "^" in shown[-1]
    assert "s3cret" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models:\n  qwen:\n    cmd: llama-server\n", "is YAML, not TOML"),
        ("# mine\nhealthCheckTimeout: 60\n", "is YAML, not TOML"),
        ('{"engines": {}}', "is JSON, not TOML"),
    ],
)
def test_other_languages_are_recognised(text: str, words: str) -> None:
    assert words in told(text)


def test_carets_stand_below_the_key(tmp_path: Path) -> None:
    path = tmp_path / "engines.toml"
    path.write_text("[engines.a] # one\n\ttype = 'process'\n\targv = 'serve {port}'\n\tcwd = 1\n\tcwx = 2\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "\n     4 |  cwd = 1\n       |  ^^^" in str(caught.value)
    assert "\n     5 |  cwx = 2\n       |  ^^^" in str(caught.value)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(st.text(st.sampled_from("[]{}\"'=.#\n\\ab1,: ${env}"), max_size=80))
def test_any_text_is_refused_in_words(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_config(text, environment=Environment({}))


# The blocks that people copy


def block(text: str, name: str) -> str:
    """Return one engine's table of a document, its comment signs taken off."""
    lines = [line.removeprefix("#") for line in text.split("\n")]
    start = next(number for number, line in enumerate(lines) if line.startswith(f"[engines.{name}]"))
    end = next(number for number in range(start, len(lines)) if not lines[number].strip())
    return "\n".join(lines[start:end])


def test_what_tabby_has_loaded_is_not_asked_of_its_list() -> None:
    engine = parse_config(block((ROOT / "docs/engines.md").read_text("utf-8"), "tabby")).engines["tabby"]
    assert isinstance(engine, HttpConfig)
    assert (engine.loaded.path, engine.loaded.key) == ("/v1/model", "")


def test_mlx_is_ready_when_its_health_says_so() -> None:
    engine = parse_config(block((ROOT / "engines.toml.example").read_text("utf-8"), "mlx")).engines["mlx"]
    assert isinstance(engine, ProcessConfig)
    assert (engine.ready_path, engine.ready_check, engine.discover) == ("/health", "status == 200", False)


def test_every_command_is_split_before_the_environment_is_filled_in() -> None:
    """A value with a blank in it stays one word, whichever option it stands in."""
    commands = {
        (table, field.name)
        for table, classes in (("engines", ENGINE_TYPES.values()), ("pools", (PoolConfig,)))
        for cls in classes
        for field in attrs.fields(attrs.resolve_types(cls))
        if Argv in (field.type, *get_args(field.type))
    }
    assert commands == COMMANDS


CONTAINER = 'type = "container"\nimage = "vllm"\nnetwork = "host"\nbase_url = "http://127.0.0.1:81"\n'
COMMAND_OPTIONS = [
    ("engines", 'type = "process"\n', "argv"),
    ("engines", 'type = "process"\nargv = "serve {port}"\n', "stop_command"),
    ("engines", 'type = "process"\nargv = "serve {port}"\n', "kill_command"),
    ("engines", CONTAINER, "command"),
    ("engines", CONTAINER, "entrypoint"),
    ("engines", 'type = "ollama"\n', "stop_command"),
    ("engines", 'type = "systemd"\nunit = "u"\nbase_url = "http://127.0.0.1:81"\n', "prefix"),
    ("pools", 'gauge = "command"\n', "command"),
]


@pytest.mark.parametrize(
    "command", ["'serve -m ${env:FILE} x{port}'", '["serve", "-m", "${env:FILE}", "x{port}"]']
)
@pytest.mark.parametrize(("table", "others", "name"), COMMAND_OPTIONS)
def test_a_value_with_blanks_and_quotes_stays_one_word(
    table: str, others: str, name: str, command: str
) -> None:
    value = '/a b/it\'s \\x # "y"'
    given = command if name == "argv" else command.replace("{port}", "")
    text = f"[{table}.a]\n{others}{name} = {given}\n"
    if table == "pools":
        text += ENGINE
    config = parse_config(text, environment=Environment({"FILE": value}))
    found = attrs.asdict(getattr(config, table)["a"], recurse=False)[name]
    assert found == ("serve", "-m", value, "x{port}" if name == "argv" else "x")


def test_the_commands_that_the_environment_is_tried_in_are_all() -> None:
    assert {(table, name) for table, _, name in COMMAND_OPTIONS} == COMMANDS
