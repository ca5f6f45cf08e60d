"""What is read off start-up logs: the figures that they print (fixtures/logs/README.md)."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest
from running import ROOT

from moesize.core.errors import InvalidInputError
from moesize.logs import detect
from moesize.logs.detect import TABLES, WORDS, Reading, read_log
from moesize.logs.facts import pairs_of, size_of

LOGS = ROOT / "tests" / "fixtures" / "logs"
GIB = 1 << 30
MIB = 1 << 20


def read(data: bytes) -> Reading:
    return read_log("-", io.BytesIO(data))


def raw(name: str) -> bytes:
    return (LOGS / name).read_bytes()


def figures(reading: Reading) -> dict[str, list[float]]:
    """Every figure by name, in the order of the log."""
    out: dict[str, list[float]] = {}
    for item in reading.start.seen:
        out.setdefault(item.name, []).append(item.value)
    return out


def gib(text: str) -> int:
    return size_of(text, "GiB")[0]


def mib(text: str) -> int:
    return size_of(text, "MiB")[0]


def test_vllm_v1() -> None:
    start = read(raw("vllm-qwen3-30b-fp8-h100.log")).start
    assert (start.engine, start.version) == ("vllm", "0.22.1")
    assert start.model == "Qwen/Qwen3-30B-A3B-Instruct-2507"
    assert start.quantization == "fp8"
    assert start.gpu == "NVIDIA H100 80GB HBM3"
    assert start.flags["max_num_seqs"] == 64
    assert start.flags["max_num_batched_tokens"] == 8192
    assert start.flags["max_model_len"] == 8192
    assert start.settings["attention_backend"] == "FLASH_ATTN"
    assert start.settings["architecture"] == "Qwen3MoeForCausalLM"
    assert start.ready
    assert start.failure is None
    assert figures(read(raw("vllm-qwen3-30b-fp8-h100.log"))) == {
        "weights": [gib("29.08")],
        "cuda_graphs_estimated": [gib("0.14")],
        "kv_cache": [gib("42.54")],
        "kv_tokens": [464_656],
        "concurrency_at": [8192],
        "concurrency": [56.72],
        "cuda_graphs": [gib("0.22")],
    }
    lines = raw("vllm-qwen3-30b-fp8-h100.log").decode().splitlines()
    for item in start.seen:  # the line that is named is the one that prints it
        assert f"{item.value / GIB:.2f}" in lines[item.line - 1] or item.value < GIB


def test_ranks_colours_and_progress_bars() -> None:
    reading = read(raw("vllm-qwen2.5-14b-tp4.log"))
    start = reading.start
    assert start.source == "vllm-1"
    weights = start.all("weights")
    assert sorted(item.rank for item in weights) == ["rank 0", "rank 1", "rank 2", "rank 3"]
    assert {item.value for item in weights} == {gib("6.9461")}
    assert [item.value for item in start.all("kv_tokens")] == [279_408, 279_616]
    assert start.flags["tensor_parallel_size"] == 4
    assert not reading.notes


def test_v0_profiles() -> None:
    phi = figures(read(raw("vllm-v0-phi-4-mini.log")))
    assert phi["kv_blocks"] == [13_618]
    assert phi["non_torch"] == [gib("0.01")]
    assert phi["activation_peak"] == [gib("1.83")]
    assert phi["kv_cache"] == [gib("26.60")]
    assert phi["total_memory"] == [gib("39.56")]
    reading = read(raw("vllm-v0-llama-3.1-8b.log"))
    llama = figures(reading)
    assert llama["weights"] == [gib("14.9888")]
    assert llama["kv_cache"] == [gib("3.81")]
    assert llama["kv_blocks"] == [1952]
    assert reading.start.flags["max_num_seqs"] == 256  # of the printed Namespace
    assert "swap_space" not in reading.start.flags


def test_failed_start() -> None:
    start = read(raw("vllm-minimax-too-long.log")).start
    assert start.failure is not None
    assert (start.failure.kind, start.failure.line) == ("context_too_long", 6)
    found = {item.name: item.value for item in start.seen}
    assert found["kv_needed"] == gib("23.25")
    assert found["kv_cache"] == gib("22.5")
    assert found["max_context"] == 190_272
    assert not start.ready


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("ValueError: No available memory for the cache blocks. Try increasing", "no_kv_memory"),
        (
            "ValueError: Free memory on device (10.44/23.68 GiB) on startup is less than desired "
            "GPU memory utilization (0.9, 21.31 GiB). Decrease GPU memory utilization",
            "too_little_free",
        ),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.32 GiB. GPU 0 has a "
            "total capacity of 23.68 GiB of which 1.20 GiB is free.",
            "out_of_memory",
        ),
        (
            "ValueError: The model's max seq len (131072) is larger than the maximum number of "
            "tokens that can be stored in KV cache (28352). Try increasing",
            "context_too_long",
        ),
    ],
)
def test_reasons_of_failed_starts_of_vllm(line: str, kind: str) -> None:
    head = raw("vllm-qwen3-30b-fp8-h100.log").splitlines()[:8]
    frame = b"(EngineCore pid=7) ERROR 06-18 10:04:12 [core.py:708] "
    start = read(b"\n".join([*head, frame + line.encode()])).start
    assert start.failure is not None
    assert start.failure.kind == kind
    if "23.68" in line:
        total = start.last("total_memory")
        assert total is not None
        assert total.value == gib("23.68")


def test_sglang() -> None:
    start = read(raw("sglang-qwen3.5-9b-tp2.log")).start
    assert start.engine == "sglang"
    assert start.model.endswith("Qwen/Qwen3.5-9B")
    assert start.flags["tp_size"] == 2
    assert start.flags["mem_fraction_static"] == 0.8
    assert {(s.rank, s.value) for s in start.all("weights")} == {
        ("TP0", gib("8.96")),
        ("TP1", gib("8.82")),
    }
    assert [s.value for s in start.all("kv_pool") if s.rank == "TP0"] == [gib("10.37")] * 2
    assert [s.value for s in start.all("state") if s.rank == "TP1"] == [gib("0.84"), gib("17.84")]
    assert [s.value for s in start.all("state_slots")] == [1521, 1521]
    assert start.last("kv_tokens") is not None
    assert start.ready
    older = figures(read(raw("sglang-qwen3-235b-fp8-tp4.log")))
    assert older["kv_tokens"] == [367_404]
    assert older["kv_pool"] == [gib("8.23")] * 2
    assert older["cuda_graphs"] == [gib("2.08")]


def test_sglang_draft_comes_second() -> None:
    lines = [
        b"[2026-06-09 03:35:06 TP0] Load weight end. type=A, avail mem=31.87 GB, "
        b"mem usage=28.94 GB.",
        b"[2026-06-09 03:35:12 TP0] KV Cache is allocated. #tokens: 217600, KV size: 14.25 GB",
        b"[2026-06-09 03:35:12 TP0] Memory pool end. avail mem=17.60 GB",
        b"[2026-06-09 03:35:20 TP0] Load weight end. type=B, avail mem=14.53 GB, "
        b"mem usage=3.05 GB.",
        b"[2026-06-09 03:35:22 TP0] KV Cache is allocated. #tokens: 217600, KV size: 0.23 GB",
    ]
    found = figures(read(b"\n".join(lines)))
    assert found["weights"] == [gib("28.94")]
    assert found["draft_weights"] == [gib("3.05")]
    assert found["kv_pool"] == [gib("14.25")]
    assert found["draft_kv_cache"] == [gib("0.23")]


def test_llama_server() -> None:
    start = read(raw("llama-server-gpt-oss-20b.log")).start
    assert (start.engine, start.version) == ("llama.cpp", "b6699")
    assert start.model == "Gpt Oss 20b"
    assert start.gpu == "NVIDIA GeForce RTX 3070"
    assert start.checks["n_layer"] == 24
    assert start.checks["n_expert"] == 32
    assert start.checks["params"] == 20_910_000_000
    assert start.settings["types"] == {"F32": 289, "Q8_0": 98, "MXFP4": 72}
    by_device = {(s.name, s.rank): s.value for s in start.seen}
    assert by_device["model", "CUDA0"] == mib("1242.03")
    assert by_device["model", "CPU_Mapped"] == mib("10949.33")
    assert [s.value for s in start.all("kv")] == [mib("3072.00"), mib("18.00")]
    assert by_device["compute", "CUDA0"] == mib("456.98")
    assert by_device["compute", "CUDA_Host"] == mib("263.15")
    assert by_device["output", "CUDA_Host"] == mib("0.77")
    assert start.flags["ctx_size"] == 131_072
    assert start.flags["cache_type_k"] == "f16"
    assert start.ready


def test_older_llama_cpp() -> None:
    start = read(raw("ik-llama-qwen3-235b.log")).start
    host = [s.value for s in start.all("model") if s.rank == "CPU"]
    assert sum(host) == pytest.approx(mib("183525.52"), abs=4)
    assert start.num_devices == 2
    assert {(s.rank, s.value) for s in start.all("kv")} == {
        ("CUDA0", mib("816.00")),
        ("CUDA1", mib("782.00")),
    }
    assert start.flags["cache_type_k"] == "q8_0"
    failed = read(raw("llama-dolphin-oom.log")).start
    assert failed.failure is not None
    assert failed.failure.kind == "out_of_memory"
    asked = failed.last("asked")
    assert asked is not None
    assert asked.value == mib("25145.56")


def test_a_draft_of_llama_cpp_is_not_taken_for_the_model() -> None:
    data = raw("llama-server-gpt-oss-20b.log").splitlines()
    again = [line for line in data if b"buffer size" in line or b"loaded meta data" in line]
    reading = read(b"\n".join([*data, *again]))
    assert figures(reading) == figures(read(raw("llama-server-gpt-oss-20b.log")))
    assert any("second model" in note for note in reading.notes)


def test_experts_that_were_kept_on_the_host() -> None:
    """Lines of ik_llama.cpp, and of llama.cpp -v (src/llama-model-loader.cpp)."""
    lines = [
        b"Tensor blk.3.ffn_up_exps.weight buffer type overriden to CPU",
        b"Tensor blk.3.ffn_down_exps.weight buffer type overriden to CPU",
        b"Tensor blk.3.ffn_norm.weight buffer type overriden to CPU",
        b"tensor blk.10.ffn_gate_exps.weight (1152 MiB q4_K) buffer type overridden to CPU",
        b"tensor blk.11.ffn_gate_exps.weight (1152 MiB q4_K) buffer type overridden to CUDA1",
    ]
    start = read(b"\n".join([*raw("ik-llama-qwen3-235b.log").split(b"\n"), *lines])).start
    assert start.host_experts == {3, 10}


# --- what lies around the lines -------------------------------------------------------------------

NAMES = sorted(path.name for path in LOGS.glob("*.log"))


def _json_lines(data: bytes) -> bytes:
    return b"\n".join(
        json.dumps(
            {"log": line + "\n", "stream": "stderr", "time": "2026-01-01T00:00:00Z"}
        ).encode()
        for line in data.decode().split("\n")
    )


def _docker_json_parts(data: bytes) -> bytes:
    """Records of at most 300 characters, as docker cuts at 16 KiB."""
    out = []
    for line in data.decode().split("\n"):
        text = line + "\n"
        out += [
            json.dumps({"log": text[i : i + 300], "stream": "stderr", "time": "x"}).encode()
            for i in range(0, len(text), 300)
        ]
    return b"\n".join(out)


def _cri_parts(data: bytes) -> bytes:
    out = []
    stamp = b"2026-01-01T10:00:00.123456789Z stderr "
    for line in data.split(b"\n"):
        pieces = [line[i : i + 300] for i in range(0, len(line), 300)] or [b""]
        out += [stamp + b"P " + piece for piece in pieces[:-1]] + [stamp + b"F " + pieces[-1]]
    return b"\n".join(out)


def _prefixed(prefix: bytes) -> object:
    return lambda data: b"\n".join(prefix + line for line in data.split(b"\n"))


WRAPPERS = {
    "Windows": lambda data: data.replace(b"\n", b"\r\n"),
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "UTF-16 without a mark": lambda data: data.decode().encode("utf-16-le"),
    "UTF-8 with a mark": lambda data: b"\xef\xbb\xbf" + data,
    "gzip": gzip.compress,
    "two gzip files": lambda data: gzip.compress(data[:999]) + gzip.compress(data[999:]),
    "kubectl": _prefixed(b"[pod/vllm-7d9c6b-x2x/server] "),
    "kubectl stamps": _prefixed(b"2026-03-04T10:11:12.345678901Z "),
    "docker compose": _prefixed(b"llm-server-1  | "),
    "compose stamps": _prefixed(b"llm-1  | 2026-03-04T10:11:12.345678901Z "),
    "GitHub Actions": _prefixed(b"2026-03-04T10:11:12.3456789Z "),
    "journald": _prefixed(b"Nov 22 06:00:01 gpu07 vllm[123]: "),
    "quoted": _prefixed(b"> "),
    "colours": lambda data: data.replace(b" INFO ", b" \x1b[32mINFO\x1b[0m ").replace(
        b"buffer", b"\x1b[1mbuffer\x1b[0m"
    ),
    "JSON lines": _json_lines,
    "docker JSON in parts": _docker_json_parts,
    "CRI in parts": _cri_parts,
    "binary junk": lambda data: b"\x00\xff\xfe\x80\n".join(
        line + b"\n" for line in data.split(b"\n")
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", NAMES)
def test_wrapping_changes_nothing(name: str, wrapper: str) -> None:
    plain = read(raw(name)).start
    wrapped = read(WRAPPERS[wrapper](raw(name))).start  # type: ignore[operator]
    for field in ("engine", "version", "model", "quantization", "gpu", "flags", "checks", "ready"):
        assert getattr(wrapped, field) == getattr(plain, field), field
    assert [item[:4] for item in wrapped.seen] == [item[:4] for item in plain.seen]
    assert (wrapped.failure is None) == (plain.failure is None)


@pytest.mark.parametrize("name", NAMES)
def test_two_starts_the_last_one_counts(name: str) -> None:
    first = raw(name).replace(b" took 29.08", b" took 11.11").replace(b"= 15922.41", b"=  1111.11")
    reading = read(first + b"\n" + raw(name))
    alone = read(raw(name))
    assert [item[:4] for item in reading.start.seen] == [item[:4] for item in alone.start.seen]
    assert any("2 starts" in note for note in reading.notes)


@pytest.mark.parametrize("name", NAMES)
def test_a_log_cut_anywhere_is_read_or_refused(name: str) -> None:
    data = raw(name)
    whole = {item[:3] for item in read(data).start.seen}
    for end in range(1, len(data), max(1, len(data) // 97)):
        try:
            start = read(data[:end]).start
        except InvalidInputError:
            continue
        # Nothing is made up; only the figure at the very end may be cut short.
        strange = [item for item in start.seen if item[:3] not in whole]
        assert len(strange) <= 1


def test_two_containers_are_told_apart() -> None:
    one = _prefixed(b"vllm-1  | ")(raw("vllm-qwen3-30b-fp8-h100.log"))  # type: ignore[operator]
    other = _prefixed(b"llama-1 | ")(raw("llama-server-gpt-oss-20b.log"))  # type: ignore[operator]
    lines = [x for pair in zip(one.split(b"\n"), other.split(b"\n"), strict=False) for x in pair]
    reading = read(b"\n".join([*lines, *other.split(b"\n")[len(one.split(b"\n")) :]]))
    assert any("not audited" in note for note in reading.notes)
    expected = {
        "vllm": "vllm-qwen3-30b-fp8-h100.log",
        "llama.cpp": "llama-server-gpt-oss-20b.log",
    }[reading.start.engine]
    assert figures(reading) == figures(read(raw(expected)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"hello\n", "holds no start-up lines"),
        (b"\x00" * 10_000, "holds no start-up lines"),
        (b"{" * 50_000, "holds no start-up lines"),
        (b'{"log": ' * 20_000, "holds no start-up lines"),
        (b"\x28\xb5\x2f\xfd....", "packed with zstd"),
        (b"PK\x03\x04....", "packed with zip"),
        (gzip.compress(b"x" * 5000, mtime=0)[:-9][:30], "holds no start-up lines"),
        (b"\x1f\x8b\x08\x00garbage and more garbage", "damaged"),
    ],
)
def test_what_is_no_log_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        read(data)


@pytest.mark.parametrize(
    "line",
    [
        "(" * 60_000 + "KV cache",
        "[" * 30_000 + " KV cache " + "]" * 30_000,
        "Initializing a V1 LLM engine (v0.1) with config: " + "a=[" * 20_000,
        "server_args=ServerArgs(" + "'" * 60_000,
        "server_args=ServerArgs(" + "a='b', " * 9_000,
        "Device 0: " + "x" * 60_000 + ", compute capability",
        "Load weight end. " + "avail mem=1" * 6_000,
        "CUDA0 " + " " * 60_000 + "KV buffer size = 1.00 MiB",
        "model buffer size =" * 3_000,
        "2026-01-01T00:00:00 " * 3_000 + "KV cache memory",
        "\x1b[" * 30_000 + "KV cache memory",
        "(a " * 20_000 + "memory",
        "a-" * 30_000 + "| memory",
        "using device CUDA0 (" + "(" * 60_000 + " MiB free",
        "size = 1.00 MiB (1 cells, 1 layers" + ", 1" * 20_000,
        "| 0 NVIDIA " + "a " * 30_000 + "On |",
        "Using " + "A" * 60_000 + " backend out of potential",
    ],
    ids=lambda line: line[:24].replace("\x1b", "ESC"),
)
def test_hostile_lines_take_no_time(line: str) -> None:
    import time

    began = time.process_time()
    for _ in range(5):
        try:
            read((line + "\n").encode())
        except InvalidInputError:
            continue
    assert time.process_time() - began < 25


def test_millions_of_figures_are_bounded() -> None:
    line = b"(EngineCore pid=1) INFO 06-18 10:03:30 [a.py:1] Available KV cache memory: 1.00 GiB\n"
    reading = read(line * 30_000)
    assert len(reading.start.seen) == 20_000


def test_every_anchor_is_found_by_the_coarse_words() -> None:
    """Lines without one of WORDS are not looked at: no rule may wait for such a line."""
    for table in TABLES:
        for rule in table.rules:
            assert any(word in rule.anchor for word in WORDS), (table.engine, rule.anchor)
    assert len(set(WORDS)) == len(detect.WORDS)


def test_pairs() -> None:
    text = "a=1, b='x, y', c=Config(d=2, e=[3, 4]), f=None, g=0.5, h=-1), rest=1"
    assert pairs_of(text) == {
        "a": 1,
        "b": "x, y",
        "c": "Config(d=2, e=[3, 4])",
        "f": None,
        "g": 0.5,
        "h": -1,
    }
    text = "'model': 'a/b', 'speculative_config': {'method': 'mtp', 'n': 1}, 'x': <A.B: 3>}"
    assert pairs_of(text) == {
        "model": "a/b",
        "speculative_config": "{'method': 'mtp', 'n': 1}",
        "x": "<A.B: 3>",
    }


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for name, words in (
        (str(tmp_path), "is a folder"),
        (str(tmp_path / "no"), "no such file"),
        ("/dev/zero", "not a regular file"),
        ("a\0b", "cannot be read"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            read_log(name)
