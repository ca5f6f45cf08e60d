"""GGUF metadata -> the config.json that a file was made from, as far as tensors depend on it.

llama.cpp's converters write what they read of a config under names of their own
(`conversion/*.py`, `gguf-py/gguf/constants.py:Keys`, ggml-org/llama.cpp at 0c1e57098). The readers
of config.json know every family's tensors, so metadata is turned round here: one function for each
architecture. What no key states is told by the tensors: a bias is there or not, a head is tied when
there is none, a layer has experts when it has a router. Whether the result is right is not a
question of trust: `moesize.readers.gguf.read` compares every tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from moesize.core.errors import InvalidInputError, UnsupportedError
from moesize.core.units import format_gib
from moesize.files import short
from moesize.readers.gguf.header import block_of

if TYPE_CHECKING:
    from moesize.readers.gguf.header import GgufFile

Config: TypeAlias = dict[str, Any]
_MAX_BLOCKS = 4096
# What llama.cpp's converter writes for models that have no longest context (conversion/mamba.py).
_NO_LIMIT = 1 << 20


class Metadata:
    """A file's metadata without the architecture in front of each key, and its tensors by name."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.path = file.paths[0]
        self.architecture = file.architecture
        self.tensors = file.tensors

    def get(self, key: str) -> Any:
        """The value of `{architecture}.key`; None when there is none."""
        return self.file.metadata.get(f"{self.architecture}.{key}")

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number; the largest one of a list with a number for each layer.

        Raises InvalidInputError.
        """
        value = self.get(key)
        if isinstance(value, tuple):
            value = max(value, default=None)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            what = "is missing" if value is None else f"is {short(str(value))}"
            raise InvalidInputError(
                f"{self.path}: {self.architecture}.{key} {what}, and the model depends on it",
                "fetch the file again, or convert it again",
            )
        return value

    def of_layers(self, key: str) -> list[int] | None:
        """A list with a number for each layer, MTP layers left out; None for any other value."""
        value = self.get(key)
        if not isinstance(value, tuple):
            return None
        if len(value) < self.layers or not all(isinstance(item, int) for item in value):
            raise InvalidInputError(
                f"{self.path}: {self.architecture}.{key} has {len(value)} entries for "
                f"{self.layers} layers"
            )
        return [int(item) for item in value[: self.layers]]

    @cached_property
    def blocks(self) -> int:
        """Blocks that the file counts, MTP blocks included."""
        found = self.whole("block_count")
        if not 0 < found <= _MAX_BLOCKS:
            raise InvalidInputError(
                f"{self.path}: claims {found:,} blocks; no model has more than {_MAX_BLOCKS:,}"
            )
        return found

    @cached_property
    def held(self) -> frozenset[int]:
        """Blocks that have tensors."""
        found = {block_of(name) for name in self.tensors}
        return frozenset(block for block in found if block is not None)

    def check_blocks(self) -> None:
        """Raise InvalidInputError for layers without a single tensor."""
        absent = self.layers - sum(block < self.layers for block in self.held)
        if absent > 0:
            raise InvalidInputError(
                f"{self.path}: has no tensor of {absent:,} of the {self.layers:,} layers that it "
                "says it has",
                "is a part of the model missing? fetch all files again",
            )

    @property
    def stated_mtp(self) -> int:
        """MTP blocks among them."""
        found = self.whole("nextn_predict_layers", 0)
        if found >= self.blocks:
            raise InvalidInputError(
                f"{self.path}: {found:,} of {self.blocks} blocks are said to be for multi-token "
                "prediction"
            )
        return found

    @property
    def layers(self) -> int:
        """Layers without MTP blocks."""
        return self.blocks - self.stated_mtp

    @cached_property
    def mtp(self) -> int:
        """MTP blocks that the file holds; some converters count them and leave them out."""
        return self.stated_mtp if self.layers in self.held else 0

    @cached_property
    def _ends(self) -> set[str]:
        return {name.split(".", 2)[2] for name in self.tensors if block_of(name) is not None}

    def has(self, *ends: str) -> bool:
        """Whether any block has a tensor of one of these names: `attn_q.bias`."""
        return any(end in self._ends for end in ends)

    def in_layers(self, end: str) -> list[bool]:
        """Which layers have it."""
        return [f"blk.{layer}.{end}" in self.tensors for layer in range(self.layers)]

    def shape(self, end: str) -> tuple[int, ...]:
        """Of the first layer's tensor of this name; empty when no layer has one."""
        for layer in range(self.layers):
            found = self.tensors.get(f"blk.{layer}.{end}")
            if found is not None:
                return found.shape
        return ()

    def rows(self, name: str) -> int:
        """Rows of a table outside of blocks, 0 when there is none."""
        found = self.tensors.get(name)
        return found.shape[1] if found is not None and len(found.shape) > 1 else 0

    def sparse(self) -> list[str]:
        """`dense` or `sparse` for each layer."""
        words = {True: "sparse", False: "dense"}
        return [words[routed] for routed in self.in_layers("ffn_gate_inp.weight")]

    def kinds(self, end: str, there: str, absent: str) -> list[str]:
        """A word for each layer, by whether it has the tensor."""
        return [there if found else absent for found in self.in_layers(end)]


