"""The order of operations of each family, as its transformers class computes it.

Shapes stand in the `ModelSpec`; here is only what the numbers depend on. A family is a function
from its config to the `Numerics` fields that differ from Llama's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from moesize.core.attention import (
    CompressedAttention,
    GroupedQueryAttention,
    LatentAttention,
)
from moesize.core.compute import INDEX_BLOCK_TOKENS
from moesize.core.errors import UnsupportedError
from moesize.core.inventory import moe_of
from moesize.core.model_spec import ModelSpec
from moesize.core.recurrent import LightningAttention
from moesize.readers.hf.view import MAX_CONTEXT, ConfigView
from moesize.verify.forward.numerics import Rope, RopeScaling, Routing, rotary_size
from moesize.verify.forward.rotary import yarn_mscale
from moesize.verify.layouts import BLOCK_NORMS

Facts = dict[str, Any]
FamilyFacts = Callable[[ConfigView, ModelSpec], Facts]

_EPS_KEYS = (
    "rms_norm_eps",
    "layer_norm_epsilon",
    "layer_norm_eps",
    "norm_epsilon",
    "norm_eps",
    "layernorm_epsilon",
    "layer_norm_rms_epsilon",
)
_ACTIVATION_KEYS = (
    "hidden_activation",
    "hidden_act",
    "activation_function",
    "mlp_hidden_act",
    "ffn_act_fn",
)
_FAMILIES: dict[str, FamilyFacts] = {}

_SANDWICH = ("pre_mixer", "post_mixer", "pre_mlp", "post_mlp")
_POST = ("post_mixer", "post_mlp")
_PARALLEL = {"parallel": True, "norm_slots": ("pre_mixer", "pre_mlp")}


def _family(*model_types: str, **constant: Any) -> Callable[[FamilyFacts], FamilyFacts]:
    def register(function: FamilyFacts) -> FamilyFacts:
        for name in model_types:
            _FAMILIES[name] = lambda view, spec: {**constant, **function(view, spec)}
        return function

    return register


def _like_llama(*model_types: str, **constant: Any) -> None:
    for name in model_types:
        _FAMILIES[name] = lambda view, spec: dict(constant)


def facts_of(view: ConfigView, spec: ModelSpec) -> Facts:
    """Fields of `Numerics`. Raises UnsupportedError for a family that is not described here."""
    kind = view.text("model_type", default=spec.text_type or spec.model_type)
    if kind not in _FAMILIES:
        raise UnsupportedError(
            f"how {kind} computes is not written down, so no forward pass can be compared",
            "memory can still be verified: the shapes are known",
        )
    facts: Facts = {
        "model_type": kind,
        "num_layers": spec.num_layers,
        "activation": _activation(view),
        "routing": _routing(view, spec),
    }
    eps = _bounded(view, _EPS_KEYS, 0.0, 1.0)
    if eps is not None:
        facts["eps"] = facts["latent_eps"] = eps
    own = _FAMILIES[kind](view, spec)
    ropes = own.pop("ropes", None)
    facts["ropes"] = _ropes(view, spec, **own.pop("rope", {})) if ropes is None else ropes
    routing = own.pop("routing", {})
    facts["routing"] = replace(facts["routing"], **routing)
    _check_groups(view, spec, facts["routing"])
    return {**facts, **own}


def _check_groups(view: ConfigView, spec: ModelSpec, routing: Routing) -> None:
    """Groups of experts are equal, and no more are open than there are."""
    for moe in map(moe_of, spec.blocks):
        if moe is None or routing.groups == 1:
            continue
        experts, groups = moe.num_experts + moe.extra_routes, routing.groups
        if experts % groups or not 1 <= routing.top_groups <= groups:
            raise view.fail(
                f"{routing.top_groups} of {groups} groups of {experts} experts (topk_group, "
                "n_group): groups must be equal, and no more open than there are"
            )
        if routing.top_groups * (experts // groups) < moe.experts_per_token:
            raise view.fail(
                f"{routing.top_groups} groups of {experts // groups} experts hold no "
                f"{moe.experts_per_token} to choose"
            )


def neutral_facts(spec: ModelSpec) -> Facts:
    """Fields for a checkpoint without a config: norms by their number, all layers rotate."""
    count = max((block.num_norms for block in spec.blocks), default=2)
    slots: tuple[str, ...] = _SANDWICH if count >= 4 else ("pre_mixer", "pre_mlp")
    alternates = any(e.role == "other.altup_router" for b in spec.blocks for e in b.extra)
    if count == 7:
        slots = (*_SANDWICH, "post_dense", "post_experts", "pre_experts")
    elif alternates:
        slots = (*_SANDWICH, "post_laurel")
    sizes = [rotary_size(spec, index) for index in range(spec.num_layers)]
    return {
        "model_type": spec.model_type,
        "num_layers": spec.num_layers,
        "norm_slots": slots,
        "ropes": tuple(Rope(size=size - size % 2) if size else None for size in sizes),
        "parallel": count == 1 and all(b.mixers and b.feed_forwards for b in spec.blocks),
        "streams": streams_of(spec),
        "alternates": alternates,
        "notes": ("no config: neutral epsilons, scales and rotation",),
    }


# --- Common facts -------------------------------------------------------------------------------


def _bounded(
    view: ConfigView, keys: tuple[str, ...] | str, low: float, high: float
) -> float | None:
    """A number of the config in low..high; None when it is missing."""
    names = (keys,) if isinstance(keys, str) else keys
    if not any(name in view for name in names):
        return None
    value = view.number(*names)
    if not low <= value <= high:
        raise view.fail(f"{names[0]} is {value}; it must lie in {low}..{high}")
    return value


def _number(view: ConfigView, key: str, default: float, *, high: float = 1e9) -> float:
    found = _bounded(view, key, -high, high)
    return default if found is None else found


def _activation(view: ConfigView) -> str:
    key = next((key for key in _ACTIVATION_KEYS if key in view), None)
    if key is None:
        return "silu"
    value = view.data[key]
    if isinstance(value, dict):  # DBRX
        value = value.get("name", "silu")
    if not isinstance(value, str):
        raise view.fail(f"{key} must name an activation")
    return value


def _routing(view: ConfigView, spec: ModelSpec) -> Routing:
    """What most configs say under the same names; families add what only they know."""
    if not any(moe_of(block) for block in spec.blocks):
        return Routing()
    groups = view.count("n_group", default=1) or 1
    scoring: Any = view.text("scoring_func", "score_function", default="softmax")
    if scoring not in ("softmax", "sigmoid"):
        scoring = "sqrt_softplus" if scoring == "sqrtsoftplus" else "softmax"
    return Routing(
        scoring=scoring,
        groups=groups,
        top_groups=view.count("topk_group", default=1) or 1,
        renormalize=view.flag("norm_topk_prob", "route_norm", default=True),
        scale=_number(view, "routed_scaling_factor", 1.0),
    )


def _ropes(
    view: ConfigView,
    spec: ModelSpec,
    *,
    theta: float = 10000.0,
    share: float = 1.0,
    interleaved: bool = False,
    skip: Callable[[int], bool] | None = None,
    size: int = 0,
    backwards: bool = False,
) -> tuple[Rope | None, ...]:
    """The rotation of every layer, where the config says so by layer type or for all alike."""
    kinds = view.list("layer_types")
    made: dict[tuple[str, int], Rope | None] = {}
    out: list[Rope | None] = []
    for index in range(spec.num_layers):
        width = rotary_size(spec, index)
        if not width or (skip is not None and skip(index)):
            out.append(None)
            continue
        kind = kinds[index] if index < len(kinds) and isinstance(kinds[index], str) else ""
        key = (kind, width)
        if key not in made:
            rope = _rope(view, kind, size or width, theta, share)
            made[key] = replace(rope, interleaved=interleaved, backwards=backwards)
        out.append(made[key])
    return tuple(out)


def _rope(view: ConfigView, kind: str, width: int, theta: float, share: float) -> Rope:
    """One layer type's rotation: transformers 5 keeps all in `rope_parameters`, 4 beside it."""
    params = view.sub("rope_parameters", "rope_scaling")
    if params is not None and kind and isinstance(params.data.get(kind), dict):
        params = params.sub(kind)
    for source in (params, view):
        if source is not None:
            theta = _bounded(source, ("rope_theta", "rotary_emb_base"), 1.0, 1e15) or theta
            share_said = _bounded(source, ("partial_rotary_factor", "rotary_pct"), 1e-6, 1.0)
            if share_said is not None:
                share = share_said
                break
    for source in (view, params):
        if source is not None:
            theta = _bounded(source, ("rope_theta", "rotary_emb_base"), 1.0, 1e15) or theta
    if params is not None and params.data.get("rope_type") == "proportional":
        scaling = RopeScaling(kind="proportional", factor=_number(params, "factor", 1.0), low=share)
        return Rope(size=width, theta=theta, scaling=scaling)
    size = int(width * share)
    return Rope(size=size - size % 2, theta=theta, scaling=_scaling(view, params, size))


