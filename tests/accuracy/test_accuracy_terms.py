"""Figures of reports against plans: logged numbers, and the arithmetic of errors."""

from __future__ import annotations

from typing import Any

import pytest
from reporting import report

from moesize.accuracy import _measure, measure
from moesize.accuracy.models import resolve_report
from moesize.accuracy.reports import FieldReport, ReportFile
from moesize.accuracy.runs import GIVEN_BLOCKS, run_of
from moesize.accuracy.summary import Row, quantile, summarize, why_not_covered
from moesize.accuracy.terms import (
    MAIN_TERMS,
    TERMS,
    Plans,
    Prediction,
    figures_of,
    half_digit,
    state_gib,
)
from moesize.core.units import GIB

# vLLM 0.12.0's start-up log on an A100-40GB (kyuz0/amd-r9700-vllm-toolboxes at 18a88f1c,
# benchmarks/benchmark_results_nvidia-a100/meta-llama_Meta-Llama-3.1-8B-Instruct_tp1_server.log).
# The rules of weights and of a uniform cache have not changed since; the version stands
# for one that is planned.
LLAMA: dict[str, Any] = {
    "engine_version": "0.33.0",
    "model": "meta-llama/Meta-Llama-3.1-8B-Instruct",
    "gpu": "A100-SXM4-40GB",
    "tp": 1,
    "max_model_len": 65536,
    "gpu_memory_utilization": 0.95,
    "max_num_seqs": 64,
    "max_num_batched_tokens": 2048,
}
LOGGED = {
    "weights_gib": 14.9889,
    "kv_cache_gib": 21.99,
    "kv_cache_tokens": 180128,
    "max_concurrency": 2.75,
    "max_concurrency_at_tokens": 65536,
    "outcome": "ok",
}


def rows_of(made: FieldReport) -> dict[str, Row]:
    return {row.term: row for row in _measure(made, frozenset())[0]}


def test_a_log_of_a_uniform_model_is_met() -> None:
    rows = rows_of(report(**LLAMA, observed=LOGGED))
    assert list(rows) == [term for term in TERMS if term in rows]
    weights = rows["weights"]
    assert weights.error == pytest.approx(0, abs=1e-5)
    assert weights.card is not None
    assert rows["kv_tokens_given_kv"].error == 0.0
    assert rows["concurrency_given_kv"].error == 0.0
    end = rows["kv_gib"]
    assert end.low is not None
    assert end.high is not None
    assert end.low <= end.observed <= end.high
    assert abs(end.error_of_card or 1) < 0.08
    tokens = rows["kv_tokens"]
    assert tokens.low is not None
    assert tokens.high is not None
    assert tokens.low < (tokens.predicted or 0) < tokens.high


def test_without_a_gpu_only_what_does_not_depend_on_it_is_predicted() -> None:
    rows = rows_of(report(**{**LLAMA, "gpu": None}, observed=LOGGED))
    covered = {term for term, row in rows.items() if row.predicted is not None}
    assert covered == {"weights", "kv_tokens_given_kv", "concurrency_given_kv"}
    assert rows["kv_gib"].not_covered == "gpu not known: the term depends on it"
    # MXFP4 is stored in another way on each generation (vLLM fused_moe/oracle/mxfp4.py).
    other = {**LLAMA, "model": "gpt-oss-20b", "quantization": "mxfp4", "gpu": None}
    (row,) = rows_of(report(**other, observed={"weights_gib": 13.7})).values()
    assert row.not_covered is not None
    assert row.not_covered.startswith("gpu not known: between ")


