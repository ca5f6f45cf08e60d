"""Vision and audio towers of multimodal models, tensor by tensor.

Names and shapes are those of the published checkpoints (Transformers 5.19 models/*/modeling_*.py);
how ranks split a tower is vLLM 0.32.0 (model_executor/models). Defaults are those of the config
class of each tower, which configs leave out when they equal them. A `{layer}` in a name stands for
an index and goes with `copies`.

Symbols: H width of the tower, F feed-forward width, P side of a patch in pixels, T width of the
language model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from moesize.core.model_spec import ExtraTensor, RotaryTable, Tower, TowerTensor
from moesize.readers.hf.view import ConfigView

Split = Literal["", "out", "in"]

# vLLM 0.32.0 keeps one rotary table of this many positions in towers with two-dimensional rotary
# positions (layers/rotary_embedding, `get_rope(max_position=8192, ...)`).
_VISION_ROTARY_POSITIONS = 8192


class Parts:
    """Collects the tensors of a tower under a common prefix."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.tensors: list[TowerTensor] = []

    def add(
        self, name: str, *shape: int, copies: int = 1, split: Split = "", units: int = 0
    ) -> None:
        """Any tensor."""
        self.tensors.append(
            TowerTensor(
                name=self.prefix + name, shape=shape, copies=copies, split=split, units=units
            )
        )

    def linear(
        self,
        name: str,
        out_features: int,
        in_features: int,
        *,
        copies: int = 1,
        split: Split = "",
        units: int = 0,
        bias: bool = True,
    ) -> None:
        """weight (out, in) and bias (out); the bias follows a split of the output only."""
        self.add(
            name + ".weight", out_features, in_features, copies=copies, split=split, units=units
        )
        if bias:
            cut: Split = "out" if split == "out" else ""
            self.add(
                name + ".bias", out_features, copies=copies, split=cut, units=units if cut else 0
            )

    def norm(self, name: str, size: int, *, copies: int = 1, bias: bool = True) -> None:
        """weight and, for a layer norm, bias."""
        self.add(name + ".weight", size, copies=copies)
        if bias:
            self.add(name + ".bias", size, copies=copies)

    def tower(
        self,
        name: str,
        kind: Literal["vision", "audio", "projector"],
        *,
        tensor_parallel: bool = True,
        num_layers: int = 0,
        hidden_size: int = 0,
    ) -> Tower:
        """The finished tower."""
        return Tower(
            name=name,
            kind=kind,
            tensors=tuple(self.tensors),
            tensor_parallel=tensor_parallel,
            num_layers=num_layers,
            hidden_size=hidden_size,
        )


def _side(config: ConfigView, *keys: str, default: int) -> int:
    """A size that may be written as a square [n, n]."""
    key = next((key for key in keys if key in config), keys[0])
    value = config.data.get(key)
    if isinstance(value, list):
        if len(value) != 2 or value[0] != value[1]:
            raise config.fail(f"{config.path(key)} must be one size or two equal ones")
        return ConfigView({key: value[0]}, config.file, config.where).int(key, high=1 << 16)
    return config.int(key, default=default, high=1 << 16)


def _layers(config: ConfigView, *keys: str, default: int) -> int:
    return config.layers(*keys, default=default)


