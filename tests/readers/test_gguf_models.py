"""A GGUF file as MODEL: what llama.cpp's converter made of a config is read back as that config."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf_headers import (
    Header,
    converted,
    header,
    published,
    published_metadata,
    write_sparse,
    write_with_package,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import ROOT, Result, call

import moesize
from moesize.catalog import load_spec, resolve_model, spec_folder
from moesize.core.checkpoint import published as published_entries
from moesize.core.checkpoint import stored_bytes
from moesize.core.errors import InvalidInputError, MoesizeError, UnsupportedError
from moesize.core.gguf_view import count_types
from moesize.core.model_spec import ModelSpec
from moesize.core.quantization import find_scheme
from moesize.importer import spec_yaml
from moesize.readers.gguf.config import known_architectures
from moesize.readers.gguf.header import GGML_NUMBERS, GGML_TYPES, GgufFile, GgufTensor, open_gguf
from moesize.readers.gguf.read import spec_of
from moesize.readers.gguf.tensors import expected_tensors
from moesize.readers.hf.read import spec_from_config

# Facts that the converter does not write, or that a plan of llama.cpp has no use for: names,
# notes, element types of what vLLM allocates, how files join projections.
_NOT_COMPARED = {
    "name", "renormalizes", "state_dtype", "router_dtype", "decay_dtype", "stacked",
    "split_projections",
}  # fmt: skip
# llama.cpp has no window for these (conversion/llama.py, qwen.py); Llama 4's is a constant of it.
_WINDOWS_LEFT_OUT = {"mistral", "qwen2", "llama4_text"}
# Converters write a length of their own: none is known, or another key is read.
_OTHER_CONTEXT = {
    "bloom", "falcon", "falcon_mamba", "glm", "granitemoehybrid", "llama-dynamic-rope", "mamba",
    "mamba2", "nemotron_h", "hunyuan_v1_moe",
}  # fmt: skip


def facts(value: Any, left_out: set[str]) -> Any:
    """A dataclass as tuples of what is compared."""
    if dataclasses.is_dataclass(value):
        fields = [f.name for f in dataclasses.fields(value) if f.name not in left_out]
        return (
            type(value).__name__,
            *((name, facts(getattr(value, name), left_out)) for name in fields),
        )
    return tuple(facts(item, left_out) for item in value) if isinstance(value, tuple) else value


def shape_of(spec: ModelSpec, name: str) -> dict[str, Any]:
    """What tensors and caches depend on."""
    left_out = _NOT_COMPARED | ({"window", "chunk"} if name in _WINDOWS_LEFT_OUT else set())
    return {
        "layers": [facts(spec.block(block), left_out) for block in spec.layout],
        "embedding": facts(spec.embedding, left_out),
        "hidden_size": spec.hidden_size,
        "final": (spec.num_final_norms, spec.final_norm_bias),
        "extra": facts(spec.extra, left_out),
        "context": 0 if name in _OTHER_CONTEXT else spec.max_context,
    }


@pytest.mark.parametrize("name", converted())
def test_a_converted_model_is_the_model_of_its_config(name: str, tmp_path: Path) -> None:
    head = header(name)
    path = write_with_package(head, tmp_path / "model.gguf")
    spec, source = resolve_model(str(path))
    assert source == "gguf"
    assert shape_of(spec, name) == shape_of(spec_from_config(head.config, file="c"), name)
    # Bytes and types as the package counts them.
    tensors = gguf.GGUFReader(path).tensors
    assert stored_bytes(spec) == sum(int(tensor.n_bytes) for tensor in tensors)
    if name != "gemma3n":  # core counts projections apart that the file stacks
        types = Counter(tensor.tensor_type.name for tensor in tensors)
        assert count_types(published_entries(spec)) == types
    assert spec.source.total_elements == sum(int(tensor.n_elements) for tensor in tensors)


def test_every_architecture_of_the_task_is_among_them() -> None:
    """And none is known only by name."""
    seen = {header(name).architecture for name in converted()}
    assert len(seen) > 55
    assert seen <= set(known_architectures())


def real_file(folder: Path, model: str, quant: str, **more: Any) -> Path:
    """A file of published size: the converter's metadata, the catalogue's tensors, no data."""
    spec = load_spec(spec_folder() / f"{model}.yaml")
    file_type = int(gguf.LlamaFileType[f"MOSTLY_{quant}"])
    metadata = {**published_metadata(model), "general.file_type": (4, None, file_type)}
    tensors = [
        (tensor.name, tensor.shape, GGML_NUMBERS[tensor.type.name], tensor.size_bytes)
        for tensor in expected_tensors(spec, find_scheme(quant))
    ]
    return write_sparse(folder / f"{model}-{quant}.gguf", metadata, tensors, **more)


@pytest.mark.parametrize("model", published())
def test_a_file_is_planned_as_its_model_is(model: str, tmp_path: Path) -> None:
    """The same ledgers to the byte, by two ways that meet only in the planner."""
    path = real_file(tmp_path, model, "Q4_K_M")
    wanted = {"gpu": "h200-141gb-sxm", "gpus": 4, "context": 4096, "suggest": False}
    ours = moesize.plan(str(path), **wanted).to_dict()  # type: ignore[arg-type]
    theirs = moesize.plan(model, engine="llama.cpp", quant="Q4_K_M", **wanted).to_dict()  # type: ignore[arg-type]
    assert ours["model"]["source"] == "gguf"
    assert ours["deployment"]["engine"] == "llama.cpp"
    assert "Q4_K_M" in ours["quantization"]["format"]
    if model == "nemotron-3-nano":  # the converter writes 2^20 for hybrids
        ours["kv_cache"].pop("max_context")
        theirs["kv_cache"].pop("max_context")
    for part in ("gpus", "kv_cache", "verdict"):
        assert ours[part] == theirs[part]
    assert ours["quantization"]["weight_bytes"] == theirs["quantization"]["weight_bytes"]


def test_a_real_header_is_read_at_once(tmp_path: Path) -> None:
    """A vocabulary of 262,144 and its merges are passed over, and no tensor is touched."""
    path = real_file(tmp_path, "deepseek-v3", "Q4_K_M", vocabulary=262_144)
    assert path.stat().st_size > 400e9
    resolve_model(str(path))
    begin = time.process_time()
    resolve_model(str(path))
    assert time.process_time() - begin < 10


def test_an_undivided_kv_b_caches_every_head(tmp_path: Path) -> None:
    """Files of before April 2025: 61 layers of 128 keys of 192 and values of 128, in 16 bits.

    39040 MiB for 8192 tokens, K 23424 MiB and V 15616 MiB: what llama.cpp prints for such a file.
    """
    prefix = "deepseek2.attention."
    metadata = published_metadata("deepseek-v3")
    del metadata[prefix + "key_length_mla"], metadata[prefix + "value_length_mla"]
    for key, value in (("key_length", 192), ("value_length", 128), ("head_count_kv", 128)):
        metadata[prefix + key] = (4, None, value)
    spec = load_spec(spec_folder() / "deepseek-v3.yaml")
    tensors = []
    for tensor in expected_tensors(spec, find_scheme("Q8_0")):
        if ".attn_v_b." in tensor.name:
            continue
        name, shape, size = tensor.name, tensor.shape, tensor.size_bytes
        if ".attn_k_b." in name:
            name, shape = name.replace("k_b", "kv_b"), (512, 128 * 256)
            size = shape[1] * 512 // 32 * 34
        tensors.append((name, shape, GGML_NUMBERS[tensor.type.name], size))
    path = write_sparse(tmp_path / "old.gguf", metadata, tensors)
    plan = moesize.plan(str(path), gpu="h200-141gb-sxm", gpus=8, context=8192).to_dict()
    caches = [
        item["bytes"]
        for gpu in plan["gpus"]
        for item in gpu["items"]
        if item["category"] == "kv_cache"
    ]
    assert sum(caches) == 39040 << 20
    assert plan["quantization"]["weight_bytes"] == sum(size for *_, size in tensors)


LOG = ROOT / "tests" / "fixtures" / "logs" / "llama-server-gpt-oss-20b.log"
# What the log prints of the file's metadata, and heads of 64 as the published config.json says.
_OF_LOG = {
    "block_count": 24, "context_length": 131072, "embedding_length": 2880,
    "feed_forward_length": 2880, "attention.head_count": 64, "attention.head_count_kv": 8,
    "attention.key_length": 64, "attention.value_length": 64, "attention.sliding_window": 128,
    "expert_count": 32, "expert_used_count": 4, "expert_feed_forward_length": 2880,
}  # fmt: skip


def test_the_file_of_a_log(tmp_path: Path) -> None:
    """459 tensors: 289 f32, 98 q8_0, 72 mxfp4; 11.27 GiB; 1242.03 MiB of them on the GPU."""
    tensors = []
    for tensor in expected_tensors(load_spec(spec_folder() / "gpt-oss-20b.yaml"), None):
        kind = "Q8_0" if tensor.type.name in ("BF16", "Q8_0") else tensor.type.name
        size = GGML_TYPES[GGML_NUMBERS[kind]].row_bytes(tensor.shape[0])
        for length in tensor.shape[1:]:
            size *= length
        if tensor.name.endswith("ffn_gate_inp.weight"):
            kind, size = "F32", 4 * tensor.shape[0] * tensor.shape[1]
        tensors.append((tensor.name, tensor.shape, GGML_NUMBERS[kind], size))
    metadata: dict[str, Any] = {"general.architecture": (8, None, "gpt-oss")}
    metadata |= {f"gpt-oss.{key}": (4, None, value) for key, value in _OF_LOG.items()}
    path = write_sparse(tmp_path / "gpt-oss-20b-mxfp4.gguf", metadata, tensors)
    spec, _ = resolve_model(str(path))
    assert count_types(published_entries(spec)) == {"F32": 289, "Q8_0": 98, "MXFP4": 72}
    assert round(stored_bytes(spec) / 2**30, 2) == 11.27
    # What is MXFP4 stays so: llama-quantize takes nothing apart.
    other = {"engine": "llama.cpp", "quant": "Q8_0", "gpu": "h200-141gb-sxm"}
    plans = [moesize.plan(model, **other) for model in (str(path), "gpt-oss-20b")]  # type: ignore[arg-type]
    assert plans[0].quantization.weight_bytes == plans[1].quantization.weight_bytes
    # The log is of a machine whose experts stay on the host; MiB are printed to the hundredth.
    arguments = ("--model", str(path), "--engine-args", "--cpu-moe", "--format", "json")
    document = call("audit", str(LOG), *arguments).json()
    assert document["quantization"] == "checkpoint"
    # What is mapped on the host is a range of the file, other tensors included.
    terms = [term for term in document["terms"] if term["rank"] == "CUDA0"]
    assert {term["name"] for term in terms} == {"model", "kv", "compute"}
    for term in terms:
        assert abs(term["predicted"] - term["logged"]) <= 0.005 * 2**20


def test_an_imported_file_reads_back(tmp_path: Path) -> None:
    path = write_with_package(header("deepseek_v3"), tmp_path / "model.gguf")
    (tmp_path / "model.yaml").write_text(spec_yaml(str(path), spec_id="mine"))
    spec, source = resolve_model(str(tmp_path / "model.yaml"))
    assert source == "spec"
    own, _ = resolve_model(str(path))
    assert dataclasses.replace(spec, id=own.id) == own
    assert stored_bytes(spec) == stored_bytes(own)
    # A type that somebody edited is not guessed.
    text = (tmp_path / "model.yaml").read_text().replace(", type: BF16", ", type: Q99", 1)
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(InvalidInputError, match="Q99"):
        stored_bytes(resolve_model(str(tmp_path / "model.yaml"))[0])


def test_mixed_types_are_the_files_own(tmp_path: Path) -> None:
    """Not what Q4_K_M's rules say: what a person chose with --tensor-type."""
    spec = load_spec(spec_folder() / "llama-3.1-8b.yaml")
    metadata = {**published_metadata("llama-3.1-8b"), "general.file_type": (4, None, 15)}
    tensors = []
    for tensor in expected_tensors(spec, find_scheme("Q4_K_M")):
        kind = "Q2_K" if tensor.name == "blk.7.ffn_up.weight" else tensor.type.name
        rows = 1
        for length in tensor.shape[1:]:
            rows *= length
        size = GGML_TYPES[GGML_NUMBERS[kind]].row_bytes(tensor.shape[0]) * rows
        tensors.append((tensor.name, tensor.shape, GGML_NUMBERS[kind], size))
    path = write_sparse(tmp_path / "mixed.gguf", metadata, tensors)
    by_rule = moesize.plan("llama-3.1-8b", gpu="a10g", engine="llama.cpp", quant="Q4_K_M")
    own = moesize.plan(str(path), gpu="a10g")
    # 4096 x 14336 in blocks of 256: 144 bytes each in Q4_K, 84 in Q2_K.
    blocks = 4096 * 14336 // 256
    difference = by_rule.quantization.weight_bytes - own.quantization.weight_bytes
    assert difference == blocks * (144 - 84)


