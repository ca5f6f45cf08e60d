"""Dense decoder families with rotary positions: Llama and its relatives.

Defaults for keys that a config leaves out are those of the family's config class in transformers
5.19 (configuration_*.py of the model type), or of the remote code on the hub for types that
transformers does not have. Rotary tables are listed for families that vLLM 0.32.0 implements
itself; through its transformers backend there are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moesize.core.attention import GroupedQueryAttention
from moesize.core.errors import UnsupportedError
from moesize.core.feed_forward import DenseMlp
from moesize.core.model_spec import (
    Block,
    Embedding,
    ExtraTensor,
    MultiTokenPrediction,
    RotaryTable,
)
from moesize.readers.hf.common import (
    decoder_fields,
    dense_mlp,
    every_nth_full,
    grouped_query_attention,
    layer_windows,
    max_context,
    partial_rotary,
    rotary_table,
    scaled_context,
    sliding_window,
    with_defaults,
)
from moesize.readers.hf.registry import SpecFields, family
from moesize.readers.hf.view import ConfigView


def layer_blocks(
    config: ConfigView,
    windows: Sequence[int | None],
    *,
    mlp: DenseMlp | None = None,
    attention: dict[str, Any] | None = None,
    **facts: Any,
) -> list[Block]:
    """One block per layer, alike but for the window: `sliding` and `full`, or just `layer`."""
    mixed = len(set(windows)) > 1
    feed_forward = mlp or dense_mlp(config)
    blocks: dict[int | None, Block] = {}
    for window in windows:
        if window not in blocks:
            name = "layer" if not mixed else "full" if window is None else "sliding"
            blocks[window] = Block(
                name=name,
                mixers=(grouped_query_attention(config, window=window, **(attention or {})),),
                feed_forwards=(feed_forward,),
                **facts,
            )
    return [blocks[window] for window in windows]


def one_table(
    config: ConfigView, *, positions: int | None = None, partial: float | None = None
) -> tuple[RotaryTable, ...]:
    """The single rotary table of a family that rotates every layer alike."""
    size = grouped_query_attention(config).head_dim
    share = partial_rotary(config) if partial is None else partial
    return (rotary_table(config, size, positions or max_context(config), partial=share),)


def biases(config: ConfigView, key: str, *, default: bool = False) -> dict[str, bool]:
    """One flag for the biases of q, k, v and of the output projection."""
    flag = config.flag(key, default=default)
    return {"qkv_bias": flag, "out_bias": flag}


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
    # Mistral's and CWM's classes have no biases, whatever a config says.
    biased = not defaults
    layout = layer_blocks(
        config,
        layer_windows(config, count, pattern=pattern),
        mlp=dense_mlp(config, bias=biased and config.flag("mlp_bias", default=False)),
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


@family("qwen")
def qwen(config: ConfigView) -> SpecFields:
    """Qwen 1: fused c_attn with a bias; `intermediate_size` counts both halves of the gated MLP.

    Source: configuration_qwen.py, modeling_qwen.py of Qwen/Qwen-7B.
    """
    if "visual" in config:
        raise UnsupportedError(f"{config.file}: Qwen-VL has a vision tower that is not described")
    both = config.int("intermediate_size")
    if both % 2:
        raise config.fail(f"intermediate_size ({both}) must be even")
    other = not config.flag("no_bias", default=True)
    size = config.int("kv_channels", default=128)
    config = with_defaults(config, head_dim=size)
    layout = layer_blocks(
        config,
        [None] * config.layers(),
        mlp=DenseMlp(intermediate_size=both // 2, bias=other),
        attention={"qkv_bias": True, "out_bias": other, "num_kv_heads": _heads(config)},
    )
    context = scaled_context(config, "max_position_embeddings", "seq_length")
    return decoder_fields(
        config,
        layout,
        tied=False,
        max_context=context,
        rotary=one_table(config, partial=partial_rotary(config, "rotary_pct")),
        naming="qwen",
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
    return decoder_fields(
        config, layout, tied=False, rotary=one_table(config), naming="phi3"
    )


@family("phi3small")
def phi3small(config: ConfigView) -> SpecFields:
    """Phi-3-small: block-sparse attention (every token stays cached), biases, LayerNorms.

    Source: modeling_phi3_small.py of microsoft/Phi-3-small-8k-instruct.
    """
    config = with_defaults(config, num_key_value_heads=8)
    layout = layer_blocks(
        config,
        [None] * config.layers(),
        mlp=dense_mlp(config, "ff_intermediate_size", "intermediate_size", bias=True),
        attention={"qkv_bias": True, "out_bias": True},
        norm_bias=True,
    )
    # Every layer of the remote code registers its inverse frequencies.
    buffers = ExtraTensor(
        role="other.inverse_frequencies",
        shape=(grouped_query_attention(config).head_dim // 2,),
        copies=len(layout),
    )
    return decoder_fields(
        config,
        layout,
        tied=True,
        final_norm_bias=True,
        stored_extra=(buffers,),
        naming="phi3small",
    )


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


@family("hf_olmo")
def hf_olmo(config: ConfigView) -> SpecFields:
    """OLMo 1 as first published: its own key names, fused projections, tied by `weight_tying`.

    Source: hf_olmo/configuration_olmo.py and olmo/model.py of allenai/OLMo 0.6.0.
    """
    for key in ("include_bias", "bias_for_layer_norm", "attention_layer_norm", "alibi"):
        if config.flag(key, default=False):
            raise UnsupportedError(f"{config.file}: {key} is set, which no published OLMo has")
    if config.flag("layer_norm_with_affine", default=False):
        raise UnsupportedError(f"{config.file}: layer_norm_with_affine is not supported")
    if config.text("activation_type", default="swiglu") != "swiglu":
        raise UnsupportedError(f"{config.file}: activation_type must be swiglu")
    width, heads = config.int("d_model"), config.int("n_heads")
    both = config.int("mlp_hidden_size", default=width * config.int("mlp_ratio", default=4))
    if width % heads or both % 2:
        raise config.fail(f"n_heads ({heads}) must divide d_model ({width}); the MLP must be even")
    size = width // heads
    one = config.flag("multi_query_attention", default=False)
    groups = config.int("n_kv_heads", default=1 if one else heads)
    attention = GroupedQueryAttention(
        num_heads=heads, num_kv_heads=groups, head_dim=size, v_head_dim=size
    )
    block = Block(
        name="layer",
        mixers=(attention,),
        feed_forwards=(DenseMlp(intermediate_size=both // 2),),
        num_norms=0,
    )
    rows = config.int("embedding_size", "vocab_size")
    tied = config.flag("weight_tying", default=True)
    return decoder_fields(
        config,
        [block] * config.layers("n_layers"),
        tied=tied,
        hidden_size=width,
        embedding=Embedding(vocab_size=rows, tied=tied),
        max_context=max_context(config, "max_sequence_length"),
        num_final_norms=0,
        naming="hf_olmo",
    )


@family("granite", "granite_swa")
def granite(config: ConfigView) -> SpecFields:
    """Granite 3 and 4 dense; the variant with windows has attention sinks."""
    count = config.layers()
    windows: list[int | None] = [None] * count
    attention: dict[str, Any] = biases(config, "attention_bias")
    if config.text("model_type") == "granite_swa":
        config = with_defaults(config, sliding_window=128)
        pattern = ["sliding_attention" if i % 4 else "full_attention" for i in range(count)]
        windows = layer_windows(config, count, pattern=pattern)
        attention["sinks"] = True
    mlp = dense_mlp(config, bias=config.flag("mlp_bias", default=False))
    layout = layer_blocks(config, windows, mlp=mlp, attention=attention)
    return decoder_fields(config, layout, tied=False, rotary=one_table(config))


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
    return decoder_fields(config, layout, tied=False, rotary=rotary, naming=config.text("model_type"))


@family("chatglm")
def chatglm(config: ConfigView) -> SpecFields:
    """ChatGLM2, ChatGLM3 and GLM-4 in the hub's own format.

    Source: configuration_chatglm.py of THUDM/chatglm3-6b; vLLM 0.32.0 chatglm.py (rotary).
    """
    if "inner_hidden_size" in config or "vision_config" in config:
        raise UnsupportedError(
            f"{config.file}: only ChatGLM2 and its text successors are known under chatglm"
        )
    heads, size = _heads(config), config.int("kv_channels", default=128)
    groups = heads
    if config.flag("multi_query_attention", default=False):
        groups = config.int("multi_query_group_num")
    bias = config.flag("add_bias_linear", default=False)
    norm_bias = not config.flag("rmsnorm", default=True)
    attention = GroupedQueryAttention(
        num_heads=heads,
        num_kv_heads=groups,
        head_dim=size,
        v_head_dim=size,
        qkv_bias=bias or config.flag("add_qkv_bias", default=False),
        out_bias=bias,
    )
    block = Block(
        name="layer",
        mixers=(attention,),
        feed_forwards=(DenseMlp(intermediate_size=config.int("ffn_hidden_size"), bias=bias),),
        norm_bias=norm_bias,
    )
    tied = config.flag("tie_word_embeddings", default=False)
    rows = config.int("padded_vocab_size", "vocab_size")
    positions = max_context(config, "seq_length")
    return decoder_fields(
        config,
        [block] * config.layers("num_layers", "num_hidden_layers"),
        tied=tied,
        embedding=Embedding(vocab_size=rows, tied=tied),
        max_context=positions,
        num_final_norms=1 if config.flag("post_layer_norm", default=True) else 0,
        final_norm_bias=norm_bias,
        rotary=(RotaryTable(positions=positions, rotary_dim=size // 2),),
        stored_extra=(ExtraTensor(role="other.inverse_frequencies", shape=(size // 4,)),),
        naming="chatglm",
    )


@family("internlm", "internlm2", "internlm3")
def internlm(config: ConfigView) -> SpecFields:
    """InternLM 1-3: Llama with optional biases; InternLM2 stores a fused wqkv.

    Source: configuration_internlm*.py on the hub.
    """
    kind = config.text("model_type")
    bias = config.flag("bias", default=kind != "internlm3")
    qkv = config.flag("qkv_bias", default=False) if kind == "internlm3" else bias
    mlp_bias = bias if kind == "internlm3" else False
    layout = layer_blocks(
        config,
        [None] * config.layers(),
        mlp=dense_mlp(config, bias=mlp_bias),
        attention={"qkv_bias": qkv, "out_bias": bias},
    )
    naming = "internlm2" if kind == "internlm2" else "default"
    return decoder_fields(config, layout, tied=False, rotary=one_table(config), naming=naming)


@family("baichuan")
def baichuan(config: ConfigView) -> SpecFields:
    """Baichuan 1 and 2: a fused W_pack; the 13B models use ALiBi and have no rotary table.

    Which is which is told by the hidden size, as in vLLM (baichuan.py).
    """
    layout = layer_blocks(config, [None] * config.layers())
    context = scaled_context(config, "max_position_embeddings", "model_max_length")
    rotary = one_table(config) if config.int("hidden_size") == 4096 else ()
    return decoder_fields(
        config, layout, tied=False, max_context=context, rotary=rotary, naming="baichuan"
    )


@family("minicpm")
def minicpm(config: ConfigView) -> SpecFields:
    """MiniCPM 1, 2 and 4 dense: Llama's shape, tied unless stated otherwise.

    Source: configuration_minicpm.py of openbmb/MiniCPM-2B-sft-bf16.
    """
    if config.count("num_experts", default=0):
        raise UnsupportedError(f"{config.file}: MiniCPM with experts is not supported")
    layout = layer_blocks(
        config, [None] * config.layers(), attention=biases(config, "attention_bias")
    )
    return decoder_fields(config, layout, tied=True, rotary=one_table(config))


@family("exaone")
def exaone(config: ConfigView) -> SpecFields:
    """EXAONE 3 and 3.5: Llama's shape under GPT-2's names.

    Source: configuration_exaone.py of LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct.
    """
    layout = layer_blocks(config, [None] * config.layers("num_layers", "num_hidden_layers"))
    return decoder_fields(config, layout, tied=True, rotary=one_table(config), naming="exaone")


@family("exaone4")
def exaone4(config: ConfigView) -> SpecFields:
    """EXAONE 4: norms behind the sublayers and on query and key heads; some layers have a window."""
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


@family("hunyuan_v1_dense")
def hunyuan_dense(config: ConfigView) -> SpecFields:
    """Hunyuan 0.5B-7B: Llama with a norm on query and key heads."""
    attention = {"qk_norm": "head", **biases(config, "attention_bias")}
    layout = layer_blocks(config, [None] * config.layers(), attention=attention)
    return decoder_fields(config, layout, tied=False, naming="hunyuan")


@family("seed_oss")
def seed_oss(config: ConfigView) -> SpecFields:
    """Seed-OSS: biases on q, k, v; the output projection has its own flag."""
    config = with_defaults(config, head_dim=128, num_key_value_heads=8)
    attention = {
        "qkv_bias": config.flag("attention_bias", default=True),
        "out_bias": config.flag("attention_out_bias", default=False),
    }
    mlp = dense_mlp(config, bias=config.flag("mlp_bias", default=False))
    layout = layer_blocks(config, [None] * config.layers(), mlp=mlp, attention=attention)
    return decoder_fields(config, layout, tied=False)


@family("apertus")
def apertus(config: ConfigView) -> SpecFields:
    """Apertus: norms on query and key heads; an activation with two learned and two fixed scalars."""
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
        stored_extra=(ExtraTensor(role="other.activation_constants", shape=(1,), copies=2 * count),),
        naming="apertus",
    )


@family("helium", "arcee", "ernie4_5", "hyperclovax", "nanochat", "jais2")
def llama_variants(config: ConfigView) -> SpecFields:
    """Llama's shape with one change each: an MLP without a gate, more norms, none, or with bias."""
    kind = config.text("model_type")
    defaults: dict[str, Any] = {}
    if kind in ("helium", "ernie4_5"):
        defaults["head_dim"] = 128
    if kind == "ernie4_5":
        defaults["num_key_value_heads"] = 2
    config = with_defaults(config, **defaults)
    layer_norm = kind == "jais2"
    bias_key = "use_bias" if kind == "ernie4_5" else "attention_bias"
    mlp_bias = bias_key if kind == "ernie4_5" else "mlp_bias"
    attention = biases(config, bias_key, default=layer_norm)
    if kind == "helium":
        attention["out_bias"] = False
    norms = 2
    if kind == "hyperclovax" and config.flag("use_post_norm", default=False):
        norms = 4
    if kind == "nanochat":
        norms = 0
    layout = layer_blocks(
        config,
        [None] * config.layers(),
        mlp=dense_mlp(
            config,
            gated=kind in ("helium", "ernie4_5", "hyperclovax"),
            bias=config.flag(mlp_bias, default=layer_norm) if kind != "nanochat" else False,
        ),
        attention=attention,
        num_norms=norms,
        norm_bias=layer_norm,
    )
    return decoder_fields(
        config,
        layout,
        tied=kind == "ernie4_5",
        num_final_norms=0 if kind == "nanochat" else 1,
        final_norm_bias=layer_norm,
        rotary=one_table(config) if kind in ("ernie4_5", "hyperclovax") else (),
        naming=kind if kind in ("hyperclovax", "nanochat") else "default",
    )


