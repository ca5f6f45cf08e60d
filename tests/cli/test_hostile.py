"""Names and files from strangers: one clear line, the right exit code, bounded time and memory."""

from __future__ import annotations

import contextlib
import copy
import json
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from running import Result, call, run

import moesize
from moesize.catalog import spec_folder
from moesize.core import naming
from moesize.core.errors import MoesizeError
from moesize.core.model_spec import ModelSpec
from moesize.files import read_yaml
from moesize.structure import StructureError, build

MIB = 1 << 20
# A fresh interpreter with everything that a command loads stays below 100 MiB of address space
# beside what the file takes; the largest file that is parsed at all has 16 MiB.
MEMORY_BYTES = 768 * MIB
CPU_S = 2.5
SPEC = (spec_folder() / "mixtral-8x7b.yaml").read_text(encoding="utf-8")
# The fields of https://huggingface.co/mistralai/Mixtral-8x7B-v0.1 that sizes depend on.
CONFIG: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}
REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)


def check(result: Result, codes: tuple[int, ...] = (2,)) -> str:
    """One `error:` line, perhaps a hint, no traceback, nothing that a terminal would obey."""
    assert result.code in codes, result.err
    assert result.out == ""
    lines = result.err.splitlines()
    assert len(lines) in (1, 3)
    assert lines[0].startswith("error: ")
    assert len(lines[0]) < 600
    assert all(char.isprintable() for line in lines for char in line)
    return lines[0]


def test_the_config_that_is_mutated_here_is_good(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG), encoding="utf-8")
    document = call("show", str(path), "--format", "json").json()
    assert document["model"]["params"]["total"] == 46_702_792_704


NAMES = (
    "x" * 10_000,
    "",
    " ",
    "a\x1b[31mb",
    "a\nb",
    "\x07",
    "\u202egnp.lairtxim",
    "\N{PILE OF POO}" * 40,
    "../../etc/passwd",
    "..",
    "a/../b",
    "owner/name/more",
    "/dev/null",
    "~nobody-of-that-name/config.json",
    "%s%n{0}",
    "@",
    "http://example.com/config.json",
    "file:///etc/passwd",
    "C:\\config.json",
)


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:24])
def test_names_of_models(name: str) -> None:
    assert check(call("show", name))


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:24])
@pytest.mark.parametrize("option", ["--gpu", "--quant", "--kv-dtype", "--engine", "--context"])
def test_values_of_options(option: str, name: str) -> None:
    if option in ("--quant", "--kv-dtype") and not name.strip():
        return  # as published
    options = {"--gpu": "a10g", option: name}
    words = [word for pair in options.items() for word in pair]
    result = call("plan", "mixtral-8x7b", *words)
    assert check(result)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60).filter(lambda s: "/" not in s)
)
def test_any_text_is_a_model_name_or_an_error(name: str) -> None:
    result = call("show", "--", name)
    if result.code:
        check(result, (2, 3))


def _files() -> dict[str, Callable[[], bytes]]:
    good = json.dumps(CONFIG)
    return {
        "empty": lambda: b"",
        "blank": lambda: b" \n",
        "truncated": lambda: good[:200].encode(),
        "binary": lambda: bytes(range(256)),
        "utf-16": lambda: good.encode("utf-16"),
        "a list": lambda: b"[1, 2]",
        "a text": lambda: b'"x"',
        "no keys": lambda: b"{}",
        "lists in lists": lambda: b"[" * 10_000 + b"]" * 10_000,
        "objects in objects": lambda: b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        "many numbers": lambda: b'{"model_type":"mixtral","x":[' + b"1," * (4 * MIB) + b"1]}",
        "duplicate key": lambda: b'{"model_type": "mixtral", "model_type": "llama"}',
        "not a number": lambda: good.replace("4096", "NaN").encode(),
        "infinite": lambda: good.replace("4096", "1e999").encode(),
        "5,000 digits": lambda: good.replace("4096", "9" * 5000).encode(),
    }


@pytest.mark.parametrize("name", _files())
def test_config_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(_files()[name]())
    result = run("show", str(path), memory_bytes=MEMORY_BYTES)
    assert str(path) in check(result)
    assert result.cpu_s < CPU_S


