"""What a forward pass needs beyond the shapes of a `ModelSpec`: epsilons, scales, orders.

Memory and FLOPs do not depend on any of it, so a checkpoint without a config runs with
`Numerics.neutral`. What differs by family stands in `families`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from moesize.core.attention import (
    CompressedAttention,
    GroupedQueryAttention,
    LatentAttention,
)
from moesize.readers.hf.view import ConfigView

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moesize.core.model_spec import ModelSpec

NormKind = Literal[
    "rms",  # x / rms(x) * w
    "rms_offset",  # x / rms(x) * (1 + w): Gemma, Qwen3-Next
    "rms_plain",  # x / rms(x), no weight
    "layer",  # LayerNorm
    "layer_offset",  # LayerNorm with 1 + w: Nemotron
    "layer_plain",  # LayerNorm without weight: OLMo
]
# Where the norms over the hidden size of a layer stand, in the order of `Naming.norms`.
# Gemma 4's experts run beside the dense MLP; one is Gemma 3n's. The last
# two follow the sum with the residual stream (OPT-350M).
Slot = Literal[
    "pre_mixer",
    "post_mixer",
    "pre_mlp",
    "post_mlp",
    "post_dense",
    "post_experts",
    "pre_experts",
    "post_laurel",
    "sum_mixer",
    "sum_mlp",
]
Scoring = Literal["softmax", "sigmoid", "softmax_of_chosen", "sigmoid_of_chosen", "sqrt_softplus"]


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched; fields that a kind does not use stay as they are.

    low   proportional (Gemma 4): the share of the pairs that turn at all
    """

    kind: Literal["linear", "dynamic", "llama3", "yarn", "longrope", "proportional"]
    factor: float = 1.0
    original: int = 0
    longest: int = 0
    low: float = 1.0
    high: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all: float = 0.0
    truncate: bool = True
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary embedding of `size` elements of a head; the others pass.

    interleaved   pairs (0, 1), (2, 3), ...; else element i goes with i + size / 2
    backwards     turned the other way round (nanochat)
    """

    size: int
    theta: float = 10000.0
    interleaved: bool = False
    backwards: bool = False
    scaling: RopeScaling | None = None


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How a router chooses experts and weighs them.

    scoring       "..._of_chosen": scores are taken of the chosen logits alone
    groups        experts stand in so many groups, of which `top_groups` are open to choice
    group_score   a group is worth its best expert, or the sum of its two best
    renormalize   weights of the chosen are scaled to a sum of one
    epsilon, least   added to that sum, or its lower bound
    scale         factor of the weights afterwards
    weigh_input   the weight scales what goes into the expert, not what comes out (Llama 4)
    softcap       bounds the logits by a tanh
    jitter        SparseMixer of PhiMoE: experts near the best share its softmax
    """

    scoring: Scoring = "softmax"
    groups: int = 1
    top_groups: int = 1
    group_score: Literal["best", "two_best"] = "best"
    renormalize: bool = True
    epsilon: float = 0.0
    least: float = 0.0
    scale: float = 1.0
    weigh_input: bool = False
    jitter: float = 0.0
    softcap: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """Everything but shapes. Defaults are those of Llama.

    norm_slots          one slot for each of the layer's norms, in the order of `Naming.norms`
    norm_names, norm_slots_of   the same by block, where a family's blocks differ
    parallel            attention and MLP read the same residual stream and are added together
    residual_after_norm the residual stream goes on from the norm's output (MiniMax)
    ropes               of every layer; None = no positions there
    attention_scale     None: head_dim ** -0.5
    qk_norm             kind of the norms of queries and keys; "" = as `norm`. "rms_plain" has no
                        weight and so no tensor; qk_norm_layers: where such a norm is
    temperature         (scale, floor): queries grow with their position (Llama 4: in layers
                        without rotation; Ministral 3: everywhere)
    positions_offset    of the first token: row of a learned table, or in that temperature
    masked_windows      of every layer; 0 = none. A window that hides, and saves nothing (GPT-Neo)
    window_shift        added to a window of the spec, which may count as an engine does
    latent_eps          of the norms inside latent and lightning attention
    swiglu_limit, swiglu_alpha   the clamped activation of gpt-oss
    linear_...          the gated norm of linear attention and Mamba; its groups, its epsilon
    decay_bound         least logarithm of a decay, of which a sigmoid takes a part (Ling 3.0)
    dt_limits           bounds of Mamba-2's time step
    multipliers         named factors of single families: embedding, residual, logits, ...
    streams             parallel residual streams (DeepSeek-V4); stream_eps, stream_rounds of them
    alternates          several streams, of which a layer computes on the active one (Gemma 3n)
    scaled_correction   that one is scaled before the layer's own input is added
    sparsity            of every layer: share of the gate that is cut off below a normal quantile
    local_blocks        of keys that block-sparse attention always keeps (MiniMax-M3)
    layer_scalar        a stored factor of every layer's output (Gemma 4)
    """

    model_type: str = ""
    eps: float = 1e-6
    norm: NormKind = "rms"
    norm_slots: tuple[Slot, ...] = ("pre_mixer", "pre_mlp")
    norm_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    norm_slots_of: Mapping[str, tuple[Slot, ...]] = field(default_factory=dict)
    parallel: bool = False
    residual_after_norm: bool = False
    ropes: tuple[Rope | None, ...] = ()
    attention_scale: float | None = None
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    clip_qkv: float = 0.0
    qk_norm: NormKind | Literal[""] = ""
    qk_norm_after_rope: bool = False
    qk_norm_layers: tuple[bool, ...] = ()
    v_norm: NormKind | Literal[""] = ""
    latent_eps: float = 1e-6
    temperature: tuple[float, float] | None = None
    temperature_everywhere: bool = False
    positions_offset: int = 0
    alibi: bool = False
    masked_windows: tuple[int, ...] = ()
    window_shift: int = 0
    activation: str = "silu"
    swiglu_limit: float = 0.0
    swiglu_alpha: float = 0.0
    linear_norm_before_gate: bool = True
    linear_norm_groups: int = 1
    linear_eps: float | None = None
    negative_eigenvalues: bool = False
    decay_bound: float = 0.0
    dt_limits: tuple[float, float] = (0.0, float("inf"))
    routing: Routing = field(default_factory=Routing)
    embedding_norm: NormKind | Literal[""] = ""
    multipliers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    local_blocks: int = 1
    layer_scalar: bool = False
    alternates: bool = False
    active_stream: int = 0
    scaled_correction: bool = True
    sparsity: tuple[float, ...] = ()
    streams: int = 0
    stream_eps: float = 1e-6
    stream_rounds: int = 20
    num_layers: int = 0
    notes: tuple[str, ...] = ()

    def factor(self, name: str) -> float:
        """A named multiplier of one value; 1 where the family has none."""
        return self.multipliers.get(name, (1.0,))[0]

    def rope(self, layer: int) -> Rope | None:
        """Rotary embedding of a layer."""
        return self.ropes[layer] if self.ropes else None

    @classmethod
    def neutral(cls, spec: ModelSpec) -> Numerics:
        """Harmless values for a synthetic checkpoint without a config.

        Norms are placed as the names of the family say; everything rotates.
        """
        from moesize.verify.forward.families import neutral_facts

        return cls(**neutral_facts(spec))

    @classmethod
    def from_config(cls, data: Mapping[str, Any], spec: ModelSpec) -> Numerics:
        """Read what a parsed config.json of a stranger says; every value is bounded.

        Raises InvalidSpecError for a malformed value and UnsupportedError for a family whose
        order of operations nobody has written down here.
        """
        from moesize.verify.forward.families import facts_of

        view = ConfigView(data, "config.json")
        text = view.sub("text_config", "llm_config", "language_config") or view
        return cls(**facts_of(text, spec))


def rotary_size(spec: ModelSpec, layer: int) -> int:
    """Elements of a head that may be rotated in a layer; 0 without attention."""
    for mixer in spec.block(spec.layout[layer]).mixers:
        if isinstance(mixer, GroupedQueryAttention):
            return mixer.head_dim
        if isinstance(mixer, (LatentAttention, CompressedAttention)):
            return mixer.qk_rope_head_dim
    return 0
