"""What vLLM's own settings change: states, batches in flight, towers, host memory, blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moesize.api import make_plan, stored_entries
from moesize.catalog import resolve_model
from moesize.core.deployment import Layout, Request
from moesize.core.errors import InvalidDeploymentError, InvalidInputError, UnsupportedError
from moesize.core.model_spec import ModelSpec
from moesize.core.plan import Plan
from moesize.core.units import GIB, ceil_div
from moesize.core.vllm import VllmSettings
from moesize.core.vllm_encoder import encoder_shape, has_active_encoder
from moesize.core.vllm_ranks import distinct_ranks
from moesize.gpus import find_gpu


def planned(model: str, request: Request, gpu: str = "h100", **options: Any) -> Plan:
    spec, source = resolve_model(model, online=False)
    if options:
        request = replace(request, engine_settings=VllmSettings(**options))
    return make_plan(spec, source, None, "", find_gpu(gpu).spec, request)


def spec_of(model: str) -> ModelSpec:
    return resolve_model(model, online=False)[0]


def sizes(found: Plan) -> dict[str, int]:
    return {item.name: item.size_bytes for item in found.gpus[0].items}


def test_settings_are_shown_and_the_unplanned_named() -> None:
    found = planned("llama-3.1-8b", Request(), enable_dbo=True, dtype="float16")
    assert found.deployment["engine_settings"] == {
        "enable_dbo": True,
        "dtype": "float16",
    }
    notes = [note.message for note in found.warnings if note.code == "engine-settings"]
    assert len(notes) == 1
    assert "--enable-dbo" in notes[0]
    assert "dtype" not in notes[0]


@pytest.mark.parametrize(
    "wrong",
    [{"num_gpu_blocks_override": -1}, {"pp_layer_partition": (5, -5)}, {"ubatch_size": 1 << 30}],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidDeploymentError):
        VllmSettings(**wrong)


def test_settings_of_another_engine_are_refused() -> None:
    with pytest.raises(InvalidInputError):
        planned("llama-3.1-8b", Request(engine_settings="--max-model-len 8"))


def test_states_without_prefix_caching() -> None:
    """Qwen3-Next, N = 262,144: 964 + 3 * 2 blocks a request with prefix caching, 964 + 3 without.

    vLLM 0.32.0 v1/kv_cache_interface.py:MambaSpec.max_memory_usage_bytes.
    """
    request = Request(
        engine_version="0.32.0",
        num_gpus=4,
        tensor_parallel_size=4,
        context_tokens=262144,
        kv_cache_bytes=32 * GIB,
    )
    # 0.33 keeps one more state of gated delta nets while prefixes are cached.
    both = planned("qwen3-next-80b-a3b", request)
    none = planned("qwen3-next-80b-a3b", request, enable_prefix_caching=False)
    assert both.kv_cache.blocks == none.kv_cache.blocks
    blocks = both.kv_cache.blocks
    assert both.kv_cache.max_concurrency == pytest.approx(blocks / 970)
    assert none.kv_cache.max_concurrency == pytest.approx(blocks / 967)


def test_wider_states_make_longer_blocks() -> None:
    """Per layer at TP 4: 12,288 bytes of convolution, 8 x 128 x 128 x 2 or x 4 of state."""
    request = Request(
        engine_version="0.32.0", num_gpus=4, tensor_parallel_size=4, kv_cache_bytes=GIB
    )
    plain = planned("qwen3-next-80b-a3b", request)
    wide = planned("qwen3-next-80b-a3b", request, mamba_ssm_cache_dtype="float32")
    per_token = 2 * 256 * 2
    for found, element in ((plain, 2), (wide, 4)):
        state = 12_288 + 8 * 128 * 128 * element
        assert found.kv_cache.block_tokens == 16 * ceil_div(state, 16 * per_token)
    with pytest.raises(InvalidDeploymentError, match="recurrent states"):
        planned("qwen3-next-80b-a3b", request, mamba_ssm_cache_dtype="int8")


def test_fewer_batches_in_flight_hold_fewer_blocks() -> None:
    """Gemma 3: windows hold `min(1023 + F, N)` tokens, F = T or 2 T (max_in_flight_tokens)."""
    request = Request(context_tokens=65536, max_num_batched_tokens=8192, kv_cache_bytes=16 * GIB)
    two = planned("gemma-3-12b", request, gpu="h200")
    one = planned("gemma-3-12b", request, gpu="h200", async_scheduling=False)
    assert one.kv_cache.max_concurrency > two.kv_cache.max_concurrency


def test_buffers_of_all_to_all_kernels() -> None:
    """VLLM_DEEPEP_BUFFER_SIZE_MB = 1024, once for NVLink and once between hosts of eight."""
    name = "runtime.all2all"
    for ranks, buffers in ((8, 1), (16, 2)):
        request = Request(num_gpus=ranks, data_parallel_size=ranks, expert_parallel=True)
        found = planned("qwen3-30b-a3b", request, all2all_backend="deepep_high_throughput")
        assert sizes(found)[name] == buffers * GIB
        assert name not in sizes(planned("qwen3-30b-a3b", request))
    request = Request(num_gpus=8, data_parallel_size=8, expert_parallel=True)
    other = planned("qwen3-30b-a3b", request, all2all_backend="deepep_low_latency")
    assert "all2all" in [note.code for note in other.warnings]


def test_what_sleep_leaves() -> None:
    found = planned("llama-3.1-8b", Request(), enable_sleep_mode=True)
    message = next(note.message for note in found.warnings if note.code == "sleep")
    # 14.957 GiB of parameters.
    assert "14.96 GiB of weights in host memory" in message


def test_balancer_keeps_counts_and_a_layer() -> None:
    """1000 steps x 94 layers x 160 experts x int32, and 20 experts of 3 x 1536 x 4096 x 2 bytes."""
    request = Request(
        num_gpus=8, tensor_parallel_size=8, expert_parallel=True, num_redundant_experts=32
    )
    found = planned("qwen3-235b", request, gpu="h200")
    expected = 1000 * 94 * 160 * 4 + 20 * 3 * 1536 * 4096 * 2
    assert sizes(found)["runtime.expert_balancer"] == expected


def test_blocks_as_told() -> None:
    found = planned("llama-3.1-8b", Request(context_tokens=8192), num_gpu_blocks_override=2048)
    assert found.kv_cache.blocks == 2048
    assert found.kv_cache.capacity_tokens == 2048 * 16
    assert found.deployment["kv_cache_memory_bytes"] == 2048 * 16 * 131_072


def test_whole_towers_and_no_towers() -> None:
    request = Request(num_gpus=4, tensor_parallel_size=4)
    split = sizes(planned("qwen3-vl-30b-a3b", request))["weights.towers"]
    whole = sizes(planned("qwen3-vl-30b-a3b", request, mm_encoder_tp_mode="data"))
    assert 3 * split < whole["weights.towers"] < 4 * split
    for options in (
        {"language_model_only": True},
        {"limit_mm_per_prompt": (("image", 0), ("video", 0), ("audio", 0))},
    ):
        without = sizes(planned("qwen3-vl-30b-a3b", request, **options))
        assert "weights.towers" not in without
        assert "activations.encoder" not in without
    skipped = sizes(planned("qwen3-vl-30b-a3b", request, skip_mm_profiling=True))
    assert skipped["weights.towers"] == split
    assert "activations.encoder" not in skipped


@pytest.mark.parametrize(
    ("model", "options", "parameter_bytes"),
    [
        # vLLM 0.32.0's model classes on the meta device, one of two tensor-parallel ranks.
        ("gemma-3-27b", {"limit_mm_per_prompt": (("image", 0),)}, 27010700800),
        ("gemma-3-27b", {"mm_encoder_tp_mode": "data"}, 27445541488),
        ("qwen3.5-27b", {"limit_mm_per_prompt": (("image", 0),)}, 27362024560),
        ("qwen3.5-27b", {"limit_mm_per_prompt": (("image", 0), ("video", 0))}, 26896675584),
        ("qwen3.5-27b", {"mm_encoder_tp_mode": "data"}, 27818135776),
        ("kimi-k2.5", {"limit_mm_per_prompt": (("image", 0), ("video", 0))}, 298723539312),
        ("kimi-k2.5", {"language_model_only": True}, 298192531456),
        ("qwen2.5-vl-7b", {"language_model_only": True}, 7615820800),
        ("qwen2.5-vl-7b", {"mm_encoder_tp_mode": "data"}, 8968921088),
        ("gemma-4-26b-a4b", {"language_model_only": True}, 25259073536),
        ("gemma-4-12b", {"language_model_only": True}, 12033519872),
        ("glm-4.5v", {"limit_mm_per_prompt": (("image", 0), ("video", 0))}, 106923428352),
        ("glm-4.5v", {"mm_encoder_tp_mode": "data"}, 108640792064),
    ],
)
def test_towers_as_vllm_builds_them(
    model: str, options: dict[str, Any], parameter_bytes: int
) -> None:
    spec = spec_of(model)
    (rank,) = distinct_ranks(
        spec,
        stored_entries(spec, None, "vllm"),
        Request(num_gpus=2),
        Layout(tensor_parallel_size=2),
        VllmSettings(**options),
        compute_capability="9.0",
        rocm=False,
    )
    assert rank.weights.parameter_bytes == parameter_bytes


def test_encoder_shapes() -> None:
    """Qwen3-VL-30B-A3B's config: h 1152, width 4304, 2 x 2 patches a token, three deepstack layers.

    Gemma 3's: 4096 patches of 1152 become 256 tokens.
    """
    shape = encoder_shape(spec_of("qwen3-vl-30b-a3b"), VllmSettings(), 1)
    assert shape is not None
    assert (shape.patches, shape.output_widths, shape.largest_item) == (4, 4, 16384)
    assert shape.patch_bytes == 2 * (2 * 1152 + 4304)
    halved = encoder_shape(spec_of("qwen3-vl-30b-a3b"), VllmSettings(), 2)
    assert halved is not None
    assert halved.patch_bytes == 2 * (2 * 1152 + 4304 // 2)
    gemma = encoder_shape(spec_of("gemma-3-27b"), VllmSettings(), 1)
    assert gemma is not None
    assert gemma.patches == 16
    assert encoder_shape(spec_of("llama-3.1-8b"), VllmSettings(), 1) is None
    assert not has_active_encoder(spec_of("llama-3.1-8b"), VllmSettings())


# Llama-3.1-8B: qkv 6144 x 4096, o 4096 x 4096, gate and up 28672 x 4096, down 4096 x 14336, two
# norms of 4096; two bytes each.
QKV, OUT, GATE_UP, DOWN, NORM = 50_331_648, 33_554_432, 234_881_024, 117_440_512, 8_192
LAYER = QKV + OUT + GATE_UP + DOWN + 2 * NORM


@pytest.mark.parametrize(
    ("gib", "moved"),
    [
        (1.0, 2 * LAYER + QKV + OUT + GATE_UP),
        (0.001, QKV),
        (100.0, 32 * LAYER),
    ],
)
def test_whole_parameters_go_to_the_host(gib: float, moved: int) -> None:
    """UVAOffloader stops before the first parameter past the limit (offloader/uva.py)."""
    plain = planned("llama-3.1-8b", Request())
    found = planned("llama-3.1-8b", Request(cpu_offload_bytes=round(gib * GIB)))
    assert [item.size_bytes for item in found.host] == [moved]
    assert found.deployment["cpu_offload_bytes"] == moved
    gained = found.kv_cache.available_bytes - plain.kv_cache.available_bytes
    # What the allocator adds to tensors goes with them.
    assert moved <= gained < moved * 1.001
    assert found.performance["decode_tokens_per_s"] is None


def test_every_gpu_has_its_share_on_the_host() -> None:
    request = Request(num_gpus=4, tensor_parallel_size=2, data_parallel_size=2)
    from dataclasses import replace

    found = planned("llama-3.1-8b", replace(request, cpu_offload_bytes=100 * GIB))
    (item,) = found.host
    # Split in two, but for the norms, and held by two data-parallel ranks.
    norms = 32 * 2 * NORM
    assert item.size_bytes == 4 * ((32 * LAYER - norms) // 2 + norms)


def test_prefetched_layers_and_their_buffer() -> None:
    """Groups of 8, the last 2 of each: layers 6, 7, 14, 15, ... (config/offload.py)."""
    plain = planned("llama-3.1-8b", Request())
    found = planned(
        "llama-3.1-8b",
        Request(),
        offload_group_size=8,
        offload_num_in_group=2,
        offload_prefetch_step=2,
    )
    assert [item.size_bytes for item in found.host] == [8 * LAYER]
    buffers = sizes(found)["runtime.offload_buffers"]
    # Two norms of one shape and name are one parameter of the inventory.
    assert buffers == pytest.approx(2 * LAYER, rel=1e-4)
    gained = found.kv_cache.available_bytes - plain.kv_cache.available_bytes
    assert gained == pytest.approx(8 * LAYER - buffers, rel=1e-3)
    with pytest.raises(InvalidDeploymentError, match="offload_num_in_group"):
        planned("llama-3.1-8b", Request(), offload_group_size=2, offload_num_in_group=3)


def test_experts_of_some_layers_or_all() -> None:
    """Mixtral: a layer's experts are 8 x 3 x 4096 x 14336 x 2 bytes."""
    layer = 8 * 3 * 4096 * 14336 * 2
    some = planned("mixtral-8x7b", Request(offload_experts=4))
    assert [item.size_bytes for item in some.host] == [4 * layer]
    message = next(note.message for note in some.warnings if note.code == "offload")
    assert "--cpu-offload-gb 10.5 --cpu-offload-params experts" in message
    every = planned("mixtral-8x7b", Request(offload_experts="all"))
    assert sizes(every).get("weights.routed_experts", 0) == 0
    for request, word in (
        (Request(offload_experts=4, cpu_offload_bytes=GIB), "one setting"),
        (Request(offload_experts=4, pipeline_parallel_size=2, num_gpus=2), "pipeline"),
    ):
        with pytest.raises((InvalidDeploymentError, UnsupportedError), match=word):
            planned("mixtral-8x7b", request)
    with pytest.raises(InvalidDeploymentError, match="no experts"):
        planned("llama-3.1-8b", Request(offload_experts=4))
    with pytest.raises(UnsupportedError, match="w2_weight"):
        planned("mixtral-8x7b", Request(cpu_offload_bytes=GIB), cpu_offload_params=("w2_weight",))