# --- The commands ---------------------------------------------------------------------------------


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    return write_with_package(header("qwen3_moe"), tmp_path / "qwen.gguf")


def failed(result: Result, code: int, *words: str) -> None:
    assert result.code == code, result.err
    assert "Traceback" not in result.err
    first = result.err.splitlines()[0]
    assert first.startswith("error: ")
    assert "hint:" in result.err
    for word in words:
        assert word in result.err


def test_commands_take_a_file(qwen: Path) -> None:
    document = call("plan", str(qwen), "--gpu", "a10g", "--format", "json").json()
    assert document["model"]["source"] == "gguf"
    assert document["model"]["params_exact"] is True
    size = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(qwen).tensors)
    assert document["quantization"]["weight_bytes"] == size
    assert any("llama.cpp" in note["message"] for note in document["warnings"])
    assert "the bytes of the file's own tensors" in call("plan", str(qwen), "--gpu", "a10g").out
    shown = call("show", str(qwen), "--format", "json").json()
    assert shown["checkpoint"]["stored_bytes"] == size
    assert call("import", str(qwen)).out.startswith("# A moesize model spec")


def test_a_folder_without_a_config(qwen: Path) -> None:
    """As people keep downloads: the file, and a projector beside it."""
    (qwen.parent / "mmproj-F16.gguf").write_bytes(b"GGUF")
    assert resolve_model(str(qwen.parent)) == resolve_model(str(qwen))
    (qwen.parent / "other.gguf").write_bytes(b"GGUF")
    failed(call("show", str(qwen.parent)), 2, "2 models", "name one")


