"""Dense decoder families of the GPT-2 era: LayerNorms, biases, plain MLPs, their own key names.

Defaults for keys that a config leaves out are those of the family's config class in transformers
5.19 (configuration_*.py of the model type).
"""

from __future__ import annotations

from typing import Any

from moesize.core.attention import GroupedQueryAttention
from moesize.core.errors import UnsupportedError
from moesize.core.feed_forward import DenseMlp
from moesize.core.model_spec import Block, Embedding, ExtraTensor, RotaryTable
from moesize.readers.hf.common import decoder_fields, max_context
from moesize.readers.hf.registry import SpecFields, family
from moesize.readers.hf.view import ConfigView


def _attention(
    config: ConfigView, width: int, heads: int, kv_heads: int | None = None, **facts: Any
) -> GroupedQueryAttention:
    """Heads that share the hidden size evenly."""
    if width % heads:
        raise config.fail(f"{heads} attention heads must divide the hidden size {width}")
    size = width // heads
    return GroupedQueryAttention(
        num_heads=heads,
        num_kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=size,
        v_head_dim=size,
        **facts,
    )


def _plain(width: int, *, bias: bool = True) -> DenseMlp:
    return DenseMlp(intermediate_size=width, gated=False, bias=bias)


def _embedding(config: ConfigView, *, tied: bool, **facts: Any) -> Embedding:
    return Embedding(
        vocab_size=config.int("vocab_size"),
        tied=config.flag("tie_word_embeddings", default=tied),
        **facts,
    )


@family("gpt2", "gpt_bigcode")
def gpt2(config: ConfigView) -> SpecFields:
    """GPT-2, and StarCoder 1 with a single key-value head."""
    for key in ("add_cross_attention", "is_encoder_decoder"):
        if config.flag(key, default=False):
            raise UnsupportedError(f"{config.file}: {key} is set; only plain decoders are known")
    big_code = config.text("model_type") == "gpt_bigcode"
    width, heads = config.int("n_embd", "hidden_size"), config.int("n_head", "num_attention_heads")
    kv = 1 if big_code and config.flag("multi_query", default=True) else heads
    positions = max_context(config, "n_positions", "max_position_embeddings")
    block = Block(
        name="layer",
        mixers=(_attention(config, width, heads, kv, qkv_bias=True, out_bias=True),),
        feed_forwards=(_plain(config.int("n_inner", "intermediate_size", default=4 * width)),),
        norm_bias=True,
    )
    return decoder_fields(
        config,
        [block] * config.layers("n_layer", "num_hidden_layers"),
        tied=True,
        hidden_size=width,
        max_context=positions,
        embedding=_embedding(config, tied=True, positions=positions),
        final_norm_bias=True,
        naming=config.text("model_type"),
    )


@family("gptj", "codegen")
def gptj(config: ConfigView) -> SpecFields:
    """GPT-J and CodeGen: attention and MLP side by side, rotary on part of a head, a head bias."""
    width, heads = config.int("n_embd"), config.int("n_head")
    positions = max_context(config, "n_positions")
    attention = _attention(config, width, heads)
    block = Block(
        name="layer",
        mixers=(attention,),
        feed_forwards=(_plain(config.int("n_inner", default=4 * width)),),
        num_norms=1,
        norm_bias=True,
    )
    rotary: tuple[RotaryTable, ...] = ()
    if config.text("model_type") == "gptj":
        # vLLM 0.32.0 gpt_j.py asks for max_position_embeddings, an alias of n_positions.
        size = config.int("rotary_dim", default=64)
        rotary = (RotaryTable(positions=positions, rotary_dim=size),)
    return decoder_fields(
        config,
        [block] * config.layers("n_layer"),
        tied=False,
        hidden_size=width,
        max_context=positions,
        embedding=_embedding(config, tied=False, head_bias=True),
        final_norm_bias=True,
        rotary=rotary,
        naming=config.text("model_type"),
    )


