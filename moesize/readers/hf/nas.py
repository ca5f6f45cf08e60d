"""Models from neural architecture search, where every layer has a shape of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesize.core.feed_forward import DenseMlp
from moesize.core.model_spec import (
    Block,
    ExtraTensor,
)
from moesize.readers.hf.common import (
    biases,
    decoder_fields,
    dense_mlp,
    grouped_query_attention,
    one_table,
    with_defaults,
)
from moesize.readers.hf.registry import SpecFields, family
from moesize.readers.hf.view import ConfigView

if TYPE_CHECKING:
    from moesize.core.attention import GroupedQueryAttention


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
            heads, share = config.int("num_attention_heads"), attention.int("n_heads_in_group")
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