# --- What families share --------------------------------------------------------------------------


def _common(m: Metadata) -> Config:
    hidden, heads = m.whole("embedding_length"), m.whole("attention.head_count", 0)
    # llama.cpp src/llama-model.cpp:load_hparams: heads share the width unless their size is said.
    size = m.whole("attention.key_length", hidden // heads if heads else 0)
    config: Config = {
        "hidden_size": hidden,
        "num_hidden_layers": m.layers,
        "max_position_embeddings": m.whole("context_length"),
        "vocab_size": m.rows("token_embd.weight"),
        "tie_word_embeddings": "output.weight" not in m.tensors,
        "attention_bias": m.has("attn_q.bias", "attn_qkv.bias"),
        "mlp_bias": m.has("ffn_up.bias"),
        "torch_dtype": {"F32": "float32", "F16": "float16"}.get(m.file.file_type, "bfloat16"),
    }
    if heads:
        config |= {
            "num_attention_heads": heads,
            "num_key_value_heads": m.whole("attention.head_count_kv", heads) or heads,
            "head_dim": size,
        }
    if width := m.whole("feed_forward_length", 0):
        config["intermediate_size"] = width
    window = m.whole("attention.sliding_window", 0)
    if window:
        config["sliding_window"] = window
    config |= _rope(m, size)
    return config | _experts(m)


def _rope(m: Metadata, size: int) -> Config:
    out: Config = {}
    rotated = m.whole("rope.dimension_count", size)
    if 0 < rotated < size:
        out["partial_rotary_factor"] = rotated / size
    scaling: Config = {}
    if "rope_factors_long.weight" in m.tensors:
        scaling = {"rope_type": "longrope"}
    elif "rope_freqs.weight" in m.tensors:
        # The factors stand in the tensor; how they came about changes no size.
        scaling = {"rope_type": "llama3"}
    elif m.get("rope.scaling.type") in ("yarn", "linear"):
        scaling = {"rope_type": m.get("rope.scaling.type")}
        factor = m.get("rope.scaling.factor")
        scaling["factor"] = 1.0 if factor is None else factor
    original = m.get("rope.scaling.original_context_length")
    if scaling and original is not None:
        scaling["original_max_position_embeddings"] = original
        out["original_max_position_embeddings"] = original
    return out | ({"rope_scaling": scaling} if scaling else {})


def _experts(m: Metadata) -> Config:
    count = m.whole("expert_count", 0)
    if not count:
        return {}
    width = m.whole("expert_feed_forward_length", 0) or m.whole("feed_forward_length", 0)
    total = m.whole("expert_shared_feed_forward_length", 0)
    shared = m.whole("expert_shared_count", 0)
    if not shared and m.has("ffn_up_shexp.weight"):
        total = total or (*m.shape("ffn_up_shexp.weight"), 0, 0)[1]
        shared = total // width if width and total % width == 0 else 1
    config: Config = {
        **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), count),
        "num_experts_per_tok": m.whole("expert_used_count"),
        "moe_intermediate_size": width,
        "n_shared_experts": shared,
        "num_shared_experts": shared,
        "mlp_layer_types": m.sparse(),
    }
    if total or shared:
        config["shared_expert_intermediate_size"] = total or shared * width
    if (normed := m.get("expert_weights_norm")) is not None:
        config["norm_topk_prob"] = bool(normed)
    return config


def _windows(m: Metadata) -> Config:
    """Which layers have the window, where the file says so."""
    pattern = m.of_layers("attention.sliding_window_pattern")
    if pattern is None:
        return {}
    words = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    return {"layer_types": words}


def _as(model_type: str, **more: Any) -> _Family:
    """A family whose config has nothing but what all have, and these facts."""
    return lambda m: {**_common(m), **_windows(m), "model_type": model_type, **more}


def _text_of(wrapper: str, model_type: str) -> _Family:
    """The language model of a wrapper: its towers have a file of their own."""
    return lambda m: {**_common(m), "model_type": model_type, "wrapper": wrapper}


_Family: TypeAlias = Callable[[Metadata], Config]

# --- Families -------------------------------------------------------------------------------------


def _llama(m: Metadata) -> Config:
    config = _common(m)
    if m.whole("expert_count", 0):
        if m.has("ffn_gate.0.weight", "ffn_up.0.weight"):
            raise UnsupportedError(
                f"{m.path}: holds a tensor for each expert, as files of before 2024 do",
                "llama.cpp no longer loads them: convert the model again",
            )
        return {**config, "model_type": "mixtral"}
    return {**config, "model_type": "llama"}