def test_candidates_that_nearly_agree_give_the_middle_and_a_band(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from moesize.accuracy import terms

    made = report(**{**LLAMA, "gpu": None}, observed={"weights_gib": 14.9889})
    model = resolve_report(made)
    run = run_of(made, model)
    assert len(run.candidates) == 6

    def predict(sizes: list[float]) -> Prediction | str:
        method = {"weights": lambda _plans, i, _figure: Prediction(sizes[i], sizes[i], sizes[i])}
        monkeypatch.setattr(terms, "_METHODS", method)
        (figure,) = figures_of(made, given_blocks=())
        return Plans(made, model, run).predict(figure)

    assert predict([10.0, 10.0, 10.0, 10.0, 10.0, 10.09]) == (10.0, 10.0, 10.09, False)
    assert predict([10.0, 10.0, 10.0, 10.0, 10.0, 10.2]) == "gpu not known: between 10 and 10.2"


def test_weights_that_are_not_known_leave_the_cache_comparable() -> None:
    made = report(
        **{
            **LLAMA,
            "model": "Qwen3-32B-W8A8",
            "quantization": "modelslim",
            "max_model_len": 32768,
        },
        observed={**LOGGED, "max_concurrency_at_tokens": 32768},
    )
    rows = rows_of(made)
    assert (rows["weights"].not_covered or "").startswith("weights not known: ")
    assert rows["kv_tokens_given_kv"].predicted is not None
    assert _measure(made, frozenset())[2].covered is True
    assert _measure(made, frozenset())[2].fully is False


def test_settings_that_the_engine_refuses_are_named() -> None:
    made = report(**{**LLAMA, "tp": 7, "gpu_count": 7}, observed=LOGGED)
    rows = rows_of(made)
    reasons = {row.not_covered for row in rows.values()}
    assert all(reason and reason.startswith("settings refused: ") for reason in reasons)
    assert not _measure(made, frozenset())[2].covered


def row(**fields: Any) -> Row:
    return Row(
        **{
            "id": "r",
            "line": 1,
            "engine": "vllm",
            "engine_version": "",
            "version_assumed": False,
            "model": "m",
            "model_id": "m",
            "gpu": "",
            "term": "kv_tokens",
            "device": "",
            "unit": "tokens",
            "observed": 100.0,
            "suspect": "",
            **fields,
        }
    )


def test_errors_are_fractions_of_what_was_observed() -> None:
    plain = row(predicted=110.0, low=90.0, high=120.0)
    assert (plain.error, plain.in_band) == (0.1, True)
    assert row(predicted=80.0, low=80.0, high=80.0).error == -0.2
    assert row(predicted=80.0, low=80.0, high=80.0).in_band is False
    size = row(unit="GiB", observed=50.0, predicted=46.0, low=40.0, high=49.9, card=80.0)
    assert size.error_of_card == -0.05
    assert size.in_band is False
    assert size.band_of_card == pytest.approx(9.9 / 80)
    # Memory that capturing a graph freed has no fraction.
    freed = row(unit="GiB", observed=-0.5, predicted=0.5, low=0.0, high=1.0, card=80.0)
    assert (freed.error, freed.error_of_card) == (None, 1 / 80)
    assert (row().error, row().in_band) == (None, None)


def test_a_figure_inside_the_rounding_of_another_is_met() -> None:
    inside = row(predicted=104.0, low=99.0, high=109.0, exact_given=True)
    assert (inside.error, inside.in_band) == (0.0, True)
    below = row(observed=90.0, predicted=104.0, low=99.0, high=109.0, exact_given=True)
    assert below.error == pytest.approx(0.1)
    above = row(observed=121.1, predicted=104.0, low=99.0, high=109.0, exact_given=True)
    assert above.error == pytest.approx(-0.1, abs=1e-3)
    # 2.75 stands for anything up to 2.755.
    printed = row(
        unit="requests", observed=2.75, predicted=2.7, low=2.7, high=2.746, rounding=0.005
    )
    assert printed.in_band is True


def test_what_a_figure_is_printed_as_is_met() -> None:
    # 0.4932 MiB of logits are logged as 0.49.
    small = row(unit="MiB", observed=0.49, predicted=0.4932, low=0.4932, high=0.4932)
    assert small.error == pytest.approx(0.0065, abs=1e-4)
    small = row(
        unit="MiB", observed=0.49, predicted=0.4932, low=0.4932, high=0.4932, rounding=0.005
    )
    assert (small.error, small.in_band) == (0.0, True)
    assert half_digit(0.49, "MiB") == half_digit(3.0, "GiB") == 0.005
    assert half_digit(14.2717, "GiB") == 0.00005
    assert half_digit(16384.0, "tokens") == 0.0
    # llama.cpp's projected use is printed whole; a total is the sum of three printed figures.
    made = figures_of(
        report(
            "llama.cpp",
            observed={
                "projected_device_mib": 9226,
                "model_buffer_mib": {"CUDA0": 1.5, "CUDA1": 2.25, "CPU": 3.0},
            },
        ),
        given_blocks=(),
    )
    rounding = {figure.term: figure.rounding for figure in made}
    assert rounding["device_total"] == 0.5
    assert rounding["model_total"] == pytest.approx(0.015)
    assert rounding["model_buffer"] == 0.005


def test_quantiles_interpolate() -> None:
    # The same as numpy.quantile and statistics.quantiles(method="inclusive").
    assert quantile([4, 1, 3, 2], 0.5) == 2.5
    assert quantile(range(11), 0.9) == 9
    assert quantile([5], 0.9) == 5
    assert quantile([], 0.5) is None


def test_a_summary_counts_what_is_covered() -> None:
    found = summarize(
        "vllm",
        "kv_tokens",
        [
            row(predicted=101.0, low=100.0, high=101.0),
            row(predicted=97.0, low=97.0, high=97.0, version_assumed=True),
            row(not_covered="model not known"),
        ],
    )
    assert (found["n"], found["covered"], found["version_assumed"]) == (3, 2, 1)
    assert found["median_abs_error"] == 0.02
    assert found["median_error"] == -0.01
    assert found["worst_abs_error"] == 0.03
    assert found["in_band"] == 0.5
    assert summarize("vllm", "weights", [row(not_covered="x")])["median_abs_error"] is None


def test_coverage_counts_main_figures() -> None:
    good = {"predicted": 1.0, "low": 1.0, "high": 1.0}
    assert {"weights", "kv_tokens_given_kv", "model_total", "kv_total"} <= MAIN_TERMS
    assert why_not_covered([row(term="weights", **good)]) is None
    left_open = row(term="weights", not_covered="weights not known: a mixture")
    assert why_not_covered([left_open]) == "weights not known: a mixture"
    both = [left_open, row(term="kv_tokens_given_kv", **good)]
    assert why_not_covered(both) is None
    assert why_not_covered(both, fully=True) == "weights not known: a mixture"
    failed = [row(term="weights", not_covered="settings refused: x"), both[1]]
    assert why_not_covered(failed) == "settings refused: x"
    assert why_not_covered([row(term="cuda_graphs", not_covered="gpu not known")])
    assert why_not_covered([row(term="cuda_graphs", **good)]) is None


def outcomes(*reports: FieldReport) -> dict[str, Any]:
    return measure(ReportFile(file="x", reports=list(reports))).outcome_summary()


def test_outcomes_count_false_answers_and_warnings() -> None:
    # 15 GiB of weights fit 40 GB and do not fit 16 GB, whatever is estimated around them.
    fits = report(**LLAMA, id="fits", observed={"outcome": "ok"})
    false_no = report(**{**LLAMA, "gpu": "rtx-4080"}, id="no", observed={"outcome": "ok"})
    false_yes = report(**LLAMA, id="yes", observed={"outcome": "oom_runtime"})
    doubted = report(**LLAMA, id="d", observed={"outcome": "oom_load"}, suspect="odd")
    silent = report(**LLAMA, id="s", observed={"outcome": "partial log"})
    unknown = report(**{**LLAMA, "gpu": None}, id="u", observed={"outcome": "ok"})
    found = outcomes(fits, false_no, false_yes, doubted, silent, unknown)
    assert (found["n"], found["covered"], found["agree"]) == (4, 3, 1)
    assert (found["false_fits"], found["false_does_not_fit"]) == (1, 1)
    assert found["false_fits_without_warning"] == 1
    assert found["suspect"] == 1
    assert found["not_covered"] == {"gpu not known": 1}
    assert {case["id"] for case in found["cases"]} == {"no", "yes", "d"}
    (case,) = [case for case in found["cases"] if case["id"] == "no"]
    assert (case["predicted"], case["observed"]) == ("does_not_fit", "ok")


def test_suspect_reports_are_counted_apart_and_kept() -> None:
    plain = report(**LLAMA, id="a", observed=LOGGED)
    odd = report(**LLAMA, id="b", observed={"weights_gib": 99.0}, suspect="adds up to more")
    found = measure(ReportFile(file="x", reports=[plain, odd]))
    (weights,) = [r for r in found.summary() if r["term"] == "weights"]
    (doubted,) = found.summary(suspect=True)
    assert (weights["n"], doubted["n"]) == (1, 1)
    assert (doubted["worst_abs_error"] or 0) > 0.8
    assert {r.id for r in found.rows} == {"a", "b"}
    assert [r.id for r in found.worst(50) if r.term == "weights"] == ["a"]


# Figures of https://github.com/ikawrakow/ik_llama.cpp/pull/370 (devices renamed) and a line of
# shun8686/for_debug scripts/log/test_ascend_qwen3_next_80b_w8a8_2p_in3k5_out1k5_50ms.py.log.
def test_figures_of_logs() -> None:
    made = report(
        "llama.cpp",
        observed={
            "model_buffer_mib": {"CPU_Mapped": 183525.52, "CUDA10": 1.0, "CUDA2": 16297.68},
            "kv_buffer_mib": {"CUDA2": 782.0, "CUDA10": 816.0},
            "kv_self_mib": 1597.0,
            "compute_buffer_mib": {"CUDA2": 304.75, "CUDA_Host": 40.01},
            "output_buffer_mib": {"CUDA_Host": 0.58},
        },
    )
    found = [(f.term, f.device, f.index, f.observed) for f in figures_of(made, given_blocks=())]
    assert found == [
        ("model_buffer", "CUDA2", 0, 16297.68),
        ("model_buffer", "CUDA10", 1, 1.0),
        ("model_buffer_host", "host", 0, 183525.52),
        ("model_total", "", 0, 199824.2),
        ("kv_buffer", "CUDA2", 0, 782.0),
        ("kv_buffer", "CUDA10", 1, 816.0),
        ("kv_total", "", 0, 1598.0),
        ("compute_buffer", "CUDA2", 0, 304.75),
        ("compute_buffer_host", "host", 0, 40.01),
        ("output_buffer", "", 0, 0.58),
    ]
    line = (
        "Mamba Cache is allocated. max_mamba_cache_size: 80, conv_state size: 0.03GB, "
        "ssm_state size: 1.42GB "
    )
    assert state_gib(line) == pytest.approx(1.45)
    assert state_gib({"slots": 80, "conv_gib": 0.03, "ssm_gib": 1.42}) == pytest.approx(1.45)
    assert state_gib("max_mamba_cache_size: " * 10_000) is None
    part = report("llama.cpp", observed={"kv_buffer_mib": {"CUDA0": 1.0}, "kv_detail": "SWA part"})
    assert figures_of(part, given_blocks=()) == []


def test_the_pool_of_sglang_follows_from_what_was_free() -> None:
    from moesize.accuracy.terms import _pool_bytes

    # 61.10 GB free before loading, 51.46 after, share 0.8: 51.46 - 0.2 x 61.10 = 39.24.
    made = report(
        "sglang",
        gpu_count=1,
        other_flags=["mem_fraction_static=0.8"],
        observed={"mem_avail_before_load_gb": 61.1, "mem_avail_after_load_gb": 51.46},
    )
    best, low, high = _pool_bytes(made) or (0, 0, 0)
    assert best == int((51.46 - 61.1 * (1 - 0.8)) * GIB)
    assert high - best == pytest.approx(0.006 * GIB, abs=2)
    assert best - low == pytest.approx(0.006 * GIB, abs=2)
    assert _pool_bytes(report("sglang", observed={"mem_avail_before_load_gb": 61.1})) is None


def test_a_block_that_vllm_made_is_compared() -> None:
    terms = [f.term for f in figures_of(report(block_size=1568), given_blocks=GIVEN_BLOCKS)]
    assert terms == ["block_size"]
    assert not figures_of(report(block_size=16), given_blocks=GIVEN_BLOCKS)
    assert not figures_of(report("sglang", block_size=1568), given_blocks=GIVEN_BLOCKS)


# Figures of one rank in the form in which SGLang prints them; what is expected of them follows from
# the bytes of a token and SGLang's formula of the pool, not from a log.
SGLANG = {
    "mem_avail_before_load_gb": 78.6,
    "mem_avail_after_load_gb": 63.4,
    "weights_gib": 15.2,
    "kv_cache_gib": 47.0,
    "max_total_num_tokens": 385_000,
}


def test_an_engine_that_is_added_is_planned_without_a_change_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A planner in the table of engines is all that it takes; here it plans as vLLM does."""
    import sys
    from dataclasses import replace
    from types import ModuleType

    from moesize import engines
    from moesize.accuracy import runs
    from moesize.core import vllm

    made = report(
        "sglang",
        engine_version="0.5.23",
        gpu="h100",
        gpu_total_gib=79.1,
        tp=1,
        max_model_len=32768,
        other_flags=["mem_fraction_static=0.8"],
        observed=SGLANG,
    )
    if "sglang" not in engines._ENGINES:
        assert {row.not_covered for row in rows_of(made).values()} == {"engine not planned: sglang"}
    module = ModuleType("fake_sglang")
    module.PLANS = vllm.PLANS  # type: ignore[attr-defined]
    module.rules_of = lambda profile: None  # type: ignore[attr-defined]

    def plan(spec: Any, stored: Any, gpu: Any, request: Any, _rules: Any) -> Any:
        request = replace(request, engine="vllm", engine_version=None)
        return vllm.plan_vllm(spec, stored, gpu, request, engines.vllm_profile())

    module.plan = plan  # type: ignore[attr-defined]
    real = engines._data
    known = {**real("vllm"), "oldest_version": "0.4", "facts": [], "constants": []}
    monkeypatch.setitem(sys.modules, "fake_sglang", module)
    monkeypatch.setitem(engines._ENGINES, "sglang", engines._Planner("fake_sglang", "plan"))
    monkeypatch.setattr(engines, "_data", lambda name: known if name == "sglang" else real(name))
    monkeypatch.setattr(runs, "read_flags", lambda request, words: (request, ()))
    for cached in (engines._profile, engines._rules):
        cached.cache_clear()
    try:
        rows = rows_of(made)
    finally:
        for cached in (engines._profile, engines._rules):
            cached.cache_clear()
    assert {term for term, row in rows.items() if row.predicted is not None} == {
        "weights",
        "kv_gib",
        "kv_tokens",
        "kv_tokens_given_kv",
        "kv_tokens_given_available",
    }
    # 131,072 bytes of K and V a token (8 KV heads x 128 x 2 x 32 layers x 2 bytes).
    given = rows["kv_tokens_given_kv"]
    assert given.predicted == pytest.approx(47.0 * GIB / 131072, rel=1e-3)
    assert given.error == pytest.approx(0, abs=1e-3)  # 385,000 tokens and a page of 16
    rest = rows["kv_tokens_given_available"]
    assert rest.predicted == pytest.approx((63.4 - 0.2 * 78.6) * GIB / 131072, rel=1e-3)
