"""`engines.toml` is changed without the loss of a comment or a key, and replaced as a whole."""

from __future__ import annotations

import itertools
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from engine_router.config import parse_config
from engine_router.config.file import read_text, write
from engine_router.errors import ConfigError
from engine_router.setup.config_file import HEAD, add_block, add_tables, place_for_new
from engine_router.setup.toml_text import toml_text, toml_value

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG = """\
# mine
state_file = "/tmp/state" # kept

[server]    # the port
port = 8077

[engines.a]
type = "ollama"
#base_url = "http://127.0.0.1:11434"

# ---------------- models
[models."x/y.z"]
engine = "a"

[aliases]
# one comment
b = "x/y.z"      # and another

# the end
"""
NEW = {
    "engines": {"new one": {"type": "process", "argv": ["x", "{path}", "{port}"], "env": {"A": "1"}}},
    "models": {"q:4.5/b": {"engine": "new one", "path": 'C:\\a "b"\x7f', "set": {"a.b": {"c": [1, 2.5, True]}}}},
}  # fmt: skip


def lines_stay(before: str, after: str) -> None:
    rest = iter(after.splitlines())
    for line in before.splitlines():
        assert line in rest, line


def test_tables_are_added_and_every_line_stays() -> None:
    added = add_tables(
        CONFIG, NEW, {("engines", "new one"): "Two lines\nof words", ("engines", "new one", "env"): "why"}
    )
    lines_stay(CONFIG, added)
    before, after = tomllib.loads(CONFIG), tomllib.loads(added)
    assert after["engines"] == {**before["engines"], **NEW["engines"]}
    assert after["models"] == {**before["models"], **NEW["models"]}
    assert after["aliases"] == before["aliases"]
    assert '# Two lines\n# of words\n[engines."new one"]\n' in added
    assert '# why\nenv = { A = "1" }\n' in added
    parse_config(added)


def test_keys_go_into_the_tables_that_are_there() -> None:
    added = add_tables(
        CONFIG,
        {"aliases": {"gpt-4.1": "x/y.z"}, "server": {"host": "::1"}, "log": {"level": "debug"}},
        {("server", "host"): "everything"},
    )
    lines_stay(CONFIG, added)
    after = tomllib.loads(added)
    assert after["aliases"] == {"b": "x/y.z", "gpt-4.1": "x/y.z"}
    assert after["server"] == {"port": 8077, "host": "::1"}
    assert after["log"] == {"level": "debug"}
    assert 'port = 8077\n# everything\nhost = "::1"\n\n[engines.a]' in added
    assert '# and another\n"gpt-4.1" = "x/y.z"\n\n# the end\n' in added


@pytest.mark.parametrize(
    "table",
    [
        "[server]",
        '[server]\nhost = [ # here\n  "::1",\n  # there\n]',
        '[server]\ndefault_model = """\n[log]\na = 1\n"""  # here',
        "[server] # here\napi_keys = [\n]",
    ],
)
@pytest.mark.parametrize("following", ["", "\n\n# ----- the next\n[log]\n"])
def test_a_key_stands_below_the_last_one_of_its_table(table: str, following: str) -> None:
    added = add_tables(f"{table}{following}", {"server": {"port": 1}})
    assert added == f"{table}\nport = 1{following}".rstrip("\n") + following[-1:]


def test_a_key_above_all_tables() -> None:
    text = CONFIG.replace('state_file = "/tmp/state" # kept\n', "")
    added = add_tables(text, {"state_file": "/tmp/other"})
    lines_stay(text, added)
    assert tomllib.loads(added) == {**tomllib.loads(text), "state_file": "/tmp/other"}