def _scaling(view: ConfigView, params: ConfigView | None, size: int) -> RopeScaling | None:
    if params is None:
        return None
    kind = params.text("rope_type", "type", default="default")
    longest = view.int("max_position_embeddings", default=1 << 20, high=MAX_CONTEXT)
    original = params.int(
        "original_max_position_embeddings",
        default=view.int("original_max_position_embeddings", default=longest, high=MAX_CONTEXT),
        high=MAX_CONTEXT,
    )
    factor = _bounded(params, "factor", 1e-3, 1e6)
    if kind in ("default", "mrope"):
        return None
    if kind == "linear":
        return RopeScaling(kind="linear", factor=factor or 1.0)
    if kind == "dynamic":
        return RopeScaling(kind="dynamic", factor=factor or 1.0, longest=longest)
    if kind == "llama3":
        return RopeScaling(
            kind="llama3",
            factor=factor or 1.0,
            original=original,
            low=_number(params, "low_freq_factor", 1.0),
            high=_number(params, "high_freq_factor", 4.0),
        )
    attention = _bounded(params, "attention_factor", 0.0, 1e3)
    stretched = factor or longest / original
    if kind in ("yarn", "deepseek_yarn"):
        return RopeScaling(
            kind="yarn",
            factor=stretched,
            original=original,
            beta_fast=_number(params, "beta_fast", 32.0),
            beta_slow=_number(params, "beta_slow", 1.0),
            attention_factor=attention,
            mscale=_number(params, "mscale", 0.0),
            mscale_all=_number(params, "mscale_all_dim", 0.0),
            truncate=params.flag("truncate", default=True),
        )
    if kind in ("longrope", "su"):
        short, long = (_factors(params, name, size) for name in ("short_factor", "long_factor"))
        return RopeScaling(
            kind="longrope",
            factor=stretched,
            original=original,
            attention_factor=attention,
            short=short,
            long=long,
        )
    raise UnsupportedError(f"rotary scaling {kind!r} is not known")


def _factors(params: ConfigView, key: str, size: int) -> tuple[float, ...]:
    values = params.list(key, max_length=4096)
    if len(values) != size // 2:
        raise params.fail(f"{params.path(key)} has {len(values)} entries for {size // 2} pairs")
    if not all(isinstance(v, (int, float)) and 0 < v < 1e6 for v in values):
        raise params.fail(f"{params.path(key)} must list positive numbers")
    return tuple(float(v) for v in values)


