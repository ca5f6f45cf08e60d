"""Dense decoder families whose classes live on the hub and not in transformers.

Each function names the files that its facts and defaults come from.
"""

from __future__ import annotations

from typing import Any

from moesize.core.attention import GroupedQueryAttention
from moesize.core.errors import UnsupportedError
from moesize.core.feed_forward import DenseMlp, FeedForward, MoeMlp
from moesize.core.model_spec import Block, Embedding, ExtraTensor, RotaryTable
from moesize.core.recurrent import Mamba1
from moesize.readers.hf.common import (
    biases,
    decoder_fields,
    dense_mlp,
    grouped_query_attention,
    layer_blocks,
    max_context,
    one_table,
    partial_rotary,
    scaled_context,
    sliding_window,
    with_defaults,
)
from moesize.readers.hf.dense import phi
from moesize.readers.hf.registry import SpecFields, family
from moesize.readers.hf.view import ConfigView


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
        attention={
            "qkv_bias": True,
            "out_bias": other,
            "num_kv_heads": config.int("num_attention_heads"),
        },
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


@family("chatglm")
def chatglm(config: ConfigView) -> SpecFields:
    """ChatGLM2, ChatGLM3 and GLM-4 in the hub's own format.

    Source: configuration_chatglm.py of THUDM/chatglm3-6b; vLLM 0.32.0 chatglm.py (rotary).
    """
    if "inner_hidden_size" in config or "vision_config" in config:
        raise UnsupportedError(
            f"{config.file}: only ChatGLM2 and its text successors are known under chatglm"
        )
    heads, size = config.int("num_attention_heads"), config.int("kv_channels", default=128)
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
    """MiniCPM 1, 2 and 4, dense or with experts: Llama's shape, tied unless stated otherwise.

    Source: configuration_minicpm.py of openbmb/MiniCPM-2B-sft-bf16; vLLM 0.32.0 minicpm.py.
    """
    mlp: FeedForward = dense_mlp(config)
    experts = config.count("num_experts", default=0)
    if experts:
        mlp = MoeMlp(
            num_experts=experts,
            experts_per_token=config.int("num_experts_per_tok"),
            intermediate_size=config.int("intermediate_size"),
        )
    layout = layer_blocks(
        config, [None] * config.layers(), mlp=mlp, attention=biases(config, "attention_bias")
    )
    return decoder_fields(config, layout, tied=True, rotary=one_table(config))


@family("exaone")
def exaone(config: ConfigView) -> SpecFields:
    """EXAONE 3 and 3.5: Llama's shape under GPT-2's names.

    Source: configuration_exaone.py of LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct.
    """
    layout = layer_blocks(config, [None] * config.layers("num_layers", "num_hidden_layers"))
    return decoder_fields(config, layout, tied=True, rotary=one_table(config), naming="exaone")


@family("orion")
def orion(config: ConfigView) -> SpecFields:
    """Orion-14B: Llama with LayerNorms that have a bias (vLLM 0.32.0 orion.py)."""
    layout = layer_blocks(config, [None] * config.layers(), norm_bias=True)
    return decoder_fields(
        config, layout, tied=False, final_norm_bias=True, rotary=one_table(config)
    )


@family("phi-msft")
def phi_msft(config: ConfigView) -> SpecFields:
    """Phi-1.5 and Phi-2 as first published, under names of their own.

    Source: configuration_phi.py of microsoft/phi-2 at its first revision.
    """
    renamed = {
        "model_type": "phi",
        "hidden_size": config.int("n_embd"),
        "num_hidden_layers": config.layers("n_layer"),
        "num_attention_heads": config.int("n_head"),
        "num_key_value_heads": config.int("n_head_kv", default=None),
        "intermediate_size": config.int("n_inner", default=4 * config.int("n_embd")),
        "max_position_embeddings": max_context(config, "n_positions"),
    }
    return phi(ConfigView({**config.data, **renamed}, config.file, config.where)) | {
        "naming": "phi_msft"
    }


@family("phi4flash")
def phi4flash(config: ConfigView) -> SpecFields:
    """Phi-4-mini-flash (SambaY): a decoder whose second half re-uses one layer's cache.

    First half: Mamba and windowed attention in turn, then one Mamba layer and one layer of full
    attention. Second half: gated memory units on that Mamba layer's output, and attention that
    reads the full layer's cache. Attention is differential: four vectors of a head's
    size, and a norm over two heads.
    Source: modeling_phi4flash.py of microsoft/Phi-4-mini-flash-reasoning.
    """
    config = with_defaults(config, mb_per_layer=2, mamba_d_state=16, mamba_d_conv=4, mamba_expand=2)
    count, hidden = config.layers(), config.int("hidden_size")
    if config.int("mb_per_layer") != 2 or count % 4:
        raise UnsupportedError(f"{config.file}: only every other layer a Mamba layer is known")
    inner = config.int("mamba_expand", high=64) * hidden
    mamba = Mamba1(
        inner_size=inner,
        state_size=config.int("mamba_d_state"),
        dt_rank=config.int("mamba_dt_rank", default=-(-hidden // 16)),
        conv_kernel=config.int("mamba_d_conv"),
    )
    memory_unit = (
        ExtraTensor(role="other.memory_in", shape=(inner, hidden), split="out", matmul=True),
        ExtraTensor(role="other.memory_out", shape=(hidden, inner), split="in", matmul=True),
    )
    half = count // 2
    blocks = []
    for i in range(count):
        facts: dict[str, Any] = {}
        if i % 2 == 0:
            name = "mamba" if i <= half else "memory"
            facts = {"mixers": (mamba,)} if i <= half else {"extra": memory_unit}
        else:
            name = "sliding" if i < half else "full" if i == half + 1 else "shared"
            attention = grouped_query_attention(
                config,
                window=sliding_window(config, default=512) if i < half else None,
                shares_kv=i > half + 1,
                qkv_bias=True,
                out_bias=True,
            )
            size = attention.head_dim
            facts = {
                "mixers": (attention,),
                "extra": (
                    ExtraTensor(role="other.lambda", shape=(size,), copies=4),
                    ExtraTensor(role="norms.differential", shape=(2 * size,)),
                ),
            }
        blocks.append(Block(name=name, feed_forwards=(dense_mlp(config),), norm_bias=True, **facts))
    return decoder_fields(config, blocks, tied=True, final_norm_bias=True, naming="phi4flash")
