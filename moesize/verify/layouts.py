"""How families lay out their files where the inventory does not say: joined projections, experts.

The reader of files and the forward passes both go by it: what one cuts, the other finds. No torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from moesize.core.errors import UnsupportedError
from moesize.core.recurrent import GatedDeltaNet, LightningAttention, Mamba1, Mamba2, ShortConv

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from moesize.core.mixers import Mixer

# Families whose joined q, k and v stand head by head, or group by group: queries, a key, a value.
# Falcon (transformers `_split_heads`), GPT-BigCode: all kinds; with a single group that is one
# after another.
_PER_HEAD = ("gpt_neox", "bloom", "persimmon", "gpt_bigcode")
_PER_GROUP = ("internlm2", "falcon", "falcon_new")
# CodeGen: a fixed number of groups, whatever the heads, values before keys (transformers
# modeling_codegen.py `mp_num`).
_CODEGEN_GROUPS = 4
# Families whose matrices lie (in, out).
TRANSPOSED = ("gpt2",)
# Lightning attention whose q, k and v stand head by head; elsewhere one after another.
_LIGHTNING_PER_HEAD = ("minimax",)


class ExpertLayout(NamedTuple):
    """How a family stacks its experts.

    transposed    (E, in, out) instead of (E, out, in)
    interleaved   rows of gate and up alternate
    flat          (E * F, H): the experts' rows one after another, down transposed
    """

    transposed: bool = False
    interleaved: bool = False
    flat: bool = False


EXPERT_LAYOUTS: Mapping[str, ExpertLayout] = {
    "gpt_oss": ExpertLayout(transposed=True, interleaved=True),
    "llama4": ExpertLayout(transposed=True),
    "dbrx": ExpertLayout(flat=True),
}


def expert_layout(family: str) -> ExpertLayout:
    """Of a family of names."""
    return EXPERT_LAYOUTS.get(family, ExpertLayout())


# What the inventory lists as one tensor and a family stores in several, one for each section.
_APART: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "olmo_hybrid": {
        "attention.linear.qkv": tuple(f"linear_attn.{part}_proj" for part in "qkv"),
        "attention.linear.conv": tuple(f"linear_attn.{part}_conv1d" for part in "qkv"),
    },
}


def stored_apart(family: str, role: str) -> tuple[str, ...]:
    """Modules within the layer that hold a role's sections, none where one tensor does."""
    return _APART.get(family, {}).get(role, ())


# Norms over the hidden size by block, where blocks of a family name theirs differently.
BLOCK_NORMS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "olmo_hybrid": {
        "attention": ("post_attention_layernorm", "post_feedforward_layernorm"),
        "linear": ("attention_layer_norm", "feedforward_layer_norm"),
    },
}


class Section(NamedTuple):
    """Rows that ranks share out among themselves, apart from the rows before and after them."""

    rows: int
    units: int
    replicate: bool = False

    def rows_of_rank(self, size: int) -> int:
        """Rows that one of `size` ranks holds."""
        return self.rows // self.units * local_units(self.units, size, replicate=self.replicate)


def local_units(units: int, size: int, *, replicate: bool = False) -> int:
    """Units of one rank; with more ranks than units every rank repeats one, where it may."""
    if units % size == 0:
        return units // size
    if replicate and size % units == 0:
        return 1
    raise UnsupportedError(f"{units} heads or rows do not divide into {size} ranks")


def sections_of(family: str, mixers: Iterable[Mixer], role: str) -> tuple[Section, ...]:
    """The parts of a joined tensor that ranks cut each by itself; none where it is one run.

    As engines cut them (vLLM 0.32.0: MergedColumnParallelLinear, and for Mamba-2
    mamba_mixer2.py:mamba_v2_sharded_weight_loader).
    """
    part = role.removesuffix(".bias").removeprefix("attention.linear.").removesuffix("_groups")
    for mixer in mixers:
        found = _of_mixer(family, mixer, part)
        if found:
            return found
    return ()


def _of_mixer(family: str, mixer: Mixer, part: str) -> tuple[Section, ...]:
    match mixer:
        case GatedDeltaNet() if part in ("qkv", "conv"):
            key = Section(mixer.key_size, mixer.num_k_heads)
            return key, key, Section(mixer.value_size, mixer.num_v_heads)
        case Mamba2() if part in ("in", "conv"):
            inner = Section(mixer.inner_size, mixer.num_heads)
            groups = mixer.num_groups
            group = Section(groups * mixer.state_size, groups, groups == 1)
            if part == "conv":
                return inner, group, group
            # Gate, inner stream, B, C, time step.
            return inner, inner, group, group, Section(mixer.num_heads, mixer.num_heads)
        case Mamba1() if part == "in":
            return (Section(mixer.inner_size, mixer.inner_size),) * 2
        case ShortConv() if part == "in":
            return (Section(mixer.size, mixer.size),) * 3
        case LightningAttention() if part == "qkv" and family not in _LIGHTNING_PER_HEAD:
            key = Section(mixer.num_kv_heads * mixer.head_dim, mixer.num_kv_heads)
            return Section(mixer.num_heads * mixer.head_dim, mixer.num_heads), key, key
        case _:
            return ()


class Woven(NamedTuple):
    """How a joined q, k and v alternates: so many groups, in each of them these parts."""

    groups: int
    order: str = "qkv"


def woven(family: str, role: str, key_heads: int) -> Woven | None:
    """Of a joined projection with so many key heads; None where one part follows another."""
    if not role.startswith("attention."):
        return None
    if family == "codegen":
        return Woven(_CODEGEN_GROUPS, "qvk")
    if key_heads > 1 and family in (*_PER_HEAD, *_PER_GROUP):
        return Woven(key_heads)
    return None
