"""Speculative decoding in vLLM: what guessing tokens adds to a rank.

MTP: the blocks beside the trunk, with the target's embedding and head; a layer of cache each.
A draft model: its own weights on the last pipeline stage, its layers in the same pool of blocks.
N-gram look-up: nothing on the GPU. All of them: a row of logits and a recurrent state per guess.
vLLM 0.33.0 config/speculative.py, v1/spec_decode/, models/*_mtp.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moesize.core.checkpoint import StoredEntry
from moesize.core.deployment import DraftModel
from moesize.core.errors import InvalidDeploymentError, UnsupportedError
from moesize.core.inventory import inventory
from moesize.core.ledger import MemoryItem, exact_item
from moesize.core.model_spec import ModelSpec
from moesize.core.plan import Note
from moesize.core.records import dataclass
from moesize.core.vllm_layers import vllm_layers
from moesize.core.vllm_weights import Sharding, Stage, rank_weights

if TYPE_CHECKING:
    from moesize.core.deployment import Layout, Request
    from moesize.core.vllm_layers import CacheOptions, VllmLayers
    from moesize.core.vllm_ranks import Rank
    from moesize.core.vllm_settings import VllmSettings
    from moesize.core.vllm_weights import RankWeights

_NO_WEIGHTS = ("ngram", "ngram_gpu", "suffix")
# Published MTP blocks that vLLM 0.32.0 has no class for (config/speculative.py:hf_config_override).
_WITHOUT_MTP = ("minimax_m2", "minimax_m1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """How tokens are guessed. `ranks`: tensor-parallel ranks of the draft."""

    spec: ModelSpec
    stored: tuple[StoredEntry, ...]
    method: str
    num_tokens: int
    num_mtp_layers: int = 0
    draft: DraftModel | None = None
    ranks: int = 1
    shares_embedding: bool = True
    notes: tuple[Note, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The setting as the plan shows it."""
        return {
            "method": self.method,
            "num_tokens": self.num_tokens,
            "draft": self.draft.spec.id if self.draft else None,
        }

    def items(self, rank: Rank, compute_capability: str, *, rocm: bool) -> list[MemoryItem]:
        """What the guesser holds on a rank of the last stage."""
        if self.num_mtp_layers:
            return self._mtp_items(rank, compute_capability, rocm=rocm)
        if self.draft is not None:
            return self._draft_items(compute_capability, rocm=rocm)
        return []

    def _mtp_items(self, rank: Rank, capability: str, *, rocm: bool) -> list[MemoryItem]:
        first = self.spec.num_layers
        stage = Stage(0, range(first, first + self.num_mtp_layers), first=False, last=True)
        weights = rank_weights(
            self.spec,
            self.stored,
            sharding=rank.sharding,
            stage=stage,
            compute_capability=capability,
            rocm=rocm,
            section="mtp",
        )
        source = "vLLM 0.33.0 model_executor/models/*_mtp.py, v1/spec_decode/llm_base_proposer.py"
        layers = f"{self.num_mtp_layers} MTP layer{'s' if self.num_mtp_layers > 1 else ''}"
        items = _weight_items(weights, f"{layers}, embedding and head shared", source)
        if not self.shares_embedding:
            own = _embedding_bytes(self.spec, self.stored, rank.sharding, capability)
            words = "the embedding once more: the target's lies on another pipeline stage"
            items.append(exact_item("draft.embedding", "draft", own, words, source))
        return items

    def _draft_items(self, capability: str, *, rocm: bool) -> list[MemoryItem]:
        assert self.draft is not None
        weights = rank_weights(
            self.draft.spec,
            self.draft.stored,
            sharding=Sharding(tensor_parallel_size=self.ranks),
            compute_capability=capability,
            rocm=rocm,
        )
        source = "tensor inventory of the draft; vLLM 0.33.0 v1/spec_decode/draft_model.py"
        words = f"{self.draft.spec.title}, 1/{self.ranks} of what tensor parallelism splits"
        items = _weight_items(weights, words, source)
        from moesize.core.vllm_items import rotary_bytes

        rotary = rotary_bytes(self.draft.spec)
        if rotary:
            items.append(exact_item("draft.buffers", "draft", rotary, "rotary tables", source))
        return items

    def with_draft_layers(self, layers: VllmLayers, options: CacheOptions) -> VllmLayers:
        """The pages of the target and, on the last stage, those of a draft model."""
        if self.draft is None:
            return layers
        own = vllm_layers(
            self.draft.spec,
            replace(
                options,
                tensor_parallel_size=self.ranks,
                # The cache has one dtype and one block size for both.
                kv_dtype=layers.kv_dtype,
                block_tokens=layers.block_tokens,
                num_mtp_layers=0,
            ),
        )
        *before, last = layers.stages
        return replace(layers, stages=(*before, (*last, *own.stages[0])))


