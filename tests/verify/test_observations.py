"""Constants and ratios out of records: values by hand, and what never counts."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, call

from moesize.calibration import all_records
from moesize.engines import engine_profile
from moesize.verify.observations import (
    FIGURES,
    communicators,
    fit,
    keep_constants,
    measurements,
    observed,
    ratios,
)
from moesize.verify.receipts import Receipt, parse, read_folder
from verify.records import H100, MIB, RTX_3090, context, document, keep, term


def record(*terms: dict[str, Any], **changes: Any) -> Receipt:
    found = parse(json.dumps(document(*terms, **changes)), "one.json")
    assert found is not None
    return found


# --- What counts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "cpu", "name": "AMD EPYC 7763"},
        {"name": "some card"},
        {"engine": "transformers"},
        {"failure": {"phase": "prefill", "asked_bytes": 1, "live": {}, "message": ""}},
    ],
)
def test_what_says_nothing_about_a_gpu(changes: dict[str, Any]) -> None:
    assert measurements([record(*context(600 * MIB, 90 * MIB), **changes)]) == []
    assert len(measurements([record(*context(600 * MIB, 90 * MIB))])) == 1


def test_a_context_counts_where_nothing_else_is_in_it() -> None:
    """Total less free memory, before and after the first product."""
    one = record(*context(700 * MIB, 90 * MIB), term("workspace", None, 32 * MIB))
    found = {word: figure(one) for word, figure in FIGURES.items()}
    assert found == {
        "context": 700 * MIB, "context.first_call": 610 * MIB, "workspace": 32 * MIB
    }  # fmt: skip
    others = record(*context(700 * MIB, 90 * MIB, known=False))
    group = record(*context(700 * MIB, 90 * MIB), term("communicator", None, 300 * MIB))
    for other in (others, group):
        assert FIGURES["context"](other) is None
        assert FIGURES["context.first_call"](other) is None


def test_a_constant_by_hand() -> None:
    """Setups 600, 610, 620 and 630, 640 MiB: medians 610 and 635, between them 622.5; 5 % of it is
    31.125, which is below 600 and above 640."""
    old = {"driver": "550.54.14, CUDA 12.4", "torch": "2.8.0"}
    rows = [(600, {}), (610, {}), (620, {}), (630, old), (640, {**old, "date": "2026-12-24"})]
    found = [(record(**changes), size * MIB) for size, changes in rows]
    made = fit("Hopper", found)
    assert made is not None
    assert made.value == 622.5 * MIB
    assert made.low == int(591.375 * MIB)
    assert made.high == int(653.625 * MIB)
    assert (made.observations, made.date) == (5, "2026-12-24")
    for word in (H100, "570.86.15", "torch 2.8.0", "600.0 to 620.0 MiB", "630.0 to 640.0 MiB"):
        assert word in made.spread
    assert "one.json" in made.source
    assert fit("Hopper", found[:4]) is None
    # One setup: 15 % of 610 either way.
    alone = fit("Hopper", [(record(), 610 * MIB)] * 5)
    assert alone is not None
    assert (alone.low, alone.high) == (int(518.5 * MIB), int(701.5 * MIB))


def test_cards_are_told_apart_by_architecture() -> None:
    """0.61 GiB on an H100 (github.com/kolyangg/mlops-assignment at daaf8cb, logs/vllm.log: 79.18
    less 78.57 GiB) and 0.4 GiB on an RTX 3090 (Sandermage/genesis-vllm-patches issue 24)."""
    rows = [
        record(*context(round(0.61 * 1024 * MIB), 0)),
        record(*context(round(0.4 * 1024 * MIB), 0), name=RTX_3090),
    ]
    found = observed(rows, FIGURES["context"])
    assert {name: [value for _, value in own] for name, own in found.items()} == {
        "Hopper": [654_982_513], "Ampere": [429_496_730]
    }  # fmt: skip


# --- Ratios ---------------------------------------------------------------------------------------


def test_ratios_by_hand() -> None:
    """measured / predicted 1.00, 0.99, 1.02, 1.00, 1.10: median 1.00, nearest rank of nine tenths
    of five is the fifth."""
    sizes = (100, 99, 102, 100, 110)
    rows = [record(term("prefill_peak", 100, size)) for size in sizes]
    whole = document(term("weights", 10, 11))["terms"]
    rows.append(record(extrapolated=whole))
    (row,) = ratios(rows)
    assert (row.term, row.n, row.median) == ("prefill_peak", 5, 1.0)
    assert row.p90 == pytest.approx(0.10)
    assert row.worst == pytest.approx(0.10)
    (row,) = ratios([record(term("peak", 1000, 1000 + n)) for n in range(10)])
    assert row.p90 == pytest.approx(0.008)
    assert row.worst == pytest.approx(0.009)


def test_ranks_count_one_by_one() -> None:
    both = [term("communicator", None, size * MIB, rank=n) for n, size in enumerate((300, 340))]
    (row,) = communicators([record(*both, ranks=2)])
    assert (row.ranks, row.gpu, row.n) == (2, H100, 2)
    assert (row.median_bytes, row.low_bytes, row.high_bytes) == (320 * MIB, 300 * MIB, 340 * MIB)


# --- The script -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    path = ROOT / "scripts" / "calibrate_records.py"
    found = importlib.util.spec_from_file_location("calibrate_records", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["calibrate_records"] = module
    found.loader.exec_module(module)
    yield module
    del sys.modules["calibrate_records"]


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    """The shipped data files, to write to."""
    folder = tmp_path / "engines"
    folder.mkdir()
    for path in (ROOT / "moesize" / "data" / "engines").glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def run(script: Any, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["calibrate_records.py", *map(str, arguments)])
    code: int = script.main()
    return code


def constants(folder: Path, engine: str) -> dict[tuple[str, str], dict[str, Any]]:
    data = json.loads((folder / f"{engine}.json").read_text())
    return {(row["name"], row.get("architecture", "")): row for row in data["constants"]}


def test_the_script_writes_rows_once(
    script: Any,
    engines: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    records = tmp_path / "records"
    for number, size in enumerate((700, 702, 704, 706, 708)):
        terms = [*context(size * MIB, 90 * MIB), term("workspace", None, 32 * MIB)]
        keep(records, str(number), document(*terms))
    for number in range(4):
        keep(records, f"few-{number}", document(*context(500 * MIB, 0), name=RTX_3090))
    keep(records, "cpu", document(*context(1, 0), kind="cpu", name="AMD EPYC 7763"))
    arguments = ("--records", records, "--engines", engines)
    before = {path.name: path.read_bytes() for path in engines.iterdir()}
    assert run(script, monkeypatch, *arguments, "--check") == 1
    assert {path.name: path.read_bytes() for path in engines.iterdir()} == before
    assert run(script, monkeypatch, *arguments, "--write") == 0
    said = capsys.readouterr().out
    assert "vllm cuda_context, Ampere: 4 records, 5 are needed, unchanged" in said
    changed = {path.name for path in engines.iterdir() if path.read_bytes() != before[path.name]}
    assert changed == {"vllm.json", "sglang.json", "transformers.json"}
    for engine, middle in (("vllm", 614), ("sglang", 614), ("transformers", 704)):
        old = {(row["name"], ""): row for row in json.loads(before[f"{engine}.json"])["constants"]}
        new = constants(engines, engine)
        row = new["cuda_context", "Hopper"]
        assert row["value"] == middle * MIB
        assert row["low"] == int(middle * 0.85 * MIB)
        assert (row["observations"], row["date"]) == (5, "2026-11-22")
        assert "torch 2.13.0+cu128" in row["spread"]
        assert "mixtral-8x7b-0.json" in row["source"]
        assert ("cuda_context", "Ampere") not in new
        assert {key: one for key, one in new.items() if not key[1]}.items() >= {
            key: one for key, one in old.items() if key[0] == "cuda_context"
        }.items()
    assert constants(engines, "transformers")["library_workspaces", "Hopper"]["value"] == 32 * MIB
    # Nothing more to do; and a folder with too few changes nothing.
    assert run(script, monkeypatch, *arguments, "--check") == 0
    written = {path.name: path.read_bytes() for path in engines.iterdir()}
    for path in records.glob("*-[0-3].json"):
        path.unlink()
    assert run(script, monkeypatch, *arguments, "--write") == 0
    assert {path.name: path.read_bytes() for path in engines.iterdir()} == written


def test_the_shipped_data_are_what_the_records_give(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(script, monkeypatch, "--check") == 0


def test_everything_as_json(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(tmp_path, "one", document(term("peak", 100, 101), *context(600 * MIB, 0)))
    assert run(script, monkeypatch, "--records", tmp_path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["records"], found["counted"]) == (1, 1)
    assert found["constants"]["context"] == []  # one is too few
    assert found["ratios"] == [
        {"term": "peak", "n": 1, "median": 1.01, "p90": pytest.approx(0.01),
         "worst": pytest.approx(0.01)}
    ]  # fmt: skip


def test_a_row_of_an_architecture_holds_on_its_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    from moesize import engines

    data = json.loads(json.dumps(engines._data("transformers")))
    (general,) = (row for row in data["constants"] if row["name"] == "cuda_context")
    data["constants"].insert(0, {**general, "architecture": "Hopper", "value": 700 * MIB})
    caches = (engines._profile, engines._rules, engines._architecture)
    for kept in caches:
        kept.cache_clear()
    monkeypatch.setattr(engines, "_data", lambda engine: data)
    try:

        def value(gpu: str) -> float:
            return engine_profile("transformers", None, gpu).constants["cuda_context"].value

        assert value("h100-80gb-sxm") == value("h200-141gb-sxm") == 700 * MIB
        assert value("rtx-3090") == value("") == value("no card") == general["value"]
    finally:
        for kept in caches:
            kept.cache_clear()


# --- The user's own card --------------------------------------------------------------------------

TRANSFORMERS = (
    "plan", "qwen3-0.6b", "--engine", "transformers", "--gpu", "h100", "--format", "json"
)  # fmt: skip


def test_a_measured_context_counts_on_its_own_card() -> None:
    def planned(*more: str) -> tuple[int, str]:
        answer = call(*TRANSFORMERS, *more).json()
        (item,) = (i for i in answer["gpus"][0]["items"] if i["name"] == "runtime.cuda_context")
        said = [n["message"] for n in answer["warnings"] if n["code"] == "calibration"]
        return item["bytes"], "".join(said)

    shipped, said = planned()
    assert said == ""
    keep_constants(record(*context(700 * MIB, 90 * MIB), term("workspace", None, 32 * MIB)))
    assert planned() == (
        700 * MIB,
        "as measured on this GPU (verify --save): cuda_context, library_workspaces",
    )
    assert planned("--no-calibration") == (shipped, "")
    assert planned("--gpu", "a100-80gb") == (shipped, "")
    # The same card, driver and torch: the newer one stands; another setup: the median of both.
    keep_constants(record(*context(720 * MIB, 90 * MIB)))
    assert planned()[0] == 720 * MIB
    keep_constants(record(*context(740 * MIB, 90 * MIB), torch="2.14.0"))
    assert planned()[0] == 730 * MIB


@pytest.mark.parametrize(
    "changes",
    [{"kind": "cpu", "name": "AMD EPYC 7763"}, {"name": "some card"},
     {"failure": {"phase": "load", "asked_bytes": None, "live": {}, "message": ""}}],
)  # fmt: skip
def test_what_counts_nowhere_is_not_kept(changes: dict[str, Any]) -> None:
    keep_constants(record(*context(700 * MIB, 90 * MIB), **changes))
    keep_constants(record(*context(700 * MIB, 90 * MIB, known=False)))
    assert all_records() == ()


# --- The README's table ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def build_docs() -> Any:
    path = ROOT / "scripts" / "build_docs.py"
    found = importlib.util.spec_from_file_location("build_docs", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_measured_table(build_docs: Any, tmp_path: Path) -> None:
    terms = [
        term("weights", 1000, 1000, tolerance=0.0), term("weights.blocks", 1010, 1010),
        term("kv_cache.static", 1001, 1000), term("prefill_peak", 1100, 1000),
        term("sampling_peak", 24, 24), term("peak", 995, 1000), *context(640 * MIB, 0),
    ]  # fmt: skip
    speed = {
        "load_gb_per_s": 4.0, "to_device_gb_per_s": 5.0, "page_cache_gb_per_s": None
    }  # fmt: skip
    keep(tmp_path, "b", document(*terms, speed=speed))
    ranks = [term("weights", 100, 100), term("weights", 100, 50, rank=1)]
    failure = {"phase": "prefill", "asked_bytes": 5, "live": {}, "message": ""}
    failed = document(*ranks, ranks=2, quantization="fp8", failure=failure)
    keep(tmp_path, "a", failed)
    keep(tmp_path, "c", document(*terms, kind="cpu", name="AMD EPYC 7763"))
    rows = [line for line in build_docs.measured_table(tmp_path).splitlines() if "`" in line]
    assert rows == [
        # 1000 planned against 1010 taken; 512 MiB planned against 640: a fifth, inside its band.
        f"| `mixtral-8x7b` | checkpoint | {H100} | 2 of 32 layers | -0.99% | +0.10% | **+10.00%** "
        "| +0.00% | -0.50% | -20.00% | 80% | 2026-11-22, 2.13.0+cu128 |",
        f"| `mixtral-8x7b` | fp8 | {H100} | 2 of 32 layers, 2 ranks, memory ran out in prefill "
        "| **+100.00%** |  |  |  |  |  |  | 2026-11-22, 2.13.0+cu128 |",
    ]
    shown = build_docs.measured_ratios(tmp_path)
    assert "| `prefill_peak` | 1 | 0.9091 | 9.09% | 9.09% |" in shown
    assert "`weights` | 1 |" in shown


def test_no_table_without_a_gpu(build_docs: Any, tmp_path: Path) -> None:
    keep(tmp_path, "c", document(term("peak", 1, 1), kind="cpu", name="AMD EPYC 7763"))
    assert build_docs.measured_table(tmp_path) == build_docs.NO_MEASUREMENT
    assert build_docs.measured_ratios(tmp_path) == build_docs.NO_MEASUREMENT


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"command": "moesize verify /home/anna/model --save"}, "command"),
        ({"notes": ["shards kept in ../anna/shards"]}, "notes[0]"),
        ({"saved_to": "/Users/anna/.config/moesize/x.json"}, "saved_to"),
    ],
)
def test_a_record_that_names_a_place_is_refused(
    build_docs: Any, tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    keep(tmp_path, "x", document(**changes))
    with pytest.raises(ValueError, match=r"mixtral-8x7b-x\.json") as caught:
        build_docs.measured_table(tmp_path)
    assert field in str(caught.value)


def test_a_file_that_is_no_record_is_refused(build_docs: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(ValueError, match=r"notes\.json: no record"):
        build_docs.measured_table(tmp_path)


def test_the_project_s_own_records_can_be_shown(build_docs: Any) -> None:
    folder = ROOT / "measurements"
    assert len(build_docs.records_of(folder)) <= len(read_folder(folder))


# --- From a run to a plan -------------------------------------------------------------------------


def test_a_run_is_quoted_and_its_context_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for an H100 whose context takes 500 MiB."""
    from moesize.verify import run as verify_run
    from moesize.verify.devices import Card
    from verify.configs import write_config
    from verify.stand_in import CONTEXT_BYTES, StandIn

    meter = StandIn()
    monkeypatch.setattr(verify_run, "find_meter", lambda device: meter)
    monkeypatch.setattr(verify_run, "free_before", lambda device: Card(meter.total, meter.total))
    folder = write_config("dense GQA", tmp_path / "model")
    report = verify_run.verify(
        str(folder), device="cuda", tokens=24, sequences=2, decode_steps=2, layers="all", save=True,
        command=f"moesize verify {folder}",
    )  # fmt: skip
    (kept,) = read_folder(Path(report.saved_to).parent)
    assert str(tmp_path) not in Path(report.saved_to).read_text()
    plan = ("plan", str(folder), "--gpu", "h100", "--engine", "transformers", "--format", "json")
    answer = call(*plan).json()
    said = {note["code"]: note["message"] for note in answer["warnings"]}
    weights = {term.name: term for term in report.terms}["weights"].predicted_bytes
    taken = kept.measured("weights.blocks")
    assert weights is not None
    assert taken is not None
    assert taken > weights  # small tensors in blocks of 512 bytes
    assert f"weights {(weights - taken) / taken:+.2%}, KV cache +0.00% (" in said["measured"]
    assert said["calibration"] == "as measured on this GPU (verify --save): cuda_context"
    (item,) = (i for i in answer["gpus"][0]["items"] if i["name"] == "runtime.cuda_context")
    assert item["bytes"] == CONTEXT_BYTES
    (folder / "config.json").write_text(
        (folder / "config.json")
        .read_text()
        .replace('"num_hidden_layers": ', '"num_hidden_layers": 1')
    )
    codes = {note["code"] for note in call(*plan).json()["warnings"]}
    assert "measured" not in codes
