"""Dense decoder families with rotary positions: Llama and its relatives.

Defaults for keys that a config leaves out are those of the family's config class in transformers
5.19 (configuration_*.py of the model type). Rotary tables are listed for families that vLLM 0.32.0
implements itself; through its transformers backend there are none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesize.core.model_spec import (
    Embedding,
    ExtraTensor,
    MultiTokenPrediction,
)
from moesize.readers.hf.common import (
    biases,
    decoder_fields,
    dense_mlp,
    every_nth_full,
    layer_blocks,
    layer_windows,
    one_table,
    partial_rotary,
    sliding_window,
    with_defaults,
)
from moesize.readers.hf.registry import SpecFields, family

if TYPE_CHECKING:
    from moesize.readers.hf.view import ConfigView


@family("llama", "mistral", "ministral", "ministral3", "Yi", "aquila", "xverse", "solar", "cwm")
def llama(config: ConfigView) -> SpecFields:
    """Llama 1-3, Mistral, Yi and the many that took over their shape.

    vLLM applies a `sliding_window` that the config states, whatever the model type.
    """
    kind = config.text("model_type")
    defaults: dict[str, Any] = {}
    if kind in ("mistral", "ministral"):
        defaults = {"num_key_value_heads": 8, "sliding_window": 4096}
    elif kind == "ministral3":
        defaults = {"num_key_value_heads": 8, "head_dim": 128}
    elif kind == "cwm":
        defaults = {"num_key_value_heads": 8, "head_dim": 128, "sliding_window": 8192}
    config = with_defaults(config, **defaults)
    count = config.layers()
    pattern: list[str] = []
    if kind == "cwm":
        pattern = ["sliding_attention" if i % 4 else "full_attention" for i in range(count)]
    # Mistral's classes have no biases, CWM's none in attention, whatever a config says.
    biased = not defaults
    layout = layer_blocks(
        config,
        layer_windows(config, count, pattern=pattern),
        mlp=dense_mlp(
            config, bias=(biased or kind == "cwm") and config.flag("mlp_bias", default=False)
        ),
        attention=biases(config, "attention_bias") if biased else {},
    )
    rotary = one_table(config) if kind != "cwm" else ()
    return decoder_fields(config, layout, tied=False, rotary=rotary)


@family("smollm3")
def smollm3(config: ConfigView) -> SpecFields:
    """SmolLM3: every fourth layer has no positions, which changes no tensor."""
    config = with_defaults(config, num_key_value_heads=4)
    count = config.layers()
    windows: list[int | None] = [None] * count
    if config.flag("use_sliding_window", default=False):
        windows = layer_windows(config, count)
    layout = layer_blocks(
        config,
        windows,
        mlp=dense_mlp(config, bias=config.flag("mlp_bias", default=False)),
        attention=biases(config, "attention_bias"),
    )
    return decoder_fields(config, layout, tied=True)


def _qwen_windows(config: ConfigView) -> list[int | None]:
    """Layers from `max_window_layers` on have the window, if `use_sliding_window` says so."""
    count = config.layers()
    if not config.flag("use_sliding_window", default=False):
        return [None] * count
    first = config.count("max_window_layers", default=28)
    pattern = ["sliding_attention" if i >= first else "full_attention" for i in range(count)]
    return layer_windows(config, count, default=4096, pattern=pattern)


@family("qwen2")
def qwen2(config: ConfigView) -> SpecFields:
    """Qwen1.5, Qwen2, Qwen2.5: biases on q, k and v only."""
    layout = layer_blocks(config, _qwen_windows(config), attention={"qkv_bias": True})
    return decoder_fields(config, layout, tied=False, rotary=one_table(config))


@family("qwen3")
def qwen3(config: ConfigView) -> SpecFields:
    """Qwen3: a norm on every query and key head instead of biases."""
    config = with_defaults(config, head_dim=128)
    attention = {"qk_norm": "head", **biases(config, "attention_bias")}
    layout = layer_blocks(config, _qwen_windows(config), attention=attention)
    return decoder_fields(config, layout, tied=False, rotary=one_table(config))


@family("mimo")
def mimo(config: ConfigView) -> SpecFields:
    """MiMo-7B: Qwen2 with MTP layers, which the published files hold.

    vLLM has no config class of its own for it and applies `sliding_window` as stated, whatever
    `use_sliding_window` says; the window equals the context.
    """
    flag = config.flag("attention_bias", default=True)
    window = sliding_window(config)
    layout = layer_blocks(config, [window] * config.layers(), attention={"qkv_bias": flag})
    guesses = config.count("num_nextn_predict_layers", default=0, high=64)
    mtp = None
    if guesses:
        mtp = MultiTokenPrediction(layers=(layout[0].name,) * guesses)
    return decoder_fields(
        config, layout, tied=False, rotary=one_table(config), mtp=mtp, naming="mimo"
    )


def _heads(config: ConfigView) -> int:
    return config.int("num_attention_heads")


@family("phi")
def phi(config: ConfigView) -> SpecFields:
    """Phi-1, 1.5, 2: attention and MLP side by side behind one LayerNorm, biases everywhere."""
    attention: dict[str, Any] = {"qkv_bias": True, "out_bias": True}
    if config.flag("qk_layernorm", default=False):
        attention |= {"qk_norm": "head", "qk_norm_bias": True}
    layout = layer_blocks(
        config,
        [None] * config.layers(),
        mlp=dense_mlp(config, gated=False, bias=True),
        attention=attention,
        num_norms=1,
        norm_bias=True,
    )
    tied = config.flag("tie_word_embeddings", default=False)
    return decoder_fields(
        config,
        layout,
        tied=tied,
        embedding=Embedding(vocab_size=config.int("vocab_size"), tied=tied, head_bias=True),
        final_norm_bias=True,
        naming="phi",
    )


@family("phi3")
def phi3(config: ConfigView) -> SpecFields:
    """Phi-3, Phi-3.5, Phi-4: Llama's shape, stored as fused qkv and gate_up projections."""
    layout = layer_blocks(config, layer_windows(config, config.layers()))
    return decoder_fields(config, layout, tied=False, rotary=one_table(config), naming="phi3")