def _qwen(m: Metadata) -> Config:
    config = _common(m)
    # Both halves of the gated MLP are counted in it, as in the config.
    return {**config, "model_type": "qwen", "kv_channels": config["head_dim"]}


def _qwen3_moe(model_type: str) -> _Family:
    def read(m: Metadata) -> Config:
        dense = [layer for layer, word in enumerate(m.sparse()) if word == "dense"]
        # llama.cpp always normalizes (src/models/qwen3moe.cpp).
        return {
            **_common(m),
            "model_type": model_type,
            "mlp_only_layers": dense,
            "norm_topk_prob": True,
        }

    return read


def _qwen2_moe(m: Metadata) -> Config:
    dense = [layer for layer, word in enumerate(m.sparse()) if word == "dense"]
    return {
        **_common(m),
        "model_type": "qwen2_moe",
        "mlp_only_layers": dense,
        "qkv_bias": m.has("attn_q.bias"),
    }


def _qwen_hybrid(model_type: str) -> _Family:
    def read(m: Metadata) -> Config:
        inner, heads = m.whole("ssm.inner_size"), m.whole("ssm.time_step_rank")
        return {
            **_common(m),
            "model_type": model_type,
            "layer_types": m.kinds("ssm_out.weight", "linear_attention", "full_attention"),
            "mlp_only_layers": [i for i, word in enumerate(m.sparse()) if word == "dense"],
            "linear_num_key_heads": m.whole("ssm.group_count"),
            "linear_num_value_heads": heads,
            "linear_key_head_dim": m.whole("ssm.state_size"),
            "linear_value_head_dim": inner // heads if heads else 0,
            "linear_conv_kernel_dim": m.whole("ssm.conv_kernel"),
            "mtp_num_hidden_layers": m.mtp,
            "mtp_use_dedicated_embeddings": m.has("nextn.embed_tokens.weight"),
            "norm_topk_prob": True,
        }

    return read


def _latent(model_type: str, **more: Any) -> _Family:
    def read(m: Metadata) -> Config:
        rotated = m.whole("rope.dimension_count")
        # Without the keys of 2025 the lengths are those of undivided heads.
        keys = m.whole("attention.key_length_mla", m.whole("attention.key_length"))
        values = m.whole("attention.value_length_mla", m.whole("attention.value_length"))
        if keys < rotated:
            raise InvalidInputError(
                f"{m.path}: keys of {keys} elements cannot have a rotated part of {rotated}"
            )
        config = {
            **_common(m),
            "model_type": model_type,
            "kv_lora_rank": m.whole("attention.kv_lora_rank"),
            "q_lora_rank": m.whole("attention.q_lora_rank", 0) or None,
            "qk_rope_head_dim": rotated,
            "qk_nope_head_dim": keys - rotated,
            "v_head_dim": values,
            "topk_method": "noaux_tc" if m.has("exp_probs_b.bias") else "greedy",
            "num_nextn_predict_layers": m.mtp,
            "norm_topk_prob": bool(m.get("expert_weights_norm")),
            **more,
        }
        # One for all heads, and no size of theirs.
        del config["head_dim"], config["num_key_value_heads"]
        config.pop("partial_rotary_factor", None)
        return config

    return read


def _deepseek2(m: Metadata) -> Config:
    """DeepSeek-V2 and V3, Kimi-K2, and GLM-4.7-Flash, which alone keeps MTP blocks."""
    if m.mtp:
        return _latent("glm4_moe_lite")(m)
    return _latent("deepseek_v3")(m)


def _sparse_latent(model_type: str) -> _Family:
    def read(m: Metadata) -> Config:
        return {
            **_latent(model_type)(m),
            "index_n_heads": m.whole("attention.indexer.head_count"),
            "index_head_dim": m.whole("attention.indexer.key_length"),
            "index_topk": m.whole("attention.indexer.top_k"),
            "indexer_types": m.kinds("indexer.attn_q_b.weight", "full", "shared"),
        }

    return read


def _glm4_moe(m: Metadata) -> Config:
    return {
        **_common(m),
        "model_type": "glm4_moe",
        "use_qk_norm": m.has("attn_q_norm.weight"),
        "num_nextn_predict_layers": m.mtp,
    }


def _glm(m: Metadata) -> Config:
    """ChatGLM, and GLM-4 in transformers' format: one architecture, with and without fused qkv."""
    common = _common(m)
    if not m.has("attn_qkv.weight"):
        return {**common, "model_type": "glm"}
    return {
        "model_type": "chatglm",
        "hidden_size": common["hidden_size"],
        "num_layers": m.layers,
        "num_attention_heads": common["num_attention_heads"],
        "multi_query_attention": True,
        "multi_query_group_num": common["num_key_value_heads"],
        "kv_channels": common["head_dim"],
        "ffn_hidden_size": common["intermediate_size"],
        "padded_vocab_size": common["vocab_size"],
        "tie_word_embeddings": common["tie_word_embeddings"],
        "seq_length": common["max_position_embeddings"],
        "add_qkv_bias": common["attention_bias"],
        "torch_dtype": common["torch_dtype"],
    }


