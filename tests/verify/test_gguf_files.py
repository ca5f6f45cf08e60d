"""GGUF: headers of strangers, files of llama.cpp's own writer, and bytes against the ledger."""

from __future__ import annotations

import gc
import os
import resource
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_headers import header, write_with_package
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import call

from moesize.catalog import load_spec, spec_folder
from moesize.core.checkpoint import StoredEntry
from moesize.core.errors import (
    EnvironmentProblem,
    InvalidInputError,
    MoesizeError,
    UnsupportedError,
)
from moesize.core.gguf_view import gguf_architecture, gguf_entries, gguf_model_bytes
from moesize.core.model_spec import ModelSpec
from moesize.core.quantization import find_scheme
from moesize.importer import spec_yaml
from moesize.readers.gguf.header import (
    FILE_TYPES,
    GGML_TYPES,
    MAX_KEYS,
    MAX_LISTS,
    MAX_TENSORS,
    MAX_VALUES,
    open_gguf,
    read_header,
)
from moesize.readers.gguf.tensors import check_against, expected_tensors, scheme_of
from moesize.verify.devices import find_meter
from moesize.verify.gguf_run import load_gguf, verify_gguf, verify_gguf_terms, wants_gguf
from moesize.verify.gguf_synthetic import write_synthetic_gguf
from moesize.verify.run import verify
from verify.small import scratch, small


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In the place of pytest's: see `scratch`."""
    with scratch() as folder:
        yield folder


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> Iterator[None]:
    """Each phase that is measured collects garbage: not that of everything imported here."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def info(name: str | bytes, shape: Sequence[int], kind: int, offset: int) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


ARCHITECTURE = pair("general.architecture", 8, text("llama"))
A = info("a.weight", [8], 0, 0)
B = info("b.weight", [32, 2], 8, 32)  # Q8_0: 2 rows of 34 bytes


def file_bytes(
    *,
    pairs: Sequence[bytes] = (ARCHITECTURE,),
    infos: Sequence[bytes] = (A, B),
    data: int = 100,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_pairs: int | None = None,
    num_infos: int | None = None,
) -> bytes:
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(infos) if num_infos is None else num_infos,
        len(pairs) if num_pairs is None else num_pairs,
    )
    head += b"".join(pairs) + b"".join(infos)
    return head + bytes(-len(head) % 32 + data)


def write(path: Path, **parts: Any) -> Path:
    path.write_bytes(file_bytes(**parts))
    return path


def refused(path: Path) -> str:
    """The message and the hint of what `open_gguf` raises."""
    with pytest.raises(InvalidInputError) as caught:
        open_gguf(path)
    assert "\n" not in caught.value.message
    assert caught.value.message.startswith(str(path.parent))
    assert caught.value.hint
    return f"{caught.value.message} | {caught.value.hint}"


# --- Files of the gguf package --------------------------------------------------------------------


def package_file(path: Path, **options: Any) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, "llama", **options)
    writer.add_name("Tiny")
    writer.add_block_count(2)
    writer.add_file_type(15)
    writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(1000)])
    writer.add_array("tokenizer.ggml.scores", [0.5] * 1000)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_float64("some.float", 1.5)
    return writer


def add_random(writer: gguf.GGUFWriter) -> None:
    random = np.random.default_rng(0)
    writer.add_tensor("token_embd.weight", random.random((7, 5), dtype=np.float32))
    for name, shape, kind in (
        ("blk.0.attn_q.weight", (6, 64), gguf.GGMLQuantizationType.Q8_0),
        ("blk.1.ffn_down_exps.weight", (2, 3, 512), gguf.GGMLQuantizationType.Q4_K),
        ("blk.1.ffn_up_exps.weight", (2, 3, 64), gguf.GGMLQuantizationType.MXFP4),
    ):
        byte_shape = gguf.quant_shape_to_byte_shape(shape, kind)
        blocks = random.integers(0, 256, byte_shape, dtype=np.uint8)
        writer.add_tensor(name, blocks, raw_dtype=kind)
    writer.add_tensor("output_norm.weight", random.random(5, dtype=np.float32))


def close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_file_of_the_package_is_read_as_the_package_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    writer = package_file(path)
    add_random(writer)
    close(writer)
    found = open_gguf(path)
    reader = gguf.GGUFReader(path)
    assert (found.architecture, found.name, found.block_count) == ("llama", "Tiny", 2)
    assert (found.file_type, found.version, found.blocks) == ("Q4_K_M", 3, (0, 1))
    assert [tensor.name for tensor in reader.tensors] == list(found.tensors)
    raw = path.read_bytes()
    for tensor in reader.tensors:
        own = found.tensors[tensor.name]
        assert (own.start, own.size_bytes) == (tensor.data_offset, tensor.n_bytes)
        assert (own.type.name, list(own.shape)) == (tensor.tensor_type.name, tensor.shape.tolist())
        assert raw[own.start : own.start + own.size_bytes] == tensor.data.tobytes()
    loaded = load_gguf(found)
    assert loaded.requested_bytes == found.size_bytes == sum(t.n_bytes for t in reader.tensors)
    for tensor in reader.tensors:
        assert bytes(loaded.state[tensor.name].tolist()) == tensor.data.tobytes()
    assert set(load_gguf(found, layers=[1]).state) == set(found.tensors) - {"blk.0.attn_q.weight"}


def test_another_alignment(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    writer = package_file(path)
    writer.add_custom_alignment(256)
    add_random(writer)
    close(writer)
    found = open_gguf(path)
    reader = gguf.GGUFReader(path)
    assert [t.start for t in found.tensors.values()] == [t.data_offset for t in reader.tensors]


def test_ggml_types_are_those_of_the_package() -> None:
    """gguf 0.19: names and block layouts; Q8_1 is never in a file, Q2_0 is newer."""
    for kind, (elements, size_bytes) in gguf.GGML_QUANT_SIZES.items():
        own = GGML_TYPES[int(kind)]
        assert (own.name, own.elements_per_block) == (kind.name, elements)
        assert own.bytes_per_block == size_bytes or kind.name == "Q8_1"
    assert set(GGML_TYPES) - {int(kind) for kind in gguf.GGML_QUANT_SIZES} <= {42}


def test_file_types_are_those_of_the_package() -> None:
    known = {kind.name.partition("_")[2]: int(kind) for kind in gguf.LlamaFileType}
    assert {name: known[name] for name in FILE_TYPES if name != "Q2_0"} == {
        name: number for name, number in FILE_TYPES.items() if name != "Q2_0"
    }


# --- Parts ----------------------------------------------------------------------------------------


def parts_of_the_package(folder: Path) -> list[Path]:
    folder.mkdir()
    writer = package_file(folder / "tiny.gguf", split_max_tensors=2)
    add_random(writer)
    close(writer)
    return sorted(folder.iterdir())


def test_parts_of_the_package(tmp_path: Path) -> None:
    paths = parts_of_the_package(tmp_path / "a")
    assert [path.name for path in paths] == [f"tiny-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    expected = {
        tensor.name: (path.name, tensor.data_offset, tensor.n_bytes)
        for path in paths
        for tensor in gguf.GGUFReader(path).tensors
    }
    for start in (*paths, tmp_path / "a"):
        found = open_gguf(start)
        assert (found.architecture, len(found.paths)) == ("llama", 3)
        assert expected == {
            name: (tensor.path.name, tensor.start, tensor.size_bytes)
            for name, tensor in found.tensors.items()
        }
    assert load_gguf(found).requested_bytes == sum(size for *_, size in expected.values())


def test_parts_that_are_missing_renamed_or_mixed_up(tmp_path: Path) -> None:
    one, two, three = parts_of_the_package(tmp_path / "a")
    two.rename(tmp_path / "two")
    assert "1 of 3 parts are missing: tiny-00002-of-00003.gguf" in refused(one)
    two.symlink_to(tmp_path / "two")
    with pytest.raises(InvalidInputError, match="leads out of its folder"):
        open_gguf(one)
    two.unlink()
    two.write_bytes(three.read_bytes())
    assert "says that it is part 3 of 3" in refused(one)
    other = one.rename(one.with_name("model.gguf"))
    assert "its name does not" in refused(other)


def test_a_tensor_in_two_parts(tmp_path: Path) -> None:
    for number in (1, 2):
        pairs = [
            pair("split.no", 2, struct.pack("<H", number - 1)),
            pair("split.count", 2, struct.pack("<H", 2)),
        ]
        write(tmp_path / f"x-0000{number}-of-00002.gguf", pairs=pairs)
    assert "stand in an earlier part" in refused(tmp_path / "x-00001-of-00002.gguf")


def test_a_count_of_tensors_that_the_parts_do_not_have(tmp_path: Path) -> None:
    pairs = [
        pair("split.no", 2, struct.pack("<H", 0)),
        pair("split.count", 2, struct.pack("<H", 2)),
        pair("split.tensors.count", 5, struct.pack("<i", 1)),
    ]
    write(tmp_path / "x-00001-of-00002.gguf", pairs=pairs)
    write(tmp_path / "x-00002-of-00002.gguf", pairs=pairs)
    assert "have 1 tensors, it says, and 2" in refused(tmp_path / "x-00001-of-00002.gguf")


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"no \*\.gguf"):
        open_gguf(tmp_path)
    with pytest.raises(InvalidInputError, match="no such file"):
        open_gguf(tmp_path / "none.gguf")
    write(tmp_path / "a.gguf")
    write(tmp_path / "mmproj-a.gguf")
    assert open_gguf(tmp_path).paths[0].name == "a.gguf"
    write(tmp_path / "b.gguf")
    with pytest.raises(InvalidInputError, match="holds 2 models"):
        open_gguf(tmp_path)
    os.mkfifo(tmp_path / "pipe.gguf")
    assert "not a regular file" in refused(tmp_path / "pipe.gguf")


# --- Lies -----------------------------------------------------------------------------------------


def test_versions_two_and_three(tmp_path: Path) -> None:
    for version in (2, 3):
        found = open_gguf(write(tmp_path / "x.gguf", version=version))
        assert [t.size_bytes for t in found.tensors.values()] == [32, 68]


def nested(depth: int, count: int = 1) -> bytes:
    """Lists within lists."""
    return struct.pack("<IQ", 9, count) * depth + struct.pack("<IQ", 4, 0)


def number(key: str, value: int) -> bytes:
    return pair(key, 4, struct.pack("<I", value))


HUGE = 1 << 62


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"magic": b"GGML"}, "begins with 'GGML'"),
        ({"magic": b"FUGG"}, "begins with 'FUGG'"),
        ({"version": 1}, "GGUF version 1"),
        ({"version": 4}, "GGUF version 4"),
        ({"version": 3 << 24}, "big-endian"),
        ({"data": 99}, "truncated: 1 of 100 bytes of tensors are missing"),
        ({"data": 0}, "truncated: 100 of 100 bytes"),
        ({"num_infos": HUGE}, "tensors; no model has more"),
        ({"num_infos": MAX_TENSORS}, "truncated within the table of tensors"),
        ({"num_infos": 3}, ""),
        ({"num_pairs": HUGE}, "keys of metadata; no model has more"),
        ({"num_pairs": MAX_KEYS}, ""),
        ({"num_pairs": 2}, ""),
        ({"pairs": [ARCHITECTURE, ARCHITECTURE]}, "'general.architecture' stands twice"),
        ({"pairs": [text(b"\xff") + bytes(4)]}, "a key is not UTF-8"),
        ({"pairs": [pair("general.name", 8, text(b"\xff"))]}, "general.name is not UTF-8"),
        ({"pairs": [text("k" * 2000)]}, "a key has 2,000 bytes"),
        ({"pairs": [struct.pack("<Q", HUGE)]}, "a key has"),
        ({"pairs": [pair("k", 8, struct.pack("<Q", HUGE))]}, "16,777,216 are the most"),
        ({"pairs": [pair("k", 8, struct.pack("<Q", 1 << 20))]}, "truncated within the value"),
        ({"pairs": [pair("k", 13, b"")]}, "unknown type 13"),
        ({"pairs": [pair("k", 9, struct.pack("<IQ", 13, 1))]}, "unknown type 13"),
        ({"pairs": [pair("k", 9, struct.pack("<IQ", 4, HUGE))]}, "truncated within the value"),
        ({"pairs": [pair("k", 9, struct.pack("<IQ", 8, HUGE))]}, "claims"),
        ({"pairs": [pair("k", 9, struct.pack("<IQ", 8, MAX_VALUES))]}, "truncated within the val"),
        ({"pairs": [pair("k", 9, struct.pack("<IQ", 9, HUGE))]}, "claims"),
        ({"pairs": [pair("k", 9, nested(4))]}, "nested too deeply"),
        ({"pairs": [pair("k", 9, nested(5000))]}, "nested too deeply"),
        ({"pairs": [number("general.alignment", 0)]}, "alignment of 0"),
        ({"pairs": [number("general.alignment", 48)]}, "alignment of 48"),
        ({"pairs": [number("general.alignment", 1 << 30)]}, "alignment of 1073741824"),
        ({"pairs": [pair("general.alignment", 8, text("32"))]}, "alignment of '32'"),
        ({"pairs": [pair("split.count", 8, text("2"))]}, "split.count is no whole number"),
        ({"pairs": [number("split.count", 2)]}, "its name does not"),
        ({"infos": [A, info("b", [32, 2], 8, 0)]}, "tensor 'b' overlaps 'a.weight'"),
        ({"infos": [A, info("b", [32, 2], 8, 31)]}, "tensor 'b' overlaps 'a.weight'"),
        ({"infos": [A, info("b", [32, 2], 8, 64)]}, "tensor 'b' leaves a gap"),
        ({"infos": [info("b", [8], 0, 32), info("a", [8], 0, 0)]}, "leaves a gap"),
        ({"infos": [info("a", [8], 0, HUGE)]}, "leaves a gap"),
        ({"infos": [A, A]}, "the tensor 'a.weight' stands twice"),
        ({"infos": [info("a", [8], 99, 0)]}, "ggml type 99, which is unknown"),
        ({"infos": [info("a", [8], 4, 0)]}, "ggml type 4, which was removed"),
        ({"infos": [info("a", [33], 8, 0)]}, "do not divide into Q8_0 blocks of 32"),
        ({"infos": [info("a", [], 8, 0)]}, "do not divide into Q8_0"),
        ({"infos": [info("a", [1] * 5, 0, 0)]}, "5 dimensions"),
        ({"infos": [text("a") + struct.pack("<I", 1 << 31)]}, "2,147,483,648 dimensions"),
        ({"infos": [info("a", [1 << 40, 1 << 40], 0, 0)]}, "more elements"),
        ({"infos": [info("a", [(1 << 64) - 1], 0, 0)]}, "more elements"),
        ({"infos": [info("a", [1 << 50], 0, 0)]}, "truncated: 4,503,599,627,370,"),
        ({"infos": [info("a" * 64, [8], 0, 0)]}, "a tensor's name has 64 bytes; 63"),
        ({"infos": [info("../a", [8], 0, 0)]}, "is no name"),
        ({"infos": [info("", [8], 0, 0)]}, "is no name"),
        ({"infos": [info("a\nb", [8], 0, 0)]}, "is no name"),
        ({"infos": [info(b"\xff", [8], 0, 0)]}, "name is not UTF-8"),
        ({"infos": [info("a\0b", [8], 0, 0)]}, "is no name"),
    ],
)  # fmt: skip
def test_a_header_that_lies(parts: Any, words: str, tmp_path: Path) -> None:
    begin = time.monotonic()
    assert words in refused(write(tmp_path / "x.gguf", **parts))
    assert time.monotonic() - begin < 0.5


@pytest.mark.parametrize("content", [b"", b"GGUF", b"version https://git-lfs.github.com/spec/v1"])
def test_what_is_no_gguf_file_at_all(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    refused(path)


def test_every_cut_is_refused(tmp_path: Path) -> None:
    whole = file_bytes()
    path = tmp_path / "x.gguf"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(path)


def test_a_big_endian_file_of_the_package(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = package_file(path, endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("a", np.zeros(8, dtype=np.float32))
    close(writer)
    assert "big-endian" in refused(path)


def test_lists_within_bounds_are_passed_over(tmp_path: Path) -> None:
    texts = struct.pack("<IQ", 8, 2) + text("x") * 2
    pairs = [ARCHITECTURE, pair("k", 9, nested(3)), pair("t", 9, texts)]
    assert len(open_gguf(write(tmp_path / "x.gguf", pairs=pairs)).tensors) == 2
    path = write(tmp_path / "y.gguf", infos=[info("scalar", [], 0, 0), info("none", [0], 0, 32)])
    assert [t.size_bytes for t in open_gguf(path).tensors.values()] == [4, 0]


def peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize(
    "value",
    [
        struct.pack("<IQ", 8, MAX_VALUES),
        struct.pack("<IQ", 9, MAX_LISTS),
        struct.pack("<IQ", 0, 200 << 20),
        struct.pack("<IQ", 0, 1 << 31),
    ],
)
def test_a_header_of_gigabytes_of_nothing(value: bytes, tmp_path: Path) -> None:
    """A sparse file of 4 GiB backs every count."""
    path = tmp_path / "x.gguf"
    with path.open("wb") as stream:
        stream.write(file_bytes(pairs=[pair("k", 9, value)], infos=[], data=0, num_infos=5))
        stream.truncate(4 << 30)
    before, begin = peak_kib(), time.monotonic()
    refused(path)
    assert time.monotonic() - begin < 5
    assert peak_kib() - before < 100_000


@settings(max_examples=100, deadline=1000, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=300), prefix=st.sampled_from([b"", file_bytes()[:24]]))
def test_random_bytes(data: bytes, prefix: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(prefix + data)
    with suppress(InvalidInputError):
        open_gguf(path)


@settings(max_examples=200, deadline=1000, suppress_health_check=list(HealthCheck))
@given(
    place=st.integers(0, 10_000), patch=st.binary(min_size=1, max_size=8), cut=st.integers(0, 20)
)
def test_a_good_file_with_bytes_changed(place: int, patch: bytes, cut: int, tmp_path: Path) -> None:
    """Read, or refused in words: nothing else; what is read lies within the file."""
    raw = bytearray(file_bytes(pairs=[ARCHITECTURE, pair("k", 9, nested(2))]))
    at = place % len(raw)
    raw[at : at + len(patch)] = patch
    path = tmp_path / "x.gguf"
    path.write_bytes(raw[: len(raw) - cut])
    try:
        found = read_header(path)
    except InvalidInputError:
        return
    size = len(raw) - cut
    assert all(0 <= t.start <= t.start + t.size_bytes <= size for t in found.tensors.values())


# --- The ledger -----------------------------------------------------------------------------------

# Dense, MoE, MLA; one layer of every kind. Types that do not apply to a model are left out.
CASES = [
    (name, layers, quant)
    for name, layers in (
        ("smollm2-135m", (0, 29)),
        ("qwen3-30b-a3b", (7,)),
        ("deepseek-v2-lite", (0, 1)),
        ("gpt-oss-20b", (0, 1)),
    )
    for quant in ("Q4_K_M", "Q8_0", "MXFP4_MOE")
    if (name, quant) != ("smollm2-135m", "MXFP4_MOE")
]


def ledger_bytes(stored: Sequence[StoredEntry], layers: Sequence[int]) -> int:
    """What the inventory counts for these layers and what stands outside of them."""
    total = 0
    for item in stored:
        of = item.entry.layers
        once = item.file_bytes // item.entry.count
        total += once * (sum(layer in layers for layer in of) if of else 1)
    return total


@pytest.mark.parametrize(("name", "layers", "quant"), CASES)
def test_written_read_and_loaded_bytes_are_those_of_the_ledger(
    name: str, layers: tuple[int, ...], quant: str, tmp_path: Path
) -> None:
    spec, scheme = small(name, experts=2), find_scheme(quant)
    arrived: list[int] = []
    made = write_synthetic_gguf(spec, scheme, layers, tmp_path / "c", 0, arrived.append)
    expected = ledger_bytes(gguf_entries(spec, scheme), layers)
    assert made.size_bytes == sum(arrived) == expected
    path = tmp_path / "c" / made.shards[0]
    found = open_gguf(path)
    assert found.size_bytes == expected
    assert found.file_type == quant
    assert scheme_of(found).name == scheme.name
    reader = gguf.GGUFReader(path)
    assert sum(tensor.n_bytes for tensor in reader.tensors) == expected
    assert {tensor.name for tensor in reader.tensors} == set(found.tensors)
    compared = check_against(spec, scheme, found, layers)
    assert (compared.summary, compared.file_bytes) == ("", expected)
    meter = find_meter("cpu")
    result = verify_gguf_terms(spec, scheme, found, meter, layers=layers)
    terms = {term.name: term for term in result.terms}
    assert set(terms) == {"weights", "load_peak", "after_free"}
    assert terms["weights"].measured_bytes == terms["weights"].predicted_bytes == expected
    assert terms["load_peak"].ok
    assert terms["after_free"].ok
    loaded = load_gguf(found, layers=layers[:1])
    assert loaded.requested_bytes == ledger_bytes(gguf_entries(spec, scheme), layers[:1])
    assert all(tensor.dtype == torch.uint8 for tensor in loaded.state.values())


NAMES = [
    "mixtral-8x7b",
    "deepseek-v3",
    "gpt-oss-20b",
    "gemma-3-1b",
    "qwen3-next-80b-a3b",
    "qwen3-30b-a3b",
    "olmo-2-1124-7b",
    "falcon-7b",
    "glm-4.5-air",
    "gemma-3n-e2b",
]
# Newer than the package: blocks of multi-token prediction in these files.
_NEWER = "nextn."


@pytest.mark.parametrize("name", NAMES)
def test_names_are_those_of_the_package(name: str) -> None:
    """gguf 0.19, MODEL_TENSORS: what each architecture's files may hold."""
    path = spec_folder() / f"{name}.yaml"
    spec = load_spec(path)
    architecture = gguf_architecture(spec)
    kind = {word: key for key, word in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[kind]}
    tensors = list(expected_tensors(spec, find_scheme("Q4_K_M")))
    assert len({tensor.name for tensor in tensors}) == len(tensors)
    assert sum(t.size_bytes for t in tensors) == gguf_model_bytes(spec, "Q4_K_M")
    for tensor in tensors:
        stem = tensor.name.removesuffix(".weight").removesuffix(".bias")
        if tensor.block is not None:
            stem = stem.replace(f"blk.{tensor.block}.", "blk.{bid}.")
        assert stem in known or _NEWER in stem, tensor.name