def _weight_items(weights: RankWeights, words: str, source: str) -> list[MemoryItem]:
    rows = (
        ("draft.weights", sum(weights.by_group.values()), words),
        ("draft.scales", weights.scale_bytes, "its scales"),
        ("draft.padding", weights.padding_bytes, "rows and columns that fill kernels' tiles"),
        ("draft.latent_copies", weights.latent_copy_bytes, "absorbed MLA matrices"),
        ("draft.allocator_rounding", weights.rounding_bytes, "as torch's allocator rounds"),
    )
    return [exact_item(name, "draft", size, text, source) for name, size, text in rows if size]


def _embedding_bytes(
    spec: ModelSpec, stored: tuple[StoredEntry, ...], sharding: Sharding, capability: str
) -> int:
    first = Stage(0, range(0), first=True, last=False)
    tables = tuple(
        item
        for item in stored
        if item.entry.section == "embedding" and item.entry.tensor.role == "embedding.tokens"
    )
    weights = rank_weights(
        spec, tables, sharding=sharding, stage=first, compute_capability=capability
    )
    return weights.resident_bytes


def plan_speculation(
    spec: ModelSpec,
    stored: tuple[StoredEntry, ...],
    request: Request,
    settings: VllmSettings,
    layout: Layout,
) -> Speculation | None:
    """How the request asks for guesses; None when it does not.

    Raises InvalidDeploymentError for what vLLM refuses, UnsupportedError for what is unknown.
    """
    method = settings.spec_method
    if request.draft is not None and request.mtp:
        raise InvalidDeploymentError("--draft and --mtp exclude each other", "give one of them")
    if request.draft is not None:
        return _draft(spec, stored, request, settings, layout)
    if request.mtp or method == "mtp" or (method or "").endswith("_mtp"):
        return _mtp(spec, stored, request, layout)
    if request.num_spec_tokens is None:
        return None
    if method not in (None, *_NO_WEIGHTS):
        raise UnsupportedError(
            f"speculation with method {method!r} needs a draft that is not given",
            "name it with --draft MODEL, or use --mtp N",
        )
    message = (
        f"{request.num_spec_tokens} guessed tokens without a draft are taken as n-gram look-up, "
        "which holds nothing on the GPU; --draft MODEL or --mtp N plan the others"
    )
    return Speculation(
        spec=spec,
        stored=stored,
        method=method or "ngram",
        num_tokens=request.num_spec_tokens,
        notes=() if method else (Note(code="speculation", message=message),),
    )


def _mtp(
    spec: ModelSpec, stored: tuple[StoredEntry, ...], request: Request, layout: Layout
) -> Speculation:
    if spec.mtp is None or not any(entry.section == "mtp" for entry in inventory(spec)):
        raise InvalidDeploymentError(
            f"{spec.title} has no MTP blocks", "drop --mtp, or give a --draft model"
        )
    if {spec.model_type, spec.text_type} & set(_WITHOUT_MTP):
        raise UnsupportedError(f"vLLM has no MTP class for {spec.title}", "drop --mtp")
    layers = len(spec.mtp.layers)
    tokens = request.num_spec_tokens or layers
    if tokens > layers and tokens % layers:
        raise InvalidDeploymentError(
            f"{tokens} guessed tokens are no multiple of the {layers} MTP layers of {spec.title}",
            f"use --mtp {layers * (tokens // layers)}",
        )
    return Speculation(
        spec=spec,
        stored=stored,
        method="mtp",
        num_tokens=tokens,
        num_mtp_layers=layers,
        shares_embedding=layout.pipeline_parallel_size == 1,
    )


def _draft(
    spec: ModelSpec,
    stored: tuple[StoredEntry, ...],
    request: Request,
    settings: VllmSettings,
    layout: Layout,
) -> Speculation:
    draft = request.draft
    assert draft is not None
    method = settings.spec_method or draft.method
    if method != "draft_model":
        raise UnsupportedError(
            f"drafts of method {method!r} are not planned: their heads are no models of their own",
            "plan without the draft and leave room for it, or use --mtp N",
        )
    if request.num_spec_tokens is None:
        raise InvalidDeploymentError(
            "vLLM wants to know how many tokens a draft model guesses", "add --spec-tokens 3"
        )
    if draft.spec.mtp is not None:
        # config/speculative.py:hf_config_override turns such a config into that of its MTP layers.
        raise UnsupportedError(
            f"vLLM takes the MTP layers alone of {draft.spec.title} as a draft, not the model",
            "choose a draft without MTP layers, or use --mtp N",
        )
    tp = layout.tensor_parallel_size
    ranks = settings.draft_tensor_parallel_size or tp
    if ranks != tp:
        raise InvalidDeploymentError(
            f"a draft tensor-parallel size of {ranks} is not that of the model, {tp}: vLLM "
            "refuses it",
            "leave draft_tensor_parallel_size out",
        )
    if draft.spec.embedding.vocab_size != spec.embedding.vocab_size:
        raise InvalidDeploymentError(
            f"the draft {draft.spec.title} has a vocabulary of "
            f"{draft.spec.embedding.vocab_size:,}, {spec.title} one of "
            f"{spec.embedding.vocab_size:,}: vLLM refuses the pair",
            "choose a draft of the same family",
        )
    return Speculation(
        spec=spec,
        stored=stored,
        method=method,
        num_tokens=request.num_spec_tokens,
        draft=draft,
        ranks=ranks,
    )