def _gemma4(m: Metadata) -> Config:
    config = {**_common(m), **_windows(m)}
    kv_heads = m.of_layers("attention.head_count_kv")
    full = [i for i, word in enumerate(config.get("layer_types", ())) if "full" in word]
    per_layer = m.whole("embedding_length_per_layer_input", 0)
    shared = m.whole("attention.shared_kv_layers", 0)
    widths = m.of_layers("feed_forward_length")
    own = [i for i in full if i < m.layers - shared]
    config |= {
        "model_type": "gemma4_text",
        "head_dim": m.whole("attention.key_length_swa"),
        "global_head_dim": m.whole("attention.key_length"),
        "num_kv_shared_layers": shared,
        "hidden_size_per_layer_input": per_layer,
        "enable_moe_block": m.whole("expert_count", 0) > 0,
        "attention_k_eq_v": any(f"blk.{i}.attn_v.weight" not in m.tensors for i in own),
    }
    if widths is not None:
        config["intermediate_size"] = widths[0]
        config["use_double_wide_mlp"] = widths[-1] == 2 * widths[0]
    config.pop("rope_scaling", None)  # its factors stand for heads that are rotated in part
    if per_layer:
        config["vocab_size_per_layer_input"] = m.rows("per_layer_token_embd.weight")
    if kv_heads is not None:
        config["num_key_value_heads"] = max(kv_heads)
        if full:
            config["num_global_key_value_heads"] = kv_heads[full[0]]
    if config["enable_moe_block"]:
        config["top_k_experts"] = config["num_experts_per_tok"]
    return config


def _gemma3n(m: Metadata) -> Config:
    config = {**_common(m), **_windows(m)}
    widths = m.of_layers("feed_forward_length")
    rank = m.shape("laurel_l.weight")
    return {
        **config,
        "model_type": "gemma3n_text",
        **({"intermediate_size": widths} if widths is not None else {}),
        "hidden_size_per_layer_input": m.whole("embedding_length_per_layer_input"),
        "vocab_size_per_layer_input": m.rows("per_layer_token_embd.weight"),
        "altup_num_inputs": m.whole("altup.num_inputs"),
        "num_kv_shared_layers": m.whole("attention.shared_kv_layers", 0),
        "laurel_rank": rank[1] if len(rank) > 1 else 0,
    }


def _olmo2(m: Metadata) -> Config:
    """OLMo 2; with windows OLMo 3."""
    config = {**_common(m), **_windows(m)}
    return {**config, "model_type": "olmo3" if "sliding_window" in config else "olmo2"}


def _exaone4(m: Metadata) -> Config:
    return {"sliding_window": None, **_common(m), **_windows(m), "model_type": "exaone4"}


def _exaone_moe(m: Metadata) -> Config:
    return {
        **_common(m),
        **_windows(m),
        "model_type": "exaone_moe",
        "num_nextn_predict_layers": m.mtp,
    }


def _command_r(m: Metadata) -> Config:
    return {**_common(m), "model_type": "cohere", "use_qk_norm": m.has("attn_q_norm.weight")}


def _phimoe(m: Metadata) -> Config:
    # Every layer's MLP is its experts.
    return {**_common(m), "model_type": "phimoe", "lm_head_bias": "output.bias" in m.tensors}


def _seed_oss(m: Metadata) -> Config:
    bias = m.has("attn_output.bias")
    return {**_common(m), "model_type": "seed_oss", "attention_out_bias": bias}


def _phi2(m: Metadata) -> Config:
    return {**_common(m), "model_type": "phi", "qk_layernorm": m.has("attn_q_norm.weight")}


def _stablelm(m: Metadata) -> Config:
    config = _common(m)
    return {
        **config,
        "model_type": "stablelm",
        "use_qkv_bias": config["attention_bias"],
        "qk_layernorm": m.has("attn_q_norm.weight"),
        "use_parallel_residual": not m.has("ffn_norm.weight"),
    }


def _starcoder2(m: Metadata) -> Config:
    return {**_common(m), "model_type": "starcoder2", "use_bias": m.has("attn_output.bias")}


def _falcon(m: Metadata) -> Config:
    config = _common(m)
    two = m.has("attn_norm_2.weight")
    kv_heads = config["num_key_value_heads"]
    return {
        **config,
        "model_type": "falcon",
        "new_decoder_architecture": two or kv_heads > 1,
        "num_kv_heads": kv_heads,
        "multi_query": kv_heads == 1,
        "num_ln_in_parallel_attn": 2 if two else 1,
        "ffn_hidden_size": config["intermediate_size"],
        "bias": config["attention_bias"],
    }