def _patches(config: ConfigView, image: int, patch: int) -> int:
    if image % patch:
        raise config.fail(f"image_size ({image}) is not a multiple of patch_size ({patch})")
    return (image // patch) ** 2


# Qwen -------------------------------------------------------------------------------------------


def qwen_rotary(vision: ConfigView, *, hidden_size: int, heads: int = 16) -> RotaryTable:
    """Rotary table of the Qwen and GLM towers: half of each head, over rows and columns."""
    heads = vision.int("num_heads", default=heads)
    return RotaryTable(positions=_VISION_ROTARY_POSITIONS, rotary_dim=hidden_size // heads // 2)


def qwen2_vision(vision: ConfigView) -> Tower:
    """Qwen2-VL: plain blocks of 4H, no learned positions; `hidden_size` is the width T."""
    n = _layers(vision, "depth", default=32)
    h = vision.int("embed_dim", default=1280)
    heads = vision.int("num_heads", default=16)
    ratio = vision.number("mlp_ratio", default=4)
    if not 0 < ratio <= 64:
        raise vision.fail(f"{vision.path('mlp_ratio')} is {ratio}; it must lie in 0..64")
    f = int(h * ratio)
    parts = Parts("visual.")
    _qwen_patches(parts, vision, h, bias=False)
    _qwen_attention(parts, h, heads, n)
    for norm in ("norm1", "norm2"):
        parts.norm(f"blocks.{{layer}}.{norm}", h, copies=n)
    parts.linear("blocks.{layer}.mlp.fc1", f, h, copies=n, split="out")
    parts.linear("blocks.{layer}.mlp.fc2", h, f, copies=n, split="in")
    wide = h * vision.int("spatial_merge_size", default=2) ** 2
    parts.norm("merger.ln_q", h)
    parts.linear("merger.mlp.0", wide, wide, split="out")
    parts.linear("merger.mlp.2", vision.int("hidden_size", default=3584), wide, split="in")
    return parts.tower("vision", "vision", num_layers=n, hidden_size=h)


def qwen2_5_vision(vision: ConfigView, prefix: str = "visual.") -> Tower:
    """Qwen2.5-VL: gated MLPs with biases, RMS norms, windowed attention."""
    n = _layers(vision, "depth", default=32)
    h = vision.int("hidden_size", default=3584)
    heads = vision.int("num_heads", default=16)
    f = vision.int("intermediate_size", default=3420)
    # EXAONE 4.5 gives its tower fewer heads for keys and values.
    groups = vision.int("num_key_value_heads", default=heads)
    if h % heads or heads % groups:
        raise vision.fail(f"{heads} heads and {groups} for keys do not divide the width {h}")
    parts = Parts(prefix)
    _qwen_patches(parts, vision, h, bias=False)
    qkv = (heads + 2 * groups) * (h // heads)
    parts.linear("blocks.{layer}.attn.qkv", qkv, h, copies=n, split="out", units=groups)
    parts.linear("blocks.{layer}.attn.proj", h, h, copies=n, split="in", units=heads)
    for norm in ("norm1", "norm2"):
        parts.norm(f"blocks.{{layer}}.{norm}", h, copies=n, bias=False)
    for up in ("gate_proj", "up_proj"):
        parts.linear(f"blocks.{{layer}}.mlp.{up}", f, h, copies=n, split="out")
    parts.linear("blocks.{layer}.mlp.down_proj", h, f, copies=n, split="in")
    wide = h * vision.int("spatial_merge_size", default=2) ** 2
    parts.norm("merger.ln_q", h, bias=False)
    parts.linear("merger.mlp.0", wide, wide, split="out")
    parts.linear("merger.mlp.2", vision.int("out_hidden_size", default=3584), wide, split="in")
    return parts.tower("vision", "vision", num_layers=n, hidden_size=h)


def qwen3_vision(
    vision: ConfigView, prefix: str = "model.visual.", *, deepstack: bool = True
) -> Tower:
    """Qwen3-VL and Qwen3.5: learned positions; Qwen3-VL has a merger per deepstack layer more."""
    n = _layers(vision, "depth", default=27)
    h = vision.int("hidden_size", default=1152)
    heads = vision.int("num_heads", default=16)
    f = vision.int("intermediate_size", default=4304)
    out = vision.int("out_hidden_size", default=3584)
    parts = Parts(prefix)
    _qwen_patches(parts, vision, h, bias=True, patch=16)
    parts.add("pos_embed.weight", vision.int("num_position_embeddings", default=2304), h)
    _qwen_attention(parts, h, heads, n)
    for norm in ("norm1", "norm2"):
        parts.norm(f"blocks.{{layer}}.{norm}", h, copies=n)
    parts.linear("blocks.{layer}.mlp.linear_fc1", f, h, copies=n, split="out")
    parts.linear("blocks.{layer}.mlp.linear_fc2", h, f, copies=n, split="in")
    wide = h * vision.int("spatial_merge_size", default=2) ** 2
    mergers = [("merger", 1, h)]
    if deepstack:
        # The class taps three layers when the config does not say which.
        stated = vision.data.get("deepstack_visual_indexes")
        taps = 3 if stated is None else len(vision.list("deepstack_visual_indexes", max_length=256))
        if taps:
            mergers.append(("deepstack_merger_list.{layer}", taps, wide))
    for name, copies, normed in mergers:
        parts.norm(f"{name}.norm", normed, copies=copies)
        parts.linear(f"{name}.linear_fc1", wide, wide, copies=copies, split="out")
        parts.linear(f"{name}.linear_fc2", out, wide, copies=copies, split="in")
    return parts.tower("vision", "vision", num_layers=n, hidden_size=h)


def _qwen_patches(
    parts: Parts, vision: ConfigView, hidden_size: int, *, bias: bool, patch: int = 14
) -> None:
    """A three-dimensional convolution: frames, rows, columns."""
    side = _side(vision, "patch_size", default=patch)
    frames = vision.int("temporal_patch_size", default=2)
    channels = vision.int("in_channels", "in_chans", default=3)
    parts.add("patch_embed.proj.weight", hidden_size, channels, frames, side, side)
    if bias:
        parts.add("patch_embed.proj.bias", hidden_size)


def _qwen_attention(
    parts: Parts, hidden_size: int, heads: int, copies: int, *, bias: bool = True
) -> None:
    h = hidden_size
    where = "blocks.{layer}.attn."
    parts.linear(where + "qkv", 3 * h, h, copies=copies, split="out", units=heads, bias=bias)
    parts.linear(where + "proj", h, h, copies=copies, split="in", units=heads, bias=bias)


def qwen_audio(audio: ConfigView, prefix: str) -> Tower:
    """Audio encoder of Qwen3-Omni and Qwen3-ASR: three convolutions, then Whisper-like layers."""
    n = _layers(audio, "encoder_layers", "num_hidden_layers", default=32)
    h = audio.int("d_model", default=1280)
    heads = audio.int("encoder_attention_heads", default=20)
    f = audio.int("encoder_ffn_dim", default=5120)
    inner = audio.int("downsample_hidden_size", default=480)
    bins = audio.int("num_mel_bins", default=128)
    parts = Parts(prefix)
    parts.add("conv2d1.weight", inner, 1, 3, 3)
    parts.add("conv2d1.bias", inner)
    for name in ("conv2d2", "conv2d3"):
        parts.add(name + ".weight", inner, inner, 3, 3)
        parts.add(name + ".bias", inner)
    # Each convolution halves the mel bins, rounding up.
    parts.linear("conv_out", h, inner * -(-bins // 8), bias=False)
    for name in ("q_proj", "k_proj", "v_proj"):
        parts.linear(f"layers.{{layer}}.self_attn.{name}", h, h, copies=n, split="out", units=heads)
    parts.linear("layers.{layer}.self_attn.out_proj", h, h, copies=n, split="in", units=heads)
    for norm in ("self_attn_layer_norm", "final_layer_norm"):
        parts.norm(f"layers.{{layer}}.{norm}", h, copies=n)
    parts.linear("layers.{layer}.fc1", f, h, copies=n, split="out")
    parts.linear("layers.{layer}.fc2", h, f, copies=n, split="in")
    parts.norm("ln_post", h)
    parts.linear("proj1", h, h)
    parts.linear("proj2", audio.int("output_dim", default=3584), h)
    return parts.tower("audio", "audio", num_layers=n, hidden_size=h)


def whisper_encoder(audio: ConfigView, prefix: str, *, stored_positions: bool) -> Tower:
    """Whisper's encoder: two convolutions, plain layers whose keys have no bias.

    stored_positions: the sinusoids are in the files (Voxtral); Qwen2.5-Omni computes them.
    """
    n = _layers(audio, "encoder_layers", "num_hidden_layers", default=32)
    h = audio.int("d_model", "hidden_size", default=1280)
    heads = audio.int("encoder_attention_heads", "num_attention_heads", default=20)
    f = audio.int("encoder_ffn_dim", "intermediate_size", default=5120)
    parts = Parts(prefix)
    for name, inner in (("conv1", audio.int("num_mel_bins", default=128)), ("conv2", h)):
        parts.add(name + ".weight", h, inner, 3)
        parts.add(name + ".bias", h)
    if stored_positions:
        parts.add("embed_positions.weight", audio.int("max_source_positions", default=1500), h)
    for name in ("q_proj", "k_proj", "v_proj"):
        parts.linear(
            f"layers.{{layer}}.self_attn.{name}",
            h,
            h,
            copies=n,
            split="out",
            units=heads,
            bias=name != "k_proj",
        )
    parts.linear("layers.{layer}.self_attn.out_proj", h, h, copies=n, split="in", units=heads)
    for norm in ("self_attn_layer_norm", "final_layer_norm"):
        parts.norm(f"layers.{{layer}}.{norm}", h, copies=n)
    parts.linear("layers.{layer}.fc1", f, h, copies=n, split="out")
    parts.linear("layers.{layer}.fc2", h, f, copies=n, split="in")
    if stored_positions:
        parts.norm("layer_norm", h)
    else:
        out = audio.int("output_dim", default=3584)
        parts.norm("ln_post", h)
        parts.linear("proj", out, h)
        parts.add("audio_bos_eos_token.weight", 2, out)
    # vLLM takes Qwen2.5-Omni's from Transformers, which does not split it.
    return parts.tower(
        "audio", "audio", tensor_parallel=stored_positions, num_layers=n, hidden_size=h
    )


def voxtral_projector(audio: ConfigView, text_size: int) -> Tower:
    """Stacks as many frames as the feed-forward is wider than the encoder, then two matrices."""
    parts = Parts("multi_modal_projector.")
    parts.linear("linear_1", text_size, audio.int("intermediate_size", default=5120), bias=False)
    parts.linear("linear_2", text_size, text_size, bias=False)
    return parts.tower("projector", "projector", tensor_parallel=False)


# SigLIP and CLIP --------------------------------------------------------------------------------


def siglip(
    vision: ConfigView, prefix: str, *, head: bool = True, linear_patches: bool = False
) -> Tower:
    """SigLIP: learned positions, layer norms, attention pooling on top unless switched off.

    linear_patches: SigLIP 2 takes patches through a matrix and has `num_patches` positions.
    """
    n = _layers(vision, "num_hidden_layers", default=12)
    h = vision.int("hidden_size", default=768)
    heads = vision.int("num_attention_heads", default=12)
    f = vision.int("intermediate_size", default=3072)
    patch = _side(vision, "patch_size", default=16)
    channels = vision.int("num_channels", default=3)
    parts = Parts(prefix)
    if linear_patches:
        parts.linear("embeddings.patch_embedding", h, channels * patch * patch)
        positions = vision.int("num_patches", default=256)
    else:
        parts.add("embeddings.patch_embedding.weight", h, channels, patch, patch)
        parts.add("embeddings.patch_embedding.bias", h)
        positions = (_side(vision, "image_size", default=224) // patch) ** 2
    parts.add("embeddings.position_embedding.weight", positions, h)
    _clip_layers(parts, n, h, f, heads)
    parts.norm("post_layernorm", h)
    if head and vision.flag("vision_use_head", default=True):
        parts.add("head.probe", 1, 1, h)
        parts.add("head.attention.in_proj_weight", 3 * h, h)
        parts.add("head.attention.in_proj_bias", 3 * h)
        parts.linear("head.attention.out_proj", h, h)
        parts.norm("head.layernorm", h)
        parts.linear("head.mlp.fc1", f, h)
        parts.linear("head.mlp.fc2", h, f)
    return parts.tower("vision", "vision", num_layers=n, hidden_size=h)


def clip(vision: ConfigView, prefix: str) -> Tower:
    """CLIP: a class token, positions, norms before and after the layers."""
    n = _layers(vision, "num_hidden_layers", default=12)
    h = vision.int("hidden_size", default=768)
    heads = vision.int("num_attention_heads", default=12)
    patch = _side(vision, "patch_size", default=32)
    image = _side(vision, "image_size", default=224)
    parts = Parts(prefix)
    parts.add("embeddings.class_embedding", h)
    parts.add(
        "embeddings.patch_embedding.weight", h, vision.int("num_channels", default=3), patch, patch
    )
    parts.add("embeddings.position_embedding.weight", (image // patch) ** 2 + 1, h)
    # The misspelling is the published name.
    parts.norm("pre_layrnorm", h)
    _clip_layers(parts, n, h, vision.int("intermediate_size", default=3072), heads)
    parts.norm("post_layernorm", h)
    return parts.tower("vision", "vision", num_layers=n, hidden_size=h)


def _clip_layers(
    parts: Parts, n: int, h: int, f: int, heads: int, where: str = "encoder.layers.{layer}."
) -> None:
    for name in ("q_proj", "k_proj", "v_proj"):
        parts.linear(f"{where}self_attn.{name}", h, h, copies=n, split="out", units=heads)
    parts.linear(f"{where}self_attn.out_proj", h, h, copies=n, split="in", units=heads)
    for norm in ("layer_norm1", "layer_norm2"):
        parts.norm(where + norm, h, copies=n)
    parts.linear(where + "mlp.fc1", f, h, copies=n, split="out")
    parts.linear(where + "mlp.fc2", h, f, copies=n, split="in")


def molmo_vision(inner: int, text_size: int) -> tuple[Tower, Tower]:
    """Molmo's CLIP, two of whose layers are joined, pooled by attention and projected (gated)."""
    n, h, heads, f = 23, 1024, 16, 4096
    parts = Parts("model.vision_backbone.image_vit.")
    parts.add("class_embedding", h)
    parts.add("positional_embedding", 577, h)
    parts.linear("patch_embedding", h, 3 * 14 * 14, bias=False)
    parts.norm("pre_ln", h)
    where = "transformer.resblocks.{layer}."
    for name in ("wq", "wk", "wv"):
        parts.linear(f"{where}attention.{name}", h, h, copies=n, split="out", units=heads)
    parts.linear(where + "attention.wo", h, h, copies=n, split="in", units=heads)
    for name in ("attention_norm", "ffn_norm"):
        parts.norm(where + name, h, copies=n)
    parts.linear(where + "feed_forward.w1", f, h, copies=n, split="out")
    parts.linear(where + "feed_forward.w2", h, f, copies=n, split="in")
    tower = parts.tower("vision", "vision", num_layers=n, hidden_size=h)
    parts = Parts("model.vision_backbone.")
    parts.add("pad_embed", 2, 2 * h)
    for name in ("wq", "wk", "wv"):
        parts.linear(f"image_pooling_2d.{name}", h, 2 * h, split="out", units=heads)
    parts.linear("image_pooling_2d.wo", h, h, split="in", units=heads)
    for name in ("w1", "w3"):
        parts.linear(f"image_projector.{name}", inner, h, split="out", bias=False)
    parts.linear("image_projector.w2", text_size, inner, split="in", bias=False)
    return tower, parts.tower("projector", "projector")


def up_to_layer(
    tower: Tower, kept: int, *, post_norm: bool
) -> tuple[Tower, tuple[ExtraTensor, ...]]:
    """The tower with its first `kept` layers, and what the files hold beyond them.

    Engines do not load the layers behind the one whose features are used, nor the norm after them
    unless `post_norm` (vLLM 0.32.0 models/vision.py, clip.py: num_hidden_layers_override).
    """
    held, unused = [], []
    for item in tower.tensors:
        layered = "{layer}" in item.name
        left = kept if layered else item.copies
        if "post_layernorm" in item.name and not post_norm:
            left = 0
        if left:
            held.append(replace(item, copies=left))
        if left < item.copies:
            role = f"towers.{tower.kind}_unused"
            unused.append(ExtraTensor(role=role, shape=item.shape, copies=item.copies - left))
    return replace(tower, tensors=tuple(held), num_layers=kept), tuple(unused)


def layers_used(
    config: ConfigView, num_layers: int, key: str, *, default: int, counts_from: int = 0
) -> int:
    """How many layers run: up to the deepest one that `key` names; -1 is the last.

    `counts_from` 1: the first layer is number 0, else number 1 (0 stands for the embeddings).
    """
    value = config.data.get(key)
    taps = config.list(key, max_length=64) if isinstance(value, list) else [value]
    deepest = 0
    for tap in taps:
        layer = ConfigView({key: tap}, config.file, config.where).int(
            key, default=default, low=-num_layers, high=num_layers - counts_from
        )
        deepest = max(deepest, layer + num_layers + 1 if layer < 0 else layer + counts_from)
    return deepest


def two_layer_projector(
    in_size: int,
    hidden_size: int,
    out_size: int,
    *,
    bias: bool = True,
    prefix: str = "multi_modal_projector.",
    tensor_parallel: bool = True,
) -> Tower:
    """linear_1 (hidden, in) and linear_2 (out, hidden) with an activation between (LLaVA)."""
    parts = Parts(prefix)
    parts.linear("linear_1", hidden_size, in_size, split="out", bias=bias)
    parts.linear("linear_2", out_size, hidden_size, split="in", bias=bias)
    return parts.tower("projector", "projector", tensor_parallel=tensor_parallel)


# Gemma ------------------------------------------------------------------------------------------


def gemma3_projector(hidden_size: int, text_size: int) -> Tower:
    """One matrix (H, T) behind a norm."""
    parts = Parts("multi_modal_projector.")
    parts.add("mm_input_projection_weight", hidden_size, text_size)
    parts.add("mm_soft_emb_norm.weight", hidden_size)
    return parts.tower("projector", "projector", tensor_parallel=False)


def gemma4_vision(vision: ConfigView, text_size: int) -> tuple[Tower, Tower]:
    """Gemma 4: gated MLPs, four norms per layer, a table of positions for rows and columns.

    vLLM keeps the tower whole on every rank. The limits of clipped matrices (`input_min`, ...) are
    single numbers and not listed; `std_bias` and `std_scale` are buffers.
    """
    n = _layers(vision, "num_hidden_layers", default=16)
    h = vision.int("hidden_size", default=768)
    heads = vision.int("num_attention_heads", default=12)
    d = vision.int("head_dim", default=64)
    kv = vision.int("num_key_value_heads", default=heads)
    f = vision.int("intermediate_size", default=3072)
    patch = _side(vision, "patch_size", default=16)
    bias = vision.flag("attention_bias", default=False)
    parts = Parts("model.vision_tower.")
    parts.add(
        "patch_embedder.position_embedding_table",
        2,
        vision.int("position_embedding_size", default=10240),
        h,
    )
    parts.linear("patch_embedder.input_proj", h, 3 * patch * patch, bias=False)
    where = "encoder.layers.{layer}."
    for name, out in (("q_proj", heads * d), ("k_proj", kv * d), ("v_proj", kv * d)):
        parts.linear(f"{where}self_attn.{name}.linear", out, h, copies=n, bias=bias)
    parts.linear(f"{where}self_attn.o_proj.linear", h, heads * d, copies=n, bias=bias)
    for name in ("q_norm", "k_norm"):
        parts.norm(f"{where}self_attn.{name}", d, copies=n, bias=False)
    for name in ("gate_proj", "up_proj"):
        parts.linear(f"{where}mlp.{name}.linear", f, h, copies=n, bias=False)
    parts.linear(f"{where}mlp.down_proj.linear", h, f, copies=n, bias=False)
    for name in _GEMMA_NORMS:
        parts.norm(where + name, h, copies=n, bias=False)
    tower = parts.tower("vision", "vision", tensor_parallel=False, num_layers=n, hidden_size=h)
    return tower, _gemma_embedder("vision", h, text_size)


_GEMMA_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


def _gemma_embedder(kind: str, size: int, text_size: int) -> Tower:
    parts = Parts(f"model.embed_{kind}.")
    parts.linear("embedding_projection", text_size, size, bias=False)
    return parts.tower(f"embed_{kind}", "projector", tensor_parallel=False)


def gemma4_audio(audio: ConfigView, text_size: int) -> tuple[Tower, Tower]:
    """Gemma 4: a conformer; two strided convolutions in front, one projection behind."""
    n = _layers(audio, "num_hidden_layers", "conf_num_hidden_layers", default=12)
    h = audio.int("hidden_size", "conf_hidden_size", default=1024)
    heads = audio.int("num_attention_heads", "conf_num_attention_heads", default=8)
    kernel = audio.int("conv_kernel_size", "conf_conv_kernel_size", default=5)
    out = audio.int("output_proj_dims", default=1536)
    parts = Parts("model.audio_tower.")
    _conformer_front(
        parts, audio, h, ("layer0", "layer1"), "subsampling_conv_channels", "sscp_conv_channel_size"
    )
    where = "layers.{layer}."
    for block in ("feed_forward1", "feed_forward2"):
        parts.linear(f"{where}{block}.ffw_layer_1.linear", 4 * h, h, copies=n, bias=False)
        parts.linear(f"{where}{block}.ffw_layer_2.linear", h, 4 * h, copies=n, bias=False)
        for norm in ("pre_layer_norm", "post_layer_norm"):
            parts.norm(f"{where}{block}.{norm}", h, copies=n, bias=False)
    parts.add(where + "self_attn.per_dim_scale", h // heads, copies=n)
    for name in ("q_proj.linear", "k_proj.linear", "v_proj.linear", "post.linear"):
        parts.linear(f"{where}self_attn.{name}", h, h, copies=n, bias=False)
    parts.linear(where + "self_attn.relative_k_proj", h, h, copies=n, bias=False)
    _conformer_convolution(parts, where, n, h, kernel, suffix=".linear")
    for norm in ("norm_pre_attn", "norm_post_attn", "norm_out"):
        parts.norm(where + norm, h, copies=n, bias=False)
    parts.linear("output_proj", out, h)
    tower = parts.tower("audio", "audio", tensor_parallel=False, num_layers=n, hidden_size=h)
    return tower, _gemma_embedder("audio", out, text_size)


def _conformer_front(
    parts: Parts, audio: ConfigView, h: int, names: tuple[str, str], *channel_keys: str
) -> None:
    """Two convolutions of 3 x 3 that halve 128 mel bins each, then a matrix."""
    stated = audio.list(*channel_keys, max_length=8) or [128, 32]
    view = ConfigView(
        {"first": stated[0], "second": stated[-1]}, audio.file, audio.path(channel_keys[0])
    )
    first, second = view.int("first", high=1 << 16), view.int("second", high=1 << 16)
    if len(stated) != 2:
        raise audio.fail(f"{audio.path(channel_keys[0])} must hold two widths")
    bins = audio.int("input_feat_size", default=128, high=1 << 16)
    where = "subsample_conv_projection."
    for name, out, inner in ((names[0], first, 1), (names[1], second, first)):
        parts.add(f"{where}{name}.conv.weight", out, inner, 3, 3)
        parts.norm(f"{where}{name}.norm", out, bias=False)
    parts.linear(where + "input_proj_linear", h, second * (bins // 4), bias=False)


def _conformer_convolution(
    parts: Parts, where: str, n: int, h: int, kernel: int, *, suffix: str
) -> None:
    parts.norm(where + "lconv1d.pre_layer_norm", h, copies=n, bias=False)
    parts.linear(f"{where}lconv1d.linear_start{suffix}", 2 * h, h, copies=n, bias=False)
    parts.add(where + "lconv1d.depthwise_conv1d.weight", h, 1, kernel, copies=n)
    parts.norm(where + "lconv1d.conv_norm", h, copies=n, bias=False)
    parts.linear(f"{where}lconv1d.linear_end{suffix}", h, h, copies=n, bias=False)


def gemma4_unified(
    vision: ConfigView, audio: ConfigView | None, text_size: int
) -> tuple[Tower, ...]:
    """Gemma 4 12B has no encoders: patches and frames of samples are embedded directly."""
    size = vision.int("mm_embed_dim")
    side = _side(vision, "model_patch_size", default=48)
    parts = Parts("model.embed_vision.")
    parts.add("pos_embedding", vision.int("mm_posemb_size"), 2, size)
    parts.norm("patch_ln1", 3 * side * side)
    parts.linear("patch_dense", size, 3 * side * side, split="out")
    parts.norm("patch_ln2", size)
    parts.norm("pos_norm", size)
    parts.linear("multimodal_embedder.embedding_projection", text_size, size, bias=False)
    towers = [parts.tower("vision", "vision", hidden_size=size)]
    if audio is not None:
        towers.append(_gemma_embedder("audio", audio.int("audio_embed_dim"), text_size))
    return tuple(towers)


def gemma3n_audio(audio: ConfigView, text_size: int) -> tuple[Tower, Tower]:
    """Gemma 3n: the conformer that Gemma 4 took over, wider, with its own small vocabulary."""
    n = _layers(audio, "conf_num_hidden_layers", default=12)
    h = audio.int("hidden_size", "conf_hidden_size", default=1536)
    heads = audio.int("conf_num_attention_heads", default=8)
    kernel = audio.int("conf_conv_kernel_size", default=5)
    parts = Parts("model.audio_tower.")
    _conformer_front(parts, audio, h, ("conv_0", "conv_1"), "sscp_conv_channel_size")
    where = "conformer.{layer}."
    for block in ("ffw_layer_start", "ffw_layer_end"):
        parts.norm(f"{where}{block}.pre_layer_norm", h, copies=n, bias=False)
        parts.linear(f"{where}{block}.ffw_layer_1", 4 * h, h, copies=n, bias=False)
        parts.linear(f"{where}{block}.ffw_layer_2", h, 4 * h, copies=n, bias=False)
        parts.norm(f"{where}{block}.post_layer_norm", h, copies=n, bias=False)
    parts.norm(where + "attention.pre_attn_norm", h, copies=n, bias=False)
    parts.add(where + "attention.attn.per_dim_scale", h // heads, copies=n)
    for name in ("attn.relative_position_embedding.pos_proj", "attn.q_proj", "attn.k_proj"):
        parts.linear(f"{where}attention.{name}", h, h, copies=n, bias=False)
    parts.linear(where + "attention.attn.v_proj", h, h, copies=n, bias=False)
    parts.linear(where + "attention.post", h, h, copies=n, bias=False)
    parts.norm(where + "attention.post_norm", h, copies=n, bias=False)
    _conformer_convolution(parts, where, n, h, kernel, suffix="")
    parts.norm(where + "norm", h, copies=n, bias=False)
    tower = parts.tower("audio", "audio", tensor_parallel=False, num_layers=n, hidden_size=h)
    vocabulary = audio.int("vocab_size", default=128)
    return tower, _gemma3n_embedder("audio", vocabulary, h, text_size)


def _gemma3n_embedder(kind: str, vocabulary: int, size: int, text_size: int) -> Tower:
    parts = Parts(f"model.embed_{kind}.")
    parts.add("embedding.weight", vocabulary, size)
    parts.norm("hard_embedding_norm", size, bias=False)
    parts.norm("soft_embedding_norm", size, bias=False)
    parts.linear("embedding_projection", text_size, size, bias=False)
    return parts.tower(f"embed_{kind}", "projector", tensor_parallel=False)


def gemma3n_vision(vision: ConfigView, text_size: int) -> tuple[Tower, Tower]:
    """Gemma 3n: MobileNet-V5, which exists in one size only (timm 1.0 mobilenetv5_300m_enc).

    Each line below is a group of equal tensors of that network; the sizes are not in the config.
    """
    name = vision.text("architecture", default="mobilenetv5_300m_enc")
    if name != "mobilenetv5_300m_enc":
        raise vision.fail(f"vision tower {name[:40]!r} is not known")
    parts = Parts("model.vision_tower.timm_model.")
    parts.add("conv_stem.conv.weight", 64, 3, 3, 3)
    parts.add("conv_stem.conv.bias", 64)
    parts.norm("conv_stem.bn", 64, bias=False)
    _edge_residual(parts, 1, 64, 256, 128)
    _edge_residual(parts, 2, 128, 512, 128)
    # (blocks, in, expanded, out, kernel in front, kernel in the middle, scaled output)
    for n, inner, wide, out, start, mid in (
        (1, 128, 768, 256, 3, 5),
        (3, 256, 1024, 256, 5, 0),
        (1, 256, 1024, 256, 3, 0),
        (1, 256, 1536, 640, 3, 5),
        (7, 640, 2560, 640, 5, 0),
        (1, 640, 640, 640, 0, 0),
        (14, 640, 1280, 640, 0, 0),
        (1, 640, 3840, 1280, 5, 5),
        (19, 1280, 2560, 1280, 0, 0),
    ):
        _inverted_bottleneck(parts, n, inner, wide, out, start, mid)
    _mobile_attention(parts, 14, 640, 768, 64, downsampled=True)
    _mobile_attention(parts, 19, 1280, 1536, 96, downsampled=False)
    parts.add("msfa.ffn.pw_exp.conv.weight", 3840, 1920, 1, 1)
    parts.norm("msfa.ffn.pw_exp.bn", 3840, bias=False)
    parts.add("msfa.ffn.pw_proj.conv.weight", 2048, 3840, 1, 1)
    parts.norm("msfa.ffn.pw_proj.bn", 2048, bias=False)
    parts.norm("msfa.norm", 2048, bias=False)
    tower = parts.tower("vision", "vision", tensor_parallel=False, hidden_size=2048)
    vocabulary = vision.int("vocab_size", default=128)
    return tower, _gemma3n_embedder("vision", vocabulary, 2048, text_size)


_BLOCK = "blocks.{layer}."


def _edge_residual(parts: Parts, n: int, inner: int, wide: int, out: int) -> None:
    parts.add(_BLOCK + "conv_exp.weight", wide, inner, 3, 3, copies=n)
    parts.norm(_BLOCK + "bn1", wide, copies=n, bias=False)
    parts.add(_BLOCK + "conv_pwl.weight", out, wide, 1, 1, copies=n)
    parts.norm(_BLOCK + "bn2", out, copies=n, bias=False)


def _inverted_bottleneck(
    parts: Parts, n: int, inner: int, wide: int, out: int, start: int, mid: int
) -> None:
    if start:
        parts.add(_BLOCK + "dw_start.conv.weight", inner, 1, start, start, copies=n)
        parts.norm(_BLOCK + "dw_start.bn", inner, copies=n, bias=False)
    parts.add(_BLOCK + "pw_exp.conv.weight", wide, inner, 1, 1, copies=n)
    parts.norm(_BLOCK + "pw_exp.bn", wide, copies=n, bias=False)
    if mid:
        parts.add(_BLOCK + "dw_mid.conv.weight", wide, 1, mid, mid, copies=n)
        parts.norm(_BLOCK + "dw_mid.bn", wide, copies=n, bias=False)
    parts.add(_BLOCK + "pw_proj.conv.weight", out, wide, 1, 1, copies=n)
    parts.norm(_BLOCK + "pw_proj.bn", out, copies=n, bias=False)
    parts.add(_BLOCK + "layer_scale.gamma", out, copies=n)


def _mobile_attention(
    parts: Parts, n: int, size: int, query: int, key: int, *, downsampled: bool
) -> None:
    """Multi-query attention over pixels: one key and value head, down-sampled in front."""
    parts.norm(_BLOCK + "norm", size, copies=n, bias=False)
    parts.add(_BLOCK + "attn.query.proj.weight", query, size, 1, 1, copies=n)
    for name in ("key", "value"):
        if downsampled:
            parts.add(f"{_BLOCK}attn.{name}.down_conv.weight", size, 1, 3, 3, copies=n)
            parts.norm(f"{_BLOCK}attn.{name}.norm", size, copies=n, bias=False)
        parts.add(f"{_BLOCK}attn.{name}.proj.weight", key, size, 1, 1, copies=n)
    parts.add(_BLOCK + "attn.output.proj.weight", size, query, 1, 1, copies=n)
    parts.add(_BLOCK + "layer_scale.gamma", size, copies=n)


# Llama ------------------------------------------------------------------------------------------


def llama4_vision(vision: ConfigView, text_size: int) -> tuple[Tower, ...]:
    """Llama 4: patches through a matrix, rotary attention, pixel shuffle, a two-layer adapter."""
    n = _layers(vision, "num_hidden_layers", default=34)
    h = vision.int("hidden_size", default=768)
    heads = vision.int("num_attention_heads", default=16)
    f = vision.int("intermediate_size", default=5632)
    image = _side(vision, "image_size", default=448)
    patch = _side(vision, "patch_size", default=14)
    inner = vision.int("projector_input_dim", default=4096)
    outer = vision.int("projector_output_dim", default=4096)
    channels = vision.int("num_channels", default=3)
    parts = Parts("vision_model.")
    parts.linear("patch_embedding.linear", h, channels * patch * patch, split="out", bias=False)
    parts.add("class_embedding", h)
    parts.add("positional_embedding_vlm", _patches(vision, image, patch) + 1, h)
    parts.norm("layernorm_pre", h)
    parts.norm("layernorm_post", h)
    where = "model.layers.{layer}."
    for name in ("q_proj", "k_proj", "v_proj"):
        parts.linear(f"{where}self_attn.{name}", h, h, copies=n, split="out", units=heads)
    parts.linear(where + "self_attn.o_proj", h, h, copies=n, split="in", units=heads)
    parts.linear(where + "mlp.fc1", f, h, copies=n, split="out")
    parts.linear(where + "mlp.fc2", h, f, copies=n, split="in")
    parts.norm(where + "input_layernorm", h, copies=n)
    parts.norm(where + "post_attention_layernorm", h, copies=n)
    parts.linear("vision_adapter.mlp.fc1", inner, f, split="out", bias=False)
    parts.linear("vision_adapter.mlp.fc2", outer, outer, split="in", bias=False)
    projector = Parts("multi_modal_projector.")
    projector.linear(
        "linear_1",
        text_size,
        vision.int("vision_output_dim", default=7680),
        split="out",
        bias=vision.flag("multi_modal_projector_bias", default=False),
    )
    return (
        parts.tower("vision", "vision", num_layers=n, hidden_size=h),
        projector.tower("projector", "projector"),
    )


def llama4_rotary(vision: ConfigView) -> RotaryTable:
    """Complex numbers for every patch and the class token: two float32 per pair of channels."""
    heads = vision.int("num_attention_heads", default=16)
    positions = _patches(
        vision, _side(vision, "image_size", default=448), _side(vision, "patch_size", default=14)
    )
    size = vision.int("hidden_size", default=768) // heads
    return RotaryTable(positions=positions + 1, rotary_dim=size // 2 * 2, dtype="float32")


def mllama_vision(vision: ConfigView, text_size: int) -> tuple[Tower, ...]:
    """Llama 3.2 Vision: local and global layers, positions per tile and aspect ratio."""
    n = _layers(vision, "num_hidden_layers", default=32)
    n_global = _layers(vision, "num_global_layers", default=8)
    h = vision.int("hidden_size", default=1280)
    heads = vision.int("attention_heads", default=16)
    f = vision.int("intermediate_size", default=5120)
    image = _side(vision, "image_size", default=448)
    patch = _side(vision, "patch_size", default=14)
    tiles = vision.int("max_num_tiles", default=4, high=1 << 12)
    taps = vision.list("intermediate_layers_indices", max_length=256) or [3, 7, 15, 23, 30]
    # One row per supported aspect ratio, and one for none; the class supports eight.
    ratios = len(vision.list("supported_aspect_ratios", max_length=256)) or 8
    positions = _patches(vision, image, patch) + 1
    parts = Parts("vision_model.")
    parts.add("class_embedding", h)
    parts.add("patch_embedding.weight", h, vision.int("num_channels", default=3), patch, patch)
    parts.add("gated_positional_embedding.gate", 1)
    parts.add("gated_positional_embedding.embedding", positions, h)
    parts.add("gated_positional_embedding.tile_embedding.weight", ratios + 1, tiles * positions * h)
    for name in ("pre_tile_positional_embedding", "post_tile_positional_embedding"):
        parts.add(name + ".gate", 1)
        parts.add(name + ".embedding.weight", ratios + 1, tiles * h)
    parts.norm("layernorm_pre", h)
    parts.norm("layernorm_post", h)
    for stack, count in (("transformer", n), ("global_transformer", n_global)):
        where = stack + ".layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj"):
            parts.linear(
                f"{where}self_attn.{name}", h, h, copies=count, split="out", units=heads, bias=False
            )
        parts.linear(
            where + "self_attn.o_proj", h, h, copies=count, split="in", units=heads, bias=False
        )
        parts.linear(where + "mlp.fc1", f, h, copies=count, split="out")
        parts.linear(where + "mlp.fc2", h, f, copies=count, split="in")
        parts.norm(where + "input_layernorm", h, copies=count)
        parts.norm(where + "post_attention_layernorm", h, copies=count)
    for name in ("gate_attn", "gate_ffn"):
        parts.add(f"global_transformer.layers.{{layer}}.{name}", 1, copies=n_global)
    projector = Parts("")
    projector.linear("multi_modal_projector", text_size, h * (1 + len(taps)))
    return (
        parts.tower("vision", "vision", num_layers=n + n_global, hidden_size=h),
        projector.tower("projector", "projector", tensor_parallel=False),
    )


# Pixtral, MoonViT, GLM, InternViT ---------------------------------------------------------------


def pixtral(vision: ConfigView, prefix: str = "vision_tower.") -> Tower:
    """Pixtral: gated MLPs and rotary attention without biases."""
    n = _layers(vision, "num_hidden_layers", default=24)
    h = vision.int("hidden_size", default=1024)
    heads = vision.int("num_attention_heads", default=16)
    d = vision.int("head_dim", default=h // heads)
    f = vision.int("intermediate_size", default=4096)
    patch = _side(vision, "patch_size", default=16)
    parts = Parts(prefix)
    parts.add("patch_conv.weight", h, vision.int("num_channels", default=3), patch, patch)
    parts.norm("ln_pre", h, bias=False)
    where = "transformer.layers.{layer}."
    for name in ("attention_norm", "ffn_norm"):
        parts.norm(where + name, h, copies=n, bias=False)
    for name in ("q_proj", "k_proj", "v_proj"):
        parts.linear(
            f"{where}attention.{name}", heads * d, h, copies=n, split="out", units=heads, bias=False
        )
    parts.linear(
        where + "attention.o_proj", h, heads * d, copies=n, split="in", units=heads, bias=False
    )
    for name in ("gate_proj", "up_proj"):
        parts.linear(f"{where}feed_forward.{name}", f, h, copies=n, split="out", bias=False)
    parts.linear(where + "feed_forward.down_proj", h, f, copies=n, split="in", bias=False)
    return parts.tower("vision", "vision", num_layers=n, hidden_size=h)


def mistral3_projector(config: ConfigView, hidden_size: int, text_size: int) -> Tower:
    """Norm, merging of 2 x 2 patches, then two matrices."""
    merge = config.int("spatial_merge_size", default=2)
    bias = config.flag("multimodal_projector_bias", default=False)
    layers = config.data.get("vision_feature_layer")
    if isinstance(layers, list) and len(layers) != 1:
        raise config.fail("several vision feature layers are not supported")
    parts = Parts("multi_modal_projector.")
    parts.norm("norm", hidden_size, bias=False)
    parts.linear("patch_merger.merging_layer", hidden_size, hidden_size * merge**2, bias=False)
    parts.linear("linear_1", text_size, hidden_size, split="out", bias=bias)
    parts.linear("linear_2", text_size, text_size, split="in", bias=bias)
    return parts.tower("projector", "projector")


def moonvit(vision: ConfigView, prefix: str = "vision_tower.") -> Tower:
    """MoonViT of Kimi-VL, Kimi-K2.5 and Kimi-K3: interpolated positions, fused qkv."""
    n = _layers(vision, "vt_num_hidden_layers", "num_hidden_layers", default=27)
    h = vision.int("vt_hidden_size", "hidden_size", default=1152)
    heads = vision.int("vt_num_attention_heads", "num_attention_heads", default=16)
    f = vision.int("vt_intermediate_size", "intermediate_size", default=4304)
    inner = vision.int("qkv_hidden_size", default=h)
    patch = _side(vision, "patch_size", default=14)
    rows = vision.int("init_pos_emb_height", "pos_emb_height", default=64, high=1 << 14)
    columns = vision.int("init_pos_emb_width", "pos_emb_width", default=64, high=1 << 14)
    norm_bias = vision.text("norm_type", default="layernorm") != "rmsnorm"
    bias = vision.flag("linear_bias", default=True)
    qkv_bias = vision.flag("attn_bias", default=True)
    parts = Parts(prefix)
    parts.add("patch_embed.proj.weight", h, 3, patch, patch)
    if vision.flag("patch_embed_proj_bias", default=True):
        parts.add("patch_embed.proj.bias", h)
    parts.add("patch_embed.pos_emb.weight", rows, columns, h)
    where = "encoder.blocks.{layer}."
    for name in ("norm0", "norm1"):
        parts.norm(where + name, h, copies=n, bias=norm_bias)
    parts.linear(where + "wqkv", 3 * inner, h, copies=n, split="out", units=heads, bias=qkv_bias)
    parts.linear(where + "wo", h, inner, copies=n, split="in", units=heads, bias=qkv_bias)
    parts.linear(where + "mlp.fc0", f, h, copies=n, split="out", bias=bias)
    parts.linear(where + "mlp.fc1", h, f, copies=n, split="in", bias=bias)
    parts.norm("encoder.final_layernorm", h, bias=norm_bias)
    return parts.tower("vision", "vision", num_layers=n, hidden_size=h)


def kimi_projector(
    vision: ConfigView, hidden_size: int, text_size: int, *, names: tuple[str, str], prefix: str
) -> Tower:
    """Merges patches, then two matrices; K3 (`patchmergerv2`) norms behind them, not in front."""
    merge = vision.list("merge_kernel_size", max_length=2) or [2, 2]
    sides = ConfigView({str(i): side for i, side in enumerate(merge)}, vision.file, vision.where)
    wide = hidden_size
    for i in range(len(merge)):
        wide *= sides.int(str(i), high=64)
    second = vision.text("mm_projector_type", default="patchmerger") == "patchmergerv2"
    parts = Parts(prefix)
    if not second:
        parts.norm("pre_norm", hidden_size)
    parts.linear(names[0], wide, wide, bias=not second)
    parts.linear(names[1], text_size, wide, bias=not second)
    if second:
        parts.norm("post_norm", text_size, bias=False)
    return parts.tower("projector", "projector", tensor_parallel=False)


def glm4v_vision(vision: ConfigView, prefix: str = "model.visual.") -> Tower:
    """GLM-4.1V on: gated MLPs as wide as the output, a strided convolution, a gated merger."""
    n = _layers(vision, "depth", default=24)
    h = vision.int("hidden_size", default=1536)
    heads = vision.int("num_heads", default=12)
    out = vision.int("out_hidden_size", default=4096)
    f = vision.int("intermediate_size", default=13696)
    image = _side(vision, "image_size", default=336)
    patch = _side(vision, "patch_size", default=14)
    merge = vision.int("spatial_merge_size", default=2)
    bias = vision.flag("attention_bias", default=False)
    parts = Parts(prefix)
    _qwen_patches(parts, vision, h, bias=True)
    parts.add("embeddings.position_embedding.weight", _patches(vision, image, patch), h)
    parts.norm("post_conv_layernorm", h, bias=False)
    _qwen_attention(parts, h, heads, n, bias=bias)
    for norm in ("norm1", "norm2"):
        parts.norm(f"blocks.{{layer}}.{norm}", h, copies=n, bias=False)
    for up in ("gate_proj", "up_proj"):
        parts.linear(f"blocks.{{layer}}.mlp.{up}", out, h, copies=n, split="out", bias=False)
    parts.linear("blocks.{layer}.mlp.down_proj", h, out, copies=n, split="in", bias=False)
    parts.norm("post_layernorm", h, bias=False)
    parts.add("downsample.weight", out, h, merge, merge)
    parts.add("downsample.bias", out)
    parts.linear("merger.proj", out, out, split="out", bias=False)
    parts.norm("merger.post_projection_norm", out)
    for up in ("gate_proj", "up_proj"):
        parts.linear(f"merger.{up}", f, out, split="out", bias=False)
    parts.linear("merger.down_proj", out, f, split="in", bias=False)
    return parts.tower("vision", "vision", num_layers=n, hidden_size=h)


def intern_vit(vision: ConfigView, prefix: str = "vision_model.") -> Tower:
    """InternViT as InternVL publishes it (`internvl_chat`): fused qkv, a scale per branch."""
    n = _layers(vision, "num_hidden_layers", default=48)
    h = vision.int("hidden_size", default=3200)
    heads = vision.int("num_attention_heads", default=25)
    f = vision.int("intermediate_size", default=12800)
    image = _side(vision, "image_size", default=224)
    patch = _side(vision, "patch_size", default=14)
    norm_bias = vision.text("norm_type", default="rms_norm") == "layer_norm"
    parts = Parts(prefix)
    parts.add("embeddings.class_embedding", 1, 1, h)
    parts.add("embeddings.patch_embedding.weight", h, 3, patch, patch)
    parts.add("embeddings.patch_embedding.bias", h)
    parts.add("embeddings.position_embedding", 1, _patches(vision, image, patch) + 1, h)
    where = "encoder.layers.{layer}."
    for norm in ("norm1", "norm2"):
        parts.norm(where + norm, h, copies=n, bias=norm_bias)
    qkv_bias = vision.flag("qkv_bias", default=False)
    parts.linear(where + "attn.qkv", 3 * h, h, copies=n, split="out", units=heads, bias=qkv_bias)
    parts.linear(where + "attn.proj", h, h, copies=n, split="in", units=heads)
    if vision.flag("qk_normalization", default=True):
        for norm in ("q_norm", "k_norm"):
            parts.norm(f"{where}attn.{norm}", h, copies=n, bias=False)
    parts.linear(where + "mlp.fc1", f, h, copies=n, split="out")
    parts.linear(where + "mlp.fc2", h, f, copies=n, split="in")
    for scale in ("ls1", "ls2"):
        parts.add(where + scale, h, copies=n)
    return parts.tower("vision", "vision", num_layers=n, hidden_size=h)


def internvl_projector(hidden_size: int, factor: int, text_size: int) -> Tower:
    """Pixel shuffle of factor x factor patches, norm, two matrices (`mlp1`)."""
    wide = hidden_size * factor**2
    parts = Parts("mlp1.")
    parts.norm("0", wide)
    parts.linear("1", text_size, wide)
    parts.linear("3", text_size, text_size)
    return parts.tower("projector", "projector", tensor_parallel=False)


def internvl_vision(vision: ConfigView, prefix: str = "vision_tower.") -> Tower:
    """InternViT as Transformers spells it (`internvl`): separate q, k, v."""
    n = _layers(vision, "num_hidden_layers", default=24)
    h = vision.int("hidden_size", default=1024)
    heads = vision.int("num_attention_heads", default=16)
    f = vision.int("intermediate_size", default=4096)
    image = _side(vision, "image_size", default=448)
    patch = _side(vision, "patch_size", default=14)
    bias = vision.flag("attention_bias", default=False)
    norm_bias = vision.text("norm_type", default="layer_norm") == "layer_norm"
    parts = Parts(prefix)
    parts.add("embeddings.cls_token", 1, 1, h)
    if vision.flag("use_mask_token", default=False):
        parts.add("embeddings.mask_token", 1, 1, h)
    parts.add("embeddings.patch_embeddings.projection.weight", h, 3, patch, patch)
    parts.add("embeddings.patch_embeddings.projection.bias", h)
    if vision.flag("use_absolute_position_embeddings", default=True):
        parts.add("embeddings.position_embeddings", 1, _patches(vision, image, patch) + 1, h)
    where = "encoder.layer.{layer}."
    for name in ("q_proj", "k_proj", "v_proj"):
        parts.linear(
            f"{where}attention.{name}", h, h, copies=n, split="out", units=heads, bias=bias
        )
    parts.linear(where + "attention.projection_layer", h, h, copies=n, split="in", units=heads)
    if vision.flag("use_qk_norm", default=False):
        for norm in ("q_norm", "k_norm"):
            parts.norm(f"{where}attention.{norm}", h, copies=n, bias=False)
    parts.linear(where + "mlp.fc1", f, h, copies=n, split="out")
    parts.linear(where + "mlp.fc2", h, f, copies=n, split="in")
    for norm in ("layernorm_before", "layernorm_after"):
        parts.norm(where + norm, h, copies=n, bias=norm_bias)
    for scale in ("lambda_1", "lambda_2"):
        parts.add(where + scale, h, copies=n)
    if not vision.flag("use_mean_pooling", default=True):
        parts.norm("layernorm", h)
    return parts.tower("vision", "vision", num_layers=n, hidden_size=h)


def minimax_m3_vision(vision: ConfigView, config: ConfigView, text_size: int) -> tuple[Tower, ...]:
    """MiniMax-M3: CLIP-like layers over frames; two projectors, before and after merging."""
    n = _layers(vision, "num_hidden_layers", default=32)
    h = vision.int("hidden_size", default=1280)
    heads = vision.int("num_attention_heads", default=16)
    f = vision.int("intermediate_size", default=5120)
    patch = _side(vision, "patch_size", default=14)
    frames = vision.int("temporal_patch_size", default=2)
    merge = vision.int("spatial_merge_size", default=2)
    parts = Parts("vision_tower.")
    parts.add(
        "embeddings.proj.weight", h, vision.int("num_channels", default=3), frames, patch, patch
    )
    parts.norm("pre_layrnorm", h)
    _clip_layers(parts, n, h, f, heads, where="layers.{layer}.")
    inner = config.int("projector_hidden_size", default=6144)
    projector = Parts("multi_modal_projector.")
    projector.linear("linear_1", inner, h)
    projector.linear("linear_2", text_size, inner)
    projector.linear("merge_linear_1", inner, text_size * merge**2)
    projector.linear("merge_linear_2", text_size, inner)
    return (
        parts.tower("vision", "vision", num_layers=n, hidden_size=h),
        projector.tower("projector", "projector", tensor_parallel=False),
    )


# Step, DeepSeek-VL2, Phi ------------------------------------------------------------------------


def step3_vision(config: ConfigView, vision: ConfigView, text_size: int) -> tuple[Tower, ...]:
    """Step-3: CLIP-like layers of 1792, two strided convolutions, one matrix."""
    n = _layers(vision, "num_hidden_layers", "num_layers", default=63)
    h = vision.int("hidden_size", default=1792)
    heads = vision.int("num_attention_heads", default=16)
    f = vision.int("intermediate_size", default=3072)
    out = vision.int("output_hidden_size", default=4096)
    patch = _side(vision, "patch_size", default=14)
    image = _side(vision, "image_size", default=728)
    parts = Parts("vision_model.")
    parts.add("embeddings.class_embedding", 1, h)
    parts.add(
        "embeddings.patch_embedding.weight", h, vision.int("num_channels", default=3), patch, patch
    )
    parts.add("embeddings.patch_embedding.bias", h)
    parts.add("embeddings.position_embedding.weight", _patches(vision, image, patch) + 1, h)
    where = "transformer.layers.{layer}."
    parts.linear(where + "self_attn.qkv_proj", 3 * h, h, copies=n, split="out", units=heads)
    parts.linear(where + "self_attn.out_proj", h, h, copies=n, split="in", units=heads)
    for norm in ("layer_norm1", "layer_norm2"):
        parts.norm(where + norm, h, copies=n)
    parts.linear(where + "mlp.fc1", f, h, copies=n, split="out")
    parts.linear(where + "mlp.fc2", h, f, copies=n, split="in")
    projector = Parts()
    projector.add("vit_downsampler.weight", out, h, 2, 2)
    projector.add("vit_downsampler.bias", out)
    projector.add("vit_downsampler2.weight", 2 * out, out, 3, 3)
    projector.add("vit_downsampler2.bias", 2 * out)
    projector.linear(
        "vit_large_projector",
        text_size,
        2 * out,
        bias=config.flag("projector_bias", default=False),
    )
    return (
        parts.tower("vision", "vision", num_layers=n, hidden_size=h),
        projector.tower("projector", "projector", tensor_parallel=False),
    )


def step3p7_vision(config: ConfigView, vision: ConfigView, text_size: int) -> tuple[Tower, ...]:
    """Step-3.7: norms in front, a scale per branch, two convolutions that halve and double."""
    n = _layers(vision, "num_hidden_layers", "layers", default=47)
    h = vision.int("hidden_size", "width", default=1536)
    heads = vision.int("num_attention_heads", "heads", default=16)
    f = vision.int("intermediate_size", default=8960)
    patch = _side(vision, "patch_size", default=14)
    image = _side(vision, "image_size", default=728)
    parts = Parts("vision_model.")
    parts.add(
        "embeddings.patch_embedding.weight", h, vision.int("num_channels", default=3), patch, patch
    )
    parts.add("embeddings.position_embedding.weight", _patches(vision, image, patch), h)
    parts.norm("pre_layernorm", h)
    where = "layers.{layer}."
    for name in ("q_proj", "k_proj", "v_proj"):
        parts.linear(f"{where}self_attn.{name}", h, h, copies=n, split="out", units=heads)
    parts.linear(where + "self_attn.out_proj", h, h, copies=n, split="in", units=heads)
    parts.linear(where + "mlp.fc1", f, h, copies=n, split="out")
    parts.linear(where + "mlp.fc2", h, f, copies=n, split="in")
    for norm in ("layernorm_before", "layernorm_after"):
        parts.norm(where + norm, h, copies=n)
    for scale in ("lambda_1", "lambda_2"):
        parts.add(where + scale, h, copies=n)
    parts.add("downsampler1.weight", 2 * h, h, 3, 3)
    parts.add("downsampler1.bias", 2 * h)
    parts.add("downsampler2.weight", 4 * h, 2 * h, 3, 3)
    parts.add("downsampler2.bias", 4 * h)
    projector = Parts()
    projector.linear(
        "multi_modal_projector",
        text_size,
        4 * h,
        split="out",
        bias=config.flag("projector_bias", default=False),
    )
    return (
        parts.tower("vision", "vision", num_layers=n, hidden_size=h),
        projector.tower("projector", "projector"),
    )


def deepseek_vl2_vision(
    vision: ConfigView, projector: ConfigView, text_size: int
) -> tuple[Tower, ...]:
    """DeepSeek-VL2: SigLIP as timm spells it, with its pooling head (which engines drop).

    Defaults: VisionEncoderConfig and MlpProjectorConfig in vLLM 0.32.0
    transformers_utils/configs/deepseek_vl2.py.
    """
    n = _layers(vision, "layers", default=24)
    h = vision.int("width", default=1024)
    ratio = vision.number("mlp_ratio", default=4)
    if not 0 < ratio <= 64:
        raise vision.fail(f"{vision.path('mlp_ratio')} is {ratio}; it must lie in 0..64")
    f = int(h * ratio)
    patch = _side(vision, "patch_size", default=16)
    image = _side(vision, "image_size", default=384)
    parts = Parts("vision.")
    parts.add("patch_embed.proj.weight", h, 3, patch, patch)
    parts.add("patch_embed.proj.bias", h)
    # Patches at the edge that do not fill a square are cut off.
    parts.add("pos_embed", 1, (image // patch) ** 2, h)
    where = "blocks.{layer}."
    for norm in ("norm1", "norm2"):
        parts.norm(where + norm, h, copies=n)
    parts.linear(where + "attn.qkv", 3 * h, h, copies=n)
    parts.linear(where + "attn.proj", h, h, copies=n)
    parts.linear(where + "mlp.fc1", f, h, copies=n)
    parts.linear(where + "mlp.fc2", h, f, copies=n)
    parts.norm("norm", h)
    parts.add("attn_pool.latent", 1, 1, h)
    parts.linear("attn_pool.q", h, h)
    parts.linear("attn_pool.kv", 2 * h, h)
    parts.linear("attn_pool.proj", h, h)
    parts.norm("attn_pool.norm", h)
    parts.linear("attn_pool.mlp.fc1", f, h)
    parts.linear("attn_pool.mlp.fc2", h, f)
    kind = projector.text("projector_type", default="downsample_mlp_gelu")
    if kind != "downsample_mlp_gelu":
        raise projector.fail(f"projector {kind[:40]!r} is not known")
    depth = projector.int("depth", default=2, high=16)
    inner = projector.int("n_embed", default=2048) * projector.int("mlp_ratio", default=1)
    factor = projector.int("downsample_ratio", default=2)
    behind = Parts("projector.layers.")
    behind.linear("0", inner, h * factor**2)
    for i in range(1, depth - 1):
        behind.linear(str(2 * i), inner, inner)
    behind.linear(str(2 * (depth - 1)), text_size, inner)
    marks = Parts()
    for name in ("image_newline", "view_seperator"):
        marks.add(name, text_size)
    return (
        parts.tower("vision", "vision", tensor_parallel=False, num_layers=n, hidden_size=h),
        behind.tower("projector", "projector", tensor_parallel=False),
        marks.tower("marks", "projector", tensor_parallel=False),
    )


_CLIP_LARGE_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
_SIGLIP_448 = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
}


def phi3_vision(config: ConfigView, text_size: int) -> tuple[Tower, ...]:
    """Phi-3 and 3.5 Vision: CLIP-L/14 at 336 pixels, which the config only names."""
    prefix = "model.vision_embed_tokens."
    tower = clip(ConfigView(_CLIP_LARGE_336, config.file), prefix + "img_processor.vision_model.")
    parts = Parts(prefix)
    wide = 4 * tower.hidden_size
    parts.add("glb_GN", 1, 1, wide)
    parts.add("sub_GN", 1, 1, 1, wide)
    parts.linear("img_projection.0", text_size, wide)
    parts.linear("img_projection.2", text_size, text_size)
    return tower, parts.tower("projector", "projector", tensor_parallel=False)


def phi4_vision(config: ConfigView, text_size: int) -> tuple[Tower, ...]:
    """Phi-4 multimodal: SigLIP at 448 pixels with its pooling head, fixed in the model's code."""
    prefix = "model.embed_tokens_extend.image_embed."
    tower = siglip(ConfigView(_SIGLIP_448, config.file), prefix + "img_processor.")
    parts = Parts(prefix)
    parts.add("glb_GN", 1, 1, tower.hidden_size)
    parts.add("sub_GN", 1, 1, 1, tower.hidden_size)
    parts.linear("img_projection.0", text_size, tower.hidden_size)
    parts.linear("img_projection.2", text_size, text_size)
    return tower, parts.tower("projector", "projector", tensor_parallel=False)


def phi4_audio(audio: ConfigView, text_size: int) -> tuple[Tower, ...]:
    """Phi-4 multimodal: a conformer behind separable convolutions, one projector per mode."""
    n = audio.layers("num_blocks", default=24)
    h = audio.int("attention_dim", default=1024)
    heads = audio.int("attention_heads", default=16)
    f = audio.int("linear_units", default=1536)
    kernel = audio.int("kernel_size", default=3)
    bins = audio.int("input_size", default=80)
    relative = audio.sub("relative_attention_bias_args")
    distance = 500 if relative is None else relative.int("t5_bias_max_distance", default=500)
    prefix = "model.embed_tokens_extend.audio_embed."
    parts = Parts(prefix + "encoder.")
    for name in ("global_mean", "global_invstd"):
        parts.add("encoder_embedding." + name, bins)
    parts.add("embed.conv.0.weight", h, 1, 3, 3)
    parts.add("embed.conv.0.bias", h)
    for first in (2, 5):
        parts.add(f"embed.conv.{first}.weight", h, 1, 3, 3)
        parts.add(f"embed.conv.{first}.bias", h)
        parts.add(f"embed.conv.{first + 1}.weight", h, h, 1, 1)
        parts.add(f"embed.conv.{first + 1}.bias", h)
    # Three strides of two, rounding up.
    parts.linear("embed.out", h, h * -(-bins // 8))
    parts.add("relative_attention_bias_layer.bias_values.weight", 2 * distance, heads)
    where = "encoders.{layer}."
    for block in ("feed_forward_in", "feed_forward_out"):
        parts.norm(f"{where}{block}.layer_norm", h, copies=n)
        parts.linear(f"{where}{block}.net.0.linear", 2 * f, h, copies=n)
        parts.linear(f"{where}{block}.net.2", h, f, copies=n)
    for name in ("linear_q", "linear_k", "linear_v", "linear_out"):
        parts.linear(f"{where}self_attn.{name}", h, h, copies=n)
    parts.norm(where + "conv.layer_norm", h, copies=n)
    for name in ("b1", "b2"):
        parts.add(f"{where}conv.glu.{name}", 1, h, 1, copies=n)
    for name, shape in (
        ("glu.ext_pw_conv_1d", (2 * h, h, 1)),
        ("dw_sep_conv_1d.dw_conv", (h, 1, kernel)),
        ("dw_sep_conv_1d.pw_conv", (h, h, 1)),
        ("ext_pw_conv_1d", (h, h, 1)),
    ):
        parts.add(f"{where}conv.{name}.weight", *shape, copies=n)
        parts.add(f"{where}conv.{name}.bias", shape[0], copies=n)
    for norm in ("layer_norm_att", "layer_norm"):
        parts.norm(where + norm, h, copies=n)
    behind = Parts(prefix + "audio_projection.")
    for mode in ("speech", "vision"):
        behind.linear(f"{mode}.0", text_size, h)
        behind.linear(f"{mode}.2", text_size, text_size)
    return (
        parts.tower("audio", "audio", tensor_parallel=False, num_layers=n, hidden_size=h),
        behind.tower("audio_projection", "projector", tensor_parallel=False),
    )
