"""What vLLM spends besides weights and KV cache, and where its defaults come from.

    available for the cache = ceil(total * utilization) - weights - every item with in_budget

Items outside the budget (context, NCCL, handles) come on top of `total * utilization`.
Sources: `vllm/v1/worker/gpu_worker.py`, `v1/worker/gpu/`, `engine/arg_utils.py`,
`model_executor/layers/fused_moe/` of vLLM 0.28.0 and 0.32.0. Constants that cannot be read off
the code arrive as Constant values with a band; nothing empirical is written here.

Symbols: T max_num_batched_tokens, S max_num_seqs, H hidden size, V vocabulary, t tensor-parallel
size, k experts per token, E routed experts on a rank, F intermediate size, N query heads.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple, assert_never

from moesize.core.records import dataclass
from moesize.core.units import GIB, MIB, ceil_div, format_bytes, round_up
from moesize.core.vllm_encoder import EncoderShape

if TYPE_CHECKING:
    from moesize.core.engine import Constant, Constants

Category = Literal["activations", "runtime"]
ModelRunner = Literal["v1", "v2"]
MoeBackend = Literal[
    "triton", "marlin", "cutlass", "deep_gemm", "flashinfer", "triton_gpt_oss", "batched"
]

# engine/arg_utils.py: defaults depend on the memory of the card.
_LARGE_GPU_BYTES = 160 * GIB
_MIDDLE_GPU_BYTES = 70 * GIB
# attention/mla_attention.py: context that is projected up at a time while prefilling.
_MLA_MAX_CONTEXT_TOKENS = 64 * 1024
# distributed/device_communicators/custom_all_reduce.py: two shared buffers and the rank data.
_CUSTOM_ALL_REDUCE_BYTES = 3 * 8 * MIB
_CUSTOM_ALL_REDUCE_RANKS = frozenset((2, 4, 6, 8))
# distributed/device_communicators/all_reduce_utils.py, by compute capability and ranks.
_SYMMETRIC_MEMORY_BYTES = {
    (9, 0): {2: 64 * MIB, 4: 32 * MIB, 6: 64 * MIB, 8: 64 * MIB},
    (10, 0): {2: 8 * MIB, 4: 32 * MIB, 6: 128 * MIB, 8: 128 * MIB},
    (10, 3): {2: 4 * MIB, 4: 32 * MIB, 6: 32 * MIB, 8: 64 * MIB},
}
# envs.py VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE; v1/attention/backends/mla/flashinfer_mla.py.
_FLASHINFER_WORKSPACE_BYTES = 394 * MIB
_FLASHINFER_MLA_WORKSPACE_BYTES = 128 * MIB
# DeepGEMM packs the tokens of an expert in rows of this many.
_DEEP_GEMM_ROWS = 128
_ACTIVATION_BYTES = 2


class BudgetItem(NamedTuple):
    """One named amount of memory on one GPU."""

    name: str
    category: Category
    bytes: int
    low_bytes: int
    high_bytes: int
    formula: str
    source: str
    in_budget: bool


class BatchDefaults(NamedTuple):
    """The engine's scheduler limits when the user gives none."""

    max_num_batched_tokens: int
    max_num_seqs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeShape:
    """Routed experts as one rank holds them."""

    num_local_experts: int
    experts_per_token: int
    intermediate_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentShape:
    """Latent attention of one layer, all heads, before they are split over ranks."""

    num_heads: int
    latent_size: int
    up_projected_size: int
    sparse: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetShape:
    """Facts about the model that activations and buffers depend on.

    dense_intermediate_size   the widest dense or shared MLP; 0 if there is none
    """

    hidden_size: int
    vocab_size: int
    dense_intermediate_size: int
    moe: MoeShape | None = None
    latent: LatentShape | None = None
    has_encoder: bool = False
    encoder: EncoderShape | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSettings:
    """Engine settings and GPU facts that the budget depends on, defaults resolved.

    num_kv_groups, block_tokens   of the KV layout; they size the block tables
    is_last_stage                 only the last pipeline stage samples
    communication_ranks           GPUs with NCCL channels between them; 0 = the tensor-parallel ones
    """

    total_bytes: int
    gpu_memory_utilization: float
    compute_capability: tuple[int, int]
    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    block_tokens: int
    num_kv_groups: int = 1
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    num_spec_tokens: int = 0
    model_runner: ModelRunner = "v2"
    moe_backend: MoeBackend = "triton"
    attention_backend: str = "FLASH_ATTN"
    enforce_eager: bool = False
    is_last_stage: bool = True
    communication_ranks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmBudget:
    """The budget of one GPU and everything in and beside it but weights and KV cache."""

    requested_bytes: int
    items: tuple[BudgetItem, ...]

    @property
    def charged_bytes(self) -> int:
        """What the items take out of the budget, best estimate."""
        return sum(item.bytes for item in self.items if item.in_budget)

    @property
    def outside_bytes(self) -> int:
        """What comes on top of the budget, best estimate."""
        return sum(item.bytes for item in self.items if not item.in_budget)

    def available_kv_bytes(self, weight_bytes: int) -> int:
        """Cache memory next to `weight_bytes` of weights; negative when they do not fit."""
        return self.requested_bytes - weight_bytes - self.charged_bytes


