"""Records of measurements: kept safely, quoted by plans that match, never trusted."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from running import call

from moesize.catalog import resolve_model
from moesize.core.errors import EnvironmentProblem
from moesize.renderers.verify import speed_line
from moesize.schemas import find_schema
from moesize.verify import receipts
from moesize.verify.receipts import (
    Planned,
    parse,
    quote_of,
    quotes,
    read_folder,
    receipts_folder,
    save,
    spec_hash,
)
from moesize.verify.report import Device, Failure, Speed, Term, VerifyReport
from verify.records import context, document, keep, term

MIXTRAL = resolve_model("mixtral-8x7b")[0]
UNCUT = Planned("vllm", 1, "bfloat16")
REPORT = VerifyReport(
    model="mixtral-8x7b",
    model_source="catalogue",
    spec_sha256=spec_hash(MIXTRAL),
    revision="",
    quantization="checkpoint",
    device=Device("cuda", "NVIDIA H100 80GB HBM3", 85_000_000_000, "570.86", "2.13.0"),
    engine="torch",
    shards="synthetic",
    layers=(0, 1),
    num_layers=32,
    tokens=512,
    sequences=4,
    decode_steps=4,
    dtype="bfloat16",
    rank=0,
    ranks=1,
    seed=0,
    date="2026-11-22",
    command="moesize verify mixtral-8x7b",
    terms=(
        Term(name="weights", predicted_bytes=10002, measured_bytes=10000, tolerance=1e-3, why=""),
        Term(name="peak", predicted_bytes=None, measured_bytes=10000, tolerance=0.0, why=""),
    ),
)
PLAN = ("plan", "mixtral-8x7b", "--gpu", "h100", "--gpus", "2", "--format", "json")


def notes(*arguments: str) -> list[str]:
    return [n["message"] for n in call(*arguments).json()["warnings"] if n["code"] == "measured"]


def plan_folder() -> Path:
    folder = receipts_folder()
    assert folder is not None
    return folder


def lay(name: str, *terms: dict[str, Any], **changes: Any) -> None:
    """A record of Mixtral by hand, where plans look."""
    keep(plan_folder(), name, document(*terms, **{"spec_sha256": spec_hash(MIXTRAL), **changes}))


# --- Keeping --------------------------------------------------------------------------------------


def test_the_same_measurement_replaces_its_record() -> None:
    one = save(REPORT)
    assert save(REPORT) == one
    other = save(replace(REPORT, layers=(0,)))
    assert other != one
    assert len(read_folder(plan_folder())) == 2
    assert [path.name for path in plan_folder().iterdir() if path.name.startswith(".")] == []


def test_a_record_reads_back() -> None:
    path = save(REPORT)
    (one,) = read_folder(path.parent)
    assert one.terms == REPORT.terms
    assert (one.layers, one.num_layers, one.ranks) == (2, 32, 1)
    assert (one.gpu, one.driver, one.torch) == ("NVIDIA H100 80GB HBM3", "570.86", "2.13.0")
    assert path.stat().st_mode & 0o077 == 0


def test_no_path_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    command = "moesize verify /home/anna/models/x --keep-shards ../anna/shards"
    failure = Failure("vllm", None, {}, 'File "/home/anna/venv/lib/x.py", line 3')
    note = "shards kept in /home/anna/shards"
    path = save(replace(REPORT, command=command, notes=(note,), failure=failure))
    assert "anna" not in path.read_text()
    kept = json.loads(path.read_text())
    assert kept["command"] == "moesize verify PATH --keep-shards PATH"
    assert kept["notes"] == ["shards kept in PATH"]


def test_where_records_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESIZE_RECEIPTS", str(tmp_path / "mine"))
    assert save(REPORT).parent == tmp_path / "mine"
    for name in ("MOESIZE_RECEIPTS", "MOESIZE_CALIBRATION"):
        monkeypatch.setenv(name, "off")
        assert receipts_folder() is None
        assert quotes(MIXTRAL, "checkpoint", "h100-80gb-sxm", UNCUT) == ()
        with pytest.raises(EnvironmentProblem):
            save(REPORT)
        monkeypatch.delenv(name)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "/", "a/../" * 2000, "/dev/null"])
def test_folders_that_are_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESIZE_RECEIPTS", name)
    assert notes(*PLAN) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found out before the run, which may take an hour."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOESIZE_RECEIPTS", str(tmp_path / "file" / "folder"))
    for keeping in (lambda: save(REPORT), receipts.check_writable):
        with pytest.raises(EnvironmentProblem) as caught:
            keeping()
        assert "cannot be kept" in caught.value.message
    monkeypatch.setenv("RANK", "1")  # which keeps none
    receipts.check_writable()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MOESIZE_RECEIPTS", str(tmp_path / "new"))
    receipts.check_writable()
    assert list((tmp_path / "new").iterdir()) == []


# --- Quoting --------------------------------------------------------------------------------------


def test_a_plan_quotes_what_was_measured_on_its_gpu() -> None:
    assert notes(*PLAN) == []
    save(REPORT)
    (note,) = notes(*PLAN)
    assert note == (
        "measured on NVIDIA H100 80GB HBM3: weights +0.02% (2026-11-22, 2 of 32 layers, uncut "
        "layers, TP2 here; predicted against measured)"
    )
    assert notes(*PLAN, "--quant", "fp8") == []
    assert notes(*PLAN, "--no-calibration") == []
    assert notes(*PLAN, "--gpu", "a100-80gb") == []
    assert notes("plan", "mixtral-8x22b", "--gpu", "h100", "--gpus", "8", "--format", "json") == []


def test_every_form_of_a_plan_shows_it() -> None:
    save(REPORT)
    words = "measured on NVIDIA H100 80GB HBM3: weights +0.02%"
    for form in ("table", "markdown", "json"):
        shown = call(*PLAN[:-1], form, columns=200).out
        assert words in " ".join(shown.split()), form


def test_the_json_document_fits_its_schema() -> None:
    import jsonschema

    save(REPORT)
    answer = call(*PLAN).json()
    assert "measured" in {note["code"] for note in answer["warnings"]}
    jsonschema.validate(answer, find_schema("plan"))


def test_another_spec_of_that_name_is_not_quoted() -> None:
    save(replace(REPORT, spec_sha256=spec_hash(replace(MIXTRAL, hidden_size=2048))))
    assert notes(*PLAN) == []
    # Words about a model are no part of it.
    assert spec_hash(replace(MIXTRAL, title="Another title")) == spec_hash(MIXTRAL)


def test_a_new_field_of_specs_leaves_hashes_as_they_are() -> None:
    """Records of an older release are still of the same models."""

    @dataclass(frozen=True)
    class Mixer:
        heads: int
        kind: str = "gqa"

    @dataclass(frozen=True)
    class NewMixer(Mixer):
        sinks: bool = False
        extra: tuple[int, ...] = ()

    @dataclass(frozen=True)
    class Other(NewMixer):
        kind: str = "mla"

    @dataclass(frozen=True)
    class Spec:
        mixers: tuple[Mixer, ...]
        id: str = "one"

    def hashed(mixer: Mixer, **about: str) -> str:
        spec: Any = Spec((mixer,), **about)
        return spec_hash(spec)

    assert hashed(Mixer(8)) == hashed(NewMixer(8)) == hashed(Mixer(8), id="two")
    different = (Mixer(8), Mixer(4), NewMixer(8, sinks=True), Other(8))
    assert len({hashed(mixer) for mixer in different}) == 4


def test_models_of_the_catalogue_have_hashes_of_their_own() -> None:
    """Two may share one only where they differ in words alone."""
    names = ("mixtral-8x7b", "mixtral-8x22b", "deepseek-v3", "qwen3-30b-a3b", "gpt-oss-120b")
    assert len({spec_hash(resolve_model(name)[0]) for name in names}) == len(names)


def test_a_spec_is_hashed_only_where_there_is_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counted(spec: Any) -> str:
        asked.append(spec.id)
        return spec_hash(spec)

    monkeypatch.setattr(receipts, "spec_hash", counted)
    MIXTRAL.__dict__.pop("_sha256", None)
    save(replace(REPORT, model="mixtral-8x22b"))
    save(replace(REPORT, quantization="fp8"))
    assert quotes(MIXTRAL, "checkpoint", "h100-80gb-sxm", UNCUT) == ()
    assert asked == []
    save(REPORT)
    for _ in range(2):
        assert len(quotes(MIXTRAL, "checkpoint", "h100-80gb-sxm", UNCUT)) == 1
    assert asked == ["mixtral-8x7b"]


def test_records_of_other_models_are_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    other = save(replace(REPORT, model="mixtral-8x22b"))
    opened = []
    monkeypatch.setattr(receipts, "_text_of", lambda path, most: opened.append(path) or b"")
    quotes(MIXTRAL, "checkpoint", "h100-80gb-sxm", UNCUT)
    assert opened == []
    read_folder(other.parent)
    assert opened == [other]


def said(planned: Planned = UNCUT) -> list[str]:
    return [quote.text for quote in quotes(MIXTRAL, "checkpoint", "h100-80gb-sxm", planned)]


WEIGHTS = term("weights", 1000, 1000)


def test_weights_are_what_the_device_took_for_the_tensors() -> None:
    """1000 bytes are planned, blocks of 1010 taken: (1000 - 1010) / 1010."""
    lay("a", WEIGHTS, term("weights.blocks", 1010, 1010), layers=list(range(32)))
    assert said() == [
        "measured on NVIDIA H100 80GB HBM3: weights -0.99% (2026-11-22; predicted against measured)"
    ]


def test_a_cache_of_another_dtype_is_not_quoted() -> None:
    lay("a", WEIGHTS, term("kv_cache.static", 1001, 1000))
    assert "KV cache +0.10%" in said()[0]
    assert "KV cache" not in said(Planned("vllm", 1, "fp8"))[0]
    (note,) = notes(*PLAN)
    assert "KV cache +0.10%" in note
    (note,) = notes(*PLAN, "--kv-dtype", "fp8")
    assert "weights" in note
    assert "KV cache" not in note


def test_ranks_are_named() -> None:
    lay("a", WEIGHTS, rank=0, ranks=8)
    assert "rank 0 of 8; predicted" in said(Planned("vllm", 8, ""))[0]
    assert "rank 0 of 8, not as cut, TP2 here" in said(Planned("vllm", 2, ""))[0]
    assert "not as cut, expert parallelism here" in said(Planned("vllm", 0, ""))[0]
    # Under torchrun every rank has terms; the one furthest off speaks.
    lay("b", WEIGHTS, term("weights", 1000, 800, rank=1), ranks=2)
    text = said(Planned("vllm", 2, ""))[0]
    assert "weights +25.00%, which is outside its tolerance" in text
    assert "2 of 32 layers, 2 ranks; predicted" in text


def test_the_nearest_record_is_quoted() -> None:
    """As many ranks, then more layers, then those that ended well, then the newest."""
    rows = {
        "a": {"date": "2026-11-20", "layers": [0, 1, 2]},
        "b": {"date": "2026-11-21", "layers": [0, 1, 2], "failure": FAILED},
        "c": {"date": "2026-11-22", "layers": [0]},
        "d": {"date": "2026-11-23", "layers": [0], "ranks": 4},
    }
    for name, changes in rows.items():
        lay(name, WEIGHTS, **changes)
    assert [text.partition("(")[2][:10] for text in said()] == [
        "2026-11-20", "2026-11-21", "2026-11-22", "2026-11-23"
    ]  # fmt: skip
    assert said(Planned("vllm", 4, ""))[0].partition("(")[2][:10] == "2026-11-23"


FAILED = {"phase": "prefill", "asked_bytes": 5, "live": {}, "message": ""}


def test_what_went_wrong_is_said() -> None:
    lay("a", term("weights", 900, 1000), failure=FAILED, agrees=False)
    (text,) = said()
    assert "weights -10.00%, which is outside its tolerance" in text
    assert "memory ran out in prefill" in text


def test_what_is_of_no_use_to_a_plan_is_not_quoted() -> None:
    lay("cpu", WEIGHTS, kind="cpu")
    lay("library", WEIGHTS, engine="transformers")
    lay("peaks", term("prefill_peak", 10, 10), *context(1, 0))
    lay("unmeasured", term("weights", 10, None))
    assert said() == []
    assert len(said(Planned("transformers", 1, ""))) == 1


def test_states_of_hybrids_are_no_cache_of_the_plan() -> None:
    """Engines keep states in formats of their own; `verify` in float32."""
    spec = resolve_model("qwen3-next-80b-a3b-instruct")[0]
    changes = {"model": spec.id, "spec_sha256": spec_hash(spec), "num_layers": 48}
    found = document(WEIGHTS, term("kv_cache.static", 1001, 1000), **changes)
    keep(plan_folder(), "a", found)
    (note,) = notes("plan", spec.id, "--gpu", "h100", "--gpus", "4", "--format", "json")
    assert "weights" in note
    assert "KV cache" not in note


def test_a_quote_in_words() -> None:
    found = parse(json.dumps(document(WEIGHTS, name="NVIDIA L4", layers=list(range(32)))))
    assert found is not None
    assert quote_of(found, UNCUT).text == (
        "measured on NVIDIA L4: weights +0.00% (2026-11-22; predicted against measured)"
    )


# --- Hostile files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{", "null", "[" * 100_000, '{"schema": "moesize.receipt/1"}', "\x00", "9" * 5000,
        '{"schema": ' * 50_000,
    ],
)  # fmt: skip
def test_files_that_are_no_records_are_passed_over(content: str) -> None:
    path = save(REPORT)
    path.with_name("mixtral-8x7b-other.json").write_text(content)
    assert len(read_folder(plan_folder())) == 1
    assert len(notes(*PLAN)) == 1


def test_things_that_are_no_files_are_passed_over(tmp_path: Path) -> None:
    import os

    path = save(REPORT)
    path.with_name("mixtral-8x7b-folder.json").mkdir()
    path.with_name("mixtral-8x7b-link.json").symlink_to("/dev/zero")
    path.with_name("mixtral-8x7b-gone.json").symlink_to(tmp_path / "nothing")
    os.mkfifo(path.with_name("mixtral-8x7b-pipe.json"))
    with path.with_name("mixtral-8x7b-large.json").open("wb") as stream:
        stream.truncate(5 << 30)
    assert len(notes(*PLAN)) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "a\x1b[31m"), ("date", 5), ("date", "2026-13-40"), ("date", "٢٠٢٦-11-22"),
        ("layers", "x"), ("layers", []), ("layers", [99]), ("num_layers", True),
        ("num_layers", 10**400), ("terms", [1]), ("terms", {}), ("device", {"name": 1}),
        ("device", None), ("settings", []), ("failure", 7), ("speed", [1]), ("engine", "x" * 201),
        ("schema", "moesize.verify/1"),
        ("terms", [{**WEIGHTS, "measured_bytes": float("nan")}]),
        ("terms", [{**WEIGHTS, "measured_bytes": 1.5}]),
        ("terms", [{**WEIGHTS, "predicted_bytes": 1 << 61}]),
        ("terms", [{**WEIGHTS, "predicted_bytes": True}]),
        ("terms", [{**WEIGHTS, "tolerance": float("inf")}]),
        ("terms", [{**WEIGHTS, "predicted_bytes": 1 << 59, "measured_bytes": 1}]),
        ("terms", [{**WEIGHTS, "rank": -1}]),
        ("terms", [{**WEIGHTS, "name": "\n"}]),
        ("terms", [WEIGHTS] * 70_000),
        ("speed", {"load_gb_per_s": -1, "to_device_gb_per_s": 1}),
    ],
)  # fmt: skip
def test_a_record_with_a_field_of_another_kind_is_none(field: str, value: Any) -> None:
    found = document(WEIGHTS)
    assert parse(json.dumps(found)) is not None
    assert parse(json.dumps({**found, field: value})) is None


def test_errors_of_a_file_are_not_believed() -> None:
    lay("a", {**term("weights", 900, 1000), "error": 0.0, "ok": True})
    assert "weights -10.00%, which is outside its tolerance" in said()[0]


def test_negative_and_empty_measurements_have_no_error() -> None:
    lay("a", term("weights", 0, 0), term("weights.blocks", 10, -10), WEIGHTS)
    assert len(said()) == 1


def test_damaged_records_never_stop_a_plan() -> None:
    """Values of a real record replaced at random, and bytes of its text."""
    rng = random.Random(5)
    odd = [
        None, True, -1, 0, 1.5, 1e308, float("nan"), float("-inf"), 10**30, "", "x" * 300, "\ud800",
        "\x00", [], {}, [[]], {"a": {}}, "NVIDIA H100 80GB HBM3", "2026-11-22", "a10g",
    ]  # fmt: skip
    found = document(
        WEIGHTS, term("kv_cache.static", 5, 5), *context(600, 5), failure=FAILED,
        spec_sha256=spec_hash(MIXTRAL), speed={"load_gb_per_s": 1.0, "to_device_gb_per_s": 2.0},
    )  # fmt: skip
    kept = 0
    for _ in range(3000):
        copy = json.loads(json.dumps(found))
        for _ in range(rng.randint(1, 2)):
            place: Any = copy
            while True:
                keys = list(place) if isinstance(place, dict) else list(range(len(place)))
                key = rng.choice(keys)
                if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.8:
                    place = place[key]
                    continue
                place[key] = rng.choice(odd)
                break
        text = bytearray(json.dumps(copy).encode())
        if rng.random() < 0.3:
            text[rng.randrange(len(text))] = rng.randrange(256)
        record = parse(bytes(text), "x.json")
        if record is not None:
            kept += 1
            receipts.catalogue_gpu(record.gpu)
            assert quote_of(record, UNCUT).text.isprintable()
    assert 100 < kept < 2500


@pytest.mark.parametrize(
    ("kind", "speed", "words"),
    [
        ("cuda", None, ""),
        ("cuda", Speed(40.0, None, None), "loaded at 40.00 GB/s"),
        (
            "cuda",
            Speed(40.0, 50.0, 60.0, 1.0),
            "loaded at 40.00 GB/s, 80% of the 50.00 GB/s that the device copies",
        ),
        (
            "cpu",
            Speed(2.0, 10.0, 20.0, 0.25),
            "loaded at 2.00 GB/s, 20% of the 10.00 GB/s at which this machine copies into new "
            "memory; 25% of the bytes were in the page cache",
        ),
    ],
)
def test_the_pace_in_words(kind: str, speed: Speed | None, words: str) -> None:
    device = REPORT.device._replace(kind=kind)
    assert speed_line(replace(REPORT, device=device, speed=speed)) == words