def _correction(**more: Any) -> Facts:
    """Routing of DeepSeek-V3: sigmoid, a correction of the choice, the two best of a group."""
    return {"scoring": "sigmoid", "group_score": "two_best", "epsilon": 1e-20, **more}


def _latent_scale(view: ConfigView, spec: ModelSpec) -> float | None:
    """YaRN of DeepSeek also warms the scores, by the square of its factor."""
    params = view.sub("rope_parameters", "rope_scaling")
    if params is None or params.text("rope_type", "type", default="default") == "default":
        return None
    mscale = _number(params, "mscale_all_dim", 0.0)
    factor = _bounded(params, "factor", 1e-3, 1e6)
    if not mscale or factor is None:
        return None
    for block in spec.blocks:
        for mixer in block.mixers:
            if isinstance(mixer, LatentAttention):
                size = mixer.qk_nope_head_dim + mixer.qk_rope_head_dim
                return float(size**-0.5 * yarn_mscale(factor, mscale) ** 2)
    return None


def _is_sliding(spec: ModelSpec, index: int) -> bool:
    return any(
        isinstance(m, GroupedQueryAttention) and (m.window or m.chunk)
        for m in spec.block(spec.layout[index]).mixers
    )


# --- Dense --------------------------------------------------------------------------------------

_like_llama(
    "llama",
    "Yi",
    "aquila",
    "mistral",
    "ministral",
    "mimo",
    "solar",
    "qwen2",
    "qwen3",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen2_vl_text",
    "qwen2_5_vl_text",
    "qwen3_vl_text",
    "arcee",
    "seed_oss",
    "cwm",
    "phi3",
    "internlm3",
    "bitnet",
    "xverse",
)
_like_llama("olmo2", norm_slots=_POST)


@_family("olmo3", norm_slots=_POST)
def _olmo3(view: ConfigView, spec: ModelSpec) -> Facts:
    """Only layers that see all tokens have scaled frequencies."""
    full = _ropes(view, spec)
    ropes = tuple(
        replace(rope, scaling=None) if rope and _is_sliding(spec, i) else rope
        for i, rope in enumerate(full)
    )
    return {"ropes": ropes}


@_family("exaone4", norm_slots=_POST)
def _exaone4(view: ConfigView, spec: ModelSpec) -> Facts:
    """Where windows alternate with full layers, the full ones have no positions."""
    mixed = any(_is_sliding(spec, i) for i in range(spec.num_layers))
    return {"rope": {"skip": lambda i: mixed and not _is_sliding(spec, i)}}


@_family("smollm3")
def _smollm3(view: ConfigView, spec: ModelSpec) -> Facts:
    rotates = view.list("no_rope_layers")
    return {"rope": {"skip": lambda i: i < len(rotates) and not rotates[i]}}


@_family("ministral3")
def _ministral3(view: ConfigView, spec: ModelSpec) -> Facts:
    return _llama4_scaling(view)


def _llama4_scaling(view: ConfigView) -> Facts:
    params = view.sub("rope_parameters", "rope_scaling")
    beta = _bounded(params, "llama_4_scaling_beta", 0.0, 1e3) if params is not None else None
    if not beta or params is None:
        return {}
    original = params.int("original_max_position_embeddings", high=MAX_CONTEXT)
    return {"temperature": (beta, float(original)), "temperature_everywhere": True}


_like_llama("ernie4_5", "helium", rope={"interleaved": True})
_like_llama("glm", rope={"interleaved": True, "share": 0.5})
_like_llama(
    "glm4",
    rope={"interleaved": True, "share": 0.5},
    norm_slots=("pre_mixer", "pre_mlp", "post_mixer", "post_mlp"),
)
_like_llama("hunyuan_v1_dense", "hunyuan_v1_moe", "hunyuan", qk_norm_after_rope=True)


@_family("olmo", norm="layer_plain", eps=1e-5)
def _olmo(view: ConfigView, spec: ModelSpec) -> Facts:
    return {"clip_qkv": _number(view, "clip_qkv", 0.0)}


def _granite_scales(view: ConfigView) -> Facts:
    return {
        "embedding": (_number(view, "embedding_multiplier", 1.0),),
        "residual": (_number(view, "residual_multiplier", 1.0),),
        "logits": (1.0 / _number(view, "logits_scaling", 1.0),),
    }


@_family("granite_swa", "granitemoe_swa")
def _granite_swa(view: ConfigView, spec: ModelSpec) -> Facts:
    """A base of rotation for every layer; 0 where there is none."""
    bases = view.list("layer_rope_theta", max_length=spec.num_layers)
    facts = _granite(view, spec)
    if len(bases) != spec.num_layers:
        return facts
    ropes = []
    for base, rope in zip(bases, _ropes(view, spec), strict=True):
        if not isinstance(base, (int, float)) or not (base == 0 or 1 <= base <= 1e15):
            raise view.fail("layer_rope_theta must list bases of rotation")
        ropes.append(replace(rope, theta=float(base)) if rope is not None and base else None)
    del facts["rope"]
    return {**facts, "ropes": tuple(ropes)}


@_family("hyperclovax", norm_slots=("pre_mixer", "pre_mlp", "post_mixer", "post_mlp"))
def _hyperclovax(view: ConfigView, spec: ModelSpec) -> Facts:
    return {
        "attention_scale": _bounded(view, "attention_multiplier", 0.0, 1e9),
        "multipliers": {
            **_granite_scales(view),
            # Granite divides by it.
            "logits": (_number(view, "logits_scaling", 1.0),),
        },
    }