def requested_bytes(total_bytes: int, utilization: float) -> int:
    """Budget of one GPU: `ceil(total * utilization)`, in floating point as the engine does it.

    `total_bytes` is what the driver hands out, not the number on the box. vLLM 0.32.0,
    `v1/worker/utils.py:request_memory`.
    """
    return math.ceil(total_bytes * utilization)


def default_batch(
    gpu_total_bytes: int,
    gpu_name: str,
    max_model_len: int,
    *,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    chunked_prefill: bool = True,
) -> BatchDefaults:
    """T and S of `vllm serve`: 16384/1024, 8192/1024 or 2048/256 by memory and name of the GPU.

    A value that was not given is capped: `T <= S * max_model_len`, `S <= T`.
    vLLM 0.28.0 to 0.32.0, `engine/arg_utils.py:get_batch_defaults`.
    """
    if gpu_total_bytes >= _LARGE_GPU_BYTES:
        tokens, sequences = 16384, 1024
    elif gpu_total_bytes >= _MIDDLE_GPU_BYTES and "a100" not in gpu_name.lower():
        tokens, sequences = 8192, 1024
    else:
        tokens, sequences = 2048, 256
    sequences = sequences if max_num_seqs is None else max_num_seqs
    if max_num_batched_tokens is not None:
        tokens = max_num_batched_tokens
    else:
        if not chunked_prefill:
            tokens = max(tokens, max_model_len)
        tokens = min(tokens, sequences * max_model_len)
    if max_num_seqs is None:
        sequences = min(sequences, tokens)
    return BatchDefaults(tokens, sequences)


def max_concurrent_batches(
    pipeline_parallel_size: int, model_runner: ModelRunner, *, async_scheduling: bool = True
) -> int:
    """Batches in flight at once. vLLM 0.32.0, `config/vllm.py:max_concurrent_batches`."""
    if async_scheduling:
        if model_runner == "v2":
            return pipeline_parallel_size + 1
        if pipeline_parallel_size == 1:
            return 2
    return pipeline_parallel_size


def capture_sizes(
    max_num_seqs: int,
    max_num_batched_tokens: int,
    compute_capability: tuple[int, int],
    num_spec_tokens: int = 0,
) -> tuple[int, ...]:
    """Batch sizes with a CUDA graph: 1, 2, 4, then steps of 8 below 256 and of 16 above.

    Largest: `min(2 * S * (1 + guessed tokens), 512)`, 1024 on compute capability 10, at most T.
    vLLM 0.32.0, `config/vllm.py:_set_cudagraph_sizes`; sizes added for speculation are left out.
    """
    ceiling = 1024 if compute_capability[0] == 10 else 512
    largest = min(2 * max_num_seqs * (1 + num_spec_tokens), ceiling, max_num_batched_tokens)
    sizes = [size for size in (1, 2, 4) if size <= largest]
    sizes += range(8, min(largest + 1, 256), 8)
    sizes += range(256, largest + 1, 16)
    if max_num_batched_tokens <= largest and max_num_batched_tokens not in sizes:
        sizes.append(max_num_batched_tokens)
    return tuple(sizes)


# Items whose formula is written in symbols: the numbers follow it.
_COMPUTED = ("activations.peak", "runtime.moe_workspace", "runtime.sampler_state")