@family("cohere", "cohere2")
def cohere(config: ConfigView) -> SpecFields:
    """Command R and Command A: attention and MLP side by side behind one LayerNorm, no biases.

    Cohere 2 sees `sliding_window` tokens before the newest one in three layers of four; vLLM
    0.32.0 (commandr.py) therefore keeps one more.
    """
    count = config.layers()
    windows: list[int | None] = [None] * count
    if config.text("model_type") == "cohere2":
        config = with_defaults(config, sliding_window=4096)
        every = config.int("sliding_window_pattern", default=4)
        windows = layer_windows(config, count, pattern=every_nth_full(count, every))
        windows = [None if window is None else window + 1 for window in windows]
    attention: dict[str, Any] = biases(config, "attention_bias")
    if config.flag("use_qk_norm", default=False):
        attention["qk_norm"] = "per_head"
    layout = layer_blocks(config, windows, attention=attention, num_norms=1)
    table = one_table(config, positions=config.int("model_max_length", default=None))
    return decoder_fields(config, layout, tied=True, rotary=table)


@family("olmo")
def olmo(config: ConfigView) -> SpecFields:
    """OLMo 1: LayerNorms without weights."""
    layout = layer_blocks(
        config,
        [None] * config.layers(),
        attention=biases(config, "attention_bias"),
        num_norms=0,
    )
    return decoder_fields(config, layout, tied=False, num_final_norms=0)


@family("olmo2", "olmo3")
def olmo2(config: ConfigView) -> SpecFields:
    """OLMo 2 and 3: norms behind the sublayers and over whole queries and keys.

    OLMo 3 has a window in three layers of four.
    """
    count = config.layers()
    windows: list[int | None] = [None] * count
    if config.text("model_type") == "olmo3":
        config = with_defaults(config, sliding_window=4096)
        windows = layer_windows(config, count, pattern=every_nth_full(count, 4))
    attention = {"qk_norm": "projection", **biases(config, "attention_bias")}
    layout = layer_blocks(config, windows, attention=attention)
    return decoder_fields(config, layout, tied=False, naming="olmo2")


@family("granite", "granite_swa")
def granite(config: ConfigView) -> SpecFields:
    """Granite 3 and 4 dense; the variant with windows has attention sinks."""
    count = config.layers()
    windows: list[int | None] = [None] * count
    attention: dict[str, Any] = biases(config, "attention_bias")
    windowed = config.text("model_type") == "granite_swa"
    if windowed:
        config = with_defaults(config, sliding_window=128)
        pattern = ["sliding_attention" if i % 4 else "full_attention" for i in range(count)]
        windows = layer_windows(config, count, pattern=pattern)
        attention["sinks"] = True
    mlp = dense_mlp(config, bias=config.flag("mlp_bias", default=False))
    layout = layer_blocks(config, windows, mlp=mlp, attention=attention)
    return decoder_fields(config, layout, tied=windowed, rotary=one_table(config))


