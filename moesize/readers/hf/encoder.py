"""Encoders, and encoder-decoder models.

An encoder's layers keep no cache, so they stand in `encoder_layers`; a decoder layer that looks at
the encoder's output has a second mixer for it. Defaults are those of the config classes in
transformers 5.19 (configuration_*.py of the model type).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesize.core.attention import GroupedQueryAttention
from moesize.core.errors import UnsupportedError
from moesize.core.feed_forward import DenseMlp, FeedForward, MoeMlp
from moesize.core.model_spec import Block, Embedding, ExtraTensor, LayerRun, RotaryTable
from moesize.readers.hf.common import layer_types, max_context, stack, with_defaults
from moesize.readers.hf.registry import SpecFields, family

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moesize.readers.hf.view import ConfigView


def _heads(config: ConfigView, width: int, heads: int, **facts: Any) -> GroupedQueryAttention:
    if width % heads:
        raise config.fail(f"{heads} attention heads must divide the hidden size {width}")
    return _sized(heads, width // heads, **facts)


def _sized(heads: int, size: int, **facts: Any) -> GroupedQueryAttention:
    return GroupedQueryAttention(
        num_heads=heads, num_kv_heads=heads, head_dim=size, v_head_dim=size, **facts
    )


@family("bert", "roberta", "xlm-roberta", "camembert")
def bert(config: ConfigView) -> SpecFields:
    """BERT and RoBERTa as `AutoModel` loads them: with the pooler, without a masked-LM head.

    Published files of the pre-training checkpoints hold that head as well.
    """
    if config.flag("is_decoder", default=False) or config.flag(
        "add_cross_attention", default=False
    ):
        raise UnsupportedError(f"{config.file}: BERT as a decoder is not supported")
    width = config.int("hidden_size")
    positions = max_context(config)
    attention = _heads(
        config, width, config.int("num_attention_heads"), qkv_bias=True, out_bias=True
    )
    mlp = DenseMlp(intermediate_size=config.int("intermediate_size"), gated=False, bias=True)
    block = Block(name="encoder", mixers=(attention,), feed_forwards=(mlp,), norm_bias=True)
    # RoBERTa keeps the rows up to its padding id for itself (512 usable of 514).
    offset = 0
    if config.text("model_type") != "bert":
        offset = config.count("pad_token_id", default=1) + 1
    context = positions - offset
    if context < 1:
        raise config.fail(f"max_position_embeddings ({positions}) leaves no usable position")
    return {
        "hidden_size": width,
        "max_context": context,
        "embedding": Embedding(
            vocab_size=config.int("vocab_size"),
            tied=True,
            has_head=False,
            positions=positions,
            token_types=config.count("type_vocab_size", default=2),
            norm=True,
            norm_bias=True,
        ),
        "blocks": (block,),
        "layers": (),
        "encoder_layers": (LayerRun(blocks=("encoder",), repeat=config.layers()),),
        "num_final_norms": 0,
        "extra": (
            ExtraTensor(role="other.pooler", shape=(width, width), matmul=True),
            ExtraTensor(role="other.pooler.bias", shape=(width,)),
        ),
        "naming": "bert",
    }


@family("modernbert")
def modernbert(config: ConfigView) -> SpecFields:
    """ModernBERT: rotary, gated MLPs, a window in two layers of three; the first norm is left out.

    vLLM keeps one table for local and one for global layers.
    """
    config = with_defaults(config, local_attention=128)
    width, heads, count = (
        config.int("hidden_size"),
        config.int("num_attention_heads"),
        config.layers(),
    )
    every = config.int("global_attn_every_n_layers", default=3)
    pattern = ["sliding_attention" if i % every else "full_attention" for i in range(count)]
    types = layer_types(config, count) or pattern
    bias = config.flag("attention_bias", default=False)
    norm_bias = config.flag("norm_bias", default=False)
    mlp = DenseMlp(
        intermediate_size=config.int("intermediate_size"),
        bias=config.flag("mlp_bias", default=False),
    )
    layout = []
    for i, kind in enumerate(types):
        window = config.int("local_attention") if kind == "sliding_attention" else None
        attention = _heads(config, width, heads, window=window, qkv_bias=bias, out_bias=bias)
        name = ("full" if window is None else "sliding") + ("" if i else "_first")
        layout.append(
            Block(
                name=name,
                mixers=(attention,),
                feed_forwards=(mlp,),
                num_norms=2 if i else 1,
                norm_bias=norm_bias,
            )
        )
    blocks, runs = stack(layout)
    positions = max_context(config)
    return {
        "hidden_size": width,
        "max_context": positions,
        "embedding": Embedding(
            vocab_size=config.int("vocab_size"),
            tied=True,
            has_head=False,
            norm=True,
            norm_bias=norm_bias,
        ),
        "blocks": blocks,
        "layers": (),
        "encoder_layers": runs,
        "final_norm_bias": norm_bias,
        "rotary": (RotaryTable(positions=positions, rotary_dim=width // heads, copies=2),),
        "naming": "modernbert",
    }


def _two_stacks(
    encoder: Sequence[Block], decoder: Sequence[Block]
) -> tuple[tuple[Block, ...], tuple[LayerRun, ...], tuple[LayerRun, ...]]:
    """Blocks of both stacks, the decoder's runs, the encoder's runs."""
    encoder_blocks, encoder_runs = stack(encoder)
    decoder_blocks, decoder_runs = stack(decoder)
    return encoder_blocks + decoder_blocks, decoder_runs, encoder_runs


@family("t5", "mt5", "umt5", "switch_transformers")
def t5(config: ConfigView) -> SpecFields:
    """T5 and its relatives: relative positions learned in the first layer of each stack.

    umT5 learns them in every layer. Switch has experts in every n-th layer, from the second on.
    There is no stated context limit; 512 tokens is what T5 was trained on. The head is tied as the
    config says: v1.1 and mT5 have one of their own in their files, although transformers 5 ties it.
    """
    kind = config.text("model_type")
    width, heads = config.int("d_model"), config.int("num_heads")
    buckets = config.int("relative_attention_num_buckets", default=32)
    encoder_count = config.layers("num_layers")
    decoder_count = config.layers("num_decoder_layers", default=encoder_count)
    switch = kind == "switch_transformers"
    projection = config.text("feed_forward_proj", default="gated-gelu" if "mt5" in kind else "relu")
    mlp = DenseMlp(
        intermediate_size=config.int("d_ff"),
        gated=projection.startswith("gated-") and not switch,
    )
    moe: MoeMlp | None = None
    if switch:
        moe = MoeMlp(
            num_experts=config.int("num_experts"),
            experts_per_token=1,
            intermediate_size=mlp.intermediate_size,
            gated=False,
            router_bias="bias" if config.flag("router_bias", default=False) else "none",
        )
    size = config.int("d_kv", default=64)

    def layer(stack_name: str, index: int, count: int) -> Block:
        first = index == 0 or kind == "umt5"
        own = _sized(heads, size, relative_buckets=buckets if first else 0)
        cross = (_sized(heads, size, cross=True),) if stack_name == "decoder" else ()
        sparse = moe is not None and _is_sparse(config, stack_name, index, count)
        feed_forward: FeedForward = moe if moe is not None and sparse else mlp
        return Block(
            name=stack_name + ("_first" if index == 0 else "") + ("_moe" if sparse else ""),
            mixers=(own, *cross),
            feed_forwards=(feed_forward,),
            num_norms=3 if cross else 2,
        )

    blocks, layers, encoder_layers = _two_stacks(
        [layer("encoder", i, encoder_count) for i in range(encoder_count)],
        [layer("decoder", i, decoder_count) for i in range(decoder_count)],
    )
    return {
        "hidden_size": width,
        "max_context": max_context(config, "n_positions", default=512),
        "embedding": Embedding(
            vocab_size=config.int("vocab_size"),
            tied=config.flag("tie_word_embeddings", default=True),
        ),
        "blocks": blocks,
        "layers": layers,
        "encoder_layers": encoder_layers,
        "extra": (ExtraTensor(role="norms.encoder_final", shape=(width,)),),
        "naming": "switch_transformers" if switch else "t5" if mlp.gated else "t5_plain",
    }


def _is_sparse(config: ConfigView, stack_name: str, index: int, count: int) -> bool:
    """Every n-th layer has experts, n = layers / num_sparse_*_layers; layer 1 is the first."""
    sparse = config.count(f"num_sparse_{stack_name}_layers", default=3)
    if sparse > count:
        raise config.fail(f"num_sparse_{stack_name}_layers ({sparse}) exceeds {count} layers")
    step = count // sparse if sparse else count
    return step == 1 or index % step == 1


@family("bart", "mbart", "whisper")
def bart(config: ConfigView) -> SpecFields:
    """BART, mBART and Whisper: two stacks with LayerNorms, biases and learned positions.

    Whisper's encoder starts with two convolutions over mel bins, and its keys have no bias.
    """
    whisper = config.text("model_type") == "whisper"
    width = config.int("d_model")

    def layer(stack_name: str) -> Block:
        heads = config.int(f"{stack_name}_attention_heads")
        facts: dict[str, Any] = {"qkv_bias": True, "out_bias": True, "key_bias": not whisper}
        own = _heads(config, width, heads, **facts)
        decoder = stack_name == "decoder"
        cross = (_heads(config, width, heads, cross=True, **facts),) if decoder else ()
        mlp = DenseMlp(
            intermediate_size=config.int(f"{stack_name}_ffn_dim"), gated=False, bias=True
        )
        return Block(
            name=stack_name,
            mixers=(own, *cross),
            feed_forwards=(mlp,),
            num_norms=3 if decoder else 2,
            norm_bias=True,
        )

    blocks, layers, encoder_layers = _two_stacks(
        [layer("encoder")] * config.layers("encoder_layers"),
        [layer("decoder")] * config.layers("decoder_layers"),
    )
    norms: tuple[str, ...]
    if whisper:
        mels = config.int("num_mel_bins")
        context = max_context(config, "max_target_positions")
        positions, source = context, config.int("max_source_positions")
        extra: tuple[ExtraTensor, ...] = (
            ExtraTensor(role="other.conv1", shape=(width, mels, 3), matmul=True),
            ExtraTensor(role="other.conv1.bias", shape=(width,)),
            ExtraTensor(role="other.conv2", shape=(width, width, 3), matmul=True),
            ExtraTensor(role="other.conv2.bias", shape=(width,)),
        )
        norms = ("encoder_final",)
    else:
        context = max_context(config)
        positions = source = context + 2  # offset of the learned positions
        extra = ()
        # BART has a norm behind each embedding, mBART one behind each stack as well.
        norms = ("encoder_embedding",)
        if config.text("model_type") == "mbart":
            norms += ("decoder_embedding", "encoder_final")
    extra += tuple(
        ExtraTensor(role=f"norms.{name}{part}", shape=(width,))
        for name in norms
        for part in ("", ".bias")
    )
    extra += (ExtraTensor(role="embedding.encoder_positions", shape=(source, width)),)
    return {
        "hidden_size": width,
        "max_context": context,
        "embedding": Embedding(
            vocab_size=config.int("vocab_size"),
            tied=config.flag("tie_word_embeddings", default=True),
            positions=positions,
        ),
        "blocks": blocks,
        "layers": layers,
        "encoder_layers": encoder_layers,
        "final_norm_bias": True,
        "extra": extra,
        "naming": config.text("model_type"),
    }
