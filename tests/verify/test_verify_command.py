"""`moesize verify` on the CPU, end to end: shards, passes, terms, documents, exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import transformers
from running import ROOT, call, environment, run

from moesize.schemas import find_schema
from moesize.verify import run as verify_run
from moesize.verify.receipts import read_folder
from verify import tiny
from verify.configs import FAMILIES, write_config
from verify.small import small

SMALL = ("--device", "cpu", "--tokens", "24", "--sequences", "2", "--decode-steps", "2")

TERMS = {
    "weights", "load_peak", "kv_cache.static", "kv_cache.growing", "prefill_peak", "decode_peak",
    "decode_peak.growing", "logits_peak", "sampling_peak", "peak", "after_free",
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_end_to_end(family: str, tmp_path: Path) -> None:
    """Weights to the byte, every peak to the byte, FLOPs within 0.5 %."""
    folder = write_config(family, tmp_path / "model")
    result = call("verify", str(folder), *SMALL, "--layers", "all", "--format", "json")
    assert result.code == 0, result.out + result.err
    document = result.json()
    terms = {term["name"]: term for term in document["terms"]}
    assert set(terms) >= TERMS
    assert terms["weights"]["measured_bytes"] > 100_000
    assert terms["prefill_peak"]["measured_bytes"] > 10_000
    for name, term in terms.items():
        assert term["measured_bytes"] == term["predicted_bytes"], name
    for phase in document["flops"]["phases"]:
        assert phase["measured"] > 0
        assert abs(phase["error"]) <= 0.005
    assert document["agrees"] is True
    validator = jsonschema.Draft202012Validator(find_schema("verify"))
    validator.validate(document)
    assert set(document) == set(find_schema("verify")["properties"])
    assert set(document["terms"][0]) == set(
        find_schema("verify")["$defs"]["VerifyTerm"]["required"]
    )


def test_shards_of_a_folder_are_measured_as_synthetic_ones_are(tmp_path: Path) -> None:
    folder = write_config("dense GQA", tmp_path / "model")
    kept = tmp_path / "kept"
    first = call("verify", str(folder), *SMALL, "--keep-shards", str(kept), "--format", "json")
    assert first.code == 0
    assert list(kept.glob("*.safetensors"))
    (kept / "config.json").write_text((folder / "config.json").read_text())
    second = call("verify", str(kept), *SMALL, "--format", "json")
    assert second.code == 0, second.err
    assert second.json()["shards"] == "folder"
    assert second.json()["terms"] == first.json()["terms"]
    for number in (1, 2):  # what was kept is never written over
        again = call("verify", str(folder), *SMALL, "--keep-shards", str(kept), "--format", "json")
        assert f"shards kept in {kept}-{number}" in again.json()["notes"]


def test_hostile_and_missing_shards_are_bad_input(tmp_path: Path) -> None:
    folder = write_config("dense GQA", tmp_path / "model")
    kept = tmp_path / "kept"
    call("verify", str(folder), *SMALL, "--keep-shards", str(kept))
    shard = next(kept.glob("*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    cut = call("verify", str(folder), "--shards", str(kept), *SMALL)
    assert cut.code == 2
    assert "truncated" in cut.err
    assert "Traceback" not in cut.err
    shard.unlink()
    missing = call("verify", str(folder), "--shards", str(kept), *SMALL)
    assert missing.code == 2
    assert "missing" in missing.err
    (kept / "model.safetensors.index.json").unlink()
    (kept / "pytorch_model.bin").write_bytes(b"\x80\x04")
    pickled = call("verify", str(folder), "--shards", str(kept), *SMALL)
    assert pickled.code == 2
    assert "pickle" in pickled.err


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("--device", "cuda"), 3, "no cuda device"),
        (("--device", "tpu"), 2, "no device"),
        (("--layers", "7-9"), 2, "no layer"),
        (("--tp-rank", "8/8"), 2, "not one of 8"),
        (("--tp-rank", "x"), 2, "0/8"),
        (("--tokens", "0"), 2, "--tokens 0"),
        # Their numbers alone would be 512 GiB.
        (("--tokens", "1m", "--sequences", "65536"), 2, "in all"),
        (("--limit-memory", "9" * 5000), 2, "has no unit"),
        (("--limit-memory", "20"), 2, "has no unit"),
        (("--tolerance", "nan"), 2, "--tolerance nan"),
        (("--tp-rank", "0/3"), 3, "self_attn"),
        (("--limit-memory", "64KiB"), 3, "64.00 KiB may be used"),
        (("--dtype", "int4"), 2, "--dtype"),
        (("--quant", "Q9_X"), 2, "Q9_X"),
        (("--quant", "Q4_K_M", "--tp-rank", "0/2"), 3, "GGUF"),
        (("--engine", "vllm"), 3, "not installed"),
        (("--limit-memory", "64KiB", "--layers", "all"), 3, "nothing was allocated"),
        (("--shards", "/no/such/folder"), 2, "no such folder"),
    ],
)
def test_what_cannot_be_measured(
    arguments: tuple[str, ...], code: int, word: str, tmp_path: Path
) -> None:
    folder = write_config("dense GQA", tmp_path / "model")
    given = SMALL if "--device" not in arguments else ()
    result = call("verify", str(folder), *given, *arguments)
    assert (result.code, word in result.err) == (code, True), result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("file", "text", "word"),
    [
        ("pytorch_model.bin", "", "pickled weights"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "b.safetensors"}}', "lacks"),
        ("model.safetensors", "", "0 bytes"),
    ],
)
def test_random_shards_never_stand_in_for_those_of_a_folder(
    file: str, text: str, word: str, tmp_path: Path
) -> None:
    folder = write_config("dense GQA", tmp_path / "model")
    (folder / file).write_text(text)
    result = call("verify", str(folder), *SMALL)
    assert (result.code, word in result.err) == (2, True), result.out + result.err
    asked = call("verify", str(folder), *SMALL, "--synthetic")
    assert asked.code == 0, asked.out + asked.err


def test_a_pickle_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(range(256)))
    result = call("verify", str(tmp_path / "pytorch_model.bin"), *SMALL)
    assert (result.code, "never read" in result.err) == (2, True), result.err


def test_layers_that_do_not_fit_are_extrapolated(tmp_path: Path) -> None:
    """Two runs; the whole model follows to the byte, since nothing else lies on a CPU."""
    folder = write_config("MLA MoE", tmp_path / "model", num_hidden_layers=8)
    whole = call("verify", str(folder), *SMALL, "--layers", "all", "--format", "json").json()
    peak = next(t for t in whole["terms"] if t["name"] == "peak")["measured_bytes"]
    limit = f"{peak * 6 // 10}B"
    result = call("verify", str(folder), *SMALL, "--limit-memory", limit, "--format", "json")
    document = result.json()
    assert result.code == 0, result.err
    assert 2 <= len(document["layers"]) < 8
    known = {term["name"]: term["measured_bytes"] for term in whole["terms"]}
    found = {item["name"]: item for item in document["extrapolated"]}
    assert set(found) == {"weights", "kv_cache.static", "kv_cache.growing"}
    for name, item in found.items():
        assert item["extrapolated_bytes"] == item["predicted_bytes"] == known[name]
        assert item["fixed_bytes"] == 0
    assert any("extrapolated" in note for note in document["notes"])


def test_memory_that_runs_out_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check before the run is taken away, so that the bound itself stops it."""
    monkeypatch.setattr(verify_run._Run, "_refuse_when_too_large", lambda *_: None)
    folder = write_config("dense GQA", tmp_path / "model")
    whole = call("verify", str(folder), *SMALL, "--format", "json").json()
    weights = next(t for t in whole["terms"] if t["name"] == "weights")["measured_bytes"]
    limit = ("--layers", "all", "--limit-memory", f"{weights + 30_000}B")
    result = call("verify", str(folder), *SMALL, *limit, "--format", "json")
    assert result.code == 1
    failure = result.json()["failure"]
    assert failure["phase"] == "static prefill"
    assert failure["asked_bytes"] > 0
    assert failure["live"]["weights"] == weights
    after = next(t for t in result.json()["terms"] if t["name"] == "after_free")
    assert after["measured_bytes"] == 0
    shown = call("verify", str(folder), *SMALL, *limit)
    assert "OUT OF MEMORY" in shown.out
    assert "Traceback" not in shown.err


