"""The script that fits an engine's constants to field reports."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

_SCRIPT = Path(__file__).parent.parent / "scripts" / "calibrate.py"


@pytest.fixture(scope="module")
def script() -> Any:
    found = importlib.util.spec_from_file_location("calibrate", _SCRIPT)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["calibrate"] = module
    found.loader.exec_module(module)
    yield module
    del sys.modules["calibrate"]


# github.com/kolyangg/mlops-assignment at daaf8cb, logs/vllm.log (vLLM 0.10.2 on an H100).
REPORT = {
    "id": "one",
    "source_url": "https://github.com/kolyangg/mlops-assignment/blob/daaf8cb3262f/logs/vllm.log",
    "source_group": "repo:kolyangg/mlops-assignment",
    "engine": "vllm",
    "engine_version": "0.10.2",
    "model": "Qwen/Qwen3-30B-A3B-Instruct-2507",
    "gpu": "H100",
    "gpu_total_gib": 79.18,
    "tp": 1,
    "pp": 1,
    "ep": False,
    "quantization": None,
    "max_model_len": 6144,
    "gpu_memory_utilization": 0.9,
    "max_num_seqs": None,
    "max_num_batched_tokens": 8192,
    "enforce_eager": False,
    "observed": {
        "weights_gib": 56.9342,
        "kv_cache_gib": 8.68,
        "cuda_graph_gib": 0.69,
        "free_at_start_gib": 78.57,
        "activation_peak_gib": 5.58,
        "non_torch_gib": 0.07,
        "outcome": "ok",
    },
}


def test_observations_of_a_log(script: Any) -> None:
    samples = script.collect([REPORT], script.Architectures([]), {})
    found = {kind: sample.value for kind, _, _, sample in samples.rows}
    # 5.58 GiB less the hidden states of 8192 tokens, over 1024 x 151,936 logits.
    logit = (5.58 * 2**30 - 8192 * 2048 * 2) / (1024 * 151_936)
    assert found["activations_sampler"] == pytest.approx(logit)
    assert found["non_torch"] == pytest.approx(0.07 * 2**30)
    assert found["context"] == pytest.approx(0.61 * 2**30)
    # 0.10 captures pieces only: 1, 2, 4 and every eighth size to 512, each of 48 layers.
    assert found["graphs"] == pytest.approx(0.69 * 2**30 / 67 / 48)


def test_what_is_left_out_says_why(script: Any) -> None:
    rows = [
        {**REPORT, "id": "card", "gpu": None},
        {**REPORT, "id": "model", "model": "nobody/has-this-7b"},
        {**REPORT, "id": "odd", "suspect": "negative"},
    ]
    left_out = script.collect(rows, script.Architectures([]), {}).left_out
    assert [line.partition(":")[0] for line in left_out] == ["card", "model", "odd"]


def test_bands_and_left_out_sources(script: Any) -> None:
    assert script.quantiles([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1 - 2 / 3, 3 + 2 / 3))
    many = [float(n) for n in range(101)]
    assert script.quantiles(many) == pytest.approx((50, 5, 95))
    samples = [script.Sample("a", "", 10.0), script.Sample("a", "", 12.0)]
    samples.append(script.Sample("b", "", 20.0))
    here, elsewhere, share = script.left_out_errors(samples)
    # The median of all is 12; without a it is 20, without b 11.
    assert (here, elsewhere) == (2.0, 9.0)
    assert share == 0
