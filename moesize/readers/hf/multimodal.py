"""Multimodal wrappers: a language model read by its own family's reader, plus towers.

A wrapper whose config lacks the tower (trimmed by whoever copied it) is read as text only and says
so in `notes`. Structure and defaults: Transformers 5.19 models/*; what engines keep on top of the
weights: vLLM 0.32.0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moesize.core.errors import UnsupportedError
from moesize.core.feed_forward import DenseMlp
from moesize.core.model_spec import Block, Embedding, ExtraTensor, RotaryTable, Tower
from moesize.readers.hf import towers
from moesize.readers.hf.common import (
    dense_mlp,
    grouped_query_attention,
    max_context,
    rotary_table,
    stack,
)
from moesize.readers.hf.registry import SpecFields, family, find_reader
from moesize.readers.hf.view import ConfigView

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_TRIMMED = "the config has no {key}: read as the language model alone, without its {what} tower"

# Text parts that are an ordinary family under a name of their own.
_SAME_AS = {
    "exaone4_5_text": "exaone4",
    "gemma4_unified_text": "gemma4_text",
    "glm4v_text": "glm4",
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_5_omni_text": "qwen2",
    "qwen3_asr_text": "qwen3",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
    "qwen3_omni_moe_text": "qwen3_moe",
}


def _text_view(config: ConfigView) -> ConfigView:
    """The language model's part; older configs keep its fields at the top."""
    return config.sub("text_config", "llm_config", "language_config") or config


def _text_fields(config: ConfigView, default_type: str, prefix: str) -> SpecFields:
    """The language model, read by its family; `prefix` is where its tensors stand."""
    text = _text_view(config)
    name = default_type if text is config else text.text("model_type", default=default_type)
    reader = find_reader(name)
    if reader is None and name in _SAME_AS:
        name = _SAME_AS[name]
        reader = find_reader(name)
    if reader is None:
        raise UnsupportedError(
            f"{config.file}: the language model is of type {name[:60]!r}, which is not known",
            "moesize does not guess an architecture; write a model spec (`moesize import --help`)",
        )
    # Families that share a reader tell themselves apart by this name.
    fields = reader(ConfigView({**text.data, "model_type": name}, text.file, text.where))
    if text is not config and "tie_word_embeddings" not in text:
        # The wrapper's own flag counts where the language model's part does not say.
        table: Embedding = fields["embedding"]
        tied = config.flag("tie_word_embeddings", default=table.tied)
        fields["embedding"] = replace(table, tied=tied)
    if text is not config:
        fields["text_type"] = text.text("model_type", default=name)
    if prefix:
        fields["naming"] = f"{fields.get('naming', 'default')}@{prefix}"
    return fields


def _add(
    fields: SpecFields,
    found: tuple[Tower, ...],
    *,
    rotary: tuple[RotaryTable, ...] = (),
    note: str = "",
) -> SpecFields:
    fields["towers"] = (*fields.get("towers", ()), *found)
    fields["rotary"] = (*fields.get("rotary", ()), *rotary)
    if note:
        fields["notes"] = (*fields.get("notes", ()), note)
    return fields


def _stored(fields: SpecFields, unused: Sequence[ExtraTensor]) -> SpecFields:
    """Adds what the files hold and engines do not load."""
    fields["stored_extra"] = (*fields.get("stored_extra", ()), *unused)
    return fields


def _with_vision(
    config: ConfigView,
    default_type: str,
    prefix: str,
    build: Callable[[ConfigView, int], tuple[Tower, ...]],
    rotary: Callable[[ConfigView], RotaryTable] | None = None,
) -> SpecFields:
    """Language model and vision tower; `build` gets the tower's config and the text width."""
    fields = _text_fields(config, default_type, prefix)
    vision = config.sub("vision_config")
    if vision is None:
        return _add(fields, (), note=_TRIMMED.format(key="vision_config", what="vision"))
    tables = (rotary(vision),) if rotary is not None else ()
    return _add(fields, build(vision, fields["hidden_size"]), rotary=tables)