@_family("granite", "granitemoe", "granitemoeshared", "granitemoehybrid")
def _granite(view: ConfigView, spec: ModelSpec) -> Facts:
    rotates = view.text("position_embedding_type", default="rope") == "rope"
    return {
        "attention_scale": _number(view, "attention_multiplier", 1.0),
        "multipliers": _granite_scales(view),
        "routing": {"scoring": "softmax_of_chosen"},
        "rope": {"skip": lambda i: not rotates},
        "linear_norm_before_gate": False,
        "dt_limits": _dt_limits(view),
        **_norm_groups(view),
    }


@_family("cohere2_moe", parallel=True)
def _cohere_moe(view: ConfigView, spec: ModelSpec) -> Facts:
    """A router that scores only what it chose; shared experts are added or averaged."""
    softmax = view.text("expert_selection_fn", default="softmax") == "softmax"
    average = view.text("shared_expert_combination_strategy", default="average") == "average"
    words = view.list("mlp_layer_types")
    forced = view.count("prefix_dense_sliding_window_pattern", default=1) == 1
    dense = [forced and i < len(words) and words[i] == "dense" for i in range(spec.num_layers)]
    shared = any(moe is not None and moe.shared for moe in map(moe_of, spec.blocks))
    return {
        "norm": "rms" if "rms_norm_eps" in view else "layer",
        "rope": {"interleaved": True, "skip": lambda i: not (_is_sliding(spec, i) or dense[i])},
        "routing": {"scoring": "softmax_of_chosen" if softmax else "sigmoid_of_chosen"},
        "multipliers": {
            "logits": (_number(view, "logit_scale", 0.0625),),
            "experts": (0.5 if average and shared else 1.0,),
        },
    }


@_family("cohere", "cohere2", norm="layer", parallel=True)
def _cohere(view: ConfigView, spec: ModelSpec) -> Facts:
    hybrid = view.text("model_type") == "cohere2"
    return {
        "rope": {
            "interleaved": True,
            "skip": lambda i: hybrid and not _is_sliding(spec, i),
        },
        # The spec counts the newest token apart from the window, as vLLM does.
        "window_shift": -1 if hybrid else 0,
        "multipliers": {"logits": (_number(view, "logit_scale", 0.0625),)},
    }


_like_llama("starcoder2", norm="layer")
_like_llama("jais2", norm="layer")
_like_llama("phi", norm="layer", parallel=True, rope={"share": 0.5})
_like_llama("nemotron", norm="layer_offset", rope={"share": 0.5})


@_family("stablelm", "stablelm_epoch", norm="layer")
def _stablelm(view: ConfigView, spec: ModelSpec) -> Facts:
    return {
        "rope": {"share": 0.25},
        "parallel": view.flag("use_parallel_residual", default=False),
    }


@_family("apertus", activation="xielu")
def _apertus(view: ConfigView, spec: ModelSpec) -> Facts:
    # The two constants are stored beside the learned values, rounded to bfloat16.
    return {"multipliers": {"xielu_beta": (0.5,), "xielu_eps": (-9.98377799987793e-07,)}}


@_family("nanochat", norm="rms_plain", qk_norm="rms_plain", qk_norm_after_rope=True)
def _nanochat(view: ConfigView, spec: ModelSpec) -> Facts:
    return {
        "embedding_norm": "rms_plain",
        "logit_softcap": _number(view, "final_logit_softcapping", 0.0),
        "rope": {"backwards": True},
    }


# --- Gemma --------------------------------------------------------------------------------------


def _gemma_common(view: ConfigView, spec: ModelSpec) -> Facts:
    scalar = _bounded(view, "query_pre_attn_scalar", 1e-6, 1e9)
    return {
        "norm": "rms_offset",
        "activation": view.text("hidden_activation", default="gelu_pytorch_tanh"),
        "attention_scale": None if scalar is None else scalar**-0.5,
        "multipliers": {"embedding": (spec.hidden_size**0.5,)},
    }


_family("gemma")(_gemma_common)


@_family("gemma2", norm_slots=_SANDWICH)
def _gemma2(view: ConfigView, spec: ModelSpec) -> Facts:
    return {
        **_gemma_common(view, spec),
        "attention_softcap": _number(view, "attn_logit_softcapping", 0.0),
        "logit_softcap": _number(view, "final_logit_softcapping", 0.0),
    }


@_family("vaultgemma")
def _vaultgemma(view: ConfigView, spec: ModelSpec) -> Facts:
    return _gemma2(view, spec)


@_family("gemma3_text", norm_slots=_SANDWICH)
def _gemma3(view: ConfigView, spec: ModelSpec) -> Facts:
    """Layers with a window rotate with a base of their own, unscaled."""
    ropes = _ropes(view, spec, theta=1e6)
    local = _bounded(view, "rope_local_base_freq", 1.0, 1e15)
    if local is not None:
        ropes = tuple(
            Rope(size=rope.size, theta=local) if rope and _is_sliding(spec, i) else rope
            for i, rope in enumerate(ropes)
        )
    return {**_gemma2(view, spec), "ropes": ropes}


@_family("gemma4_text", norm_slots=(*_SANDWICH, "post_dense", "post_experts", "pre_experts"))
def _gemma4(view: ConfigView, spec: ModelSpec) -> Facts:
    """Scores are not scaled; late layers read the cache of the last layer of their kind."""
    return {
        "activation": view.text("hidden_activation", default="gelu_pytorch_tanh"),
        "attention_scale": 1.0,
        "v_norm": "rms_plain",
        "logit_softcap": _number(view, "final_logit_softcapping", 0.0),
        "multipliers": {"embedding": (spec.hidden_size**0.5,)},
        "layer_scalar": True,
    }