@family("gpt_neo")
def gpt_neo(config: ConfigView) -> SpecFields:
    """GPT-Neo: every other layer masks all but 256 tokens, and caches all of them all the same."""
    width = config.int("hidden_size")
    positions = max_context(config)
    block = Block(
        name="layer",
        mixers=(_attention(config, width, config.int("num_heads"), out_bias=True),),
        feed_forwards=(_plain(config.int("intermediate_size", default=4 * width)),),
        norm_bias=True,
    )
    return decoder_fields(
        config,
        [block] * config.layers("num_layers"),
        tied=True,
        embedding=_embedding(config, tied=True, positions=positions),
        final_norm_bias=True,
        naming="gpt_neo",
    )


@family("gpt_neox")
def gpt_neox(config: ConfigView) -> SpecFields:
    """GPT-NeoX and Pythia: fused query_key_value, rotary on a quarter of a head."""
    width = config.int("hidden_size")
    bias = config.flag("attention_bias", default=True)
    block = Block(
        name="layer",
        mixers=(
            _attention(
                config, width, config.int("num_attention_heads"), qkv_bias=bias, out_bias=bias
            ),
        ),
        feed_forwards=(_plain(config.int("intermediate_size")),),
        norm_bias=True,
    )
    return decoder_fields(
        config,
        [block] * config.layers(),
        tied=False,
        final_norm_bias=True,
        naming="gpt_neox",
    )


@family("opt")
def opt(config: ConfigView) -> SpecFields:
    """OPT: learned positions with an offset of two; the 350M model has a narrower embedding."""
    width = config.int("hidden_size")
    bias = config.flag("enable_bias", default=True)
    affine = config.flag("layer_norm_elementwise_affine", default=True)
    before = config.flag("do_layer_norm_before", default=True)
    final = before and not config.flag("_remove_final_layer_norm", default=False)
    size = config.int("word_embed_proj_dim", default=width)
    positions = max_context(config)
    block = Block(
        name="layer",
        mixers=(
            _attention(
                config, width, config.int("num_attention_heads"), qkv_bias=bias, out_bias=bias
            ),
        ),
        feed_forwards=(_plain(config.int("ffn_dim"), bias=bias),),
        num_norms=2 if affine else 0,
        norm_bias=affine,
    )
    extra: tuple[ExtraTensor, ...] = ()
    if size != width:
        extra = (
            ExtraTensor(role="other.project_in", shape=(width, size), matmul=True),
            ExtraTensor(role="other.project_out", shape=(size, width), matmul=True),
        )
    embedding = _embedding(
        config, tied=True, positions=positions + 2, size=0 if size == width else size
    )
    return decoder_fields(
        config,
        [block] * config.layers(),
        tied=True,
        embedding=embedding,
        num_final_norms=int(final and affine),
        final_norm_bias=final and affine,
        extra=extra,
        naming="opt",
    )


@family("bloom")
def bloom(config: ConfigView) -> SpecFields:
    """BLOOM: ALiBi instead of positions, a norm behind the embedding, no stated context limit.

    2048 tokens is what it was trained on and what `seq_length` of its configs states.
    """
    width = config.int("hidden_size", "n_embed")
    heads = config.int("n_head", "num_attention_heads")
    block = Block(
        name="layer",
        mixers=(_attention(config, width, heads, qkv_bias=True, out_bias=True),),
        feed_forwards=(_plain(4 * width),),
        norm_bias=True,
    )
    return decoder_fields(
        config,
        [block] * config.layers("n_layer", "num_hidden_layers"),
        tied=True,
        hidden_size=width,
        max_context=max_context(config, "seq_length", default=2048),
        embedding=_embedding(config, tied=True, norm=True, norm_bias=True),
        final_norm_bias=True,
        naming="bloom",
    )


