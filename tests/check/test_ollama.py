"""Ollama Modelfiles."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_reading import context_of, flag, only, text_at

from moesize.check.readers import ollama
from moesize.check.server import Reading


def read(root: Path, text: str) -> Reading:
    context = context_of(root, {"Modelfile": text}, "Modelfile")
    source = context.folder.library.text(root / "Modelfile", root)
    assert source is not None
    (one,) = ollama.TEXT_FORMATS
    assert one.matches("modelfile", source.value)
    return one.read(source, context)


def test_parameters_become_flags(tmp_path: Path) -> None:
    text = """\
        # mine
        from qwen3:30b-a3b
        PARAMETER num_ctx 131072
        PARAMETER temperature 0.7
        parameter num_gpu 99
        PARAMETER num_batch "512"
        PARAMETER stop "<|im_end|>"
        TEMPLATE \"\"\"
        FROM nothing
        PARAMETER num_ctx 1
        \"\"\"
        SYSTEM You are kind.
        """
    reading = read(tmp_path, text)
    assert reading.kind == "ollama_modelfile"
    server = only(reading.servers)
    assert (server.engine, str(server.model)) == ("ollama", "qwen3:30b-a3b")
    assert server.model is not None
    assert text_at(tmp_path, server.model) == "qwen3:30b-a3b"
    assert [str(word) for word in server.words] == [
        "--ctx-size", "131072", "--n-gpu-layers", "99", "--batch-size", "512",
    ]  # fmt: skip
    context = flag(server, "--ctx-size")
    assert context is not None
    assert context.exact
    assert text_at(tmp_path, context) == "131072"
    assert text_at(tmp_path, server.words[0]) == "num_ctx"


@pytest.mark.parametrize(
    "model",
    [
        "./model-Q4_K_M.gguf",
        "/models/x.gguf",
        "hf.co/bartowski/m-GGUF:Q8_0",
        '"quoted:8b"',
        "llama3",
    ],
)
def test_where_a_model_comes_from(tmp_path: Path, model: str) -> None:
    server = only(read(tmp_path, f"FROM {model}\n").servers)
    assert server.model == model.strip('"')


def test_adapters_are_named(tmp_path: Path) -> None:
    server = only(read(tmp_path, "FROM llama3\nADAPTER ./lora.gguf\n").servers)
    assert "lora.gguf" in server.notes[0]


def test_a_dockerfile_is_no_modelfile() -> None:
    (one,) = ollama.TEXT_FORMATS
    assert not one.matches("modelfile", "FROM ollama/ollama\nRUN ollama pull x\n")
    assert not one.matches("modelfile", "FROM a\nFROM b\n")
    assert not one.matches("modelfile", "{}\n")
    assert not one.matches("x", "from pathlib import Path\n")
