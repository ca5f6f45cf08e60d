"""`--engine transformers` on the CPU: the library's own classes over synthetic shards."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import transformers
from running import Result, call

from moesize.catalog import read_config_file
from moesize.core.errors import UnsupportedError
from moesize.verify import engine_transformers, other_engines
from moesize.verify.receipts import read_folder
from verify.configs import write_config

SMALL = ("--device", "cpu", "--tokens", "24", "--sequences", "2", "--decode-steps", "2")
# transformers takes this for the rotated part of MLA's heads; published configs leave it out.
MLA = {"head_dim": 16}


def verify(folder: Path, *more: str) -> Result:
    return call("verify", str(folder), *SMALL, "--engine", "transformers", *more)


def terms(result: Result) -> dict[str, Any]:
    return {term["name"]: term for term in result.json()["terms"]}


@pytest.mark.parametrize(
    ("family", "changes", "weights", "cache"),
    [
        # Cache: 2 sequences of 26 tokens, 2 layers, 2 heads of 32, keys and values, 2 bytes.
        # Weights: embedding and head 512 x 128, a layer's 2 x 128 x 128, 2 x 64 x 128, 3 x 128 x
        # 256 and norms, and the last norm; 2 bytes each.
        ("dense GQA", {}, 853_248, 26_624),
        ("dense GQA", {"tie_word_embeddings": True}, 853_248 - 2 * 512 * 128, 26_624),
        # The latent of 48 and the rotated part of 16, once for all heads.
        ("MLA MoE", MLA, None, 2 * 26 * 2 * (48 + 16) * 2),
        # A window of 16 tokens: each step holds on to 15 and the one that it adds.
        ("sliding window", {}, 853_248, 2 * 16 * 2 * 2 * 32 * 2 * 2),
        # Three layers with 4 inputs of 128 channels in 2 bytes and 4 matrices of 16 x 16 in 4; one
        # layer with keys and values.
        ("gated-delta hybrid", {}, None, 2 * (3 * (4 * 128 * 2 + 4 * 256 * 4) + 26 * 256)),
    ],
)
def test_the_librarys_class_is_measured(
    family: str, changes: dict[str, Any], weights: int | None, cache: int, tmp_path: Path
) -> None:
    folder = write_config(family, tmp_path / "model", **changes)
    result = verify(folder, "--format", "json")
    assert result.code == 0, result.out + result.err
    found = terms(result)
    # The size of a window is kept as a number in each layer, rotary tables are the class's own.
    assert found["kv_cache.growing"]["measured_bytes"] - cache in (0, 2 * 8)
    assert found["kv_cache.growing"]["predicted_bytes"] == cache
    buffers = found["weights"]["measured_bytes"] - found["weights"]["predicted_bytes"]
    assert 0 <= buffers <= 256
    if weights is not None:
        assert found["weights"]["predicted_bytes"] == weights
    assert found["after_free"]["measured_bytes"] == 0
    assert found["load_peak"]["measured_bytes"] >= found["weights"]["measured_bytes"]
    assert found["prefill_peak"]["measured_bytes"] > 0
    assert result.json()["engine_version"] == transformers.__version__
    assert [phase["name"] for phase in result.json()["phases"]] == [
        "load", "prefill", "decode 0", "decode 1",
    ]  # fmt: skip


def test_windows_hold_on_to_the_whole_prompt(tmp_path: Path) -> None:
    """The library keeps a view of the last 15 tokens; the tensor behind it has all 200."""
    folder = write_config("sliding window", tmp_path / "model")
    long = ("--tokens", "200", "--device", "cpu", "--sequences", "2", "--decode-steps", "1")
    result = call("verify", str(folder), *long, "--engine", "transformers", "--format", "json")
    assert result.code == 0, result.out
    ends = {phase["name"]: phase["end_bytes"] for phase in result.json()["phases"]}
    row = 2 * 2 * 2 * 32 * 2 * 2  # sequences, layers, heads of 32, keys and values, 2 bytes
    assert ends["prefill"] - ends["load"] >= 200 * row
    assert 16 * row <= ends["decode 0"] - ends["load"] < 32 * row


def test_stacked_experts_take_more_while_they_are_loaded(tmp_path: Path) -> None:
    """The class holds the experts of a layer as one tensor, the files hold each."""
    folder = write_config("MLA MoE", tmp_path / "model", **MLA)
    found = terms(verify(folder, "--format", "json"))
    more = found["load_peak"]["measured_bytes"] - found["weights"]["measured_bytes"]
    # Gate and up of one expert, 64 x 128 each, would be there without stacking too.
    assert more > 2 * 64 * 128 * 2


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("GPTQ", "pip install optimum"),
        ("FP8 block", "into 16 bits"),
        ("gpt-oss MXFP4", "into 16 bits"),
    ],
)
def test_formats_that_it_cannot_hold_here_are_refused(
    family: str, words: str, tmp_path: Path
) -> None:
    """A missing package is named; another format in memory is another model."""
    result = verify(write_config(family, tmp_path / "model"))
    assert (result.code, words in result.err) == (3, True), result.err
    assert "Traceback" not in result.err


def test_fewer_layers(tmp_path: Path) -> None:
    folder = write_config("MLA MoE", tmp_path / "model", num_hidden_layers=5, **MLA)
    result = verify(folder, "--layers", "0-1", "--format", "json")
    assert result.code == 0, result.err
    assert (result.json()["layers"], result.json()["num_layers"]) == ([0, 1], 5)
    two = write_config("MLA MoE", tmp_path / "two", num_hidden_layers=2, **MLA)
    assert terms(verify(two, "--format", "json")) == terms(result)
    last = verify(folder, "--layers", "3,4")
    assert (last.code, "first layer" in last.err) == (3, True)


def test_a_cut_config_has_the_first_layers(tmp_path: Path) -> None:
    """Lists with an entry for each layer are cut; other layers than the model's are refused."""
    kinds = ["full_attention", "full_attention", "sliding_attention", "full_attention"]
    folder = write_config(
        "FP8 block", tmp_path / "model", num_hidden_layers=4, use_sliding_window=True,
        sliding_window=16, layer_types=kinds, quantization_config=None,
    )  # fmt: skip
    whole = json.loads((folder / "config.json").read_text())
    cut = other_engines._cut({**whole, "text_config": {"num_layers": 4, "x": [1, 2]}}, 4, 3)
    assert (cut["num_hidden_layers"], cut["layer_types"]) == (3, kinds[:3])
    assert cut["text_config"] == {"num_layers": 3, "x": [1, 2]}
    some = verify(folder, "--layers", "0-2", "--format", "json")
    assert some.code == 0, some.err
    spec = read_config_file(folder / "config.json")
    other = write_config("FP8 block", tmp_path / "other", num_hidden_layers=3)
    with pytest.raises(UnsupportedError, match="not the first 3"):
        other_engines._check_cut(read_config_file(other / "config.json"), spec, 3)


