"""Settings that vLLM alone has: `Request.engine_settings` of a vLLM plan.

Names are vLLM's own (0.33.0 `engine/arg_utils.py`), None = not given. Sizes end in `_bytes` where
vLLM takes GiB.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

from moesize.core.errors import InvalidDeploymentError
from moesize.core.records import dataclass

UsageContext = Literal["api", "llm"]
_MOST = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """Settings beside those that every engine has; a name without a comment is as vLLM's.

    usage_context          "api" = `vllm serve`, "llm" = the class of that name (other batch limits)
    dtype                  --dtype: float16, bfloat16, float32
    pp_layer_partition     VLLM_PP_LAYER_PARTITION: layers of every pipeline stage
    spec_method            method of --speculative-config: mtp, eagle3, draft_model, ngram, ...
    draft_tensor_parallel_size   of --speculative-config; vLLM takes 1 or that of the model
    limit_mm_per_prompt    (modality, items) pairs, such as (("image", 0), ("video", 0))
    cpu_offload_params     name segments of the parameters that --cpu-offload-gb may move
    kv_offloading_bytes    --kv-offloading-size, in host memory
    swap_space_bytes       --swap-space, in host memory per GPU (up to 0.17)
    attention_backend      --attention-backend, or VLLM_ATTENTION_BACKEND
    max_cpu_loras          adapters held in host memory
    use_v1                 VLLM_USE_V1 (0.6 to 0.10)
    use_v2_model_runner    VLLM_USE_V2_MODEL_RUNNER
    profile_cuda_graphs    VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS
    fused_moe_chunk_size   VLLM_FUSED_MOE_CHUNK_SIZE (up to 0.17)
    flashinfer_workspace_bytes   VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE
    """

    usage_context: UsageContext | None = None
    dtype: str | None = None
    # Scheduler.
    async_scheduling: bool | None = None
    enable_chunked_prefill: bool | None = None
    performance_mode: str | None = None
    num_scheduler_steps: int | None = None
    # Cache.
    enable_prefix_caching: bool | None = None
    mamba_cache_mode: str | None = None
    mamba_cache_dtype: str | None = None
    mamba_ssm_cache_dtype: str | None = None
    mamba_block_size: int | None = None
    num_gpu_blocks_override: int | None = None
    disable_hybrid_kv_cache_manager: bool | None = None
    disable_sliding_window: bool | None = None
    kv_offloading_bytes: int | None = None
    swap_space_bytes: int | None = None
    # Layout.
    pp_layer_partition: tuple[int, ...] | None = None
    data_parallel_size_local: int | None = None
    prefill_context_parallel_size: int | None = None
    dcp_kv_cache_interleave_size: int | None = None
    all2all_backend: str | None = None
    enable_eplb: bool | None = None
    expert_placement_strategy: str | None = None
    enable_dbo: bool | None = None
    ubatch_size: int | None = None
    disable_custom_all_reduce: bool | None = None
    # Kernels and graphs.
    attention_backend: str | None = None
    moe_backend: str | None = None
    cudagraph_capture_sizes: tuple[int, ...] | None = None
    max_cudagraph_capture_size: int | None = None
    cudagraph_mode: str | None = None
    compilation_mode: str | None = None
    flashinfer_workspace_bytes: int | None = None
    fused_moe_chunk_size: int | None = None
    profile_cuda_graphs: bool | None = None
    use_v1: bool | None = None
    use_v2_model_runner: bool | None = None
    # Multimodal.
    limit_mm_per_prompt: tuple[tuple[str, int], ...] | None = None
    skip_mm_profiling: bool | None = None
    language_model_only: bool | None = None
    mm_encoder_tp_mode: str | None = None
    # LoRA.
    fully_sharded_loras: bool | None = None
    max_cpu_loras: int | None = None
    lora_dtype: str | None = None
    lora_target_modules: tuple[str, ...] | None = None
    enable_tower_connector_lora: bool | None = None
    enable_mixed_moe_lora_format: bool | None = None
    enable_moe_shared_loras: bool | None = None
    lora_extra_vocab_size: int | None = None
    # Speculation.
    spec_method: str | None = None
    draft_tensor_parallel_size: int | None = None
    # Offload and sleep.
    offload_backend: str | None = None
    cpu_offload_params: tuple[str, ...] | None = None
    offload_group_size: int | None = None
    offload_num_in_group: int | None = None
    offload_prefetch_step: int | None = None
    offload_params: tuple[str, ...] | None = None
    enable_sleep_mode: bool | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            numbers = value if isinstance(value, tuple) else (value,)
            for number in numbers:
                if isinstance(number, tuple):
                    number = number[1]
                if isinstance(number, bool) or not isinstance(number, int):
                    continue
                if number < 0 or (number > _MOST and not item.name.endswith("_bytes")):
                    raise InvalidDeploymentError(
                        f"vLLM setting {item.name.replace('_', ' ')} is {number}",
                        f"it must lie between 0 and {_MOST:,}",
                    )

    def to_dict(self) -> dict[str, Any]:
        """What was given, ready for JSON: `deployment.engine_settings`."""
        return {
            item.name: _plain(value)
            for item in fields(self)
            if (value := getattr(self, item.name)) is not None
        }

    def unplanned(self) -> tuple[str, ...]:
        """Flags that were given, may change memory, and are not looked at by the planner."""
        names = (name for name in self.to_dict() if name not in _PLANNED | _HARMLESS)
        return tuple(_TYPED.get(name) or f"--{name.replace('_', '-')}" for name in names)


# What is typed for a setting of another name.
_TYPED = {
    "kv_offloading_bytes": "--kv-offloading-size",
}


# What the planner looks at: a name that is not here is named in a warning when it is given.
_PLANNED = frozenset(
    (
        "cudagraph_capture_sizes",
        "cudagraph_mode",
        "enable_chunked_prefill",
        "flashinfer_workspace_bytes",
        "fused_moe_chunk_size",
        "max_cudagraph_capture_size",
        "performance_mode",
        "profile_cuda_graphs",
        "usage_context",
        "use_v1",
        "use_v2_model_runner",
        "all2all_backend",
        "async_scheduling",
        "cpu_offload_params",
        "disable_hybrid_kv_cache_manager",
        "draft_tensor_parallel_size",
        "dtype",
        "enable_eplb",
        "enable_mixed_moe_lora_format",
        "enable_prefix_caching",
        "enable_sleep_mode",
        "fully_sharded_loras",
        "language_model_only",
        "limit_mm_per_prompt",
        "lora_target_modules",
        "mamba_cache_mode",
        "mamba_ssm_cache_dtype",
        "max_cpu_loras",
        "mm_encoder_tp_mode",
        "num_gpu_blocks_override",
        "offload_backend",
        "offload_group_size",
        "offload_num_in_group",
        "offload_params",
        "offload_prefetch_step",
        "pp_layer_partition",
        "prefill_context_parallel_size",
        "skip_mm_profiling",
        "spec_method",
    )
)
# What cannot change what a GPU holds, at least not by more than a few bytes.
_HARMLESS = frozenset(
    (
        "data_parallel_size_local",
        "dcp_kv_cache_interleave_size",
        "expert_placement_strategy",
        "swap_space_bytes",
    )
)


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        if value and isinstance(value[0], tuple):
            return dict(value)
        return list(value)
    return value