def _gpt2(model_type: str) -> _Family:
    def read(m: Metadata) -> Config:
        config = _common(m)
        rows = m.rows("position_embd.weight")
        kv_heads = config["num_key_value_heads"]
        return {
            **config,
            "model_type": model_type,
            "n_positions": rows,
            "multi_query": kv_heads == 1,
            "n_inner": config["intermediate_size"],
        }

    return read


def _bloom(m: Metadata) -> Config:
    return {**_common(m), "model_type": "bloom", "seq_length": m.whole("context_length")}


def _mpt(m: Metadata) -> Config:
    config = _common(m)
    hidden = config["hidden_size"]
    return {
        "model_type": "mpt",
        "d_model": hidden,
        "n_heads": config["num_attention_heads"],
        "n_layers": m.layers,
        "vocab_size": config["vocab_size"],
        "max_seq_len": config["max_position_embeddings"],
        "expansion_ratio": config["intermediate_size"] // hidden if hidden else 0,
        "attn_config": {
            "kv_n_heads": config["num_key_value_heads"],
            "alibi": "position_embd.weight" not in m.tensors,
            "qk_ln": m.has("attn_q_norm.weight"),
        },
        "no_bias": not m.has("attn_qkv.bias", "ffn_up.bias"),
        "learned_pos_emb": "position_embd.weight" in m.tensors,
        "tie_word_embeddings": config["tie_word_embeddings"],
        "torch_dtype": config["torch_dtype"],
    }


def _dbrx(m: Metadata) -> Config:
    config = _common(m)
    return {
        **config,
        "model_type": "dbrx",
        "d_model": config["hidden_size"],
        "n_heads": config["num_attention_heads"],
        "n_layers": m.layers,
        "max_seq_len": config["max_position_embeddings"],
        "attn_config": {"kv_n_heads": config["num_key_value_heads"]},
        "ffn_config": {
            "moe_num_experts": config["num_experts"],
            "moe_top_k": config["num_experts_per_tok"],
            "ffn_hidden_size": m.whole("feed_forward_length"),
        },
    }


def _minimax_m2(m: Metadata) -> Config:
    shape = m.shape("attn_q_norm.weight")
    config = _common(m)
    per_head = shape and shape[0] == config.get("head_dim")
    return {
        **config,
        "model_type": "minimax_m2",
        "intermediate_size": config["moe_intermediate_size"],
        "use_qk_norm": bool(shape),
        "qk_norm_type": "per_head" if per_head else "per_layer",
        "use_routing_bias": m.has("exp_probs_b.bias"),
    }


def _gpt_oss(m: Metadata) -> Config:
    config = _common(m)
    return {
        **config,
        "model_type": "gpt_oss",
        "intermediate_size": config["moe_intermediate_size"],
    }


def _llama4(m: Metadata) -> Config:
    config = _common(m)
    sparse = [layer for layer, word in enumerate(m.sparse()) if word == "sparse"]
    return {
        **config,
        "model_type": "llama4_text",
        "moe_layers": sparse,
        "intermediate_size": config["moe_intermediate_size"],
        "intermediate_size_mlp": m.whole("feed_forward_length"),
    }


def _ernie_moe(m: Metadata) -> Config:
    config = _common(m)
    sparse = [i for i, word in enumerate(m.sparse()) if word == "sparse"]
    first, last = (sparse[0], sparse[-1]) if sparse else (0, 0)
    return {
        **config,
        "model_type": "ernie4_5_moe",
        "moe_num_experts": config["num_experts"],
        "moe_k": config["num_experts_per_tok"],
        "moe_num_shared_experts": config["n_shared_experts"],
        "moe_layer_start_index": first,
        "moe_layer_end_index": last,
        "moe_layer_interval": m.whole("interleave_moe_layer_step", 1),
        "use_bias": m.has("attn_q.bias"),
    }


def _granitemoe(m: Metadata) -> Config:
    config = _common(m)
    shared = config.get("shared_expert_intermediate_size", 0)
    return {
        **config,
        "model_type": "granitemoeshared" if shared else "granitemoe",
        "shared_intermediate_size": shared,
    }


def _mamba_layers(m: Metadata) -> Config:
    """Mamba-2 as Bamba and Granite spell it."""
    return {
        "mamba_n_heads": m.whole("ssm.time_step_rank"),
        "mamba_d_head": "auto",
        "mamba_n_groups": m.whole("ssm.group_count"),
        "mamba_d_state": m.whole("ssm.state_size"),
        "mamba_d_conv": m.whole("ssm.conv_kernel"),
        "mamba_conv_bias": m.has("ssm_conv1d.bias"),
        "mamba_proj_bias": m.has("ssm_in.bias"),
        "mamba_rms_norm": m.has("ssm_norm.weight"),
        "mamba_d_ssm": m.whole("ssm.inner_size"),
    }


