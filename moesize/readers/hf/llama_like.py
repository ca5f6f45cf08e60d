"""Families that differ from Llama in one thing: a gate, a bias, more norms or none.

Defaults for keys that a config leaves out are those of the family's config class in transformers
5.19 (configuration_*.py of the model type). Rotary tables are listed for families that vLLM 0.32.0
implements itself; through its transformers backend there are none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.core.model_spec import ExtraTensor
from moesize.readers.hf.common import (
    biases,
    decoder_fields,
    dense_mlp,
    layer_blocks,
    one_table,
    with_defaults,
)
from moesize.readers.hf.registry import SpecFields, family

if TYPE_CHECKING:
    from moesize.core.feed_forward import DenseMlp
    from moesize.readers.hf.view import ConfigView


def _mlp(config: ConfigView, *, gated: bool = True, default: bool = False) -> DenseMlp:
    return dense_mlp(config, gated=gated, bias=config.flag("mlp_bias", default=default))


@family("helium")
def helium(config: ConfigView) -> SpecFields:
    """Helium: Llama with heads of 128; `attention_bias` leaves the output projection out."""
    config = with_defaults(config, head_dim=128)
    attention = {**biases(config, "attention_bias"), "out_bias": False}
    layout = layer_blocks(config, [None] * config.layers(), mlp=_mlp(config), attention=attention)
    return decoder_fields(config, layout, tied=False)


@family("arcee")
def arcee(config: ConfigView) -> SpecFields:
    """Arcee (AFM): squared ReLU without a gate."""
    layout = layer_blocks(
        config,
        [None] * config.layers(),
        mlp=_mlp(config, gated=False),
        attention=biases(config, "attention_bias"),
    )
    return decoder_fields(config, layout, tied=False)


@family("ernie4_5")
def ernie(config: ConfigView) -> SpecFields:
    """ERNIE 4.5 dense: one flag for all biases, tied."""
    config = with_defaults(config, head_dim=128, num_key_value_heads=2)
    layout = layer_blocks(
        config,
        [None] * config.layers(),
        mlp=dense_mlp(config, bias=config.flag("use_bias", default=False)),
        attention=biases(config, "use_bias"),
    )
    return decoder_fields(config, layout, tied=True, rotary=one_table(config))


@family("hyperclovax")
def hyperclovax(config: ConfigView) -> SpecFields:
    """HyperCLOVA X: two more norms, behind the sublayers."""
    layout = layer_blocks(
        config,
        [None] * config.layers(),
        mlp=_mlp(config),
        attention=biases(config, "attention_bias"),
        num_norms=4 if config.flag("use_post_norm", default=True) else 2,
    )
    return decoder_fields(
        config, layout, tied=False, rotary=one_table(config), naming="hyperclovax"
    )


@family("nanochat")
def nanochat(config: ConfigView) -> SpecFields:
    """nanochat: squared ReLU without a gate, norms without weights."""
    layout = layer_blocks(
        config,
        [None] * config.layers(),
        mlp=dense_mlp(config, gated=False),
        attention=biases(config, "attention_bias"),
        num_norms=0,
    )
    return decoder_fields(config, layout, tied=False, num_final_norms=0, naming="nanochat")


@family("jais2")
def jais2(config: ConfigView) -> SpecFields:
    """Jais 2: squared ReLU without a gate, LayerNorms, biases everywhere."""
    layout = layer_blocks(
        config,
        [None] * config.layers(),
        mlp=_mlp(config, gated=False, default=True),
        attention=biases(config, "attention_bias", default=True),
        norm_bias=True,
    )
    return decoder_fields(config, layout, tied=False, final_norm_bias=True)


@family("bitnet")
def bitnet(config: ConfigView) -> SpecFields:
    """BitNet b1.58: a norm before the output projection and one before the down projection."""
    layout = layer_blocks(
        config,
        [None] * config.layers(),
        attention=biases(config, "attention_bias"),
        extra=(
            ExtraTensor(role="norms.attention_inner", shape=(config.int("hidden_size"),)),
            ExtraTensor(role="norms.mlp_inner", shape=(config.int("intermediate_size"),)),
        ),
    )
    return decoder_fields(config, layout, tied=False, naming="bitnet")


@family("hunyuan_v1_dense")
def hunyuan_dense(config: ConfigView) -> SpecFields:
    """Hunyuan 0.5B-7B: a norm on query and key heads."""
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
    layout = layer_blocks(config, [None] * config.layers(), mlp=_mlp(config), attention=attention)
    return decoder_fields(config, layout, tied=False)