@family("orion")
def orion(config: ConfigView) -> SpecFields:
    """Orion-14B: Llama with LayerNorms that have a bias (vLLM 0.32.0 orion.py)."""
    layout = layer_blocks(config, [None] * config.layers(), norm_bias=True)
    return decoder_fields(
        config, layout, tied=False, final_norm_bias=True, rotary=one_table(config)
    )


@family("nemotron-nas", "deci")
def nemotron_nas(config: ConfigView) -> SpecFields:
    """Puzzle/DeciLM: every layer has its own KV heads and MLP width, or lacks one of the two.

    Source: block_config.py and modeling_decilm.py of nvidia/Llama-3_3-Nemotron-Super-49B-v1.
    """
    count = config.layers()
    if "block_configs" in config:
        layout = _nas_layout(config, count)
    else:
        per_layer = config.list("num_key_value_heads_per_layer")
        if len(per_layer) != count:
            raise config.fail(
                f"num_key_value_heads_per_layer has {len(per_layer)} entries for {count} layers"
            )
        layout = []
        for i in range(count):
            groups = _entry(config, per_layer, i, "num_key_value_heads_per_layer")
            attention = grouped_query_attention(config, num_kv_heads=groups)
            name = f"layer_kv{groups}"
            layout.append(Block(name=name, mixers=(attention,), feed_forwards=(dense_mlp(config),)))
    if all(not block.mixers for block in layout):
        raise config.fail("no layer has attention")
    return decoder_fields(
        config, layout, tied=False, rotary=one_table(config), naming="nemotron_nas"
    )