@pytest.mark.parametrize(
    "text",
    [
        'engines = { a = { type = "ollama" } } # here\n',
        'engines.a = { type = "ollama" } # here\n',
        'engines.a.type = "ollama" # here\n',
        '[engines] # here\na = { type = "ollama" }\n',
        '[engines] # here\na.type = "ollama"\n\n# next\n[server]\nport = 1\n',
        '[engines."a"] # here\n"type" = \'ollama\'',
        '[engines.a]\ntype = "ollama"\nheaders = { x = "1" } # here\n# the end',
        '[engines.a]\ntype="ollama"\n[server]\n[engines.c] # here\ntype = "ollama"\nbase_url = "http://b:1"\n',
        '[engines.a.headers] # here\nx = "1"\n[engines.a]\ntype = "ollama"\n',
        "",
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_however_the_file_is_written(text: str, line_end: str, mark: str) -> None:
    text = mark + text.replace("\n", line_end)
    added = add_tables(text, {"engines": {"b": {"type": "ollama", "models": ["m"]}}})
    assert added.startswith(mark)
    assert ("# here" in added) == ("# here" in text)
    if text.count(line_end):
        assert added.count("\n") == added.count(line_end)
    before = tomllib.loads(text.removeprefix("\ufeff")).get("engines", {})
    after = tomllib.loads(added.removeprefix("\ufeff"))
    assert after["engines"] == {**before, "b": {"type": "ollama", "models": ["m"]}}
    parse_config(added)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_the_whole_example_keeps_every_line(line_end: str) -> None:
    example = (Path(__file__).parent.parent / "engines.toml.example").read_text("utf-8")
    text = example.replace("\n", line_end)
    new = {
        "state_file": "/tmp/state.json",
        "server": {"port": 1, "api_keys": ["k"]},
        "scheduling": {"preload": ["a"]},
        "pools": {"default": {"gauge": "memfree"}},
        "engines": {"mine": {"type": "ollama"}},
        "aliases": {"a.b": "qwen3-30b"},
    }
    added = add_tables(text, new, {("server", "port"): "why"})
    lines_stay(text, added)
    assert added.count("\n") == added.count(line_end)
    before, after = tomllib.loads(example), tomllib.loads(added)
    for key in {*before, *after} - {*new}:
        assert after[key] == before[key]
    assert after["server"] == {"port": 1, "api_keys": ["k"]}
    assert after["aliases"] == {**before["aliases"], "a.b": "qwen3-30b"}
    plain = added.replace("\r\n", "\n")
    assert '[server]\n# why\nport = 1\napi_keys = ["k"]\n# Address to listen on' in plain
    assert '"a.b" = "qwen3-30b"\n' in plain
    assert plain.endswith('\n\n[pools.default]\ngauge = "memfree"\n\n[engines.mine]\ntype = "ollama"\n')


def test_line_ends_that_differ_stay_as_they_are() -> None:
    text = 'a = """x\r\ny\nz"""\n[engines.a]\r\ntype = "ollama"\n'
    assert add_tables(text, {"engines": {"b": {"type": "ollama"}}}).startswith(text)


def test_what_is_there_already_is_refused_with_its_place() -> None:
    with pytest.raises(ConfigError) as caught:
        add_tables(CONFIG, {"models": {"new": {}, "x/y.z": {}}, "aliases": {"b": "c"}}, source="my.toml")
    places = [place for place, _ in caught.value.faults]
    assert places == ['models."x/y.z"', "aliases.b"]
    assert caught.value.excerpts[0].startswith('    12 | [models."x/y.z"]')
    assert '    17 | b = "x/y.z"' in str(caught.value)
    assert str(caught.value).startswith("my.toml: 2 faults")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[engines", "line 1"),
        ("engines = 3\n", "is not a table"),
        ("a = 1\na = 2\n", "line 2"),
    ],
)
def test_a_text_that_nothing_can_be_added_to(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        add_tables(text, {"engines": {"b": {"type": "ollama"}}})


def test_a_value_that_toml_has_not() -> None:
    with pytest.raises(ConfigError, match="cannot hold a NoneType"):
        add_tables("", {"server": {"host": None}})


def test_a_block_comes_with_its_comments() -> None:
    block = '# words\n[engines.b]\n#port = 1\ntype = "ollama"\n'
    assert add_block(CONFIG, block) == f"{CONFIG}\n{block}"
    assert add_block("", block) == block


@pytest.mark.parametrize(
    "value",
    ["", 'a"b\\', "two\nlines\\\n", "\n", '"""', "\u2028é\x00\x7f", 1, -0.5, True, [], {}, [["a"], {"b.c": [1]}],
     ["a long word"] * 20, {"a": ["a long word"] * 20}],
)  # fmt: skip
def test_values_come_back(value: object) -> None:
    assert tomllib.loads(toml_text({"server": {"a key": value}})) == {"server": {"a key": value}}
    assert toml_value(Path("/a b")) == '"/a b"'


# The file.


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "engines.toml"
    path.write_text(CONFIG)
    path.chmod(0o640)
    return path


def added(path: Path, name: str = "b") -> str:
    return add_tables(read_text(path), {"engines": {name: {"type": "ollama"}}})


def test_it_is_replaced_with_a_backup_and_keeps_its_permissions(config: Path) -> None:
    text = added(config)
    written = write(config, text, may_replace=True, before=CONFIG)
    assert (config.read_text(), written.backup) == (text, config.with_name("engines.toml.bak"))
    assert written.backup is not None
    assert written.backup.read_text() == CONFIG
    assert written.config.engines.keys() == {"a", "b"}
    if os.name == "posix":
        assert {stat.S_IMODE(path.stat().st_mode) for path in (config, written.backup)} == {0o640}
    assert write(config, text, may_replace=True).backup is None  # nothing changed
    # An older backup stays.
    second = write(config, added(config, "c"), may_replace=True)
    assert second.backup == config.with_name("engines.toml.bak.2")
    assert written.backup.read_text() == CONFIG
    config.write_text(CONFIG)
    assert write(config, added(config, "d"), may_replace=True).backup == written.backup  # the same text
    assert len([*config.parent.iterdir()]) == 3


def test_bytes_stay_as_they_are(config: Path) -> None:
    config.write_bytes(("\ufeff" + CONFIG).replace("\n", "\r\n").encode())
    before = config.read_bytes()
    write(config, added(config), may_replace=True)
    assert config.read_bytes().startswith(before)
    assert config.with_name("engines.toml.bak").read_bytes() == before


def test_a_symbolic_link_stays_one(config: Path, tmp_path: Path) -> None:
    link = tmp_path / "folder" / "link.toml"
    link.parent.mkdir()
    link.symlink_to(Path("..") / config.name)
    text = added(link)
    assert write(link, text, may_replace=True).backup == config.with_name("engines.toml.bak")
    assert link.is_symlink()
    assert config.read_text() == text


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(ConfigError):
        write(tmp_path / "a", CONFIG, may_replace=True)


@pytest.mark.parametrize(
    ("text", "may_replace", "before", "words"),
    [
        (CONFIG + "[engines.c]\ntype = 3\n", True, None, "engines.c.type"),
        (CONFIG + "# more\n", False, None, "is there already"),
        (CONFIG + "# more\n", True, "other", "was changed by somebody else"),
        (CONFIG + "# \udcff\n", True, None, "not UTF-8"),
    ],
)
def test_it_stays_as_it_is(
    config: Path, text: str, *, may_replace: bool, before: str | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        write(config, text, may_replace=may_replace, before=before)
    assert config.read_text() == CONFIG
    assert [*config.parent.iterdir()] == [config]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a file that can be replaced"):
        write(tmp_path, CONFIG, may_replace=True)


def test_a_folder_that_cannot_be_written(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = added(config)
    if os.name == "posix" and os.geteuid() != 0:
        config.parent.chmod(0o500)
    else:  # nothing is closed to root

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("tempfile.mkstemp", refuse)
    try:
        with pytest.raises(ConfigError, match=r"engines\.toml.*\n.*cannot be written: Permission denied"):
            write(config, text, may_replace=True)
    finally:
        config.parent.chmod(0o700)
    assert config.read_text() == CONFIG


def test_a_new_file_is_made_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "engines.toml"
    text = add_tables(HEAD, {"engines": {"b": {"type": "ollama"}}})
    assert write(path, text, may_replace=False).backup is None
    assert path.read_text() == text
    secret = tmp_path / "secret.toml"
    write(secret, f'{text}[server]\napi_keys = ["k"]\n', may_replace=False)
    if os.name == "posix":
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert path.stat().st_mode & 0o400


def test_where_a_new_file_goes(tmp_path: Path) -> None:
    assert place_for_new("x.toml", {}) == Path("x.toml")
    assert place_for_new(None, {"ENGINE_ROUTER_CONFIG": "y.toml"}) == Path("y.toml")
    assert place_for_new(None, {}).parent.name == "engine-router"


def die_after(steps: int, work: Callable[[], object]) -> NoReturn:
    """Do some work, and die when it has touched the file system so many times."""
    left = itertools.count(steps - 1, -1)

    def count(event: str, _: object) -> None:
        if event.startswith(("open", "os.", "tempfile.")) and next(left) == 0:
            os._exit(9)

    sys.addaudithook(count)
    try:
        work()
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_killed_between_any_two_steps_the_old_file_or_the_new_one_is_there(config: Path) -> None:
    text = added(config)
    outcomes = []
    for steps in range(1, 200):
        config.write_text(CONFIG)
        for backup in config.parent.glob("*.bak*"):
            backup.unlink()
        child = os.fork()
        if child == 0:
            die_after(steps, lambda: write(config, text, may_replace=True))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = config.read_text()
        assert found in (CONFIG, text)
        if found == text:
            assert config.with_name("engines.toml.bak").read_text() == CONFIG
        outcomes.append((code, found == text))
        if code == 0:
            break
    assert outcomes[-1] == (0, True)
    assert outcomes.count((9, False)) > 4