# Qwen -------------------------------------------------------------------------------------------


def _qwen2_rotary(vision: ConfigView) -> RotaryTable:
    return towers.qwen_rotary(vision, hidden_size=vision.int("embed_dim", default=1280))


def _qwen2_5_rotary(vision: ConfigView) -> RotaryTable:
    return towers.qwen_rotary(vision, hidden_size=vision.int("hidden_size", default=3584))


def _qwen3_rotary(vision: ConfigView) -> RotaryTable:
    return towers.qwen_rotary(vision, hidden_size=vision.int("hidden_size", default=1152))


def _video_positions(config: ConfigView, fields: SpecFields) -> SpecFields:
    """Four times the positions in the text's table: long videos count beyond the context.

    Only with multimodal rotary sections, and not in Qwen3-VL and Qwen3.5 (vLLM 0.32.0
    layers/rotary_embedding/mrope.py).
    """
    scaling = _text_view(config).sub("rope_parameters", "rope_scaling")
    if scaling is not None and "mrope_section" in scaling:
        first, *others = fields["rotary"]
        fields["rotary"] = (replace(first, positions=4 * first.positions), *others)
    return fields


@family("qwen2_vl")
def qwen2_vl(config: ConfigView) -> SpecFields:
    """Qwen2-VL."""
    fields = _with_vision(
        config, "qwen2", "", lambda vision, _: (towers.qwen2_vision(vision),), _qwen2_rotary
    )
    return _video_positions(config, fields)


@family("qwen2_5_vl")
def qwen2_5_vl(config: ConfigView) -> SpecFields:
    """Qwen2.5-VL and the models built on it (MiMo-VL, MiMo-Embodied)."""
    fields = _with_vision(
        config, "qwen2", "", lambda vision, _: (towers.qwen2_5_vision(vision),), _qwen2_5_rotary
    )
    return _video_positions(config, fields)


@family("qwen3_vl", "qwen3_vl_moe")
def qwen3_vl(config: ConfigView) -> SpecFields:
    """Qwen3-VL, dense and mixture of experts; deepstack feeds three vision layers to the text."""
    moe = config.text("model_type") == "qwen3_vl_moe"
    return _with_vision(
        config,
        "qwen3_vl_moe_text" if moe else "qwen3_vl_text",
        "model.language_model.",
        lambda vision, _: (towers.qwen3_vision(vision),),
        _qwen3_rotary,
    )


@family("qwen3_5", "qwen3_5_moe")
def qwen3_5(config: ConfigView) -> SpecFields:
    """Qwen3.5 and Qwen3.6."""
    moe = config.text("model_type") == "qwen3_5_moe"
    # The text reader's own names already stand under model.language_model.
    return _with_vision(
        config,
        "qwen3_5_moe_text" if moe else "qwen3_5_text",
        "",
        lambda vision, _: (towers.qwen3_vision(vision, deepstack=False),),
        _qwen3_rotary,
    )


_TALKER = "the talker and its codec are not counted: engines serve the thinker alone"


def _sinusoids(audio: ConfigView) -> RotaryTable:
    """Positions of an audio encoder, computed and kept in float32."""
    return RotaryTable(
        positions=audio.int("max_source_positions", default=1500),
        rotary_dim=audio.int("d_model", default=1280),
        dtype="float32",
    )


@family("qwen3_omni_moe", "qwen3_asr")
def qwen3_thinker(config: ConfigView) -> SpecFields:
    """Qwen3-Omni's thinker (what engines serve) and Qwen3-ASR: audio and, in Omni, vision."""
    thinker = config.need_sub("thinker_config")
    moe = config.text("model_type") == "qwen3_omni_moe"
    default = "qwen3_omni_moe_text" if moe else "qwen3_asr_text"
    fields = _video_positions(thinker, _text_fields(thinker, default, "thinker."))
    audio = thinker.need_sub("audio_config")
    tower = towers.qwen_audio(audio, "thinker.audio_tower.")
    fields = _add(fields, (tower,), rotary=(_sinusoids(audio),))
    vision = thinker.sub("vision_config")
    if vision is not None:
        # Deepstack mergers go by another name than in Qwen3-VL, with the same shapes.
        found = towers.qwen3_vision(vision, "thinker.visual.")
        fields = _add(fields, (found,), rotary=(_qwen3_rotary(vision),))
    if "talker_config" in config:
        fields = _add(fields, (), note=_TALKER)
    return fields