def test_another_engine_is_asked_for_another_scheme(qwen: Path) -> None:
    for engine in ("vllm", "sglang", "transformers"):
        result = call("plan", str(qwen), "--gpu", "a10g", "--engine", engine)
        failed(result, 3, "GGUF", "--engine llama.cpp")
    document = call("plan", str(qwen), "--gpu", "h100", "--quant", "fp8", "--format", "json").json()
    assert document["deployment"]["engine"] == "vllm"
    assert document["quantization"]["scheme"] == "fp8"
    document = call(
        "plan", str(qwen), "--gpu", "h100", "--quant", "Q8_0", "--format", "json"
    ).json()
    assert document["deployment"]["engine"] == "llama.cpp"


def test_a_pasted_command_serves_the_files_own_types(tmp_path: Path) -> None:
    path = write_with_package(header("qwen3"), tmp_path / "qwen-Q8_0.gguf")
    arguments = ("--gpu", "a10g", "--engine-args", f"llama-server -m {path} -c 256")
    document = call("plan", str(path), *arguments, "--format", "json").json()
    size = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors)
    assert document["quantization"]["weight_bytes"] == size


# --- What is refused ------------------------------------------------------------------------------


def changed(path: Path, name: str, change: Callable[[Header], Header]) -> Result:
    head = change(header(name))
    return call("show", str(write_with_package(head, path / "model.gguf")))


