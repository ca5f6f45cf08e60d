"""Headers of strangers: every lie is told apart, in bounded time and memory; folders and links."""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from moesize.core.errors import InvalidInputError, MoesizeError, UnsupportedError
from moesize.verify.safetensors_files import (
    DTYPES,
    INDEX_NAME,
    MAX_HEADER_BYTES,
    align_names,
    open_checkpoint,
    read_header,
)
from verify.small import entry, header_bytes, write_file

TWO = {"a": entry("F32", [2], 0, 8), "b": entry("BF16", [2, 2], 8, 16)}


def refused(path: Path) -> str:
    """The message and the hint of what `read_header` raises."""
    with pytest.raises(InvalidInputError) as caught:
        read_header(path)
    assert "\n" not in caught.value.message
    return f"{caught.value.message} | {caught.value.hint}"


# --- What the library writes is read as the library reads it --------------------------------------


def test_a_file_of_the_library_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    tensors = {
        "b.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
        "a.scale": torch.ones(3).to(torch.float8_e4m3fn),
        "c": torch.tensor(7, dtype=torch.int64),
        "empty": torch.zeros(0, 4, dtype=torch.bfloat16),
        "bits": torch.arange(5, dtype=torch.uint8),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    header = read_header(path)
    assert header.metadata == {"format": "pt"}
    raw = path.read_bytes()
    for name, tensor in tensors.items():
        found = header.tensors[name]
        assert found.shape == tuple(tensor.shape)
        begin, end = header.data_start + found.start, header.data_start + found.end
        assert raw[begin:end] == bytes(tensor.reshape(-1).view(torch.uint8).tolist())


@pytest.mark.parametrize("code", sorted(DTYPES))
def test_the_library_knows_the_same_types_with_the_same_widths(code: str, tmp_path: Path) -> None:
    """safetensors 0.8 opens a header of eight elements of every type that is known here."""
    size = DTYPES[code][1]
    path = write_file(tmp_path / "x.safetensors", {"a": entry(code, [8], 0, size)}, bytes(size))
    assert read_header(path).tensors["a"].size_bytes == size
    with safe_open(path, framework="pt") as opened:
        assert opened.get_slice("a").get_dtype() == code


# --- Lies -----------------------------------------------------------------------------------------


def test_truncated_tensors(tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.safetensors", TWO, bytes(13))
    assert "3 of 16 bytes of tensors are missing" in refused(path)


def test_truncated_header(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    whole = header_bytes(TWO)
    path.write_bytes(whole[:-10])
    assert "10 bytes of it are missing" in refused(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x08\0\0", b"version https://git-lfs.github.com/spec/v1"]
)
def test_what_is_no_safetensors_file_at_all(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    refused(path)


def test_a_header_longer_than_the_format_allows(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as stream:
        stream.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        stream.truncate(MAX_HEADER_BYTES * 2)
    begin = time.monotonic()
    assert "100,000,001" in refused(path)
    assert time.monotonic() - begin < 5


def test_a_header_of_a_hundred_megabytes_of_nothing(tmp_path: Path) -> None:
    """As long as the format allows, and refused for what is in it."""
    path = tmp_path / "x.safetensors"
    with path.open("wb") as stream:
        stream.write(MAX_HEADER_BYTES.to_bytes(8, "little"))
        stream.truncate(8 + MAX_HEADER_BYTES)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.monotonic()
    assert "no JSON object" in refused(path)
    assert time.monotonic() - begin < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_a_length_that_no_file_has(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\xff" * 8 + b"{}")
    refused(path)


_NAN: Any = float("nan")


@pytest.mark.parametrize(
    ("entries", "data", "words"),
    [
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, 12, "overlap at byte 4"),
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 0, 8)}, 8, "overlap at byte 0"),
        ({"a": entry("F32", [2], 4, 12)}, 12, "4 bytes before tensor 'a' belong to no tensor"),
        ({"a": entry("F32", [2], 0, 8)}, 11, "3 bytes after the last tensor"),
        ({"a": entry("F32", [2], 0, 9)}, 9, "takes 8 bytes, and its data_offsets [0, 9] give it 9"),
        ({"a": entry("BF16", [2], 0, 8)}, 8, "takes 4 bytes"),
        ({"a": entry("F32", [2], 8, 0)}, 8, "give it -8"),
        ({"a": entry("F4", [3], 0, 2)}, 2, "takes 1.5 bytes"),
        ({"a": entry("F32", [2], -8, 0)}, 8, "data_offsets"),
        ({"a": entry("F32", [2], 0, 1 << 70)}, 8, "data_offsets"),
        ({"a": entry("F33", [2], 0, 8)}, 8, "unknown dtype 'F33'"),
        ({"a": entry("f32", [2], 0, 8)}, 8, "unknown dtype"),
        ({"a": {**entry("F32", [2], 0, 8), "dtype": 5}}, 8, "unknown dtype int"),
        ({"a": entry("F32", [1] * 17, 0, 4)}, 4, "17 dimensions"),
        ({"a": entry("F32", [1 << 40, 1 << 40], 0, 8)}, 8, "more elements"),
        ({"a": {**entry("F32", [2], 0, 8), "shape": [2.0]}}, 8, "shape"),
        ({"a": {**entry("F32", [2], 0, 8), "shape": [True]}}, 8, "shape"),
        ({"a": {**entry("F32", [2], 0, 8), "shape": [-2]}}, 8, "shape"),
        ({"a": {**entry("F32", [2], 0, 8), "shape": 2}}, 8, "shape"),
        ({"a": {**entry("F32", [2], 0, 8), "shape": [_NAN]}}, 8, "shape"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 9]}}, 8, "data_offsets"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "has not just"),
        ({"a": {**entry("F32", [2], 0, 8), "code": "x"}}, 8, "has not just"),
        ({"a": [1]}, 8, "has not just"),
        ({"../../etc/passwd": entry("F32", [2], 0, 8)}, 8, "is no name"),
        ({"a\\b": entry("F32", [2], 0, 8)}, 8, "is no name"),
        ({"": entry("F32", [2], 0, 8)}, 8, "is no name"),
        ({"a\nb": entry("F32", [2], 0, 8)}, 8, "is no name"),
        ({"\ud800": entry("F32", [2], 0, 8)}, 8, "is no name"),
        ({"a" * 2000: entry("F32", [2], 0, 8)}, 8, "is no name"),
        ({"__metadata__": {"a": 1}}, 0, "__metadata__"),
        ({"__metadata__": []}, 0, "__metadata__"),
        (b'{"a":{},"a":{}}', 0, "stands twice"),
        (b'{"a":{"dtype":"F32","dtype":"F32","shape":[],"data_offsets":[0,4]}}', 4, "stands twice"),
        (b'{"a"', 0, "not valid JSON"),
        (b"[]", 0, "no JSON object"),
        (b'  {"a":1}', 0, "no JSON object"),
        (b"\xff\xfe{}", 0, "no JSON object"),
        (b'{"\xff":1}', 0, "not UTF-8"),
        (b'{"a":' + b"[" * 100_000, 0, "nested too deeply"),
        (b'{"a":' + b"9" * 5000 + b"}", 0, "out of range"),
    ],
)  # fmt: skip
def test_a_header_that_lies(entries: Any, data: int, words: str, tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.safetensors", entries, bytes(data))
    assert words in refused(path)


def test_holes_and_overlaps_are_refused_by_the_library_too(tmp_path: Path) -> None:
    """The format's rule, not ours."""
    for entries, data in (
        ({"a": entry("F32", [2], 4, 12)}, 12),
        ({"a": entry("F32", [2], 0, 8)}, 11),
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, 12),
    ):
        path = write_file(tmp_path / "x.safetensors", entries, bytes(data))
        with pytest.raises(SafetensorError):
            safe_open(path, framework="pt").__enter__()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.PT", "x.pth", "x.ckpt", "x.pkl"])