@family("qwen2_5_omni")
def qwen2_5_omni(config: ConfigView) -> SpecFields:
    """Qwen2.5-Omni's thinker, which is what engines serve."""
    thinker = config.need_sub("thinker_config")
    fields = _video_positions(thinker, _text_fields(thinker, "qwen2_5_omni_text", "thinker."))
    audio = thinker.need_sub("audio_config")
    found = towers.whisper_encoder(audio, "thinker.audio_tower.", stored_positions=False)
    fields = _add(fields, (found,), rotary=(_sinusoids(audio),))
    vision = thinker.sub("vision_config")
    if vision is not None:
        tower = towers.qwen2_5_vision(vision, "thinker.visual.")
        fields = _add(fields, (tower,), rotary=(_qwen2_5_rotary(vision),))
    return _add(fields, (), note=_TALKER)


@family("exaone4_5")
def exaone4_5(config: ConfigView) -> SpecFields:
    """EXAONE 4.5: Qwen2.5-VL's tower with fewer heads for keys and values."""
    return _with_vision(
        config,
        "exaone4_5_text",
        "model.language_model.",
        lambda vision, _: (towers.qwen2_5_vision(vision, "model.visual."),),
        _qwen2_5_rotary,
    )


@family("voxtral")
def voxtral(config: ConfigView) -> SpecFields:
    """Voxtral: Whisper's encoder before a Mistral."""
    fields = _text_fields(config, "llama", "language_model.")
    audio = config.need_sub("audio_config")
    found = (
        towers.whisper_encoder(audio, "audio_tower.", stored_positions=True),
        towers.voxtral_projector(audio, fields["hidden_size"]),
    )
    return _add(fields, found)


# Gemma ------------------------------------------------------------------------------------------


@family("gemma3")
def gemma3(config: ConfigView) -> SpecFields:
    """Gemma 3 from 4B on: SigLIP without its pooling head, and one matrix."""

    def build(vision: ConfigView, text_size: int) -> tuple[Tower, ...]:
        tower = towers.siglip(vision, "vision_tower.vision_model.")
        return tower, towers.gemma3_projector(tower.hidden_size, text_size)

    return _with_vision(config, "gemma3_text", "language_model.", build)


@family("gemma3n")
def gemma3n(config: ConfigView) -> SpecFields:
    """Gemma 3n: MobileNet-V5 and a conformer."""
    fields = _with_vision(config, "gemma3n_text", "model.language_model.", towers.gemma3n_vision)
    return _with_audio(config, fields, towers.gemma3n_audio)


@family("gemma4")
def gemma4(config: ConfigView) -> SpecFields:
    """Gemma 4; audio only in the small ones (E2B, E4B)."""
    fields = _with_vision(config, "gemma4_text", "model.language_model.", towers.gemma4_vision)
    vision = config.sub("vision_config")
    if vision is not None and vision.flag("standardize", default=False):
        # Mean and deviation of the tower's output: buffers, which the published files hold.
        buffers = ExtraTensor(
            role="towers.vision.standardize",
            shape=(vision.int("hidden_size", default=768),),
            copies=2,
        )
        _stored(fields, (buffers,))
    return _with_audio(config, fields, towers.gemma4_audio)


@family("gemma4_unified")
def gemma4_unified(config: ConfigView) -> SpecFields:
    """Gemma 4 12B: no encoders at all, patches and samples are embedded by matrices."""
    audio = config.sub("audio_config")
    return _with_vision(
        config,
        "gemma4_unified_text",
        "model.language_model.",
        lambda vision, size: towers.gemma4_unified(vision, audio, size),
    )