def without(head: Header, *keys: str) -> Header:
    left = {key: value for key, value in head.metadata.items() if key not in keys}
    return dataclasses.replace(head, metadata=left)


def saying(head: Header, **values: Any) -> Header:
    metadata = dict(head.metadata)
    for key, value in values.items():
        full = f"{head.architecture}.{key}".replace("__", ".")
        metadata[full] = (4, None, value)
    return dataclasses.replace(head, metadata=metadata)


def test_an_unknown_architecture_says_what_it_can(tmp_path: Path) -> None:
    head = header("llama")
    metadata = {**head.metadata, "general.architecture": (8, None, "lamma")}
    own = dataclasses.replace(head, metadata=metadata)
    result = call("plan", str(write_with_package(own, tmp_path / "m.gguf")), "--gpu", "a10g")
    failed(result, 3, "m.gguf", "'lamma'", "30 tensors", "of BF16", "llama")


def test_metadata_that_lacks_or_contradicts(tmp_path: Path) -> None:
    cases: list[tuple[str, Callable[[Header], Header], int, str]] = [
        ("llama", lambda h: without(h, "llama.block_count"), 2, "block_count is missing"),
        ("llama", lambda h: without(h, "llama.embedding_length"), 2, "embedding_length"),
        ("llama", lambda h: without(h, "llama.context_length"), 2, "context_length"),
        ("llama", lambda h: without(h, "llama.attention.head_count"), 2, "num_attention_heads"),
        ("mixtral", lambda h: without(h, "llama.expert_used_count"), 2, "expert_used_count"),
        ("dbrx", lambda h: without(h, "dbrx.expert_count"), 2, "num_experts"),
        ("llama", lambda h: saying(h, block_count=4), 2, "no tensor of 1 of the 4 layers"),
        ("llama", lambda h: saying(h, block_count=1 << 31), 2, "claims 2,147,483,648 blocks"),
        ("llama", lambda h: saying(h, block_count=0), 2, "claims 0 blocks"),
        ("llama", lambda h: saying(h, block_count=2), 3, "blk.2.attn_k.weight is not known"),
        ("llama", lambda h: saying(h, attention__head_count_kv=3), 2, "must divide"),
        ("llama", lambda h: saying(h, attention__head_count_kv=4), 3, "blk.0.attn_k.weight has"),
        ("llama", lambda h: saying(h, feed_forward_length=64), 3, "blk.0.ffn_gate.weight has"),
        ("llama", lambda h: saying(h, nextn_predict_layers=3), 2, "3 of 3 blocks"),
        ("deepseek_v3", lambda h: saying(h, rope__dimension_count=13), 2, "rotated part of 13"),
    ]
    for name, change, code, words in cases:
        failed(changed(tmp_path, name, change), code, "model.gguf", words)