@pytest.mark.parametrize("name", ["config.json", "spec.yaml"])
def test_files_of_200_mb(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with path.open("wb") as stream:
        stream.truncate(200 * MIB)
    result = run("show", str(path), memory_bytes=MEMORY_BYTES)
    assert "larger than" in check(result)
    assert result.cpu_s < CPU_S


def test_endless_file() -> None:
    result = run("show", "/dev/zero", memory_bytes=MEMORY_BYTES)
    assert "not a regular file" in check(result)


@pytest.mark.parametrize("value", [-1, 0, 1.5, "4096", 10**30, 10**9, None, [1], {"a": 1}, True])
@pytest.mark.parametrize("key", REQUIRED)
def test_dimensions(key: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**CONFIG, key: value}), encoding="utf-8")
    assert key in check(call("show", str(path)))


@pytest.mark.parametrize("key", REQUIRED)
def test_missing_dimensions(key: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({k: v for k, v in CONFIG.items() if k != key}), encoding="utf-8")
    assert key in check(call("show", str(path)))


@pytest.mark.parametrize("model_type", ["no_such_family", "\x1b[31m", "../x", "x" * 5000])
def test_unknown_model_type_is_refused_not_guessed(model_type: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**CONFIG, "model_type": model_type}), encoding="utf-8")
    check(call("show", str(path)), (3,))


_OTHER_KEYS = ("quantization_config", "rope_scaling", "layer_types", "text_config", "dtype")
_ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(key=st.sampled_from([*CONFIG, *_OTHER_KEYS]), value=_ANY_JSON)
def test_any_value_of_any_key_is_read_or_refused(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**CONFIG, key: value}), encoding="utf-8")
    result = call("show", str(path))
    if result.code:
        check(result, (2, 3))


def _spec(old: str, new: str) -> str:
    assert SPEC.count(old) == 1
    return SPEC.replace(old, new)


def _specs() -> dict[str, Callable[[], str]]:
    return {
        "empty": lambda: "",
        "only a comment": lambda: "# nothing\n",
        "a word": lambda: "hello\n",
        "a list": lambda: "- 1\n",
        "duplicate key": lambda: SPEC + "id: other\n",
        "unknown key": lambda: SPEC + "hiden_size: 4096\n",
        "missing key": lambda: _spec("hidden_size: 4096\n", ""),
        "anchors": lambda: "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        "tag": lambda: "id: !!python/object/apply:os.system ['true']\n",
        "binary tag": lambda: "id: !!binary aGVsbG8=\n",
        "merge key": lambda: "<<: {id: x}\n" + SPEC,
        "two documents": lambda: SPEC + "---\nid: x\n",
        "key that is a list": lambda: "? [a]\n: b\n",
        "lists in lists": lambda: "id: " + "[" * 10_000 + "]" * 10_000,
        "nested blocks": lambda: "".join(" " * depth + "a:\n" for depth in range(1000)),
        "tabs": lambda: "id:\n\t- x\n",
        "control character": lambda: "id: \x07\n",
        "many numbers": lambda: "x: [" + "1," * (500 << 10) + "1]",
        "many keys": lambda: "".join(f"k{i}: 1\n" for i in range(90_000)),
        "float for int": lambda: _spec("hidden_size: 4096", "hidden_size: 4096.0"),
        "true for int": lambda: _spec("hidden_size: 4096", "hidden_size: true"),
        "text for int": lambda: _spec("hidden_size: 4096", "hidden_size: '4096'"),
        "digits with underscores": lambda: _spec("hidden_size: 4096", "hidden_size: 4_096"),
        "zero": lambda: _spec("hidden_size: 4096", "hidden_size: 0"),
        "negative": lambda: _spec("hidden_size: 4096", "hidden_size: -4096"),
        "5,000 digits": lambda: _spec("hidden_size: 4096", "hidden_size: " + "9" * 5000),
        "no heads": lambda: _spec("num_kv_heads: 8", "num_kv_heads: 0"),
        "heads that do not divide": lambda: _spec("num_kv_heads: 8", "num_kv_heads: 7"),
        "10^12 layers": lambda: _spec("repeat: 32", "repeat: 1000000000000"),
        "no layers": lambda: _spec("repeat: 32", "repeat: 0"),
        "2^49 experts": lambda: _spec("num_experts: 8", f"num_experts: {2**49}"),
        "wrong kind": lambda: _spec("kind: gqa", "kind: gqb"),
        "no kind": lambda: _spec("kind: gqa, ", ""),
        "block that does not exist": lambda: _spec("blocks: [moe]", "blocks: [mo]"),
        "unknown dtype": lambda: _spec("dtype: bfloat16", "dtype: int3"),
        "unknown naming": lambda: _spec("naming: mixtral", "naming: '\\e[31m'"),
    }