def _with_audio(
    config: ConfigView,
    fields: SpecFields,
    build: Callable[[ConfigView, int], tuple[Tower, ...]],
) -> SpecFields:
    audio = config.sub("audio_config")
    if audio is None:
        return fields
    return _add(fields, build(audio, fields["hidden_size"]))


# Llama ------------------------------------------------------------------------------------------


@family("llama4")
def llama4(config: ConfigView) -> SpecFields:
    """Llama 4 Scout and Maverick.

    Without a vision_config the engines build the class's default tower, smaller than the published
    one (transformers models/llama4/configuration_llama4.py, vLLM 0.32.0 models/mllama4.py).
    """
    if "vision_config" in config:
        return _with_vision(
            config, "llama4_text", "language_model.", towers.llama4_vision, towers.llama4_rotary
        )
    fields = _text_fields(config, "llama4_text", "language_model.")
    default = ConfigView({}, config.file, config.path("vision_config"))
    return _add(
        fields,
        towers.llama4_vision(default, fields["hidden_size"]),
        rotary=(towers.llama4_rotary(default),),
        note="the config has no vision_config: the class's default tower, without its true sizes",
    )


@family("mllama_text_model")
def mllama_text(config: ConfigView) -> SpecFields:
    """Llama 3.2 Vision's language model: some layers attend to the picture instead of the text.

    The table has eight rows more than the vocabulary, for picture tokens; the head does not.
    """
    num_layers = config.layers(default=40)
    stated = config.list("cross_attention_layers", max_length=4096)
    crossed = set(stated or (3, 8, 13, 18, 23, 28, 33, 38))
    for index in crossed:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < num_layers:
            raise config.fail("cross_attention_layers must hold indices of the layers")
    attention = grouped_query_attention(config)
    crossing = replace(attention, cross=True, qk_norm="head")
    mlp = dense_mlp(config)
    plain = Block(name="layer", mixers=(attention,), feed_forwards=(mlp,))
    gates = ExtraTensor(role="other.cross_gate", shape=(1,), copies=2)
    cross = Block(name="cross", mixers=(crossing,), feed_forwards=(mlp,), extra=(gates,))
    blocks, layers = stack([cross if i in crossed else plain for i in range(num_layers)])
    context = max_context(config, default=131072)
    vocabulary = config.int("vocab_size", default=128256)
    return {
        "hidden_size": config.int("hidden_size", default=4096),
        "max_context": context,
        "embedding": Embedding(
            vocab_size=vocabulary + 8,
            head_vocab_size=vocabulary,
            tied=config.flag("tie_word_embeddings", default=False),
        ),
        "blocks": blocks,
        "layers": layers,
        "rotary": (rotary_table(config, attention.head_dim, context),),
        "naming": "mllama",
    }


@family("mllama")
def mllama(config: ConfigView) -> SpecFields:
    """Llama 3.2 11B and 90B Vision."""
    return _with_vision(config, "mllama_text_model", "language_model.", towers.mllama_vision)


# SigLIP and CLIP behind a projector -------------------------------------------------------------


def _vision_tower(config: ConfigView, vision: ConfigView) -> Tower:
    """The tower that a LLaVA-like wrapper names."""
    prefix = "vision_tower.vision_model."
    match vision.text("model_type", default="clip_vision_model"):
        case "clip_vision_model":
            return towers.clip(vision, prefix)
        case "siglip_vision_model":
            return towers.siglip(vision, prefix)
        case "pixtral":
            return towers.pixtral(vision)
        case name:
            raise UnsupportedError(
                f"{config.file}: vision tower {name[:60]!r} is not known",
                "write a model spec (see `moesize import --help`)",
            )