def test_tensors_that_are_missing_added_or_of_another_form(tmp_path: Path) -> None:
    def of(change: Callable[[dict[str, Any]], Any]) -> Callable[[Header], Header]:
        def changes(head: Header) -> Header:
            tensors = dict(head.tensors)
            change(tensors)
            return dataclasses.replace(head, tensors=tensors)

        return changes

    def add(tensors: dict[str, Any]) -> None:
        tensors["blk.1.attn_q.lora"] = ("F32", (32, 4))

    def other(tensors: dict[str, Any]) -> None:
        tensors["blk.1.attn_q.weight"] = ("BF16", (32, 48))

    for change, words in (
        (lambda t: t.pop("blk.1.ffn_up.weight"), "it has no blk.1.ffn_up.weight"),
        (add, "blk.1.attn_q.lora is not known"),
        (other, "blk.1.attn_q.weight has shape [32, 48], and [32, 32] follows"),
    ):
        failed(changed(tmp_path, "llama", of(change)), 3, "model.gguf", words)


def test_a_tensor_for_each_expert(tmp_path: Path) -> None:
    """As files of December 2023 have them."""

    def divided(head: Header) -> Header:
        tensors = {}
        for name, (kind, shape) in head.tensors.items():
            if "_exps" not in name:
                tensors[name] = (kind, shape)
                continue
            for expert in range(shape[2]):
                tensors[name.replace("_exps", f".{expert}")] = (kind, shape[:2])
        return dataclasses.replace(head, tensors=tensors)

    failed(changed(tmp_path, "mixtral", divided), 3, "model.gguf", "2024", "convert the model")