def test_pickles_are_refused_by_name(name: str, tmp_path: Path) -> None:
    path = write_file(tmp_path / name, TWO, bytes(16))
    assert "run code" in refused(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    os.mkfifo(path)
    assert "not a regular file" in refused(path)


@settings(max_examples=150, deadline=1000, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=400))
def test_random_bytes(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(InvalidInputError):
        read_header(path)


@settings(max_examples=150, deadline=1000, suppress_health_check=list(HealthCheck))
@given(
    place=st.integers(0, 10_000),
    byte=st.integers(0, 255),
    cut=st.integers(0, 20),
)
def test_a_good_file_with_a_byte_changed(place: int, byte: int, cut: int, tmp_path: Path) -> None:
    """Read, or refused in words: nothing else; what is read lies within the file."""
    raw = bytearray(header_bytes(TWO) + bytes(16))
    raw[place % len(raw)] = byte
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw[: len(raw) - cut])
    try:
        header = read_header(path)
    except InvalidInputError:
        return
    assert all(
        0 <= t.start <= t.end <= len(raw) - cut - header.data_start for t in header.tensors.values()
    )


_WEIRD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(max_examples=100, deadline=1000, suppress_health_check=list(HealthCheck))
@given(
    entries=st.dictionaries(
        st.text(max_size=4) | st.just("__metadata__"),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "BF16", "F4"]) | _WEIRD,
                "shape": st.lists(st.integers(0, 4), max_size=3) | _WEIRD,
                "data_offsets": st.lists(st.integers(0, 40), min_size=2, max_size=2) | _WEIRD,
            }
        )
        | _WEIRD,
        max_size=3,
    )
)
def test_headers_of_the_right_outline(entries: Any, tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.safetensors", entries, bytes(16))
    try:
        header = read_header(path)
    except InvalidInputError:
        return
    assert sum(tensor.size_bytes for tensor in header.tensors.values()) == 16


# --- Folders --------------------------------------------------------------------------------------


def checkpoint(folder: Path, weight_map: dict[str, str] | None = None) -> Path:
    """Two shards, `a` in the first and `b` in the second, and an index."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "one.safetensors", {"a": entry("F32", [2], 0, 8)}, bytes(8))
    write_file(folder / "two.safetensors", {"b": entry("F32", [4], 0, 16)}, bytes(16))
    index = {"weight_map": weight_map or {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / INDEX_NAME).write_text(json.dumps(index))
    return folder


def open_error(folder: Path, **named: Any) -> str:
    """What opening a folder says."""
    with pytest.raises(MoesizeError) as caught:
        open_checkpoint(folder, **named)
    return f"{caught.value.message} | {caught.value.hint}"


def test_by_index_and_without(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c")
    for _ in range(2):
        files = open_checkpoint(folder)
        assert files.size_bytes == 24
        assert files.place("b").path.name == "two.safetensors"
        (folder / INDEX_NAME).unlink(missing_ok=True)
    assert open_checkpoint(folder / "one.safetensors").size_bytes == 8


def test_missing_shards_are_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c")
    (folder / "two.safetensors").unlink()
    assert "1 of 2 shards are missing: two.safetensors" in open_error(folder)
    # Only what is asked for has to be there.
    assert open_checkpoint(folder, ["a"]).size_bytes == 8
    assert "two.safetensors" in open_error(folder, needed=["a", "b"])


def test_an_index_that_puts_a_tensor_into_the_wrong_file(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", {"a": "two.safetensors", "b": "two.safetensors"})
    assert "'a' is in two.safetensors; it is in none" in open_error(folder)
    folder = checkpoint(tmp_path / "d", {"a": "two.safetensors", "b": "one.safetensors"})
    assert "it is in one.safetensors" in open_error(folder)


@pytest.mark.parametrize(
    "file", ["../one.safetensors", "/etc/passwd", "a\\b.safetensors", "", ".x.safetensors", 5]
)
def test_an_index_that_names_paths(file: Any, tmp_path: Path) -> None:
    assert "no file's name" in open_error(checkpoint(tmp_path / "c", {"a": file}))


def test_an_index_that_names_a_pickle(tmp_path: Path) -> None:
    assert "run code" in open_error(checkpoint(tmp_path / "c", {"a": "pytorch_model.bin"}))
    assert "no safetensors file" in open_error(checkpoint(tmp_path / "d", {"a": "a.txt"}))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a/b": "x"}}']
)
def test_an_index_that_is_none(text: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c")
    (folder / INDEX_NAME).write_text(text)
    open_error(folder)


def test_a_tensor_in_two_files_without_an_index(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c")
    (folder / INDEX_NAME).unlink()
    write_file(folder / "three.safetensors", {"a": entry("F32", [2], 0, 8)}, bytes(8))
    assert "'a' is in one.safetensors and in three.safetensors" in open_error(folder)


def test_folders_without_safetensors(tmp_path: Path) -> None:
    assert "no *.safetensors" in open_error(tmp_path)
    assert "no such folder" in open_error(tmp_path / "none")
    (tmp_path / "model.gguf").touch()
    with pytest.raises(UnsupportedError):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model-00001-of-00002.bin").touch()
    message = open_error(tmp_path)
    assert "pytorch_model-00001-of-00002.bin" in message
    assert "convert" in message


def test_a_link_out_of_the_folder(tmp_path: Path) -> None:
    checkpoint(tmp_path / "elsewhere")
    for with_index in (True, False):
        folder = checkpoint(tmp_path / f"c{with_index}")
        (folder / "one.safetensors").unlink()
        (folder / "one.safetensors").symlink_to(tmp_path / "elsewhere" / "one.safetensors")
        if not with_index:
            (folder / INDEX_NAME).unlink()
        assert "leads out of its folder" in open_error(folder)
    folder = checkpoint(tmp_path / "i")
    (folder / INDEX_NAME).unlink()
    (folder / INDEX_NAME).symlink_to(tmp_path / "elsewhere" / INDEX_NAME)
    assert "leads out of its folder" in open_error(folder)


def test_a_link_within_the_folder_and_a_link_to_nothing(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c")
    (folder / "one.safetensors").rename(folder / "blob")
    (folder / "one.safetensors").symlink_to("blob")
    assert open_checkpoint(folder).size_bytes == 24
    (folder / "blob").unlink()
    assert "1 of 2 shards are missing" in open_error(folder)


def test_a_hub_cache(tmp_path: Path) -> None:
    """snapshots/<revision>/file -> ../../blobs/<hash>, as the hub's client lays it out."""
    blobs = checkpoint(tmp_path / "models--o--n" / "blobs")
    snapshot = tmp_path / "models--o--n" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in ("one.safetensors", "two.safetensors", INDEX_NAME):
        (blobs / name).rename(blobs / f"hash-{name[:5]}")
        (snapshot / name).symlink_to(Path("../../blobs") / f"hash-{name[:5]}")
    assert open_checkpoint(snapshot).size_bytes == 24
    # A folder that is itself reached through a link is one like any other.
    (tmp_path / "link").symlink_to(snapshot)
    assert open_checkpoint(tmp_path / "link").size_bytes == 24
    # A blob that leads on to somewhere else is refused.
    stray = checkpoint(tmp_path / "stray") / "two.safetensors"
    (blobs / "hash-two.s").unlink()
    (blobs / "hash-two.s").symlink_to(stray)
    assert "leads out" in open_error(snapshot)


def test_names_under_another_wrapper() -> None:
    expected = ["model.layers.0.w", "model.norm", "lm_head.weight"]
    there = ["model.language_model.layers.0.w", "model.language_model.norm", "lm_head.weight"]
    assert align_names(expected, there) == dict(zip(expected, there, strict=True))
    assert align_names(expected, ["layers.0.w", "norm"]) == {
        "model.layers.0.w": "layers.0.w",
        "model.norm": "norm",
    }


def test_tensors_that_the_files_lack_are_named(tmp_path: Path) -> None:
    files = open_checkpoint(checkpoint(tmp_path / "c"))
    with pytest.raises(InvalidInputError, match="lacks c, d"):
        files.aligned(["a", "c", "d"])
    with pytest.raises(InvalidInputError, match="no tensor"):
        files.place("c")
