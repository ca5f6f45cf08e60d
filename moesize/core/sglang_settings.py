"""Settings that SGLang alone has: `Request.engine_settings` of an SGLang plan.

Names are SGLang's own (0.5.23 `srt/server_args.py`, `srt/arg_groups/fields`), None = not given.
What every engine has stands in the Request itself: `gpu_memory_utilization` is
--mem-fraction-static, `max_num_seqs` --max-running-requests, `max_num_batched_tokens`
--chunked-prefill-size, `block_tokens` --page-size, `enforce_eager` --disable-cuda-graph,
`data_parallel_attention` --enable-dp-attention (its ranks: `data_parallel_size`).
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from moesize.core.errors import InvalidDeploymentError
from moesize.core.records import dataclass

_MOST = 1 << 34
# Where SGLang takes a share or a factor.
_SHARES = {"swa_full_tokens_ratio": 1.0, "mamba_full_memory_ratio": 1e6}
_SSM_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class SglangSettings:
    """Settings beside those that every engine has.

    moe_a2a_backend   deepep and the like: whole experts on every rank, shared experts replicated
    ep_size           ranks that share out whole experts; the rest of --tp-size splits them
    disaggregation_mode   "prefill" or "decode": other reserves
    """

    # Pools.
    max_total_tokens: int | None = None
    max_prefill_tokens: int | None = None
    swa_full_tokens_ratio: float | None = None
    disable_hybrid_swa_memory: bool | None = None
    mamba_full_memory_ratio: float | None = None
    max_mamba_cache_size: int | None = None
    mamba_ssm_dtype: str | None = None
    mamba_radix_cache_strategy: str | None = None
    disable_radix_cache: bool | None = None
    disable_overlap_schedule: bool | None = None
    # Layout.
    ep_size: int | None = None
    moe_a2a_backend: str | None = None
    moe_dense_tp_size: int | None = None
    enable_dp_lm_head: bool | None = None
    # Kernels and graphs.
    attention_backend: str | None = None
    cuda_graph_max_bs: int | None = None
    disable_prefill_cuda_graph: bool | None = None
    enable_symm_mem: bool | None = None
    # Speculation.
    speculative_algorithm: str | None = None
    speculative_num_steps: int | None = None
    speculative_eagle_topk: int | None = None
    speculative_num_draft_tokens: int | None = None
    # Serving.
    language_only: bool | None = None
    disaggregation_mode: str | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            most = _SHARES.get(item.name, _MOST)
            # --max-mamba-cache-size 0 and a share of 0 leave no pool at all.
            if not 0 < value <= most:
                raise InvalidDeploymentError(
                    f"SGLang setting {item.name.replace('_', ' ')} is {value}; it must lie above "
                    f"0 and up to {most:,}"
                )
        if self.mamba_ssm_dtype not in (None, *_SSM_DTYPES):
            raise InvalidDeploymentError(
                f"mamba ssm dtype {self.mamba_ssm_dtype!r:.40} is not one of SGLang's",
                f"use {', '.join(_SSM_DTYPES)}",
            )

    def to_dict(self) -> dict[str, Any]:
        """What was given, ready for JSON: `deployment.engine_settings`."""
        return {
            item.name: value
            for item in fields(self)
            if (value := getattr(self, item.name)) is not None
        }
