"""What a vision tower needs in vLLM's profile run: its outputs, and its own activations.

The encoder is run on as many of the largest images as the encoder budget of T tokens takes (0.33.0
multimodal/encoder_budget.py). The outputs stay while the language model is profiled, the tower's
activations do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.core.records import dataclass
from moesize.core.units import ceil_div

if TYPE_CHECKING:
    from moesize.core.model_spec import ModelSpec, Tower
    from moesize.core.vllm_settings import VllmSettings

_BYTES = 2
# Patches that are pooled into a token where no projection shows it (models/gemma3_mm.py: 4096
# patches to 256 tokens; gemma4: 3 x 3).
_POOLED = {"gemma3": 16, "gemma4": 9}
_MERGES = (16, 9, 4)
# Tokens of the largest image that the published preprocessor_config.json lets through, where that
# exceeds usual limits: 12,845,056 pixels of Qwen2-VL's 28 x 28, 16,777,216 of Qwen3-VL's 32 x 32.
_LARGEST_IMAGE = dict.fromkeys(
    ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), 16384
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderShape:
    """Widths of the vision tower on a rank, per token that it hands to the language model.

    patches          patches that become one token
    patch_bytes      live activations of a patch: its state twice, and the widest projection
    output_widths    hidden sizes of the language model that a token brings (deepstack: several)
    largest_item     tokens of the largest image, as far as known: the encoder budget is no smaller
    """

    patches: int
    patch_bytes: int
    output_widths: int
    largest_item: int = 0


def encoder_shape(
    spec: ModelSpec, settings: VllmSettings, tensor_parallel_size: int
) -> EncoderShape | None:
    """The shape of a model's vision tower; None without one, or where its width is not known.

    Bytes of a patch: `2 * (2 h + widest / t)`, with whole towers (data parallel) all of it / t.
    """
    tower = next((item for item in spec.towers if item.kind == "vision" and item.num_layers), None)
    if tower is None or not tower.hidden_size:
        return None
    widest = max(_mlp_width(tower), 3 * tower.hidden_size)
    if whole_towers(spec, settings):
        # Images are shared out over the ranks instead of the weights.
        patch_bytes = ceil_div(_BYTES * (2 * tower.hidden_size + widest), tensor_parallel_size)
    else:
        share = ceil_div(widest, tensor_parallel_size if tower.tensor_parallel else 1)
        patch_bytes = _BYTES * (2 * tower.hidden_size + share)
    return EncoderShape(
        patches=_patches_per_token(spec, tower),
        patch_bytes=patch_bytes,
        output_widths=1 + _deepstack(tower),
        largest_item=_LARGEST_IMAGE.get(spec.model_type, 0),
    )


# Modalities that a vision tower serves, by model type; images and videos for the others
# (`_mark_tower_model` in 0.32.0 models/*.py; Kimi's images are chunks, which no limit names).
_MODALITIES: dict[str, tuple[str, ...]] = {
    "gemma3": ("image",),
    "kimi_k25": ("vision_chunk",),
    "kimi_k3": ("vision_chunk",),
    "llama4": ("image",),
    "mistral3": ("image",),
    "mllama": ("image",),
}


# Model types whose encoders run data-parallel (`supports_encoder_tp_data` in 0.32.0 models/*.py);
# the others split their towers whatever --mm-encoder-tp-mode says.
_DATA_PARALLEL = frozenset(
    (
        "glm4v", "glm4v_moe", "internvl_chat", "kimi_k25", "kimi_k3", "kimi_vl", "llama4",
        "minimax_m3_vl", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl",
        "qwen3_vl_moe", "step3p7",
    )
)  # fmt: skip


def whole_towers(spec: ModelSpec, settings: VllmSettings) -> bool:
    """Whether every rank holds the towers whole and encodes its share of the images."""
    return settings.mm_encoder_tp_mode == "data" and spec.model_type in _DATA_PARALLEL


def towers_left_out(spec: ModelSpec, settings: VllmSettings) -> tuple[str, ...]:
    """Kinds of tower that vLLM does not build: text only, or no item of their modalities."""
    kinds = dict.fromkeys(tower.kind for tower in spec.towers if tower.kind != "projector")
    if settings.language_model_only:
        return tuple(kinds)
    limits = dict(settings.limit_mm_per_prompt or ())
    vision = _MODALITIES.get(spec.model_type, ("image", "video"))
    served = {"vision": vision, "audio": ("audio",)}
    return tuple(kind for kind in kinds if all(limits.get(name, 1) == 0 for name in served[kind]))


def has_active_encoder(spec: ModelSpec, settings: VllmSettings) -> bool:
    """Whether a tower is profiled: not when none is built, nor when profiling is skipped."""
    if not spec.towers or settings.skip_mm_profiling:
        return False
    kinds = {tower.kind for tower in spec.towers if tower.kind != "projector"}
    return not kinds or bool(kinds - set(towers_left_out(spec, settings)))


def _mlp_width(tower: Tower) -> int:
    """Rows of the joined gate and up projection, or of the first projection, of a layer."""
    rows = {"gate": 0, "up": 0, "other": 0}
    for tensor in tower.tensors:
        if "{layer}" not in tensor.name or len(tensor.shape) != 2 or "merger" in tensor.name:
            continue
        kind = next((name for name in ("gate", "up") if f"{name}_proj" in tensor.name), "other")
        rows[kind] = max(rows[kind], tensor.shape[0])
    return max(rows["gate"] + rows["up"], rows["other"])


def _patches_per_token(spec: ModelSpec, tower: Tower) -> int:
    for kind in (spec.model_type, spec.text_type):
        if kind in _POOLED:
            return _POOLED[kind]
    inputs = {
        tensor.shape[1]
        for item in spec.towers
        for tensor in item.tensors
        if len(tensor.shape) == 2 and ("{layer}" not in tensor.name or "merger" in tensor.name)
    }
    return next((size for size in _MERGES if size * tower.hidden_size in inputs), 1)


def _deepstack(tower: Tower) -> int:
    """States of inner layers that are handed over beside the last (Qwen3-VL)."""
    return max(
        (tensor.copies for tensor in tower.tensors if "deepstack_merger_list" in tensor.name),
        default=0,
    )