def vllm_budget(shape: BudgetShape, settings: BudgetSettings, constants: Constants) -> VllmBudget:
    """Every item of one GPU. Raises KeyError if `constants` lacks one of its names."""
    items = [
        _forward_peak(shape, settings, constants),
        _moe_workspace(shape, settings, constants),
        _latent_workspace(shape, settings),
        _encoder_cache(shape, settings, constants),
        _sampler_state(shape, settings),
        _cuda_graphs(settings, constants),
        _constant_item("runtime.non_torch", constants["non_torch_growth"], in_budget=True),
        _constant_item("runtime.allocator_slack", constants["allocator_slack"], in_budget=True),
        _constant_item("runtime.cuda_context", constants["cuda_context"], in_budget=False),
        _communication(settings, constants),
        _attention_workspace(settings),
        _block_tables(settings),
    ]
    numbers = (
        f"T = {settings.max_num_batched_tokens:,}, S = {settings.max_num_seqs:,}, "
        f"H = {shape.hidden_size:,}, V = {shape.vocab_size:,}, "
        f"F/t = {shape.dense_intermediate_size:,}, t = {settings.tensor_parallel_size}"
    )
    if shape.moe is not None:
        numbers += (
            f", k = {shape.moe.experts_per_token}, E = {shape.moe.num_local_experts}, "
            f"expert F = {shape.moe.intermediate_size:,}"
        )
    return VllmBudget(
        requested_bytes=requested_bytes(settings.total_bytes, settings.gpu_memory_utilization),
        items=tuple(
            item._replace(
                formula=f"{item.formula}; {numbers}" if item.name in _COMPUTED else item.formula
            )
            for item in items
            if item is not None and item.high_bytes
        ),
    )


def sampler_bytes(shape: BudgetShape, settings: BudgetSettings, constants: Constants) -> int:
    """Transient peak of the sampler's dummy run: `c * S * V`, c in bytes per logit."""
    return _sampler_band(shape, settings, constants)[0]


def moe_workspace_bytes(shape: BudgetShape, settings: BudgetSettings) -> int:
    """Scratch of the fused experts, allocated once and kept: two buffers of `T*k` rows.

    `T*k * (max(F, H) + max(2F, H)) * 2` for Triton, Marlin and CUTLASS; DeepGEMM pads the rows of
    every expert to 128 and keeps the narrower buffer in fp8; FlashInfer's own scratch is left out.
    vLLM 0.32.0, `workspace_shapes` of `model_executor/layers/fused_moe/experts/`.
    """
    moe = shape.moe
    if moe is None:
        return 0
    hidden, inner = shape.hidden_size, moe.intermediate_size
    # All tokens of the data-parallel group meet on every rank before the experts run.
    tokens = settings.max_num_batched_tokens * settings.data_parallel_size
    rows = tokens * moe.experts_per_token
    wide, narrow = max(2 * inner, hidden), max(inner, hidden)
    match settings.moe_backend:
        case "triton" | "marlin" | "cutlass":
            return rows * (wide + narrow) * _ACTIVATION_BYTES
        case "deep_gemm":
            padded = rows + moe.num_local_experts * (_DEEP_GEMM_ROWS - 1)
            return round_up(padded, _DEEP_GEMM_ROWS) * (wide * _ACTIVATION_BYTES + narrow)
        case "flashinfer":
            return tokens * hidden * _ACTIVATION_BYTES
        case "triton_gpt_oss":
            return (rows * inner + tokens * hidden) * _ACTIVATION_BYTES
        case "batched":
            width = hidden + 2 * inner
            return moe.num_local_experts * tokens * width * _ACTIVATION_BYTES
        case _:  # pragma: no cover
            assert_never(settings.moe_backend)


def mla_context_tokens(settings: BudgetSettings) -> int:
    """Context that prefill projects up at a time: `min(max(8 L, 4 S block), 65536)` tokens."""
    wanted = max(8 * settings.max_model_len, 4 * settings.max_num_seqs * settings.block_tokens)
    return min(wanted, _MLA_MAX_CONTEXT_TOKENS)


def _band(constant: Constant, factor: float) -> tuple[int, int, int]:
    return (
        round(constant.value * factor),
        round(constant.low * factor),
        round(constant.high * factor),
    )


def _constant_item(name: str, constant: Constant, *, in_budget: bool) -> BudgetItem:
    best, low, high = _band(constant, 1)
    formula = (
        f"{format_bytes(best)}, seen {constant.observations} times"
        if constant.observations
        else f"{format_bytes(best)}, not measured yet: read off the code"
    )
    return BudgetItem(name, "runtime", best, low, high, formula, constant.source, in_budget)


def _sampler_band(
    shape: BudgetShape, settings: BudgetSettings, constants: Constants
) -> tuple[int, int, int]:
    if not settings.is_last_stage:
        return (0, 0, 0)
    name = f"sampler_bytes_per_logit_{settings.model_runner}"
    # With guessed tokens every one of them has its row of logits.
    rows = settings.max_num_seqs * (1 + settings.num_spec_tokens)
    return _band(constants[name], rows * shape.vocab_size)