def _granite_hybrid(m: Metadata) -> Config:
    config = _common(m)
    kinds = m.kinds("ssm_in.weight", "mamba", "attention")
    if "mamba" in kinds:
        config |= _mamba_layers(m)
        hidden, inner = config["hidden_size"], m.whole("ssm.inner_size")
        config["mamba_expand"] = inner // hidden if hidden else 0
    experts = m.whole("expert_count", 0)
    width = m.whole("feed_forward_length", 0)
    if experts:
        width = config.get("shared_expert_intermediate_size", 0)
    return {
        **config,
        "model_type": "granitemoehybrid",
        "layer_types": kinds,
        "num_local_experts": experts,
        "shared_intermediate_size": width,
        "position_embedding_type": "rope" if m.get("rope.scaling.finetuned") else "nope",
    }


def _falcon_h1(m: Metadata) -> Config:
    config = {**_common(m), **_mamba_layers(m), "model_type": "falcon_h1"}
    return {**config, "projectors_bias": config["mamba_proj_bias"]}


def _nemotron_h(m: Metadata) -> Config:
    config = _common(m)
    letters = []
    for layer in range(m.layers):
        kinds = {"ssm_in": "M", "attn_q": "*", "ffn_gate_inp": "E", "ffn_up": "-"}
        found = [k for name, k in kinds.items() if f"blk.{layer}.{name}.weight" in m.tensors]
        letters.append(found[0] if found else "?")
    inner, heads = m.whole("ssm.inner_size"), m.whole("ssm.time_step_rank")
    widths = set(m.of_layers("feed_forward_length") or ()) - {0}
    moe = config.get("moe_intermediate_size", 0)
    config |= {
        "model_type": "nemotron_h",
        "hybrid_override_pattern": "".join(letters),
        "mamba_num_heads": heads,
        "mamba_head_dim": inner // heads if heads else 0,
        "n_groups": m.whole("ssm.group_count"),
        "ssm_state_size": m.whole("ssm.state_size"),
        "conv_kernel": m.whole("ssm.conv_kernel"),
        "use_conv_bias": m.has("ssm_conv1d.bias"),
        "mamba_proj_bias": m.has("ssm_in.bias"),
        "num_nextn_predict_layers": m.mtp,
        "moe_latent_size": m.whole("moe_latent_size", 0) or None,
    }
    if widths and "-" in letters:
        config["intermediate_size"] = max(widths - {moe}, default=moe)
    if moe:
        shared = config["n_shared_experts"]
        total = config.get("shared_expert_intermediate_size", 0)
        config["moe_shared_expert_intermediate_size"] = total // shared if shared else 0
    return config


def _jamba(m: Metadata) -> Config:
    config = _common(m)
    attention = [i for i, found in enumerate(m.in_layers("attn_q.weight")) if found]
    sparse = [i for i, word in enumerate(m.sparse()) if word == "sparse"]
    hidden, inner = config["hidden_size"], m.whole("ssm.inner_size")
    return {
        **config,
        "model_type": "jamba",
        **_period(m, "attn_layer", attention),
        **_period(m, "expert_layer", sparse or [0]),
        "num_experts": config.get("num_experts", 1),
        "mamba_expand": inner // hidden if hidden else 0,
        "mamba_d_state": m.whole("ssm.state_size"),
        "mamba_d_conv": m.whole("ssm.conv_kernel"),
        "mamba_dt_rank": m.whole("ssm.time_step_rank"),
        "mamba_conv_bias": m.has("ssm_conv1d.bias"),
        "mamba_proj_bias": m.has("ssm_in.bias"),
    }


def _period(m: Metadata, name: str, at: list[int]) -> Config:
    """Period and offset of the layers at these places."""
    if not at:
        raise InvalidInputError(f"{m.path}: a hybrid model without a single attention layer")
    every = at[1] - at[0] if len(at) > 1 else m.layers
    return {f"{name}_period": every, f"{name}_offset": at[0] % every}


def _mamba(m: Metadata) -> Config:
    config = _common(m)
    out = {
        "hidden_size": config["hidden_size"],
        "num_hidden_layers": m.layers,
        "vocab_size": config["vocab_size"],
        "tie_word_embeddings": config["tie_word_embeddings"],
        "torch_dtype": config["torch_dtype"],
        "state_size": m.whole("ssm.state_size"),
        "conv_kernel": m.whole("ssm.conv_kernel"),
        "use_conv_bias": m.has("ssm_conv1d.bias"),
        "use_bias": m.has("ssm_in.bias"),
    }
    if config["max_position_embeddings"] < _NO_LIMIT:
        out["max_position_embeddings"] = config["max_position_embeddings"]
    return out


def _mamba1(m: Metadata) -> Config:
    return {
        **_mamba(m),
        "model_type": "falcon_mamba" if m.get("ssm.dt_b_c_rms") else "mamba",
        "intermediate_size": m.whole("ssm.inner_size"),
        "time_step_rank": m.whole("ssm.time_step_rank"),
    }