def rewritten(source: Path, target: Path, change: Any) -> Path:
    """A file of the package with the tensors of another, changed on the way."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key in ("general.file_type", f"{writer.arch}.block_count"):
        if key in reader.fields:
            writer.add_uint32(key, reader.fields[key].contents())
    for tensor in reader.tensors:
        name, kind, data = tensor.name, tensor.tensor_type, tensor.data
        made = change(name, kind, data)
        if made is not None:
            name, kind, data = made
            writer.add_tensor(name, data, raw_dtype=kind)
    close(writer)
    return target


@pytest.fixture(scope="module")
def dense() -> Iterator[tuple[ModelSpec, Path]]:
    spec = small("smollm2-135m")
    with scratch() as folder:
        made = write_synthetic_gguf(spec, find_scheme("Q8_0"), (0, 1), folder / "c")
        yield spec, folder / "c" / made.shards[0]


def test_what_differs_is_named_by_role_and_layer(
    dense: tuple[ModelSpec, Path], tmp_path: Path
) -> None:
    spec, source = dense
    scheme = find_scheme("Q8_0")

    def change(name: str, kind: Any, data: Any) -> Any:
        if name == "blk.1.ffn_down.weight":
            return name, gguf.GGMLQuantizationType.F16, np.zeros((576, 1536), dtype=np.float16)
        if name == "blk.0.attn_norm.weight":
            return "blk.0.input_layernorm.weight", kind, data
        return name, kind, data

    found = open_gguf(rewritten(source, tmp_path / "x.gguf", change))
    compared = check_against(spec, scheme, found, (0, 1))
    (row,) = compared.differing
    assert (row.role, row.layer, row.differs) == ("dense_mlp.down", 1, "F16 for Q8_0")
    more = 576 * 1536 * 2 - 576 * 1536 // 32 * 34
    assert row.file_bytes - row.predicted_bytes == more
    assert f"{more:+,} bytes in all" in compared.summary
    assert (compared.missing, compared.extra) == ((), ())
    result = verify_gguf_terms(spec, scheme, found, find_meter("cpu"), layers=(0, 1))
    weights = result.terms[0]
    assert (weights.name, weights.ok) == ("weights", False)
    assert weights.measured_bytes == found.size_bytes


def test_missing_and_additional_tensors(dense: tuple[ModelSpec, Path], tmp_path: Path) -> None:
    spec, source = dense

    def change(name: str, kind: Any, data: Any) -> Any:
        return None if name == "blk.1.ffn_up.weight" else (name, kind, data)

    found = open_gguf(rewritten(source, tmp_path / "x.gguf", change))
    compared = check_against(spec, find_scheme("Q8_0"), found, (0, 1))
    assert compared.missing == ("blk.1.ffn_up.weight",)
    with pytest.raises(InvalidInputError, match=r"lacks blk\.1\.ffn_up\.weight"):
        verify_gguf_terms(spec, find_scheme("Q8_0"), found, find_meter("cpu"), layers=(0, 1))

    def rename(name: str, kind: Any, data: Any) -> Any:
        return ("blk.1.odd.weight" if name == "blk.1.ffn_up.weight" else name), kind, data

    found = open_gguf(rewritten(source, tmp_path / "y.gguf", rename))
    compared = check_against(spec, find_scheme("Q8_0"), found, (0, 1))
    assert (compared.missing, compared.summary) == ((), "")


def test_a_file_of_another_model(dense: tuple[ModelSpec, Path]) -> None:
    _, source = dense
    found = open_gguf(source)
    for name, words in (("qwen3-30b-a3b", "architecture"), ("mixtral-8x7b", "30 blocks")):
        with pytest.raises(InvalidInputError, match=words):
            check_against(small(name), find_scheme("Q8_0"), found)


def test_a_file_that_says_no_type(tmp_path: Path) -> None:
    found = open_gguf(write(tmp_path / "x.gguf"))
    with pytest.raises(InvalidInputError, match="of which type"):
        scheme_of(found)
    assert scheme_of(found, "q4_k_m").gguf_file_type == "Q4_K_M"
    with pytest.raises(UnsupportedError):
        scheme_of(found, "fp8")


# --- The run --------------------------------------------------------------------------------------


def test_a_run_of_a_file(dense: tuple[ModelSpec, Path]) -> None:
    spec, source = dense
    for shards in (str(source), str(source.parent)):
        report = verify_gguf(spec, shards, device="cpu", layers="0-1")
        assert report.agrees
        assert (report.quantization, report.layers) == (find_scheme("Q8_0").name, (0, 1))
        assert any("no pass" in note for note in report.notes)
    with pytest.raises(InvalidInputError, match="no layer 2"):
        verify_gguf(spec, str(source), device="cpu", layers="0-2")
    with pytest.raises(UnsupportedError, match="not cut"):
        verify_gguf(spec, str(source), device="cpu", tp_rank=(0, 2))
    with pytest.raises(EnvironmentProblem, match="may be used"):
        verify_gguf(spec, str(source), device="cpu", layers="0-1", limit_bytes=1 << 20)


def test_a_synthetic_run(tmp_path: Path) -> None:
    spec = small("smollm2-135m")
    report = verify_gguf(
        spec, None, device="cpu", layers="0,3", quant="Q4_K_M", keep_shards=str(tmp_path / "kept")
    )
    assert report.agrees
    (path,) = (tmp_path / "kept").iterdir()
    assert open_gguf(path).blocks == (0, 3)
    with pytest.raises(MoesizeError):
        verify_gguf(
            spec, None, device="cpu", layers="0", quant="Q8_0", keep_shards=str(tmp_path / "kept")
        )


# Biases of experts and router, sinks; MLA; state-space layers; windows; delta layers.
CONVERTED = ["gpt_oss", "deepseek_v3", "qwen3_moe", "granitemoehybrid", "gemma3_text", "qwen3_next"]


@pytest.mark.parametrize("name", CONVERTED)
def test_a_file_as_model(name: str, tmp_path: Path) -> None:
    """Of llama.cpp's converter, written by the gguf package: no byte of the weights is off."""
    path = write_with_package(header(name), tmp_path / "model.gguf")
    tensors = gguf.GGUFReader(path).tensors

    def measured(**options: Any) -> int:
        report = verify(str(path), device="cpu", **options)
        assert report.agrees
        (weights,) = [term for term in report.terms if term.name == "weights"]
        assert weights.measured_bytes == weights.predicted_bytes
        assert (report.model_source, report.quantization) == ("gguf", "bf16")
        return weights.measured_bytes or 0

    assert measured() == sum(int(tensor.n_bytes) for tensor in tensors)
    some = [
        int(tensor.n_bytes)
        for tensor in tensors
        if not tensor.name.startswith("blk.") or tensor.name.startswith(("blk.0.", "blk.2."))
    ]
    assert measured(layers="0,2") == sum(some)
    # Random blocks of the file's own types.
    assert measured(shards="synthetic") == sum(int(tensor.n_bytes) for tensor in tensors)