def _forward_bytes(shape: BudgetShape, settings: BudgetSettings) -> int:
    """Live activations of one forward pass: `T * 2 * (3 F/t + 3 H)`, or `T * 2 * 4 H` with experts.

    The hidden state, its residual and the normed copy, and the MLP's gate, up and product.
    """
    tokens, hidden = settings.max_num_batched_tokens, shape.hidden_size
    ranks = settings.tensor_parallel_size
    dense = 3 * ceil_div(shape.dense_intermediate_size, ranks) + 3 * hidden
    widest = max(dense, 4 * hidden) if shape.moe is not None else dense
    return tokens * widest * _ACTIVATION_BYTES


def _forward_peak(shape: BudgetShape, settings: BudgetSettings, constants: Constants) -> BudgetItem:
    """The largest of what the profile run holds at a time: forward pass, MLA prefill, sampler."""
    forward = _band(constants["forward_activation_factor"], _forward_bytes(shape, settings))
    prefill = 0
    if shape.latent is not None and not shape.latent.sparse:
        heads = ceil_div(shape.latent.num_heads, settings.tensor_parallel_size)
        width = heads * shape.latent.up_projected_size
        prefill = mla_context_tokens(settings) * width * _ACTIVATION_BYTES
    # The hidden states of all tokens stay alive while logits are made.
    kept = settings.max_num_batched_tokens * shape.hidden_size * _ACTIVATION_BYTES
    sampler = _sampler_band(shape, settings, constants)
    best, low, high = (
        max(of_forward, prefill, kept + of_sampler)
        for of_forward, of_sampler in zip(forward, sampler, strict=True)
    )
    return BudgetItem(
        "activations.peak",
        "activations",
        best,
        low,
        high,
        "largest of: T * 2 * (3 F/t + 3 H) of the forward pass (4 H with experts);"
        " context * N/t * (nope + v) * 2 of a latent-attention prefill;"
        " c * S * V + T * H * 2 of the sampler",
        constants["forward_activation_factor"].source,
        in_budget=True,
    )


def _moe_workspace(
    shape: BudgetShape, settings: BudgetSettings, constants: Constants
) -> BudgetItem | None:
    if shape.moe is None:
        return None
    best = moe_workspace_bytes(shape, settings)
    high = best
    if settings.moe_backend in ("flashinfer", "triton_gpt_oss"):
        # The kernels allocate for themselves; the plain formula bounds it.
        rows = settings.max_num_batched_tokens * shape.moe.experts_per_token
        inner, hidden = shape.moe.intermediate_size, shape.hidden_size
        high += rows * (2 * inner + hidden) * _ACTIVATION_BYTES
    return BudgetItem(
        "runtime.moe_workspace",
        "runtime",
        best,
        round(best * constants["moe_workspace_factor"].low),
        round(high * constants["moe_workspace_factor"].high),
        f"T*k rows of two buffers as wide as hidden or intermediate size ({settings.moe_backend})",
        "vLLM 0.32.0 model_executor/layers/fused_moe/experts/*:workspace_shapes",
        in_budget=True,
    )


def _latent_workspace(shape: BudgetShape, settings: BudgetSettings) -> BudgetItem | None:
    if shape.latent is None or shape.latent.sparse:
        return None
    size = mla_context_tokens(settings) * shape.latent.latent_size * _ACTIVATION_BYTES
    return BudgetItem(
        "runtime.mla_workspace",
        "runtime",
        size,
        size,
        size,
        "min(max(8 * max_model_len, 4 * S * block), 65536) * latent size * 2",
        "vLLM 0.32.0 mla_attention.py:determine_chunked_prefill_workspace_size",
        in_budget=True,
    )


def _encoder_cache(
    shape: BudgetShape, settings: BudgetSettings, constants: Constants
) -> BudgetItem | None:
    if not shape.has_encoder:
        return None
    tokens, constant = settings.max_num_batched_tokens, constants["encoder_profile_peak"]
    outputs = tokens * shape.hidden_size * _ACTIVATION_BYTES
    name, source = "activations.encoder", constant.source
    encoder = shape.encoder
    if encoder is None:
        return BudgetItem(
            name,
            "activations",
            outputs + round(constant.value),
            round(constant.low),
            outputs + round(constant.high),
            "T * H * 2 of encoder outputs and the encoder's own activations",
            source,
            in_budget=True,
        )
    tokens = max(tokens, encoder.largest_item)
    outputs = tokens * shape.hidden_size * _ACTIVATION_BYTES * encoder.output_widths
    inner = tokens * encoder.patches * encoder.patch_bytes
    # The tower's activations are gone when the language model runs: the larger of both counts.
    forward = _forward_peak(shape, settings, constants)
    return BudgetItem(
        name,
        "activations",
        outputs + max(0, inner - forward.bytes),
        0,
        2 * outputs + max(0, 2 * inner - forward.low_bytes) + round(constant.value),
        f"{tokens:,} tokens * H * 2 * {encoder.output_widths} of encoder outputs; what as many * "
        f"{encoder.patches} "
        f"patches * {encoder.patch_bytes:,} bytes of the tower exceed the language model's peak by",
        "vLLM 0.33.0 multimodal/encoder_budget.py, v1/worker/gpu/mm/encoder_runner.py",
        in_budget=True,
    )