@family("llava", "llava_next", "llava_onevision")
def llava(config: ConfigView) -> SpecFields:
    """LLaVA, Pixtral 12B: a tower and two matrices; LLaVA-NeXT on have a line-break vector."""

    kind = config.text("model_type")
    unused: list[ExtraTensor] = []

    def build(vision: ConfigView, text_size: int) -> tuple[Tower, ...]:
        tower = _vision_tower(config, vision)
        # Defaults of the config classes: the last layer but one, in OneVision the last.
        last = -1 if kind == "llava_onevision" else -2
        kept = towers.layers_used(config, tower.num_layers, "vision_feature_layer", default=last)
        tower, left = towers.up_to_layer(tower, kept, post_norm=False)
        unused.extend(left)
        taps = config.data.get("vision_feature_layer")
        in_size = tower.hidden_size * (len(taps) if isinstance(taps, list) else 1)
        bias = config.flag("multimodal_projector_bias", default=True)
        split = kind != "llava_onevision"
        found = [
            tower,
            towers.two_layer_projector(
                in_size, text_size, text_size, bias=bias, tensor_parallel=split
            ),
        ]
        if kind != "llava":
            parts = towers.Parts()
            parts.add("image_newline", text_size)
            found.append(parts.tower("image_newline", "projector", tensor_parallel=False))
        return tuple(found)

    fields = _with_vision(config, "llama", "language_model.", build)
    return _stored(fields, unused)


@family("mistral3")
def mistral3(config: ConfigView) -> SpecFields:
    """Mistral Small 3.1 on: Pixtral's tower behind a patch merger."""

    def build(vision: ConfigView, text_size: int) -> tuple[Tower, ...]:
        tower = towers.pixtral(vision)
        return tower, towers.mistral3_projector(config, tower.hidden_size, text_size)

    return _with_vision(config, "mistral", "language_model.", build)


@family("paligemma")
def paligemma(config: ConfigView) -> SpecFields:
    """PaliGemma: SigLIP and one matrix."""

    def build(vision: ConfigView, text_size: int) -> tuple[Tower, ...]:
        tower = towers.siglip(vision, "vision_tower.vision_model.", head=False)
        parts = towers.Parts("multi_modal_projector.")
        parts.linear("linear", text_size, tower.hidden_size)
        return tower, parts.tower("projector", "projector", tensor_parallel=False)

    return _with_vision(config, "gemma", "language_model.", build)