@_family("gemma3n_text", norm_slots=(*_SANDWICH, "post_laurel"))
def _gemma3n(view: ConfigView, spec: ModelSpec) -> Facts:
    cuts = view.list("activation_sparsity_pattern", max_length=spec.num_layers)
    if not all(isinstance(cut, (int, float)) and 0 <= cut < 1 for cut in cuts):
        raise view.fail("activation_sparsity_pattern must list shares below one")
    gemma3 = _gemma3(view, spec)
    return {
        "activation": gemma3["activation"],
        "ropes": gemma3["ropes"],
        "multipliers": gemma3["multipliers"],
        "attention_scale": 1.0,
        "v_norm": "rms_plain",
        "logit_softcap": _number(view, "final_logit_softcapping", 30.0),
        "alternates": True,
        "active_stream": view.count("altup_active_idx", default=0, high=63),
        "scaled_correction": view.flag("altup_correct_scale", default=True),
        "sparsity": tuple(map(float, cuts)) if len(cuts) == spec.num_layers else (),
    }


# --- Mixtures of experts ------------------------------------------------------------------------

_like_llama(
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "qwen3_vl_moe_text",
    "olmoe",
    "jamba",
    routing={},
)


@_family("olmoe")
def _olmoe(view: ConfigView, spec: ModelSpec) -> Facts:
    return {"clip_qkv": _number(view, "clip_qkv", 0.0), **_plain_weights(view)}


@_family("flex_olmo", norm_slots=_POST)
def _flex_olmo(view: ConfigView, spec: ModelSpec) -> Facts:
    return _plain_weights(view)


@_family("qwen2_moe", "qwen3_moe", "qwen3_vl_moe_text")
def _plain(view: ConfigView, spec: ModelSpec) -> Facts:
    return _plain_weights(view)


def _plain_weights(view: ConfigView) -> Facts:
    """Config classes of these leave `norm_topk_prob` out as false."""
    return {"routing": {"renormalize": view.flag("norm_topk_prob", default=False)}}


_like_llama("jamba", routing={"renormalize": False}, rope={"skip": lambda i: True})
_like_llama("glm4_moe", "dots1", "solar_open", "glm4v_moe_text", routing=_correction())


@_family("minimax_m2")
def _minimax_m2(view: ConfigView, spec: ModelSpec) -> Facts:
    return {
        "rope": {"share": _rotary_share(view, view.int("head_dim", default=128))},
        "routing": _correction(epsilon=0.0),
    }


def _rotary_share(view: ConfigView, default: int) -> float:
    """MiniMax gives the elements that turn, beside their share or instead of it."""
    size = view.int("head_dim", default=default)
    return min(1.0, view.int("rotary_dim", default=min(size, default), high=1 << 16) / size)


@_family("minimax_m3", "minimax_m3_vl_text", norm="rms_offset")
def _minimax_m3(view: ConfigView, spec: ModelSpec) -> Facts:
    sparse = view.sub("sparse_attention_config") or view
    block = sparse.int("sparse_block_size", "index_block_size", default=INDEX_BLOCK_TOKENS)
    if block != INDEX_BLOCK_TOKENS:
        raise UnsupportedError(f"blocks of {block} keys are not described")
    return {
        "rope": {"share": _rotary_share(view, 64)},
        "swiglu_limit": _number(view, "swiglu_limit", 7.0),
        "swiglu_alpha": _number(view, "swiglu_alpha", 1.702),
        "local_blocks": sparse.count("sparse_local_block", "index_local_blocks", default=1),
        "routing": _correction(epsilon=0.0, scale=_number(view, "routed_scaling_factor", 2.0)),
    }


@_family("gpt_oss")
def _gpt_oss(view: ConfigView, spec: ModelSpec) -> Facts:
    return {
        "swiglu_limit": _number(view, "swiglu_limit", 7.0),
        "swiglu_alpha": 1.702,
        "routing": {"scoring": "softmax_of_chosen"},
    }


@_family("llama4_text")
def _llama4(view: ConfigView, spec: ModelSpec) -> Facts:
    rotates = view.list("no_rope_layers")
    turned = [i >= len(rotates) or bool(rotates[i]) for i in range(spec.num_layers)]
    normed = view.flag("use_qk_norm", default=True)
    tuned = bool(view.data.get("attn_temperature_tuning", True))
    return {
        "rope": {"interleaved": True, "skip": lambda i: not turned[i]},
        "qk_norm": "rms_plain" if normed else "",
        "qk_norm_after_rope": True,
        "qk_norm_layers": tuple(turned),
        "temperature": (
            (_number(view, "attn_scale", 0.1), _number(view, "floor_scale", 8192.0))
            if tuned
            else None
        ),
        "positions_offset": 1,
        "routing": {
            "scoring": "sigmoid_of_chosen",
            "weigh_input": True,
            "renormalize": False,
        },
    }


@_family("phimoe", norm="layer")
def _phimoe(view: ConfigView, spec: ModelSpec) -> Facts:
    return {"routing": {"jitter": _number(view, "router_jitter_noise", 0.01)}}


@_family("dbrx", norm="layer", eps=1e-5)
def _dbrx(view: ConfigView, spec: ModelSpec) -> Facts:
    attention = view.need_sub("attn_config")
    theta = _bounded(attention, "rope_theta", 1.0, 1e15) or 10000.0
    ffn = view.need_sub("ffn_config")
    named = ffn.sub("ffn_act_fn")
    return {
        "clip_qkv": _number(attention, "clip_qkv", 0.0),
        "activation": named.text("name", default="silu") if named is not None else "silu",
        "rope": {"theta": theta},
        "routing": {"renormalize": _number(ffn, "moe_normalize_expert_weights", 1.0) != 0.0},
    }