def _entry(config: ConfigView, values: list[Any], index: int, key: str) -> int:
    """One positive integer of a list."""
    return ConfigView({key: values[index]}, config.file, f"{config.path(key)}[{index}]").int(key)


def _nas_layout(config: ConfigView, count: int) -> list[Block]:
    entries = config.list("block_configs")
    if len(entries) != count:
        raise config.fail(f"block_configs has {len(entries)} entries for {count} layers")
    names: dict[Block, Block] = {}
    layout = []
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise config.fail(f"block_configs[{i}] must be an object")
        view = ConfigView(entry, config.file, f"block_configs[{i}]")
        bare = _nas_block(config, view)
        if bare not in names:
            names[bare] = Block(
                name=f"block{len(names)}",
                mixers=bare.mixers,
                feed_forwards=bare.feed_forwards,
                num_norms=bare.num_norms,
                extra=bare.extra,
            )
        layout.append(names[bare])
    return layout


def _nas_block(config: ConfigView, view: ConfigView) -> Block:
    hidden = config.int("hidden_size")
    attention, ffn = view.need_sub("attention"), view.need_sub("ffn")
    extra: list[ExtraTensor] = []
    mixers: tuple[GroupedQueryAttention, ...] = ()
    norms = 0
    if not attention.flag("no_op", default=False):
        norms += 1
        if attention.flag("replace_with_linear", default=False):
            extra.append(_square("attention.replaced", hidden))
        else:
            heads, share = _heads(config), attention.int("n_heads_in_group")
            if heads % share:
                raise attention.fail(
                    f"n_heads_in_group ({share}) must divide num_attention_heads ({heads})"
                )
            bias = biases(config, "attention_bias")
            window = attention.int("window_length", default=None)
            mixers = (
                grouped_query_attention(
                    with_defaults(config), num_kv_heads=heads // share, window=window, **bias
                ),
            )
    feed_forwards: tuple[DenseMlp, ...] = ()
    if not ffn.flag("no_op", default=False):
        norms += 1
        if ffn.flag("replace_with_linear", default=False):
            extra.append(_square("dense_mlp.replaced", hidden))
        else:
            bias_flag = config.flag("mlp_bias", default=False)
            feed_forwards = (DenseMlp(intermediate_size=_nas_width(ffn, hidden), bias=bias_flag),)
    return Block(
        name="", mixers=mixers, feed_forwards=feed_forwards, num_norms=norms, extra=tuple(extra)
    )


def _square(role: str, hidden: int) -> ExtraTensor:
    return ExtraTensor(role=role, shape=(hidden, hidden), matmul=True)


def _nas_width(ffn: ConfigView, hidden: int) -> int:
    """`intermediate_size`, or 2/3 * `ffn_mult` * H rounded up to a multiple of 256."""
    if "ffn_mult" not in ffn:
        return ffn.int("intermediate_size")
    mult = ffn.number("ffn_mult")
    if not 0 < mult <= 1024:
        raise ffn.fail(f"ffn_mult is {mult}; it must lie in 0..1024")
    width = int(2 * mult * hidden / 3)
    return -(-width // 256) * 256