@family("cohere2_vision")
def cohere2_vision(config: ConfigView) -> SpecFields:
    """Command A Vision: SigLIP, pixel shuffle, a gated pair of matrices."""

    def build(vision: ConfigView, text_size: int) -> tuple[Tower, ...]:
        tower = towers.siglip(vision, "model.vision_tower.vision_model.")
        factor = config.int("downsample_factor", default=2)
        inner = config.int("alignment_intermediate_size", default=36864)
        if inner % 2:
            raise config.fail("alignment_intermediate_size must be even: half of it is a gate")
        parts = towers.Parts("model.multi_modal_projector.")
        parts.linear("linear_1", inner, tower.hidden_size * factor**2)
        parts.linear("linear_2", text_size, inner // 2)
        return tower, parts.tower("projector", "projector", tensor_parallel=False)

    return _with_vision(config, "cohere2", "model.language_model.", build)


@family("lfm2_vl")
def lfm2_vl(config: ConfigView) -> SpecFields:
    """LFM2-VL: SigLIP 2, which takes any number of patches, and a merging projector."""

    def build(vision: ConfigView, text_size: int) -> tuple[Tower, ...]:
        tower = towers.siglip(vision, "model.vision_tower.vision_model.", linear_patches=True)
        wide = tower.hidden_size * config.int("downsample_factor", default=2) ** 2
        inner = config.int("projector_hidden_size", default=2560)
        bias = config.flag("projector_bias", default=True)
        parts = towers.Parts("model.multi_modal_projector.")
        if config.flag("projector_use_layernorm", default=True):
            parts.norm("layer_norm", wide)
        parts.linear("linear_1", inner, wide, bias=bias)
        parts.linear("linear_2", text_size, inner, bias=bias)
        return tower, parts.tower("projector", "projector", tensor_parallel=False)

    return _with_vision(config, "lfm2", "model.language_model.", build)


# MiniCPM-V, Molmo -------------------------------------------------------------------------------

# Language model of each MiniCPM-V (vLLM 0.32.0 models/minicpmv.py); the first version, which does
# not state its own, has another vision tower.
_MINICPMV_TEXT = {2.5: "llama", 2.6: "qwen2", 4.0: "llama", 4.5: "qwen3"}
_RESAMPLER_SIDE = 70


@family("minicpmv")
def minicpmv(config: ConfigView) -> SpecFields:
    """MiniCPM-V 2.5 to 4.5: SigLIP for any number of patches behind a resampler.

    Source: modeling_minicpmv.py and resampler.py of openbmb/MiniCPM-V-4.
    """
    version = config.number("version", default=0.0)
    if version not in _MINICPMV_TEXT:
        raise UnsupportedError(
            f"{config.file}: MiniCPM-V {version or 2.0} is not known",
            f"versions that are: {', '.join(map(str, _MINICPMV_TEXT))}",
        )
    fields = _text_fields(config, _MINICPMV_TEXT[version], "llm.")
    vision, size = config.sub("vision_config"), fields["hidden_size"]
    if vision is None:
        return _add(fields, (), note=_TRIMMED.format(key="vision_config", what="vision"))
    tower = towers.siglip(vision, "vpm.", head=False)
    dropped = config.flag("drop_vision_last_layer", default=True)
    tower, unused = towers.up_to_layer(tower, tower.num_layers - dropped, post_norm=True)
    parts = towers.Parts("resampler.")
    parts.add("query", config.int("query_num", default=64), size)
    if tower.hidden_size != size:
        parts.linear("kv_proj", size, tower.hidden_size, bias=False)
    parts.add("attn.in_proj_weight", 3 * size, size)
    parts.add("attn.in_proj_bias", 3 * size)
    parts.linear("attn.out_proj", size, size)
    for name in ("ln_q", "ln_kv", "ln_post"):
        parts.norm(name, size)
    parts.add("proj", size, size)
    projector = parts.tower("resampler", "projector", tensor_parallel=False)
    # Fixed positions of the resampler, held like a rotary table.
    table = RotaryTable(positions=_RESAMPLER_SIDE**2, rotary_dim=size)
    return _stored(_add(fields, (tower, projector), rotary=(table,)), unused)


@family("molmo")
def molmo(config: ConfigView) -> SpecFields:
    """Molmo: Qwen2's or OLMo's shape behind CLIP-L/14 at 336 pixels, which the code fixes.

    `intermediate_size` counts both halves of the gated MLP. Source: vLLM 0.32.0 models/molmo.py;
    config.json of allenai/Molmo-7B-D-0924.
    """
    if config.flag("norm_after", default=False):
        raise UnsupportedError(f"{config.file}: Molmo with norms behind the sublayers is not known")
    wide, size = config.int("intermediate_size"), config.int("hidden_size")
    if wide % 2:
        raise config.fail("intermediate_size must be even: half of it is a gate")
    attention = grouped_query_attention(
        config,
        qkv_bias=config.flag("qkv_bias"),
        qk_norm="projection" if config.flag("attention_layer_norm", default=False) else "none",
    )
    block = Block(
        name="layer",
        mixers=(attention,),
        feed_forwards=(DenseMlp(intermediate_size=wide // 2),),
    )
    blocks, layers = stack([block] * config.layers())
    rows = config.int("embedding_size", default=config.int("vocab_size"))
    context = max_context(config)
    fields: SpecFields = {
        "hidden_size": size,
        "max_context": context,
        # 128 rows for words that only prompts with images use.
        "embedding": Embedding(
            vocab_size=rows + 128,
            head_vocab_size=rows,
            tied=config.flag("weight_tying", default=False),
        ),
        "blocks": blocks,
        "layers": layers,
        "rotary": (rotary_table(config, attention.head_dim, context),),
    }
    return _add(fields, towers.molmo_vision(wide // 2, size))


# MoonViT ----------------------------------------------------------------------------------------


@family("kimi_vl")
def kimi_vl(config: ConfigView) -> SpecFields:
    """Kimi-VL A3B: MoonViT before a DeepSeek-V3-shaped model."""

    def build(vision: ConfigView, text_size: int) -> tuple[Tower, ...]:
        tower = towers.moonvit(vision)
        projector = towers.kimi_projector(
            vision,
            tower.hidden_size,
            text_size,
            names=("linear_1", "linear_2"),
            prefix="multi_modal_projector.",
        )
        return tower, projector

    return _with_vision(config, "deepseek_v3", "language_model.", build)


@family("kimi_k25", "kimi_k3")
def kimi_k25(config: ConfigView) -> SpecFields:
    """Kimi-K2.5 to K2.7 (before K2) and Kimi-K3 (before a Kimi-Linear-shaped model)."""
    third = config.text("model_type") == "kimi_k3"
    names = ("linear_1", "linear_2") if third else ("proj.0", "proj.2")

    def build(vision: ConfigView, text_size: int) -> tuple[Tower, ...]:
        tower = towers.moonvit(vision)
        projector = towers.kimi_projector(
            vision, tower.hidden_size, text_size, names=names, prefix="mm_projector."
        )
        return tower, projector

    return _with_vision(config, "kimi_linear" if third else "kimi_k2", "language_model.", build)


# GLM, InternVL, MiniMax -------------------------------------------------------------------------


@family("glm4v", "glm4v_moe")
def glm4v(config: ConfigView) -> SpecFields:
    """GLM-4.1V, GLM-4.5V and GLM-4.6V."""
    moe = config.text("model_type") == "glm4v_moe"
    fields = _with_vision(
        config,
        "glm4v_moe_text" if moe else "glm4v_text",
        "model.language_model.",
        lambda vision, _: (towers.glm4v_vision(vision),),
        lambda vision: towers.qwen_rotary(
            vision, hidden_size=vision.int("hidden_size", default=1536), heads=12
        ),
    )
    return _video_positions(config, fields)


def _shuffle(config: ConfigView) -> int:
    """Side of the square of patches that pixel shuffle merges; downsample_ratio is its inverse."""
    ratio = config.number("downsample_ratio", default=0.5)
    factor = round(1 / ratio) if 0 < ratio <= 1 else 0
    if not factor or abs(factor * ratio - 1) > 1e-6:
        raise config.fail(f"downsample_ratio is {ratio}; it must be the inverse of a whole number")
    return factor


@family("internvl_chat")
def internvl_chat(config: ConfigView) -> SpecFields:
    """InternVL as its authors publish it."""

    unused: list[ExtraTensor] = []

    def build(vision: ConfigView, text_size: int) -> tuple[Tower, ...]:
        tower = towers.intern_vit(vision)
        kept = towers.layers_used(
            config, tower.num_layers, "select_layer", default=-1, counts_from=1
        )
        tower, left = towers.up_to_layer(tower, kept, post_norm=True)
        unused.extend(left)
        factor = _shuffle(config)
        return tower, towers.internvl_projector(tower.hidden_size, factor, text_size)

    return _stored(_with_vision(config, "", "language_model.", build), unused)


@family("internvl")
def internvl(config: ConfigView) -> SpecFields:
    """InternVL as Transformers publishes it (`...-hf`)."""

    def build(vision: ConfigView, text_size: int) -> tuple[Tower, ...]:
        tower = towers.internvl_vision(vision)
        wide = tower.hidden_size * _shuffle(config) ** 2
        parts = towers.Parts("multi_modal_projector.")
        parts.norm("layer_norm", wide)
        parts.linear("linear_1", text_size, wide)
        parts.linear("linear_2", text_size, text_size)
        return tower, parts.tower("projector", "projector", tensor_parallel=False)

    return _with_vision(config, "qwen2", "language_model.", build)


@family("minimax_m3_vl")
def minimax_m3_vl(config: ConfigView) -> SpecFields:
    """MiniMax-M3 with its vision tower."""
    return _with_vision(
        config,
        "minimax_m3_vl_text",
        "model.language_model.",
        lambda vision, size: towers.minimax_m3_vision(vision, config, size),
    )


# Step, DeepSeek-VL2, Phi ------------------------------------------------------------------------


@family("step3p7")
def step3p7(config: ConfigView) -> SpecFields:
    """Step-3.7 Flash: the language model of Step-3.5 with a vision tower."""
    return _with_vision(
        config,
        "step3p5",
        "model.language_model." if "text_config" in config else "",
        lambda vision, size: towers.step3p7_vision(config, vision, size),
    )


@family("step3_vl")
def step3_vl(config: ConfigView) -> SpecFields:
    """Step-3."""
    return _with_vision(
        config,
        "step3_text",
        "",
        lambda vision, size: towers.step3_vision(config, vision, size),
    )


@family("deepseek_vl_v2")
def deepseek_vl2(config: ConfigView) -> SpecFields:
    """DeepSeek-VL2; pictures are cut in tiles and lines are marked by vectors ("2D")."""
    tag = config.text("tile_tag", default="2D")
    if tag != "2D":
        raise UnsupportedError(f"{config.file}: tile_tag {tag[:40]!r} is not known")
    projector = config.sub("projector_config") or ConfigView({}, config.file, "projector_config")
    text = config.sub("language_config")
    if text is not None and not text.flag("use_mla", default=True):
        # The tiny one has plain attention: the layers of the first DeepSeek-MoE.
        plain = {**text.data, "model_type": "deepseek"}
        config = ConfigView({**config.data, "language_config": plain}, config.file)
    return _with_vision(
        config,
        "deepseek_v2",
        "language.",
        lambda vision, size: towers.deepseek_vl2_vision(vision, projector, size),
    )


@family("phi3_v")
def phi3_v(config: ConfigView) -> SpecFields:
    """Phi-3 Vision and Phi-3.5 Vision."""
    fields = _text_fields(config, "phi3", "")
    processor = config.sub("img_processor")
    if processor is None:
        return _add(fields, (), note=_TRIMMED.format(key="img_processor", what="vision"))
    name = processor.text("name", default="clip_vision_model")
    if name != "clip_vision_model":
        raise UnsupportedError(f"{config.file}: vision tower {name[:60]!r} is not known")
    tower, projector = towers.phi3_vision(config, fields["hidden_size"])
    kept = towers.layers_used(processor, tower.num_layers, "layer_idx", default=-2, counts_from=1)
    tower, unused = towers.up_to_layer(tower, kept, post_norm=kept == tower.num_layers)
    return _stored(_add(fields, (tower, projector)), unused)


@family("phi4mm")
def phi4mm(config: ConfigView) -> SpecFields:
    """Phi-4 multimodal: Phi-4-mini, two towers, and a LoRA adapter per mode in the same files."""
    fields = _text_fields(config, "phi3", "")
    size: int = fields["hidden_size"]
    processor = config.sub("audio_processor")
    audio = processor.sub("config") if processor is not None else None
    audio = audio or ConfigView({}, config.file, "audio_processor.config")
    fields = _add(fields, (*towers.phi4_vision(config, size), *towers.phi4_audio(audio, size)))
    adapters = []
    heads = config.int("num_attention_heads")
    groups = config.int("num_key_value_heads", default=heads)
    d, f = size // heads, config.int("intermediate_size")
    shapes = (
        ((heads + 2 * groups) * d, size),
        (size, heads * d),
        (2 * f, size),
        (size, f),
    )
    for mode in ("vision", "speech"):
        # Ranks of the only model of this type, for configs without them.
        lora = config.sub(f"{mode}_lora")
        default = {"vision": 256, "speech": 320}[mode]
        rank = default if lora is None else lora.int("r", default=default)
        for out_features, in_features in shapes:
            adapters += [
                ExtraTensor(role=f"other.{mode}_lora_a", shape=(rank, in_features)),
                ExtraTensor(role=f"other.{mode}_lora_b", shape=(out_features, rank)),
            ]
    layers = config.layers()
    stored = tuple(replace(adapter, copies=layers) for adapter in adapters)
    _stored(fields, stored)
    note = "the LoRA adapters for pictures and speech are in the files, but not among the weights"
    return _add(fields, (), note=note)
