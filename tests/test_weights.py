"""What a model's files and its command line say about it."""

import json
from pathlib import Path

import pytest

from engine_router.config import Config, parse_config
from engine_router.models.weights import Launch, Weights, launch_of, read_weights

gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")


def written(path: Path, architecture: str = "qwen3", template: str = "", **keys: object) -> Path:
    """Write a GGUF header; numbers become keys of the architecture."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_file_type(15)
    if template:
        writer.add_chat_template(template)
    for key, value in keys.items():
        name = f"{architecture}.{key.replace('__', '.')}"
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
    writer.add_tensor_info("a", (1000, 1000), np.dtype(np.float16), 2_000_000)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


def test_a_gguf_file(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", template="{{ tools }}", context_length=40960, block_count=36)
    weights = read_weights(path)
    assert (weights.format, weights.architecture, weights.quantization) == ("gguf", "qwen3", "Q4_K_M")
    assert (weights.parameters, weights.parameter_size, weights.context_length) == (1_000_000, "1M", 40960)
    assert (weights.capabilities, weights.template) == (("completion", "tools"), "{{ tools }}")
    assert weights.size_bytes == path.stat().st_size
    assert weights.info == {
        "general.architecture": "qwen3",
        "general.file_type": 15,
        "general.parameter_count": 1_000_000,
        "qwen3.context_length": 40960,
        "qwen3.block_count": 36,
    }


def test_arrays_are_shown_as_ollama_shows_them_and_all_of_it_is_json(tmp_path: Path) -> None:
    path = written(
        tmp_path / "m.gguf",
        attention__head_count_kv=[8, 0, 8],
        many=list(range(6)),
        bad=float("nan"),
        worse=[1.0, float("inf")],
    )
    info = read_weights(path).info
    assert info["qwen3.attention.head_count_kv"] == [8, 0, 8]
    assert info["qwen3.many"] is None
    assert "qwen3.bad" not in info
    assert info["qwen3.worse"] is None
    json.dumps(info, allow_nan=False)


@pytest.mark.parametrize(
    ("architecture", "template", "keys", "capabilities"),
    [
        ("llama", "", {}, ["completion"]),
        ("llama", "{% for message in messages %}", {}, ["completion"]),
        ("llama", "{% if tools %}", {}, ["completion", "tools"]),
        ("qwen3", "{% if tools %}{% if enable_thinking %}", {}, ["completion", "tools", "thinking"]),
        ("deepseek2", "<think>", {}, ["completion", "thinking"]),
        ("qwen3", "{% if tools %}", {"pooling_type": 3}, ["embedding"]),
        ("qwen3", "", {"pooling_type": 0}, ["completion"]),
        ("nomic-bert", "", {}, ["embedding"]),
        ("gemma3", "", {"vision__block_count": 27}, ["completion", "vision"]),
    ],
)
def test_capabilities(
    tmp_path: Path, architecture: str, template: str, keys: dict[str, object], capabilities: list[str]
) -> None:
    path = written(tmp_path / "m.gguf", architecture, template, **keys)
    assert [*read_weights(path).capabilities] == capabilities


def folder(path: Path, config: object, **files: bytes) -> Weights:
    (path / "config.json").write_text(json.dumps(config))
    for name, data in files.items():
        (path / name.replace("__", ".")).write_bytes(data)
    return read_weights(path)


def test_a_folder_of_safetensors(tmp_path: Path) -> None:
    config = {
        "model_type": "qwen3",
        "max_position_embeddings": 40960,
        "quantization_config": {"quant_method": "awq"},
    }
    tokenizer = json.dumps({"chat_template": "{{ tools }}<think>"}).encode()
    weights = folder(
        tmp_path,
        config,
        a__safetensors=bytes(100),
        b__safetensors=bytes(50),
        tokenizer_config__json=tokenizer,
    )
    assert (weights.format, weights.architecture, weights.quantization) == ("safetensors", "qwen3", "awq")
    assert (weights.context_length, weights.size_bytes, weights.parameter_size) == (40960, 150, "")
    assert weights.capabilities == ("completion", "tools", "thinking")
    assert weights.info == {"general.architecture": "qwen3"}


def test_a_folder_of_a_model_that_sees(tmp_path: Path) -> None:
    config = {
        "model_type": "gemma3",
        "text_config": {"model_type": "gemma3_text", "max_position_embeddings": 131072},
        "vision_config": {},
    }
    weights = folder(tmp_path, config, chat_template__jinja=b"{{ tools }}")
    assert (weights.architecture, weights.context_length) == ("gemma3_text", 131072)
    assert weights.capabilities == ("completion", "tools", "vision")


def test_a_folder_of_an_encoder(tmp_path: Path) -> None:
    assert folder(tmp_path, {"model_type": "bert"}).capabilities == ("embedding",)


@pytest.mark.parametrize("config", ["[]", "{", "[" * 100_000, '{"a": ' + "9" * 5000 + "}", " " * 2_000_000])
def test_a_folder_that_cannot_be_understood(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=r"config\.json"):
        read_weights(tmp_path)


def test_odd_values_in_a_folder_are_no_harm(tmp_path: Path) -> None:
    weights = folder(tmp_path, {"model_type": 3, "max_position_embeddings": "x", "quantization_config": [1]})
    assert (weights.architecture, weights.context_length, weights.quantization) == ("", None, "")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path)


def configured(argv: list[str], more: str = "", **options: object) -> Config:
    table = {"type": "process", "argv": ["server", "--port", "{port}", *argv], "models": ["m"], **options}
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return parse_config("\n".join(["[engines.e]", *lines, more]))


@pytest.mark.parametrize(
    ("argv", "launch"),
    [
        ([], Launch()),
        (["-m", "/w/x.gguf"], Launch(path=Path("/w/x.gguf"))),
        (["--model=/w/x.gguf", "--ctx-size=4096"], Launch(path=Path("/w/x.gguf"), context_length=4096)),
        (["-m", "/w/x.gguf", "-c", "0"], Launch(path=Path("/w/x.gguf"))),
        (
            ["-m", "some.module", "--model", "/w/x.gguf", "-c", "1", "-c", "2"],
            Launch(path=Path("/w/x.gguf"), context_length=2),
        ),
        (["-c", "all"], Launch()),
        (["-c"], Launch()),
        (["--max-model-len", "8192"], Launch(context_length=8192)),
        (["--mmproj", "p.gguf", "--embeddings"], Launch(vision=True, embedding=True)),
        (["-m", "/w/{model}.gguf"], Launch(path=Path("/w/m.gguf"))),
    ],
)
def test_command_lines(argv: list[str], launch: Launch) -> None:
    assert launch_of(configured(argv), "e", "m") == launch


def test_a_path_in_the_working_directory(tmp_path: Path) -> None:
    config = configured(["-m", "x.gguf"], cwd=str(tmp_path))
    assert launch_of(config, "e", "m").path == tmp_path / "x.gguf"


def test_the_path_of_a_model_is_that_of_its_table(tmp_path: Path) -> None:
    more = '[models.big]\nengine = "e"\nupstream = "B"\npath = "/w/big.gguf"'
    config = configured(["-m", "{path}", "-c", "100"], more, models=[])
    assert launch_of(config, "e", "B") == Launch(path=Path("/w/big.gguf"), context_length=100)


def test_engines_that_the_router_does_not_start_may_have_a_path_too() -> None:
    config = parse_config(
        '[engines.o]\ntype = "systemd"\nunit = "v.service"\nbase_url = "http://127.0.0.1:1"\nmodels = ["m"]\n'
        '[models.m]\nengine = "o"\npath = "/w/m"'
    )
    assert launch_of(config, "o", "m") == Launch(path=Path("/w/m"))
    assert launch_of(config, "o", "other") == Launch()
