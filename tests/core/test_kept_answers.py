"""What a model keeps between plans must never answer for settings that it was not found for."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest

from moesize.__main__ import main
from moesize.api import make_plan
from moesize.catalog import resolve_model
from moesize.core.deployment import Request
from moesize.core.errors import MoesizeError
from moesize.core.quantization import find_scheme
from moesize.core.records import dataclass
from moesize.gpus import find_gpu

_ENGINES: dict[str, tuple[dict[str, Any], ...]] = {
    "vllm": (
        {},
        {"kv_dtype": "fp8"},
        {"block_tokens": 64},
        {"tensor_parallel_size": 2},
        {"pipeline_parallel_size": 2},
        {"expert_parallel": True},
        {"engine_version": "0.6.6"},
        {"engine_version": "0.11.0"},
        {"engine_version": "0.6.6", "kv_dtype": "fp8"},
        {"num_spec_tokens": 3},
        {"lora_rank": 16},
    ),
    "sglang": ({}, {"tensor_parallel_size": 2}, {"mtp": True, "num_spec_tokens": 1}, {}),
    "transformers": ({}, {"engine_version": "4.57.6"}, {"concurrency": 8}, {}),
    "tensorrt-llm": ({}, {"tensor_parallel_size": 2}, {"kv_dtype": "fp8"}, {}),
}


@pytest.mark.parametrize("engine", _ENGINES)
@pytest.mark.parametrize("model", ["mixtral-8x7b", "deepseek-v3"])
def test_plans_of_one_spec_equal_those_of_a_fresh_one(engine: str, model: str) -> None:
    shared, source = resolve_model(model)
    devices = [find_gpu(name).spec for name in ("h200", "a100-80gb")]
    compared = 0
    for settings in (*_ENGINES[engine], *_ENGINES[engine]):
        for device in devices:
            for scheme in (None, find_scheme("fp8")):
                request = Request(engine=engine, num_gpus=4, context_tokens=8192, **settings)
                made = []
                for spec in (shared, replace(shared)):
                    try:
                        found = make_plan(spec, source, scheme, "", device, request).to_dict()
                    except MoesizeError as error:
                        found = {"refused": f"{type(error).__name__}: {error}"}
                    made.append(found)
                assert made[0] == made[1], (settings, device.id)
                compared += "refused" not in made[0]
    assert compared


def test_a_sweep_keeps_no_more_with_every_plan() -> None:
    spec = replace(resolve_model("mixtral-8x7b")[0])
    device = find_gpu("h200").spec

    def kept() -> int:
        values = [value for name, value in vars(spec).items() if name.startswith("_")]
        return sum(len(value) for value in values if isinstance(value, dict))

    sizes = []
    for context in range(4096, 4096 + 5 * 16, 16):
        for engine, settings in _ENGINES.items():
            for given in settings:
                if "mtp" not in given:
                    request = Request(engine=engine, num_gpus=4, context_tokens=context, **given)
                    make_plan(spec, "", None, "", device, request)
        sizes.append(kept())
    assert len(set(sizes)) == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    left: int
    right: tuple[int, ...] = ()


def test_the_first_object_of_a_record_is_checked_as_the_second() -> None:
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'left'"):
        _Pair()  # type: ignore[call-arg]
    assert (_Pair(left=1), _Pair(left=1).right) == (_Pair(left=1, right=()), ())
    with pytest.raises(TypeError, match="unexpected keyword argument 'middle'"):
        _Pair(left=1, middle=2)  # type: ignore[call-arg]


def test_a_caller_of_main_keeps_its_garbage_collector(capsys: pytest.CaptureFixture[str]) -> None:
    before = gc.get_threshold()
    assert main(["--version"]) == 0
    assert gc.get_threshold() == before
    assert capsys.readouterr().out.startswith("moesize ")