def _mamba2(m: Metadata) -> Config:
    config = _mamba(m)
    inner, heads = m.whole("ssm.inner_size"), m.whole("ssm.time_step_rank")
    hidden = config["hidden_size"]
    return {
        **config,
        "model_type": "mamba2",
        "num_heads": heads,
        "head_dim": inner // heads if heads else 0,
        "n_groups": m.whole("ssm.group_count"),
        "expand": inner // hidden if hidden else 0,
    }


def _lfm2(model_type: str) -> _Family:
    def read(m: Metadata) -> Config:
        config = _common(m)
        return {
            **config,
            "model_type": model_type,
            "layer_types": m.kinds("shortconv.conv.weight", "conv", "full_attention"),
            "block_auto_adjust_ff_dim": False,
            "tie_embedding": config["tie_word_embeddings"],
            "conv_L_cache": m.whole("shortconv.l_cache"),
            "conv_bias": m.has("shortconv.conv.bias"),
            "num_dense_layers": m.whole("leading_dense_block_count", 0),
            "use_expert_bias": m.has("exp_probs_b.bias"),
        }

    return read


def _afmoe(m: Metadata) -> Config:
    return {
        **_common(m),
        **_windows(m),
        "model_type": "afmoe",
        "num_dense_layers": m.whole("leading_dense_block_count", 0),
    }


def _cohere2_moe(m: Metadata) -> Config:
    config = {**_common(m), **_windows(m), "model_type": "cohere2_moe"}
    return {
        **config,
        "prefix_dense_intermediate_size": config.get("intermediate_size"),
        "intermediate_size": config["moe_intermediate_size"],
    }


def _hy_v3(m: Metadata) -> Config:
    return {
        **_common(m),
        "model_type": "hy_v3",
        "qk_norm": m.has("attn_q_norm.weight"),
        "num_nextn_predict_layers": m.mtp,
    }


def _deci(m: Metadata) -> Config:
    """Nemotron NAS: every layer has its own widths, or lacks attention or MLP."""
    heads, kv_heads = m.of_layers("attention.head_count"), m.of_layers("attention.head_count_kv")
    widths = m.of_layers("feed_forward_length")
    if heads is None or kv_heads is None or widths is None:
        raise InvalidInputError(f"{m.path}: lists no heads and widths of its layers")
    most = m.whole("attention.head_count")
    blocks = []
    for layer in range(m.layers):
        groups, width = kv_heads[layer], widths[layer]
        linear = f"blk.{layer}.attn_output.weight" in m.tensors and groups == 0
        attention: Config = {"no_op": groups == 0 and not linear, "replace_with_linear": linear}
        if groups > 0:
            attention["n_heads_in_group"] = most // groups
        ffn: Config = {"no_op": width == 0}
        if width:
            ffn["intermediate_size"] = width
        blocks.append({"attention": attention, "ffn": ffn})
    return {**_common(m), "model_type": "nemotron-nas", "block_configs": blocks}


def _hunyuan_moe(m: Metadata) -> Config:
    config = _common(m)
    return {
        **config,
        "model_type": "hunyuan_v1_moe",
        "moe_topk": config["num_experts_per_tok"],
        "num_shared_expert": config["n_shared_experts"],
    }


def _internlm2(m: Metadata) -> Config:
    return {**_common(m), "model_type": "internlm2", "bias": m.has("attn_q.bias")}


def _bailing(model_type: str) -> _Family:
    def read(m: Metadata) -> Config:
        config = _common(m)
        shared, total = config["n_shared_experts"], m.shape("ffn_up_shexp.weight")
        return {
            **config,
            "model_type": model_type,
            "use_bias": m.has("attn_output.bias"),
            "use_qk_norm": m.has("attn_q_norm.weight"),
            "moe_router_enable_expert_bias": m.has("exp_probs_b.bias"),
            "moe_shared_expert_intermediate_size": total[1] // shared
            if shared and len(total) > 1
            else None,
            "first_k_dense_replace": m.whole("leading_dense_block_count", 0),
            "num_nextn_predict_layers": m.mtp,
        }

    return read