@family("mpt")
def mpt(config: ConfigView) -> SpecFields:
    """MPT: ALiBi, no biases; `expansion_ratio` times the width in the MLP."""
    width, heads = config.int("d_model"), config.int("n_heads")
    inner = config.sub("attn_config") or ConfigView({}, config.file, "attn_config")
    if inner.flag("qk_ln", default=False) or not config.flag("no_bias", default=True):
        raise UnsupportedError(f"{config.file}: MPT with biases or query norms is not supported")
    if config.text("norm_type", default="low_precision_layernorm").endswith("rmsnorm"):
        raise UnsupportedError(f"{config.file}: MPT with RMS norms is not supported")
    kinds = {"multihead_attention": heads, "multiquery_attention": 1}
    kind = inner.text("attn_type", default="multihead_attention")
    groups = inner.int("kv_n_heads", default=kinds.get(kind, heads))
    positions = max_context(config, "max_seq_len")
    # The positions table exists only without ALiBi; the config class switches ALiBi on.
    learned = config.flag("learned_pos_emb", default=True) and not inner.flag("alibi", default=True)
    block = Block(
        name="layer",
        mixers=(_attention(config, width, heads, groups),),
        feed_forwards=(
            _plain(width * config.int("expansion_ratio", default=4, high=64), bias=False),
        ),
    )
    return decoder_fields(
        config,
        [block] * config.layers("n_layers"),
        tied=True,
        hidden_size=width,
        max_context=positions,
        embedding=_embedding(config, tied=True, positions=positions if learned else 0),
        naming="mpt",
    )


@family("falcon", "RefinedWeb", "RefinedWebModel")
def falcon(config: ConfigView) -> SpecFields:
    """Falcon 1 and 2: rotary or ALiBi, one or grouped key-value heads, parallel or sequential.

    The new decoder architecture has one norm per branch unless it says otherwise. Published files
    of the 7B and 40B models hold the tied head a second time.
    """
    width = config.int("hidden_size", "n_embed")
    heads = config.int("num_attention_heads", "n_head")
    new = config.flag("new_decoder_architecture", default=False)
    groups = heads
    if new:
        groups = config.int("num_kv_heads", "n_head_kv", default=heads)
    elif config.flag("multi_query", default=True):
        groups = 1
    bias = config.flag("bias", default=False)
    parallel = new or config.flag("parallel_attn", default=True)
    norms = config.int("num_ln_in_parallel_attn", default=2 if new else 1, high=2)
    attention = _attention(config, width, heads, groups, qkv_bias=bias, out_bias=bias)
    block = Block(
        name="layer",
        mixers=(attention,),
        feed_forwards=(_plain(config.int("ffn_hidden_size", default=4 * width), bias=bias),),
        num_norms=norms if parallel else 2,
        norm_bias=True,
    )
    context = max_context(config, "max_position_embeddings", default=2048)
    rotary: tuple[RotaryTable, ...] = ()
    if not config.flag("alibi", default=False):
        rotary = (RotaryTable(positions=context, rotary_dim=attention.head_dim),)
    return decoder_fields(
        config,
        [block] * config.layers("num_hidden_layers", "n_layer"),
        tied=True,
        hidden_size=width,
        max_context=context,
        final_norm_bias=True,
        rotary=rotary,
        naming="falcon_new" if new and norms == 2 else "falcon",
    )


@family("persimmon")
def persimmon(config: ConfigView) -> SpecFields:
    """Persimmon: fused query_key_value, LayerNorms on query and key heads."""
    width = config.int("hidden_size")
    norm: dict[str, Any] = {}
    if config.flag("qk_layernorm", default=True):
        norm = {"qk_norm": "head", "qk_norm_bias": True}
    heads = config.int("num_attention_heads")
    block = Block(
        name="layer",
        mixers=(_attention(config, width, heads, qkv_bias=True, out_bias=True, **norm),),
        feed_forwards=(_plain(config.int("intermediate_size")),),
        norm_bias=True,
    )
    return decoder_fields(
        config, [block] * config.layers(), tied=False, final_norm_bias=True, naming="persimmon"
    )


@family("xglm")
def xglm(config: ConfigView) -> SpecFields:
    """XGLM: fixed sine positions, biases everywhere."""
    width = config.int("d_model")
    block = Block(
        name="layer",
        mixers=(
            _attention(config, width, config.int("attention_heads"), qkv_bias=True, out_bias=True),
        ),
        feed_forwards=(_plain(config.int("ffn_dim")),),
        norm_bias=True,
    )
    return decoder_fields(
        config,
        [block] * config.layers("num_layers"),
        tied=True,
        hidden_size=width,
        max_context=max_context(config),
        embedding=_embedding(config, tied=True),
        final_norm_bias=True,
        naming="xglm",
    )
