"""README and docs/ say what is true: the options, configurations, commands, links and the example of the library."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import attrs
import pytest
import trio

from engine_router.cli.parser import build_parser
from engine_router.config import parse_config
from engine_router.config.schema import reference
from engine_router.events import Event

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {path.name: path.read_text("utf-8") for path in FILES}
README, SCHEDULING = PAGES["README.md"], PAGES["scheduling.md"]
# Files of other programs; test_clients_page.py and test_migrate_*.py try what these two say.
FOREIGN = ("clients.md", "migrate.md")
README_LINES = 250


def blocks(language: str, *more: str) -> list[str]:
    """Return the blocks of the router's own pages, and of those that are named besides."""
    texts = (text for name, text in PAGES.items() if name not in FOREIGN or name in more)
    return [block for text in texts for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as GitHub and mkdocs make it."""
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


def links() -> list[tuple[str, str]]:
    return [
        (name, target)
        for name, text in PAGES.items()
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        if "://" not in target
    ]


@pytest.mark.parametrize(("name", "target"), links())
def test_each_link_leads_somewhere(name: str, target: str) -> None:
    file, _, heading = target.partition("#")
    folder = ROOT if name == "README.md" else ROOT / "docs"
    path = folder / file if file else folder / name
    assert path.exists()
    if heading:
        headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
        assert heading in map(anchor, headings)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= README_LINES


def rows(text: str, head: str) -> dict[str, list[str]]:
    """Return the table below a head line: the cells by the first one of their line."""
    lines = text.partition(f"{head}\n")[2].split("\n\n", 1)[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells}


def test_the_figures_are_those_of_the_page_on_performance() -> None:
    short = rows(
        README, "| | engine-router | llama-swap v250 | Ollama 0.33.0-rc2 | local-engine-router 0.7.1 |"
    )
    whole = rows(
        PAGES["performance.md"],
        "| | engine-router | llama-swap (August 2026) | local-engine-router 0.7.1 | nginx |",
    )
    measured = {name: cells for name, cells in short.items() if re.search(r"\d (us|s|ms|MB)\b", cells[0])}
    assert len(measured) > 5
    for name, (ours, llama_swap, ollama, theirs) in measured.items():
        expected = [cell or "not measured" for cell in whole[name][:3]]
        assert [ours, llama_swap, theirs] == expected, name
        assert ollama == "not measured"


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("pictures/*.svg")), ids=lambda path: path.name)
def test_a_picture_asks_for_nothing_from_elsewhere(path: Path) -> None:
    text = path.read_text("utf-8")
    assert ET.fromstring(text).tag.endswith("svg")
    assert set(re.findall(r"https?://[^\s\"')]+", text)) == {"http://www.w3.org/2000/svg"}


def test_no_page_has_what_a_site_draws_with_a_script_from_elsewhere() -> None:
    assert not [name for name, text in PAGES.items() if "```mermaid" in text]


def test_the_fields_of_the_log_are_those_of_the_events() -> None:
    """Who renames one breaks what reads the log: the page says that these names stay."""
    table = rows(PAGES["operations.md"], "| `event` | fields |")
    told = {
        name.strip("`"): re.findall(r"`(\w+)`", fields[0]) for name, fields in table.items() if "`" in name
    }
    assert told == {
        kind.event_name(): [field.name for field in attrs.fields(kind) if field.name != "at"]
        for kind in Event.__subclasses__()
    }


def test_the_table_of_options_is_the_one_that_the_classes_give() -> None:
    table = runpy.run_path(str(ROOT / "scripts" / "update_options"))["options_table"]()
    assert table in PAGES["configuration.md"], "run scripts/update_options"


@pytest.mark.parametrize("text", blocks("toml"))
def test_each_configuration_loads(text: str) -> None:
    if "[engines." not in text:
        text += '[engines.some]\ntype = "ollama"\n'
    parse_config(text)


def test_each_command_exists() -> None:
    parser = build_parser()
    lines = [
        command.strip()
        for block in blocks("sh", "migrate.md")
        for line in block.splitlines()
        for command in line.partition("#")[0].split("&&")
        if command.strip().startswith("engine-router")
    ]
    lines += re.findall(r"^\| `(engine-router [^`]*)`", PAGES["command-line.md"], re.MULTILINE)
    assert len(lines) >= 10
    for line in lines:
        words = shlex.split(line.partition("#")[0])[1:]
        optional = [word for word in words if not word.startswith("[")]
        parser.parse_args([word.strip("[]") for word in optional])


def test_what_the_page_on_scheduling_names_exists() -> None:
    parser = build_parser()
    for line in re.findall(r"`(engine-router [^`]*)`", SCHEDULING):
        parser.parse_args(shlex.split(line)[1:])
    options = {key for _, key, _, _ in reference()}
    for key in re.findall(r"`(\w+_\w+)(?: = [^`]*)?`", SCHEDULING):
        assert key in options or key == "keep_alive", key


def test_the_first_commands_are_there_and_can_be_run() -> None:
    for name in re.findall(r"^(scripts/\w+)", "\n".join(blocks("sh")), re.MULTILINE):
        path = ROOT / name
        assert path.stat().st_mode & 0o111, name


@pytest.mark.real
@pytest.mark.parametrize("source", blocks("python"))
async def test_the_example_of_the_library_runs(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = pytest.importorskip("engine_router.engines.llamacpp.tiny")
    pytest.importorskip("xllamacpp")
    tiny.write_tiny_gguf(tmp_path / "m.gguf", name="qwen3-30b")
    argv = [sys.executable, "-m", "engine_router.llamacpp", "-m", str(tmp_path / "m.gguf")]
    argv += ["--threads", "1", "--port", "{port}"]
    (tmp_path / "engines.toml").write_text(
        f'state_file = "{tmp_path}/state.json"\n'
        f'[engines.qwen]\ntype = "process"\nargv = {argv!r}\nmodels = ["qwen3-30b"]\n'
    )
    monkeypatch.chdir(tmp_path)
    program = source.replace("trio.run(main)", "").replace('"messages"', '"max_tokens": 20, "messages"')
    names: dict[str, object] = {}
    exec(compile(program, "library.md", "exec"), names)
    main = names["main"]
    assert callable(main)
    with trio.fail_after(200):
        await main()
    assert capsys.readouterr().out.strip()