def _sampler_state(shape: BudgetShape, settings: BudgetSettings) -> BudgetItem | None:
    """Token counts for penalties: one int32 and one bit per sequence and vocabulary entry."""
    if settings.model_runner != "v2" or not settings.is_last_stage:
        return None
    words = shape.vocab_size + ceil_div(shape.vocab_size, 32)
    size = settings.max_num_seqs * words * 4
    return BudgetItem(
        "runtime.sampler_state",
        "runtime",
        size,
        size,
        size,
        "S * (V + ceil(V / 32)) * 4, counts of tokens for penalties",
        "vLLM 0.28.0-0.32.0 v1/worker/gpu/sample/penalties.py:PenaltiesState",
        in_budget=True,
    )


def _cuda_graphs(settings: BudgetSettings, constants: Constants) -> BudgetItem | None:
    if settings.enforce_eager:
        return None
    sizes = capture_sizes(
        settings.max_num_seqs,
        settings.max_num_batched_tokens,
        settings.compute_capability,
        settings.num_spec_tokens,
    )
    decode = settings.max_num_seqs * (1 + settings.num_spec_tokens)
    num_graphs = len(sizes) + sum(size <= decode for size in sizes)
    constant = constants["cuda_graph_bytes_per_graph"]
    best, low, high = _band(constant, num_graphs)
    return BudgetItem(
        "runtime.cuda_graphs",
        "runtime",
        best,
        low,
        high,
        f"{num_graphs} graphs ({len(sizes)} piecewise, the rest full) * "
        f"{format_bytes(round(constant.value))} per graph",
        constant.source,
        in_budget=True,
    )


def _communication(settings: BudgetSettings, constants: Constants) -> BudgetItem | None:
    ranks = settings.communication_ranks or settings.tensor_parallel_size
    if ranks == 1:
        return None
    constant = constants["nccl_8_ranks" if ranks >= 8 else "nccl_2_to_7_ranks"]
    best, low, high = _band(constant, 1)
    ranks = settings.tensor_parallel_size
    buffers = _CUSTOM_ALL_REDUCE_BYTES if ranks in _CUSTOM_ALL_REDUCE_RANKS else 0
    symmetric = _SYMMETRIC_MEMORY_BYTES.get(settings.compute_capability, {}).get(ranks, 0)
    return BudgetItem(
        "runtime.communication",
        "runtime",
        best + buffers + symmetric,
        low,
        high + buffers + symmetric,
        "NCCL channels + 3 * 8 MiB of custom all-reduce + symmetric-memory buffer",
        constant.source,
        in_budget=False,
    )


def _attention_workspace(settings: BudgetSettings) -> BudgetItem | None:
    if "FLASHINFER" not in settings.attention_backend:
        return None
    latent = "MLA" in settings.attention_backend
    size = _FLASHINFER_MLA_WORKSPACE_BYTES if latent else _FLASHINFER_WORKSPACE_BYTES
    return BudgetItem(
        "runtime.attention_workspace",
        "runtime",
        size,
        0,
        size,
        "FlashInfer's workspace, allocated with the KV cache",
        "vLLM 0.32.0 envs.py:VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE, flashinfer_mla.py",
        in_budget=False,
    )


def _block_tables(settings: BudgetSettings) -> BudgetItem:
    columns = ceil_div(settings.max_model_len, max(settings.block_tokens, 1))
    one_table = settings.num_kv_groups * settings.max_num_seqs * columns * 4
    copies = 2 if settings.model_runner == "v2" else 1
    return BudgetItem(
        "runtime.block_tables",
        "runtime",
        copies * one_table,
        one_table,
        2 * one_table,
        "groups * S * ceil(max_model_len / block) * 4, twice with model runner V2",
        "vLLM 0.32.0 v1/worker/gpu/block_table.py",
        in_budget=False,
    )