def test_counting_flops_has_to_fit_as_well(tmp_path: Path) -> None:
    """Its prompt has 64 tokens, whatever --tokens says."""
    folder = write_config("dense GQA", tmp_path / "model")
    short = ("--device", "cpu", "--tokens", "2", "--sequences", "1", "--decode-steps", "1")
    free = call("verify", str(folder), *short, "--format", "json").json()
    peak = next(t["predicted_bytes"] for t in free["terms"] if t["name"] == "peak")
    limit = ("--limit-memory", f"{peak + 1}B")
    found = call("verify", str(folder), *short, *limit, "--layers", "all")
    assert found.code == 3, found.out + found.err
    assert "are predicted" in found.err
    fewer = call("verify", str(folder), *short, *limit)
    assert fewer.code == 0, fewer.out + fewer.err
    assert "1 of 2 layers fit" in fewer.out


def test_outside_the_tolerance_is_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moesize.verify import predict

    monkeypatch.setattr(predict, "cache_bytes", lambda *_: 1)
    folder = write_config("dense GQA", tmp_path / "model")
    result = call("verify", str(folder), *SMALL, "--format", "json")
    assert result.code == 1
    assert result.json()["agrees"] is False


def test_table_and_markdown(tmp_path: Path) -> None:
    folder = write_config("sliding window", tmp_path / "model")
    wide = call("verify", str(folder), *SMALL, columns=140)
    assert "AGREES" in wide.out
    assert "KV cache, static" in wide.out
    assert "FLOPs of prefill" in wide.out
    narrow = call("verify", str(folder), *SMALL, columns=60)
    assert max(len(line) for line in narrow.out.splitlines()) <= 80
    markdown = call("verify", str(folder), *SMALL, "--format", "markdown")
    assert "| term | predicted | measured |" in markdown.out