def test_the_command(tmp_path: Path) -> None:
    path = write_with_package(header("gpt_oss"), tmp_path / "model.gguf")
    document = call("verify", str(path), "--device", "cpu", "--format", "json").json()
    assert document["model_source"] == "gguf"
    weights = next(term for term in document["terms"] if term["name"] == "weights")
    assert (weights["error"], weights["ok"]) == (0, True)
    path.write_bytes(path.read_bytes()[:-100])
    result = call("verify", str(path), "--device", "cpu")
    assert result.code == 2
    assert "model.gguf: truncated" in result.err
    assert "hint: fetch the file again" in result.err


def test_another_scheme_of_a_file(tmp_path: Path) -> None:
    """A what-if: 3 layers of 4 heads in Q8_0, whose blocks of 32 are 34 bytes."""
    path = write_with_package(header("llama"), tmp_path / "model.gguf")
    report = verify(str(path), device="cpu", quant="Q8_0")
    assert report.agrees
    matrices = 2 * 96 * 32 + 3 * (2 * 32 * 32 + 2 * 16 * 32 + 2 * 48 * 32)
    down = 3 * 48 * 32  # rows of 48 do not divide into blocks of 32: 16 bits
    norms = (3 * 2 + 1) * 32 * 4
    assert report.terms[0].measured_bytes == matrices // 32 * 34 + down * 2 + norms
    with pytest.raises(InvalidInputError, match="its architecture is 'llama'"):
        verify("qwen3-0.6b", device="cpu", shards=str(path))