def test_shards_that_lack_tensors_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library would go on with random numbers."""
    folder = write_config("dense GQA", tmp_path / "model")
    write = other_engines.write_synthetic

    def fewer(spec: Any, stored: Any, *rest: Any, **more: Any) -> Any:
        left = next(item for item in stored if item.entry.section == "layers")
        return write(spec, [item for item in stored if item is not left], *rest, **more)

    monkeypatch.setattr(other_engines, "write_synthetic", fewer)
    result = verify(folder)
    assert (result.code, "lack 2 tensors" in result.err) == (3, True), result.err


def test_scalars_that_a_spec_leaves_out_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A norm of 128 numbers, 256 of 17 million bytes: a note, for random shards only."""
    folder = write_config("dense GQA", tmp_path / "model", vocab_size=32_768)
    write = other_engines.write_synthetic

    def fewer(spec: Any, stored: Any, *rest: Any, **more: Any) -> Any:
        left = next(item for item in stored if item.entry.tensor.shape == (128,))
        return write(spec, [item for item in stored if item is not left], *rest, **more)

    monkeypatch.setattr(other_engines, "write_synthetic", fewer)
    result = verify(folder, "--format", "json")
    assert result.code == 0, result.err
    assert any("norm" in note for note in result.json()["notes"])


def test_code_of_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    """A known model goes without it, an unknown one is refused."""
    folder = write_config("dense GQA", tmp_path / "model")
    cpu = ("--device", "cpu", "--tokens", "4", "--sequences", "1", "--decode-steps", "1")
    kept = tmp_path / "kept"
    assert call("verify", str(folder), *cpu, "--keep-shards", str(kept)).code == 0
    config = json.loads((folder / "config.json").read_text())
    classes = {name: f"evil.{name}" for name in ("AutoConfig", "AutoModelForCausalLM")}
    (kept / "config.json").write_text(json.dumps({**config, "auto_map": classes}))
    mark = tmp_path / "ran"
    (kept / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    result = verify(kept, "--format", "json")
    assert result.code == 0, result.err
    assert any("auto_map" in note for note in result.json()["notes"])
    assert not mark.exists()


def test_what_fails_in_the_library_is_one_line(tmp_path: Path) -> None:
    """This config's head_dim contradicts its rotated part, as the class sees it."""
    folder = write_config("MLA MoE", tmp_path / "model")
    result = verify(folder)
    assert result.code == 3
    assert f"transformers {transformers.__version__} fails in prefill" in result.err
    assert "Traceback" not in result.err


def test_memory_that_runs_out_is_a_result(tmp_path: Path) -> None:
    """853,248 bytes of weights and 26,624 of cache fit 90 % of a million; the prompt does not."""
    folder = write_config("dense GQA", tmp_path / "model")
    result = verify(folder, "--limit-memory", "1000000B", "--format", "json")
    assert result.code == 1, result.err
    failure = result.json()["failure"]
    assert failure["phase"] == "prefill"
    assert failure["asked_bytes"] > 0
    assert failure["live"]["weights"] >= 853_248
    assert terms(result)["after_free"]["measured_bytes"] == 0
    assert "OUT OF MEMORY" in verify(folder, "--limit-memory", "1000000B").out


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders go on errors and on Ctrl-C; settings of the library are those from before."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    folder = write_config("dense GQA", tmp_path / "model")
    before = transformers.logging.get_verbosity()

    def stop(_: object) -> None:
        assert list(scratch.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(engine_transformers._Run, "_passes", stop)
    result = verify(folder)
    assert result.code == 130
    assert list(scratch.iterdir()) == []
    assert transformers.logging.get_verbosity() == before
    assert "HF_DEACTIVATE_ASYNC_LOAD" not in os.environ


def test_a_record_names_the_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESIZE_RECEIPTS", str(tmp_path / "records"))
    folder = write_config("dense GQA", tmp_path / "model")
    path = Path(verify(folder, "--save", "--format", "json").json()["saved_to"])
    document = json.loads(path.read_text())
    found = (document["engine"], document["engine_version"])
    assert found == ("transformers", transformers.__version__)
    (record,) = read_folder(path.parent)
    assert record.engine == "transformers"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tp-rank", "0/2"), "leave --tp-rank"),
        (("--dtype", "float16"), "leave --dtype out"),
        (("--quant", "fp8"), "not from --quant"),
        (("--shards", "hub"), "fetches nothing"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    result = verify(write_config("dense GQA", tmp_path / "model"), *arguments)
    assert (result.code, words in result.err) == (3, True), result.err


def test_a_prompt_that_does_not_fit_is_not_started(tmp_path: Path) -> None:
    """A million tokens, 512 times: the cache of a window is small, 2 KiB of an MLP's rows are not.

    2^20 x 512 x (2 x 128 + 3 x 256) numbers are a TiB.
    """
    folder = write_config("sliding window", tmp_path / "model")
    long = ("--tokens", "1048000", "--sequences", "512", "--decode-steps", "1")
    result = call("verify", str(folder), "--device", "cpu", *long, "--engine", "transformers")
    assert (result.code, "prompt" in result.err) == (3, True), result.err


def test_not_under_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = verify(write_config("dense GQA", tmp_path / "model"))
    assert (result.code, "torchrun" in result.err) == (3, True), result.err


def test_a_name_of_the_catalogue_has_no_config(tmp_path: Path) -> None:
    result = call("verify", "qwen3-0.6b", *SMALL, "--engine", "transformers")
    assert (result.code, "config.json" in result.err) == (3, True), result.err