@_family("ernie4_5_moe", "ernie4_5_moe_text")
def _ernie_moe(view: ConfigView, spec: ModelSpec) -> Facts:
    least = _number(view, "moe_norm_min", 1e-12)
    return {"rope": {"interleaved": True}, "routing": {"least": least}}


@_family("lfm2", "lfm2_moe")
def _lfm2(view: ConfigView, spec: ModelSpec) -> Facts:
    return {
        "activation": "silu",
        "rope": {"theta": 1e6},
        "routing": {"scoring": "sigmoid", "epsilon": 1e-6},
    }


@_family("minimax", residual_after_norm=True)
def _minimax(view: ConfigView, spec: ModelSpec) -> Facts:
    def pair(part: str) -> tuple[float, float]:
        return (
            _number(view, f"{part}_alpha_factor", 1.0),
            _number(view, f"{part}_beta_factor", 1.0),
        )

    return {
        "latent_eps": 1e-6,
        "multipliers": {
            "lightning_residual": pair("linear_attn"),
            "mixer_residual": pair("full_attn"),
            "mlp_residual": pair("mlp"),
        },
    }


@_family("afmoe", norm_slots=_SANDWICH)
def _afmoe(view: ConfigView, spec: ModelSpec) -> Facts:
    scaled = view.flag("mup_enabled", default=False)
    return {
        "rope": {"skip": lambda i: not _is_sliding(spec, i)},
        "routing": _correction(scale=_number(view, "route_scale", 1.0), renormalize=True),
        "multipliers": {"embedding": (spec.hidden_size**0.5,)} if scaled else {},
    }


@_family("exaone_moe")
def _exaone_moe(view: ConfigView, spec: ModelSpec) -> Facts:
    mixed = any(_is_sliding(spec, i) for i in range(spec.num_layers))
    return {
        "rope": {"skip": lambda i: mixed and not _is_sliding(spec, i)},
        "routing": _correction(),
    }


@_family("laguna")
def _laguna(view: ConfigView, spec: ModelSpec) -> Facts:
    scale = _number(view, "moe_routed_scaling_factor", 1.0)
    softcap = _number(view, "moe_router_logit_softcapping", 0.0)
    return {
        "multipliers": {"softplus_gate": (1.0,)},
        "routing": _correction(scale=scale, softcap=softcap, renormalize=True, epsilon=0.0),
    }


@_family("mellum")
def _mellum(view: ConfigView, spec: ModelSpec) -> Facts:
    return {"routing": {"renormalize": view.flag("norm_topk_prob", default=True)}}


@_family("mimo_v2_flash", "mimo_v2")
def _mimo_v2(view: ConfigView, spec: ModelSpec) -> Facts:
    """Values are scaled before they are cached; layers with a window have their own base."""
    ropes = _ropes(view, spec, theta=5e6, share=0.334)
    local = _bounded(view, "swa_rope_theta", 1.0, 1e15)
    if local is not None:
        ropes = tuple(
            replace(rope, theta=local) if rope and _is_sliding(spec, i) else rope
            for i, rope in enumerate(ropes)
        )
    return {
        "ropes": ropes,
        "multipliers": {"value": (_number(view, "attention_value_scale", 0.707),)},
        "routing": _correction(),
    }


@_family("hy_v3")
def _hy_v3(view: ConfigView, spec: ModelSpec) -> Facts:
    return {"routing": _correction(scale=_number(view, "router_scaling_factor", 1.0))}


# --- Latent attention ---------------------------------------------------------------------------


@_family("deepseek_v2")
def _deepseek_v2(view: ConfigView, spec: ModelSpec) -> Facts:
    """Weights are scaled only where they are not renormalized, and groups only when asked for."""
    grouped = view.text("topk_method", default="greedy") == "group_limited_greedy"
    renormalize = view.flag("norm_topk_prob", default=False)
    return {
        "rope": {"interleaved": True},
        "attention_scale": _latent_scale(view, spec),
        "latent_eps": 1e-6,
        "routing": {"renormalize": renormalize, **({} if grouped else {"groups": 1})},
    }


@_family("axk1", norm_slots=("pre_mixer", "pre_mlp", "post_mlp"))
def _axk1(view: ConfigView, spec: ModelSpec) -> Facts:
    return _deepseek_v3(view, spec)


@_family("deepseek_v3", "kimi_k2", "glm4_moe_lite", "deepseek_v32", "glm_moe_dsa")
def _deepseek_v3(view: ConfigView, spec: ModelSpec) -> Facts:
    turned_in_pairs = view.text("model_type") == "glm_moe_dsa"
    return {
        "multipliers": {"indexer_interleaved": (1.0,)} if turned_in_pairs else {},
        "rope": {"interleaved": view.flag("rope_interleave", default=True)},
        "attention_scale": _latent_scale(view, spec),
        "latent_eps": 1e-6,
        "routing": _correction(),
    }