@pytest.mark.parametrize("name", _specs())
def test_spec_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(_specs()[name](), encoding="utf-8")
    big = name in ("many numbers", "many keys", "lists in lists", "10^12 layers", "2^49 experts")
    result = run("show", str(path), memory_bytes=MEMORY_BYTES) if big else call("show", str(path))
    line = check(result)
    assert str(path) in line or name == "2^49 experts"
    assert result.cpu_s < CPU_S


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("hidden_size: 4096", "hidden_size: x", 8),
        ("num_experts: 8", "num_experts: x", 15),
        ("kind: gqa", "kind: x", 13),
    ],
)
def test_errors_name_the_line(old: str, new: str, line: int, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(_spec(old, new), encoding="utf-8")
    wanted = next(i for i, text in enumerate(SPEC.splitlines(), 1) if old in text)
    found = int(call("show", str(path)).err.split(":")[2])
    assert found in (wanted, wanted - 1)  # the start of the block that holds it


@pytest.mark.parametrize("pattern", ["(a+)+$", "(", "(?P<x>a)(?P<x>b)", "[" * 500, "a{1,99999999}"])
def test_patterns_of_quantization_rules(pattern: str, tmp_path: Path) -> None:
    """Patterns come with checkpoints: none may take exponential time, and none a traceback."""
    path = tmp_path / "spec.yaml"
    rule = f"rules: [{{format: fp8, modules: [{json.dumps(pattern)}]}}]"
    path.write_text(
        _spec("naming: mixtral", f"quantization: {{method: fp8, {rule}}}\nnaming: mixtral"),
        encoding="utf-8",
    )
    result = run("show", str(path), memory_bytes=MEMORY_BYTES, timeout_s=20)
    assert result.cpu_s < CPU_S
    if result.code:
        check(result, (2, 3))


# --- any value in any place of a real spec ------------------------------------------------------

FUZZED = ("mixtral-8x7b", "deepseek-v3", "deepseek-v4-flash", "gpt-oss-20b", "gemma-4-e2b",
          "nemotron-h-56b", "kimi-linear-48b-a3b", "qwen3.5-35b-a3b", "bert-base")  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _places(inner, (*path, key))
    if isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _places(inner, (*path, position))


_DOCUMENTS = {name: read_yaml(spec_folder() / f"{name}.yaml").data for name in FUZZED}
_ALL_PLACES = [(name, path) for name, data in _DOCUMENTS.items() for path in _places(data)]
_VALUES = (None, True, 0, 1, 3, 2**49, 2**50, -1, 0.5, "", "x", [], {}, [1], ["x"], {"kind": "gqa"})


@settings(max_examples=400, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(place=st.sampled_from(_ALL_PLACES), value=st.sampled_from(_VALUES))
def test_any_value_in_any_place_of_a_spec(place: tuple[str, tuple[Any, ...]], value: Any) -> None:
    """It is read and planned, or refused by an error of ours; nothing else may be raised."""
    name, path = place
    data = copy.deepcopy(_DOCUMENTS[name])
    node = data
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with contextlib.suppress(StructureError, MoesizeError):
        spec = build(ModelSpec, data)
        assume(spec.naming in naming.NAMES)  # checked where files are loaded
        moesize.show(spec)
        moesize.plan(spec, gpu="h200", gpus=8, suggest=False)