def test_the_spec_of_a_file_is_no_file(tmp_path: Path) -> None:
    path = write_with_package(header("llama"), tmp_path / "model.gguf")
    (tmp_path / "model.yaml").write_text(spec_yaml(str(path)))
    with pytest.raises(UnsupportedError, match="spec of a GGUF file"):
        verify(str(tmp_path / "model.yaml"), device="cpu")


def test_what_asks_for_gguf(tmp_path: Path) -> None:
    assert wants_gguf("m", "model.gguf", "checkpoint")
    assert wants_gguf("m.gguf", None, "auto")
    assert not wants_gguf("m.gguf", None, "fp8")
    assert wants_gguf("m", None, "Q4_K_M")
    assert wants_gguf("m", "synthetic", "q8_0")
    for shards, quant in (
        (None, "checkpoint"),
        (None, "auto"),
        (None, "4bit"),
        (None, "fp8"),
        ("hub", "Q4_K_M"),
        (str(tmp_path), "checkpoint"),
        ("x.safetensors", "auto"),
    ):
        assert not wants_gguf("m", shards, quant)
    (tmp_path / "a.gguf").touch()
    assert wants_gguf("m", str(tmp_path), "checkpoint")
    (tmp_path / "a.safetensors").touch()
    assert not wants_gguf("m", str(tmp_path), "checkpoint")