def test_a_rank_of_several_on_one_device(tmp_path: Path) -> None:
    folder = write_config("dense GQA", tmp_path / "model")
    rank = call("verify", str(folder), *SMALL, "--tp-rank", "1/2", "--format", "json").json()
    terms = {term["name"]: term for term in rank["terms"]}
    for name in ("weights", "kv_cache.static", "kv_cache.growing", "prefill_peak", "decode_peak"):
        assert terms[name]["measured_bytes"] == terms[name]["predicted_bytes"], name
    whole = call("verify", str(folder), *SMALL, "--format", "json").json()
    full = next(t for t in whole["terms"] if t["name"] == "weights")["measured_bytes"]
    assert full // 2 <= terms["weights"]["measured_bytes"] < full * 0.51


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 3)])
def test_stopping_it_cleans_up(number: signal.Signals, code: int, tmp_path: Path) -> None:
    folder = write_config("dense GQA", tmp_path / "model", num_hidden_layers=40)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "moesize",
            "verify",
            str(folder),
            "--device",
            "cpu",
            "--layers",
            "all",
        ],
        cwd=ROOT,
        env=environment(TMPDIR=str(scratch)),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not list(scratch.glob("moesize-verify-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert b"Traceback" not in err
    assert list(scratch.glob("moesize-verify-*")) == []


def test_a_name_that_there_is_not_is_said_before_torch_is_loaded() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from moesize.__main__ import main\n"
        "sys.exit(main(['verify', 'qwen2.5-7bb']))"
    )
    result = run(command=("-c", code))
    assert result.code == 2
    assert "did you mean qwen2.5-7b" in result.err


def test_without_numpy_nothing_is_said(tmp_path: Path) -> None:
    """The extra does not bring it; torch warns twice of that."""
    folder = write_config("dense GQA", tmp_path / "model")
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "from moesize.__main__ import main\n"
        f"sys.exit(main(['verify', {str(folder)!r}, '--device', 'cpu', '--tokens', '8']))"
    )
    result = run(command=("-c", code))
    assert (result.code, result.err) == (0, "")


def test_without_torch_it_says_so() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from moesize.__main__ import main\n"
        "sys.exit(main(['verify', 'qwen3-0.6b', '--device', 'cpu']))"
    )
    result = run(command=("-c", code))
    assert result.code == 3
    assert "torch is not installed" in result.err
    assert ".[verify]" in result.err


def test_saved_records_can_be_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESIZE_RECEIPTS", str(tmp_path / "records"))
    folder = write_config("dense GQA", tmp_path / "model")
    result = call("verify", str(folder), *SMALL, "--save", "--format", "json")
    path = Path(result.json()["saved_to"])
    assert path.parent == tmp_path / "records"
    assert path.stat().st_mode & 0o077 == 0
    (record,) = read_folder(path.parent)
    assert [term.to_dict() for term in record.terms] == result.json()["terms"]
    assert json.loads(path.read_text())["schema"] == "moesize.receipt/1"
    call("verify", str(folder), *SMALL, "--save")
    assert len(read_folder(path.parent)) == 1


# Configs of models without a forward pass; elements as their transformers classes count them.
WITHOUT_PASSES = {
    "t5": {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "dtype": "float32",
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "vocab_size": 512,
        "relative_attention_num_buckets": 32,
        "feed_forward_proj": "relu",
        "tie_word_embeddings": True,
        "n_positions": 512,
    },
    "bert": {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "dtype": "float32",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "vocab_size": 512,
    },
}


@pytest.mark.parametrize("name", WITHOUT_PASSES)
def test_without_passes_weights_and_loading_are_measured(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(WITHOUT_PASSES[name]))
    config = transformers.AutoConfig.for_model(**WITHOUT_PASSES[name])
    elements = sum(p.numel() for p in transformers.AutoModel.from_config(config).parameters())
    result = call("verify", str(tmp_path), *SMALL, "--format", "json")
    assert result.code == 0, result.out + result.err
    document = result.json()
    terms = {term["name"]: term for term in document["terms"]}
    assert set(terms) == {"weights", "load_peak", "after_free"}
    assert terms["weights"]["measured_bytes"] == 4 * elements
    assert document["flops"]["phases"] == []
    assert any("passes are not run" in note for note in document["notes"])