def test_a_part_that_is_missing(tmp_path: Path) -> None:
    head = header("qwen3")
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "qwen3", split_max_tensors=20)
    for key, (kind, inner, value) in head.metadata.items():
        if key != "general.architecture":
            of = None if inner is None else gguf.GGUFValueType(inner)
            writer.add_key_value(key, value, gguf.GGUFValueType(kind), of)
    import numpy as np

    for name, (kind, shape) in head.tensors.items():
        dtype = gguf.GGMLQuantizationType[kind]
        size = gguf.quant_shape_to_byte_shape(tuple(reversed(shape)), dtype)
        writer.add_tensor(name, np.zeros(size, dtype=np.uint8), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first, second = sorted(tmp_path.glob("q-*.gguf"))
    whole = write_with_package(head, tmp_path / "whole.gguf")
    for part in (first, second):
        spec, _ = resolve_model(str(part))
        assert stored_bytes(spec) == stored_bytes(resolve_model(str(whole))[0])
        assert spec.title == "q" or spec.title.startswith("q-")
    second.unlink()
    failed(call("show", str(first)), 2, second.name)


def test_a_name_of_a_stranger_stays_on_its_line(tmp_path: Path) -> None:
    for said in ("\x1b[31mred", "a\nb", "x" * 500, "../../etc", ""):
        head = header("llama")
        metadata = {**head.metadata, "general.name": (8, None, said)}
        own = dataclasses.replace(head, metadata=metadata)
        spec, _ = resolve_model(str(write_with_package(own, tmp_path / "m.gguf")))
        assert spec.title.isprintable()
        assert 0 < len(spec.title) <= 80
        assert "/" not in spec.id


_ODD = st.sampled_from(
    [0, 1, 2, 3, 7, -1, 1 << 31, 1 << 62, -(1 << 60), 0.0, 1.5, float("nan"), float("inf"), "",
     "yarn", (), (0,), (1, 2), (0,) * 3, (1,) * 3, (4,) * 100, (-1,) * 4, (1.5,) * 3]
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(converted()), odd=st.lists(_ODD, min_size=1, max_size=3), data=st.data()
)
def test_no_value_of_metadata_is_a_traceback(name: str, odd: list[Any], data: Any) -> None:
    head = header(name)
    metadata: dict[str, Any] = {}
    for key, (_, _, value) in head.metadata.items():
        metadata[key] = tuple(value) if isinstance(value, list) else value
    for value in odd:
        metadata[data.draw(st.sampled_from(sorted(metadata)))] = value
    tensors = {}
    for tensor, (kind, shape) in head.tensors.items():
        of = GGML_TYPES[GGML_NUMBERS[kind]]
        size = of.row_bytes(shape[0])
        for length in shape[1:]:
            size *= length
        tensors[tensor] = GgufTensor(Path("m.gguf"), of, shape, 0, size)
    file = GgufFile((Path("m.gguf"),), 3, tensors, metadata)
    said, total = "", 0
    try:
        total = stored_bytes(spec_of(file))
    except MoesizeError as error:
        said = error.message
    assert "m.gguf" in said if said else total == file.size_bytes
    assert "\n" not in said


def test_a_projector_is_no_model(tmp_path: Path) -> None:
    head = header("llama")
    metadata = {"general.architecture": (8, None, "clip")}
    own = Header("clip", {}, metadata, {"v.patch_embd.weight": head.tensors["token_embd.weight"]})
    result = call("show", str(write_with_package(own, tmp_path / "mmproj.gguf")))
    failed(result, 3, "mmproj.gguf", "projector")


def test_errors_in_json(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    result = call("plan", str(tmp_path / "m.gguf"), "--gpu", "a10g", "--format", "json")
    assert result.code == 2
    assert "m.gguf" in json.loads(result.out)["error"]["message"]


def test_other_types_of_files_do_not_change(tmp_path: Path) -> None:
    """`open_gguf` of the reader and MODEL agree about what is there."""
    path = write_with_package(header("gpt_oss"), tmp_path / "m.gguf")
    file = open_gguf(path)
    spec = spec_of(file)
    assert {tensor.name for tensor in expected_tensors(spec, None)} == set(file.tensors)
    with pytest.raises(UnsupportedError):
        moesize.plan(str(path), gpu="a10g", engine="vllm")