@family("starcoder2")
def starcoder2(config: ConfigView) -> SpecFields:
    """StarCoder 2: LayerNorms and biases, a plain MLP, rotary positions."""
    config = with_defaults(config, num_key_value_heads=2)
    bias = config.flag("use_bias", default=True)
    layout = layer_blocks(
        config,
        layer_windows(config, config.layers()),
        mlp=dense_mlp(config, gated=False, bias=bias),
        attention={"qkv_bias": bias, "out_bias": bias},
        norm_bias=True,
    )
    return decoder_fields(config, layout, tied=True, final_norm_bias=True, naming="starcoder2")


@family("stablelm", "stablelm_epoch")
def stablelm(config: ConfigView) -> SpecFields:
    """StableLM: LayerNorms with bias; a parallel residual has one norm for both branches."""
    qkv = config.flag("use_qkv_bias", default=False)
    norm = "per_head" if config.flag("qk_layernorm", default=False) else "none"
    layout = layer_blocks(
        config,
        [None] * config.layers(),
        attention={"qkv_bias": qkv, "qk_norm": norm},
        num_norms=1 if config.flag("use_parallel_residual", default=False) else 2,
        norm_bias=True,
    )
    share = partial_rotary(config, "partial_rotary_factor", "rope_pct", default=0.25)
    return decoder_fields(
        config,
        layout,
        tied=False,
        final_norm_bias=True,
        rotary=one_table(config, partial=share),
        naming="stablelm",
    )


@family("glm", "glm4")
def glm(config: ConfigView) -> SpecFields:
    """GLM-4 in transformers' own format; the 0414 models have two more norms per layer."""
    newer = config.text("model_type") == "glm4"
    config = with_defaults(config, num_key_value_heads=2, head_dim=128)
    qkv = config.flag("attention_bias", default=True)
    layout = layer_blocks(
        config,
        [None] * config.layers(),
        attention={"qkv_bias": qkv},
        num_norms=4 if newer else 2,
    )
    rotary = one_table(config, partial=partial_rotary(config, default=0.5)) if newer else ()
    return decoder_fields(
        config, layout, tied=False, rotary=rotary, naming=config.text("model_type")
    )


@family("exaone4")
def exaone4(config: ConfigView) -> SpecFields:
    """EXAONE 4: norms behind the sublayers and on query and key heads; windows in some layers."""
    config = with_defaults(config, sliding_window=4096)
    count = config.layers()
    pattern: list[str] = []
    if sliding_window(config) is not None:
        pattern = _exaone4_pattern(config, count)
    layout = layer_blocks(
        config, layer_windows(config, count, pattern=pattern), attention={"qk_norm": "head"}
    )
    return decoder_fields(config, layout, tied=False, rotary=one_table(config), naming="olmo2")


def _exaone4_pattern(config: ConfigView, count: int) -> list[str]:
    """`sliding_window_pattern`: every n-th layer is global, or letters L and G that repeat."""
    value = config.data.get("sliding_window_pattern", 4)
    if isinstance(value, str):
        if not value or len(value) > count or set(value) - {"L", "G"}:
            raise config.fail("sliding_window_pattern must be a number or letters L and G")
        kinds = {"L": "sliding_attention", "G": "full_attention"}
        return [kinds[value[i % len(value)]] for i in range(count)]
    every = config.count("sliding_window_pattern", default=4)
    return every_nth_full(count, every) if every else ["full_attention"] * count


@family("nemotron")
def nemotron(config: ConfigView) -> SpecFields:
    """Nemotron-4 and Minitron: squared ReLU without a gate, LayerNorms with bias."""
    layout = layer_blocks(
        config,
        [None] * config.layers(),
        mlp=dense_mlp(config, gated=False, bias=config.flag("mlp_bias", default=False)),
        attention=biases(config, "attention_bias"),
        norm_bias=True,
    )
    share = partial_rotary(config, "partial_rotary_factor", "rope_percent", default=0.5)
    return decoder_fields(
        config,
        layout,
        tied=False,
        final_norm_bias=True,
        rotary=one_table(config, partial=share),
    )


@family("apertus")
def apertus(config: ConfigView) -> SpecFields:
    """Apertus: norms on query and key heads; an activation with learned and fixed scalars."""
    count = config.layers()
    attention = {"qk_norm": "head", **biases(config, "attention_bias")}
    layout = layer_blocks(
        config,
        layer_windows(config, count),
        mlp=dense_mlp(config, gated=False),
        attention=attention,
        extra=(
            ExtraTensor(role="other.alpha_p", shape=(1,)),
            ExtraTensor(role="other.alpha_n", shape=(1,)),
        ),
    )
    return decoder_fields(
        config,
        layout,
        tied=False,
        rotary=one_table(config),
        stored_extra=(
            ExtraTensor(role="other.activation_constants", shape=(1,), copies=2 * count),
        ),
        naming="apertus",
    )