def test_layers_of_a_model_without_passes_are_extrapolated(tmp_path: Path) -> None:
    facts = {**WITHOUT_PASSES["bert"], "num_hidden_layers": 12}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    whole = call("verify", str(tmp_path), *SMALL, "--format", "json").json()
    weights = next(t for t in whole["terms"] if t["name"] == "weights")["measured_bytes"]
    limit = ("--limit-memory", f"{weights // 2}B")
    document = call("verify", str(tmp_path), *SMALL, *limit, "--format", "json").json()
    assert 2 <= len(document["layers"]) < 12
    (item,) = document["extrapolated"]
    assert (item["name"], item["extrapolated_bytes"]) == ("weights", weights)


@pytest.mark.parametrize(
    "name",
    ["deepseek_v4", "gemma3n_text", "gemma4_text", "minimax_m3_vl_text", "bailing_hybrid"],
)
def test_uncommon_kinds_end_to_end(name: str, tmp_path: Path) -> None:
    """Compressed and block-sparse attention, several streams, shared caches: all to the byte."""
    family = next(one for one in tiny.FAMILIES if one.id == name)
    tiny.save(family, tmp_path)
    size = ("--device", "cpu", "--tokens", str(family.tokens), "--sequences", "2")
    result = call("verify", str(tmp_path), *size, "--shards", "synthetic", "--format", "json")
    assert result.code == 0, result.out + result.err
    document = result.json()
    terms = {term["name"]: term for term in document["terms"]}
    assert set(terms) >= TERMS
    for term_name, term in terms.items():
        assert term["measured_bytes"] == term["predicted_bytes"], term_name
    assert [phase["error"] for phase in document["flops"]["phases"]] == [0.0, 0.0]


def test_a_quantized_head_is_unpacked() -> None:
    """NVIDIA's NVFP4 files of Nemotron hold the head in blocks as well."""
    spec = small("nemotron-3.5-lightning-30b-a3b-nvfp4", experts=2)
    report = verify_run.verify(
        spec, device="cpu", layers=(5,), tokens=8, sequences=2, decode_steps=1
    )
    assert report.agrees
    logits = next(term for term in report.terms if term.name == "logits_peak")
    assert "unpacked" in logits.why
    # Two copies of the head in float32 at the most, and one at the least.
    head = 512 * spec.hidden_size * 4
    assert head < (logits.measured_bytes or 0) < 3 * head


def test_what_is_not_loaded_is_said() -> None:
    """Gemma 3 4B: SigLIP has 416,866,032 parameters, the projector 1152 x 2560 and 1152 more."""
    report = verify_run.verify(
        small("gemma-3-4b"), device="cpu", layers=(0,), tokens=4, sequences=1, decode_steps=1
    )
    said = next(note for note in report.notes if note.startswith("not loaded"))
    size = (416_866_032 + 1152 * 2560 + 1152) * 2
    assert f"{size / 2**20:.2f} MiB of vision and audio towers" in said


@pytest.mark.parametrize(
    ("name", "quant", "rank"),
    [
        # Experts in one tensor: words, group indices and quantization states of each of them.
        ("gpt-oss-20b", "gptq-4bit", None),
        ("gpt-oss-20b", "w4a16", None),
        ("gpt-oss-20b", "nf4", None),
        ("gpt-oss-20b", "nf4-dq", None),
        ("gpt-oss-20b", "int8", None),
        # Conv1D holds (in, out), quantized matrices (out, in).
        ("gpt2", "fp8", None),
        ("gpt2", "gptq-4bit", (0, 2)),
        # A projection outside of the layers that ranks share.
        ("gemma-3n-e2b", "checkpoint", (0, 2)),
    ],
)
def test_other_schemes_and_ranks(name: str, quant: str, rank: tuple[int, int] | None) -> None:
    """To the byte and the operation, of layouts that few published files have."""
    report = verify_run.verify(
        small(name, experts=3), device="cpu", layers=(0,), tokens=4, sequences=1, decode_steps=1,
        quant=quant, tp_rank=rank,
    )  # fmt: skip
    assert report.agrees
    found = {term.name: term for term in report.terms}
    for term_name in ("weights", "prefill_peak", "decode_peak", "logits_peak"):
        assert found[term_name].measured_bytes == found[term_name].predicted_bytes is not None
    assert [phase.error for phase in report.flops] == [0.0, 0.0]
