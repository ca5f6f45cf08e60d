"""What one vLLM version does, made of the facts in `data/engines/vllm.json`.

A fact holds for a range of versions, so a new version is a matter of data. The V0 engine (all of
0.6 and 0.7, fallback up to 0.10) is a profile of its own: `VllmProfile.for_core("v0")`.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from moesize.core.engine import Constants
from moesize.core.errors import UnsupportedError
from moesize.core.inventory import moe_of
from moesize.core.records import dataclass
from moesize.core.units import GIB
from moesize.core.vllm_budget import BatchDefaults, BatchRow, BudgetRules, default_batch
from moesize.core.vllm_kv import KvRules
from moesize.core.vllm_layers import CacheRules
from moesize.core.vllm_weights import WeightRules

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moesize.core.engine import EngineProfile
    from moesize.core.model_spec import ModelSpec
    from moesize.core.vllm_budget import ModelRunner
    from moesize.core.vllm_kv import MambaCacheMode
    from moesize.core.vllm_settings import VllmSettings

EngineCore = Literal["v0", "v1"]
_GRAPH_MODES = {
    "NONE": "none",
    "PIECEWISE": "piecewise",
    "FULL": "full",
    "FULL_DECODE_ONLY": "full",
    "FULL_AND_PIECEWISE": "both",
}
_T = TypeVar("_T")


class V0Batch(NamedTuple):
    """Scheduler limits of the V0 engine.

    Without chunked prefill a batch holds the longest prompt; it is chunked by itself beyond so many
    tokens of context, unless the model is multimodal, latent or has sliding windows.
    """

    sequences: int
    chunked_tokens: int
    least_tokens: int
    multimodal_tokens: int
    chunked_beyond_context: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmProfile:
    """What is known about one vLLM version; `rules_of` makes it from the data files.

    engine_core       "v0", "v1", or "v1_where_supported": V0 where `v1_lacks` something
    model_runner_rule "v1", "v2", "v2_if_dense" (and not hybrid) or "v2_if_listed"
    mamba_all_kinds   recurrent kinds that keep a state for each chunk when prefixes are cached:
                      not planned
    deep_gemm         DeepGEMM runs experts in FP8 tiles from Hopper on
    context_parallel  has --decode-context-parallel-size
    fourfold_position_types   model types whose rotary table has four times the positions
    attention_scalars  scales that an attention layer keeps on the GPU, each a tensor
    """

    version: str
    constants: Constants
    kv_rules: KvRules
    cache_rules: CacheRules
    weight_rules: WeightRules
    budget_rules: BudgetRules
    checkpoint_kinds: tuple[str, ...]
    default_utilization: float
    model_runner_rule: str
    v2_model_types: tuple[str, ...] = ()
    engine_core: str = "v1"
    v1_lacks: tuple[str, ...] = ()
    batch_rows: tuple[BatchRow, ...] = ()
    v0_batch: V0Batch | None = None
    hybrid_prefix_caching: bool = True
    mamba_align_mode: bool = True
    mamba_all_kinds: tuple[str, ...] = ()
    deep_gemm: bool = True
    context_parallel: bool = True
    fourfold_position_types: tuple[str, ...] = ()
    attention_scalars: int = 0

    def model_runner(self, spec: ModelSpec) -> ModelRunner:
        """Model runner of this version for this model; it decides what sampling costs."""
        rule = self.model_runner_rule
        if rule in ("v1", "v2"):
            return "v2" if rule == "v2" else "v1"
        if spec.model_type in self.v2_model_types:
            return "v2"
        if rule == "v2_if_listed" or _is_recurrent(spec):
            return "v1"
        return "v1" if any(moe_of(block) is not None for block in spec.blocks) else "v2"

    def core_for(
        self,
        spec: ModelSpec,
        *,
        vendor: str,
        compute_capability: tuple[int, int],
        kv_dtype: str,
        pipeline_parallel_size: int,
        use_v1: bool | None = None,
    ) -> EngineCore:
        """Engine that serves this deployment: V1 falls back to V0 for what it lacks."""
        if self.engine_core != "v1_where_supported":
            if self.engine_core == "v0" and use_v1:
                return "v1"
            return "v1" if self.engine_core == "v1" else "v0"
        if use_v1 is not None:
            return "v1" if use_v1 else "v0"
        nvidia = vendor.lower() == "nvidia"
        missing = {
            "amd": not nvidia,
            "turing": nvidia and compute_capability < (8, 0),
            "fp8_cache_before_hopper": kv_dtype.startswith("fp8")
            and nvidia
            and compute_capability[0] != 9,
            "recurrent": _is_recurrent(spec),
            "pipeline": pipeline_parallel_size > 1,
        }
        return "v0" if any(missing.get(what, False) for what in self.v1_lacks) else "v1"

    def for_core(self, core: EngineCore) -> VllmProfile:
        """The rules of the engine that was chosen."""
        if core == "v1":
            return self
        return replace(
            self,
            kv_rules=replace(
                self.kv_rules, hybrid_manager=False, tokens_logged="per_group", unifies_pages="pads"
            ),
            cache_rules=replace(self.cache_rules, paged_states=False),
            budget_rules=replace(
                self.budget_rules,
                budget_basis="before_distributed",
                graph_modes="full",
                graph_ceiling_by_decode=True,
            ),
        )

    def with_settings(self, settings: VllmSettings) -> VllmProfile:
        """What flags and environment variables change of this version's rules."""
        given: dict[str, Any] = {
            "graphs_charged": settings.profile_cuda_graphs,
            "moe_chunk_tokens": settings.fused_moe_chunk_size if self._has_chunks else None,
            "flashinfer_workspace_bytes": settings.flashinfer_workspace_bytes,
            "graph_sizes": settings.cudagraph_capture_sizes,
            "graph_ceiling": settings.max_cudagraph_capture_size,
            "graph_modes": _GRAPH_MODES.get((settings.cudagraph_mode or "").upper()),
        }
        changed = {name: value for name, value in given.items() if value is not None}
        runner = self.model_runner_rule
        if settings.use_v2_model_runner is not None and runner != "v1":
            runner = "v2" if settings.use_v2_model_runner else "v1"
        if not changed and runner == self.model_runner_rule:
            return self
        return replace(
            self, budget_rules=replace(self.budget_rules, **changed), model_runner_rule=runner
        )

    @property
    def _has_chunks(self) -> bool:
        return self.budget_rules.moe_chunk_tokens > 0

    def batch(
        self,
        core: EngineCore,
        spec: ModelSpec,
        context: int,
        *,
        gpu_total_bytes: int,
        gpu_name: str,
        max_num_seqs: int | None,
        max_num_batched_tokens: int | None,
        settings: VllmSettings,
        batched_experts: bool = False,
    ) -> BatchDefaults:
        """Batch limits: as asked, else this version's defaults for the GPU and the entry point."""
        if core == "v1" or self.v0_batch is None:
            batch = default_batch(
                gpu_total_bytes,
                gpu_name,
                context,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                chunked_prefill=settings.enable_chunked_prefill is not False,
                usage_context=settings.usage_context or "api",
                # Before, the experts took the batch in chunks.
                batched_experts=batched_experts and not self.budget_rules.batched_chunk_tokens,
                rows=self.batch_rows,
            )
            if settings.performance_mode != "throughput":
                return batch
            # vLLM 0.33.0 engine/arg_utils.py: defaults are doubled.
            tokens, sequences = batch
            return BatchDefaults(
                tokens if max_num_batched_tokens is not None else 2 * tokens,
                sequences if max_num_seqs is not None else 2 * sequences,
            )
        rules = self.v0_batch
        chunked = settings.enable_chunked_prefill
        if chunked is None:
            plain = not spec.towers and not has_windows(spec)
            latent = self.cache_rules.latent_cache and _is_latent(spec)
            chunked = context > rules.chunked_beyond_context and plain and not latent
        tokens = rules.chunked_tokens if chunked else max(context, rules.least_tokens)
        if spec.towers:
            tokens = max(tokens, rules.multimodal_tokens)
        return BatchDefaults(
            max_num_batched_tokens or tokens,
            max_num_seqs or rules.sequences,
        )

    def mamba_cache_mode(self, spec: ModelSpec, settings: VllmSettings) -> MambaCacheMode:
        """How recurrent states are kept: one for a request, or more so that prefixes are found."""
        kinds = {m.kind for block in spec.blocks for m in block.mixers if m.state()}
        match settings.mamba_cache_mode:
            case "none" | "align":
                return settings.mamba_cache_mode
            case None:
                pass
            case other:
                raise UnsupportedError(
                    f"mamba cache mode {other!r} is not planned", "use align or none"
                )
        caching = settings.enable_prefix_caching
        if caching is None:
            caching = self.hybrid_prefix_caching
        if not caching:
            return "none"
        if kinds and kinds <= set(self.mamba_all_kinds):
            raise UnsupportedError(
                f"vLLM {self.version} caches a state for every chunk of these layers when prefixes "
                "are cached; the size of a chunk is not known here",
                "leave prefix caching off, which is the default for this model",
            )
        return "align" if self.mamba_align_mode else "none"