# GGUF's name of an architecture -> its config.
_FAMILIES: dict[str, _Family] = {
    "llama": _llama,
    "mistral3": _as("ministral3"),
    "smollm3": _as("smollm3"),
    "arcee": _as("arcee"),
    "apertus": _as("apertus"),
    "seed_oss": _seed_oss,
    "xverse": _as("xverse"),
    "internlm2": _internlm2,
    "hunyuan-moe": _hunyuan_moe,
    "deci": _deci,
    "baichuan": _as("baichuan"),
    "orion": _as("orion"),
    "minicpm": _as("minicpm"),
    "exaone": _as("exaone"),
    "exaone4": _exaone4,
    "exaone-moe": _exaone_moe,
    "ernie4_5": _as("ernie4_5"),
    "hunyuan-dense": _as("hunyuan_v1_dense"),
    "jais2": _as("jais2"),
    "nemotron": _as("nemotron"),
    "stablelm": _stablelm,
    "starcoder2": _starcoder2,
    "qwen": _qwen,
    "qwen2": _as("qwen2"),
    "qwen2vl": _text_of("qwen2_vl", "qwen2"),
    "qwen2moe": _qwen2_moe,
    "qwen3": _as("qwen3"),
    "qwen3vl": _text_of("qwen3_vl", "qwen3"),
    "qwen3moe": _qwen3_moe("qwen3_moe"),
    "qwen3vlmoe": _qwen3_moe("qwen3_vl_moe_text"),
    "qwen3next": _qwen_hybrid("qwen3_next"),
    "qwen35": _qwen_hybrid("qwen3_5_text"),
    "qwen35moe": _qwen_hybrid("qwen3_5_moe_text"),
    "deepseek": _as("deepseek"),
    "deepseek2": _deepseek2,
    "deepseek32": _sparse_latent("deepseek_v32"),
    "glm-dsa": _sparse_latent("glm_moe_dsa"),
    "mistral4": _latent("mistral4"),
    "chatglm": _glm,
    "glm4": _as("glm4"),
    "glm4moe": _glm4_moe,
    "gemma": _as("gemma"),
    "gemma2": _as("gemma2"),
    "gemma3": _as("gemma3_text"),
    "gemma3n": _gemma3n,
    "gemma4": _gemma4,
    "phi2": _phi2,
    "phi3": _as("phi3"),
    "phimoe": _phimoe,
    "granite": _as("granite"),
    "granitemoe": _granitemoe,
    "granitehybrid": _granite_hybrid,
    "olmo": _as("olmo"),
    "olmo2": _olmo2,
    "olmoe": _as("olmoe"),
    "command-r": _command_r,
    "cohere2": _as("cohere2"),
    "cohere2moe": _cohere2_moe,
    "gpt-oss": _gpt_oss,
    "dbrx": _dbrx,
    "llama4": _llama4,
    "minimax-m2": _minimax_m2,
    "dots1": _as("dots1"),
    "bailingmoe": _bailing("bailing_moe"),
    "bailingmoe2": _bailing("bailing_moe_v2"),
    "ernie4_5-moe": _ernie_moe,
    "afmoe": _afmoe,
    "hy_v3": _hy_v3,
    "jamba": _jamba,
    "nemotron_h": _nemotron_h,
    "nemotron_h_moe": _nemotron_h,
    "mamba": _mamba1,
    "mamba2": _mamba2,
    "falcon-h1": _falcon_h1,
    "lfm2": _lfm2("lfm2"),
    "lfm2moe": _lfm2("lfm2_moe"),
    "bloom": _bloom,
    "falcon": _falcon,
    "gpt2": _gpt2("gpt2"),
    "starcoder": _gpt2("gpt_bigcode"),
    "gptneox": _as("gpt_neox"),
    "mpt": _mpt,
}


def known_architectures() -> list[str]:
    """GGUF's names of what can be read."""
    return sorted(_FAMILIES)


def config_of(file: GgufFile) -> Config:
    """The config that a file was made from; `wrapper` is the model type of a model with towers.

    Raises UnsupportedError for an architecture that is not known, InvalidInputError for metadata
    that is missing or contradicts itself.
    """
    metadata = Metadata(file)
    if not file.architecture:
        raise InvalidInputError(
            f"{metadata.path}: does not say what it is (general.architecture)",
            "fetch the file again, or convert it again",
        )
    family = _FAMILIES.get(file.architecture)
    if family is None:
        raise _unknown(file)
    metadata.check_blocks()
    try:
        return family(metadata)
    except KeyError as error:  # a fact that `_common` leaves out where nothing states it
        raise InvalidInputError(
            f"{metadata.path}: nothing in its metadata states {error.args[0]}, which every "
            f"{short(file.architecture)} has",
            "fetch the file again, or convert it again",
        ) from error


def _unknown(file: GgufFile) -> UnsupportedError:
    from difflib import get_close_matches

    sizes: dict[str, int] = {}
    for tensor in file.tensors.values():
        sizes[tensor.type.name] = sizes.get(tensor.type.name, 0) + tensor.size_bytes
    parts = [f"{format_gib(size)} of {name}" for name, size in sorted(sizes.items())]
    name = file.architecture
    what = f"GGUF architecture {short(name)} is not known, so what it needs beside weights is not"
    if name in ("clip", "mmproj"):
        what = "is a projector of images or sound, which belongs to a language model's file"
    near = get_close_matches(name, _FAMILIES, n=3)
    hint = f"near: {', '.join(near)}; " if near else ""
    return UnsupportedError(
        f"{file.paths[0]}: {what}; its {len(file.tensors):,} tensors take "
        f"{format_gib(file.size_bytes)}" + (f" ({', '.join(parts)})" if parts else ""),
        hint + "name the model and the type instead, such as --quant Q4_K_M",
    )