@_family("deepseek_v4", "deepseek_ref")
def _deepseek_v4(view: ConfigView, spec: ModelSpec) -> Facts:
    """Compressed layers rotate with a base of their own, scaled, and cos and sin are not."""
    nested = view.sub("rope_parameters", "rope_scaling")
    kinds = nested if nested is not None and nested.sub("compress") is not None else None
    ropes = []
    for name in spec.layout:
        (mixer,) = spec.block(name).mixers
        assert isinstance(mixer, CompressedAttention)
        width, wide = mixer.qk_rope_head_dim, mixer.compress_ratio > 1
        own: ConfigView | None
        if kinds is not None:
            own = kinds.need_sub("compress" if wide else "main")
            theta = _bounded(own, "rope_theta", 1.0, 1e15)
        else:
            own = nested if wide else None
            theta = _bounded(view, "compress_rope_theta" if wide else "rope_theta", 1.0, 1e15)
        scaling = _scaling(view, own, width)
        if scaling is not None and scaling.kind == "yarn":
            scaling = replace(scaling, attention_factor=1.0)
        ropes.append(
            Rope(
                size=width,
                theta=theta or (160000.0 if wide else 10000.0),
                interleaved=True,
                scaling=scaling,
            )
        )
    return {
        "ropes": tuple(ropes),
        "swiglu_limit": _number(view, "swiglu_limit", 10.0),
        "routing": {
            "scoring": "sqrt_softplus",
            "epsilon": 1e-20,
            "scale": _number(view, "routed_scaling_factor", 1.5),
        },
        **_streams(view, spec),
    }


def _streams(view: ConfigView, spec: ModelSpec) -> Facts:
    """Hyper-connections."""
    return {
        "streams": streams_of(spec),
        "stream_eps": _number(view, "hc_eps", 1e-6),
        "stream_rounds": view.int("hc_sinkhorn_iters", default=20, high=1000),
    }


def streams_of(spec: ModelSpec) -> int:
    """Parallel residual streams: hyper-connections mix m of them, fn is ((2 + m) * m, m * H)."""
    for block in spec.blocks:
        for extra in block.extra:
            if extra.role == "other.hc_attn_fn":
                return extra.shape[1] // spec.hidden_size
    return 0


@_family("mistral4")
def _mistral4(view: ConfigView, spec: ModelSpec) -> Facts:
    """DeepSeek-V3's attention; a softmax routes, in groups by their two best."""
    return {
        **_llama4_scaling(view),
        "ropes": _ropes(
            _whole_rope(view), spec, interleaved=view.flag("rope_interleave", default=True)
        ),
        "attention_scale": _latent_scale(view, spec),
        "latent_eps": 1e-6,
        "routing": {"group_score": "two_best", "epsilon": 1e-20},
    }


def _whole_rope(view: ConfigView) -> ConfigView:
    """Without the share of a head that turns, where a rope part is all that is turned."""
    params = dict(view.data.get("rope_parameters") or {})
    params.pop("partial_rotary_factor", None)
    data = {key: value for key, value in view.data.items() if key != "partial_rotary_factor"}
    return ConfigView({**data, "rope_parameters": params}, view.file, view.where)


@_family("bailing_hybrid")
def _bailing_hybrid(view: ConfigView, spec: ModelSpec) -> Facts:
    """Ling 3.0: Kimi delta attention with a bounded decay, and latent attention."""
    if any(isinstance(m, LightningAttention) for block in spec.blocks for m in block.mixers):
        raise UnsupportedError("how Ling 2.5 computes is not written down")
    safe = view.flag("kda_safe_gate", default=True)
    return {
        "rope": {"interleaved": True, "theta": 6e6},
        "attention_scale": _latent_scale(view, spec),
        "latent_eps": 1e-6,
        "decay_bound": _number(view, "kda_lower_bound", -5.0) if safe else 0.0,
        "routing": _correction(
            groups=view.count("n_group", "num_expert_group", default=1) or 1,
            renormalize=view.flag("norm_topk_prob", "moe_renormalize", default=True),
        ),
    }


@_family("kimi_linear")
def _kimi_linear(view: ConfigView, spec: ModelSpec) -> Facts:
    """Latent attention without positions; its router as DeepSeek-V3's."""
    scale = _number(view, "routed_scaling_factor", 1.0)
    renormalize = view.flag("norm_topk_prob", "moe_renormalize", default=True)
    groups = view.count("n_group", "num_expert_group", default=1) or 1
    return {
        "rope": {"skip": lambda i: True},
        "latent_eps": 1e-6,
        "routing": _correction(scale=scale, renormalize=renormalize, groups=groups),
    }


# --- Linear attention and Mamba -----------------------------------------------------------------


@_family(
    "qwen3_next",
    "qwen3_5_text",
    "qwen3_5_moe_text",
    norm="rms_offset",
    rope={"share": 0.25},
)
def _qwen_hybrid(view: ConfigView, spec: ModelSpec) -> Facts:
    return {"routing": {"renormalize": view.flag("norm_topk_prob", default=True)}}


def _dt_limits(view: ConfigView) -> tuple[float, float]:
    limits = view.list("time_step_limit", max_length=2)
    if len(limits) != 2:
        return 0.0, float("inf")
    low, high = (float(x) if isinstance(x, (int, float)) else float("inf") for x in limits)
    return low, high


@_family("mamba2", norm_slots=("pre_mixer",), linear_norm_before_gate=False)
def _mamba2(view: ConfigView, spec: ModelSpec) -> Facts:
    return {
        "dt_limits": _dt_limits(view),
        "linear_norm_groups": view.int("n_groups", default=1),
    }


@_family("bamba", linear_norm_before_gate=False)
def _bamba(view: ConfigView, spec: ModelSpec) -> Facts:
    return {"dt_limits": _dt_limits(view), **_norm_groups(view)}


def _norm_groups(view: ConfigView) -> Facts:
    return {"linear_norm_groups": view.int("mamba_n_groups", default=1)}