def rules_of(profile: EngineProfile) -> VllmProfile:
    """The planner's view of what the data files say about a version."""
    facts = profile.facts
    backends = facts.get("latent_backends")
    v0 = facts.get("v0_batch")
    return VllmProfile(
        version=profile.version,
        constants=profile.constants,
        kv_rules=KvRules(
            widen_below_percent=facts["kv_widen_below_percent"],
            packs_mixed_pages=facts["kv_packs_mixed_pages"],
            reserves_null_block=facts["kv_reserves_null_block"],
            hybrid_manager=facts["kv_hybrid_manager"],
            chunked_windows=facts["kv_chunked_windows"],
            unifies_pages=facts["kv_unifies_pages"],
            tokens_logged=facts["kv_tokens_logged"],
            counts_all_in_flight=facts["kv_in_flight"] == "concurrent_batches",
        ),
        cache_rules=CacheRules(
            latent_backends=None
            if backends is None
            else {key: (name, block) for key, (name, block) in backends.items()},
            latent_cache=facts["latent_cache"],
            latent_hybrid_tokens=facts["latent_hybrid_alignment"],
            delta_net_checkpoint_majors=tuple(facts["delta_net_checkpoint_majors"]),
        ),
        weight_rules=_pick(WeightRules, facts),
        budget_rules=_pick(BudgetRules, facts),
        checkpoint_kinds=tuple(facts["checkpoint_kinds"]),
        default_utilization=facts["gpu_memory_utilization"],
        model_runner_rule=facts["model_runner"],
        v2_model_types=tuple(facts.get("v2_model_types", ())),
        engine_core=facts["engine_core"],
        v1_lacks=tuple(facts.get("v1_lacks", ())),
        batch_rows=tuple(
            BatchRow(
                least_bytes=row["memory_gib"] * GIB,
                not_named=row["not_named"],
                tokens_llm=row["tokens_llm"],
                tokens_api=row["tokens_api"],
                sequences=row["sequences"],
            )
            for row in facts.get("batch_defaults", ())
        ),
        v0_batch=None if v0 is None else V0Batch(**v0),
        hybrid_prefix_caching=facts["hybrid_prefix_caching"],
        mamba_align_mode=facts["mamba_align_mode"],
        mamba_all_kinds=tuple(facts.get("mamba_all_kinds", ())),
        deep_gemm=facts["deep_gemm"],
        context_parallel=facts["context_parallel"],
        fourfold_position_types=tuple(facts["fourfold_position_types"]),
        attention_scalars=facts["attention_scalars"],
    )


def _pick(kind: type[_T], facts: Mapping[str, Any]) -> _T:
    """A record of those facts that have the names of its fields."""
    names = [item.name for item in fields(kind)]  # type: ignore[arg-type]
    values = {name: facts[name] for name in names if name in facts}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _is_recurrent(spec: ModelSpec) -> bool:
    return any(mixer.state() for block in spec.blocks for mixer in block.mixers)


def has_windows(spec: ModelSpec) -> bool:
    """Whether a layer attends to a window only."""
    return any(
        getattr(mixer, "window", None) is not None
        for block in spec.blocks
        for mixer in block.mixers
    )


def _is_latent(spec: ModelSpec) -> bool:
    return any(mixer.kind == "mla" for block in spec.blocks for mixer in block.mixers)