@_family("nemotron_h", linear_norm_before_gate=False, rope={"skip": lambda i: True})
def _nemotron_h(view: ConfigView, spec: ModelSpec) -> Facts:
    return {
        "norm_slots": ("pre_mixer",),
        # The class reads the lower limit under this name, and no upper one.
        "dt_limits": (_number(view, "time_step_min", 0.001), float("inf")),
        "linear_norm_groups": view.int("n_groups", default=8),
        "activation": view.text("mlp_hidden_act", default="relu2"),
        "routing": _correction(),
    }


@_family("falcon_h1", linear_norm_before_gate=False)
def _falcon_h1(view: ConfigView, spec: ModelSpec) -> Facts:
    gate, down = _list(view, "mlp_multipliers", 2)
    return {
        "linear_norm_before_gate": view.flag("mamba_norm_before_gate", default=True),
        **_norm_groups(view),
        "dt_limits": _dt_limits(view),
        "multipliers": {
            "embedding": (_number(view, "embedding_multiplier", 1.0),),
            "logits": (_number(view, "lm_head_multiplier", 1.0),),
            "key": (_number(view, "key_multiplier", 1.0),),
            "attention_in": (_number(view, "attention_in_multiplier", 1.0),),
            "attention_out": (_number(view, "attention_out_multiplier", 1.0),),
            "ssm_in": (_number(view, "ssm_in_multiplier", 1.0),),
            "ssm_out": (_number(view, "ssm_out_multiplier", 1.0),),
            "ssm": _list(view, "ssm_multipliers", 5),
            "mlp_gate": (gate,),
            "mlp_down": (down,),
        },
    }


def _list(view: ConfigView, key: str, length: int) -> tuple[float, ...]:
    values = view.list(key, max_length=length) or [1.0] * length
    if len(values) != length or not all(isinstance(v, (int, float)) for v in values):
        raise view.fail(f"{key} must list {length} numbers")
    return tuple(float(v) for v in values)


_like_llama("mamba", norm_slots=("pre_mixer",))


@_family("falcon_mamba", norm_slots=("pre_mixer",))
def _falcon_mamba(view: ConfigView, spec: ModelSpec) -> Facts:
    return {"multipliers": {"mixer_rms_eps": (_number(view, "mixer_rms_eps", 1e-6),)}}


@_family("olmo_hybrid")
def _olmo_hybrid(view: ConfigView, spec: ModelSpec) -> Facts:
    """Norms come after in the attention layers, before in the others, under different names."""
    params = view.sub("rope_parameters")
    rotates = params is not None and "rope_theta" in params
    return {
        "negative_eigenvalues": view.flag("linear_allow_neg_eigval", default=True),
        "linear_eps": 1e-5,
        "norm_names": BLOCK_NORMS["olmo_hybrid"],
        "norm_slots_of": {"attention": _POST},
        "rope": {"skip": lambda i: not rotates},
    }


# --- Older families -----------------------------------------------------------------------------

_like_llama("gpt2", "gpt_bigcode", norm="layer", rope={"skip": lambda i: True})


@_family("gptj", "codegen", norm="layer", parallel=True)
def _gptj(view: ConfigView, spec: ModelSpec) -> Facts:
    return {"rope": {"interleaved": True, "size": view.int("rotary_dim", default=64)}}


@_family("gpt_neox", norm="layer")
def _gpt_neox(view: ConfigView, spec: ModelSpec) -> Facts:
    parallel = view.flag("use_parallel_residual", default=True)
    return {"parallel": parallel, "rope": {"share": 0.25}}


@_family("falcon", "RefinedWeb", "RefinedWebModel", norm="layer")
def _falcon(view: ConfigView, spec: ModelSpec) -> Facts:
    new = view.flag("new_decoder_architecture", default=False)
    alibi = view.flag("alibi", default=False)
    return {
        "activation": view.text("activation", default="gelu"),
        "parallel": new or view.flag("parallel_attn", default=True),
        "alibi": alibi,
        "rope": {"skip": lambda i: alibi},
    }


@_family("opt", norm="layer", eps=1e-5, rope={"skip": lambda i: True})
def _opt(view: ConfigView, spec: ModelSpec) -> Facts:
    # Learned positions begin at the third row.
    facts: Facts = {"positions_offset": 2}
    if not view.flag("do_layer_norm_before", default=True):
        facts["norm_slots"] = ("sum_mixer", "sum_mlp")
    return facts


_like_llama(
    "bloom",
    norm="layer",
    activation="gelu_tanh",
    alibi=True,
    embedding_norm="layer",
    rope={"skip": lambda i: True},
)


@_family("mpt", norm="layer", activation="gelu")
def _mpt(view: ConfigView, spec: ModelSpec) -> Facts:
    attention = view.sub("attn_config")
    return {
        "alibi": not spec.embedding.positions,
        "clip_qkv": 0.0 if attention is None else _number(attention, "clip_qkv", 0.0),
        "attention_scale": (
            None if attention is None else _bounded(attention, "softmax_scale", 1e-9, 1e9)
        ),
        "rope": {"skip": lambda i: True},
    }


_like_llama("persimmon", norm="layer", activation="relu2", rope={"share": 0.5})


@_family("gpt_neo", norm="layer", activation="gelu_new", attention_scale=1.0)
def _gpt_neo(view: ConfigView, spec: ModelSpec) -> Facts:
    """Every other layer hides what lies before a window; scores are not scaled."""
    words = view.list("attention_layers", max_length=spec.num_layers)
    window = view.int("window_size", default=256, high=MAX_CONTEXT)
    if not words:
        words = ["global", "local"] * (spec.num_layers // 2 + 1)
    hidden = tuple(window if word == "local" else 0 for word in words[: spec.num_layers])
    return {"masked_windows": hidden, "rope": {"skip": lambda i: True}}


def known_families() -> list[str]:
    """Model types whose order of operations is written down."""
    return sorted(_FAMILIES)
