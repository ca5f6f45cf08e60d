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

Category = Literal["activations", "runtime", "weights"]
ModelRunner = Literal["v1", "v2"]
MoeBackend = Literal[
    "triton", "marlin", "cutlass", "deep_gemm", "flashinfer", "triton_gpt_oss", "batched"
]

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
# v1/attention/backends/mla/flashinfer_mla.py.
_FLASHINFER_MLA_WORKSPACE_BYTES = 128 * MIB
# DeepGEMM packs the tokens of an expert in rows of this many.
_DEEP_GEMM_ROWS = 128
_ACTIVATION_BYTES = 2


# What the engine subtracts from its budget, besides weights.
#   before_distributed   growth since before the ranks connect: NCCL counts
#   after_distributed    the same after they have: NCCL is outside
#   all_in_use           whatever is in use on the device: the CUDA context and other processes too
#   consumed             what free memory has shrunk by since the ranks connected
GraphModes = Literal["full", "piecewise", "both", "none"]
BudgetBasis = Literal["before_distributed", "after_distributed", "all_in_use", "consumed"]


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
class BudgetRules:
    """What differs between vLLM releases; the defaults are those of 0.28 to 0.33.

    graphs_charged      an estimate of the CUDA graphs is taken off the budget
    moe_chunk_tokens    routed experts see so many tokens at a time; 0 = all
    moe_workspace_kept  their scratch stays allocated, so that it adds to the sampler's
    batched_chunk_tokens   tokens of a rank that batched experts see at a time; 0 = all
    device_use_as_weights   on AMD the growth of the device's use while loading counts as weights
    latent_workspace    latent attention projects the context up in chunks, with a workspace
    graph_modes         graphs of whole decode steps, of the pieces between attention, or both
    graph_ceiling_by_sequences   no graph for batches above twice max_num_seqs
    graph_ceiling_by_decode      the V0 engine: no graph for batches above max_num_seqs
    graph_sizes, graph_ceiling   as flags give them; empty and 0 otherwise
    graph_ceiling_blackwell      largest captured batch on compute capability 10; 512 elsewhere
    """

    budget_basis: BudgetBasis = "consumed"
    graphs_charged: bool = True
    moe_chunk_tokens: int = 0
    moe_workspace_kept: bool = True
    batched_chunk_tokens: int = 0
    flashinfer_workspace_bytes: int = 394 * MIB
    latent_workspace: bool = True
    device_use_as_weights: bool = False
    graph_modes: GraphModes = "both"
    graph_step_above_256: int = 16
    graph_ceiling_by_sequences: bool = True
    graph_ceiling_blackwell: int = 1024
    graph_ceiling_by_decode: bool = False
    graph_sizes: tuple[int, ...] = ()
    graph_ceiling: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSettings:
    """Engine settings and GPU facts that the budget depends on, defaults resolved.

    num_kv_groups, block_tokens   of the KV layout; they size the block tables
    is_last_stage                 only the last pipeline stage samples
    num_layers                    of the stage; a graph holds a piece for each
    segment_bytes, repacked_module_bytes   of the rank's weights (RankWeights)
    loose_state_bytes             recurrent states of a sequence beside the paged cache
    unified_memory                the GPU has no memory of its own: the host's processes use it too
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
    sends_to_experts: bool = False
    num_spec_tokens: int = 0
    model_runner: ModelRunner = "v2"
    moe_backend: MoeBackend = "triton"
    attention_backend: str = "FLASH_ATTN"
    enforce_eager: bool = False
    is_last_stage: bool = True
    num_layers: int = 1
    loose_state_bytes: int = 0
    vendor: str = "nvidia"
    segment_bytes: int = 0
    repacked_module_bytes: int = 0
    unified_memory: bool = False
    communication_ranks: int = 0
    rules: BudgetRules = BudgetRules()


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


class BatchRow(NamedTuple):
    """Scheduler limits of GPUs with at least so much memory whose name lacks a word."""

    least_bytes: int
    not_named: str
    tokens_llm: int
    tokens_api: int
    sequences: int


# vLLM 0.28.0 to 0.33.0; rows of other versions are facts in data/engines/vllm.json.
_BATCH_ROWS = (
    BatchRow(160 * GIB, "", 16384, 16384, 1024),
    BatchRow(70 * GIB, "a100", 16384, 8192, 1024),
    BatchRow(0, "", 8192, 2048, 256),
)


# config/scheduler.py:DEFAULT_MAX_NUM_BATCHED_TOKENS_FOR_BATCHED_DP, 0.20.2 to 0.33.0.
_BATCHED_EXPERTS_TOKENS = 256


def default_batch(
    gpu_total_bytes: int,
    gpu_name: str,
    max_model_len: int,
    *,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    chunked_prefill: bool = True,
    usage_context: Literal["api", "llm"] = "api",
    batched_experts: bool = False,
    rows: tuple[BatchRow, ...] = (),
) -> BatchDefaults:
    """T and S of `vllm serve`: 16384/1024, 8192/1024 or 2048/256 by memory and name of the GPU.

    The LLM class takes more tokens ("llm"). A value that was not given is capped:
    `T <= S * max_model_len`, `S <= T`. `batched_experts`: T = 256. vLLM 0.28.0 to 0.32.0,
    `engine/arg_utils.py:get_batch_defaults`; `rows` are those of another version.
    """
    row = next(
        row
        for row in rows or _BATCH_ROWS
        if gpu_total_bytes >= row.least_bytes
        and not (row.not_named and row.not_named in gpu_name.lower())
    )
    tokens = row.tokens_llm if usage_context == "llm" else row.tokens_api
    if batched_experts:
        tokens = _BATCHED_EXPERTS_TOKENS
    sequences = row.sequences if max_num_seqs is None else max_num_seqs
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
    rules: BudgetRules | None = None,
) -> tuple[int, ...]:
    """Batch sizes with a CUDA graph: 1, 2, 4, then steps of 8 below 256 and of 16 above.

    Largest: `min(2 * S * (1 + guessed tokens), 512)`, 1024 on compute capability 10, at most T.
    vLLM 0.32.0, `config/vllm.py:_set_cudagraph_sizes`; sizes added for speculation are left out.
    Up to 0.10 all steps are of 8; the V0 engine goes to `max_num_seqs` and captures whole steps.
    """
    rules = rules or BudgetRules()
    ceiling = rules.graph_ceiling_blackwell if compute_capability[0] == 10 else 512
    if rules.graph_sizes:
        return tuple(sorted({n for n in rules.graph_sizes if n <= max_num_batched_tokens}))
    if rules.graph_ceiling:
        ceiling = rules.graph_ceiling
    elif rules.graph_ceiling_by_decode:
        ceiling = round_up(max_num_seqs, 8) if max_num_seqs > 4 else max_num_seqs
    elif rules.graph_ceiling_by_sequences:
        ceiling = min(2 * max_num_seqs * (1 + num_spec_tokens), ceiling)
    largest = min(ceiling, max_num_batched_tokens)
    sizes = [size for size in (1, 2, 4) if size <= largest]
    sizes += range(8, min(largest + 1, 256), 8)
    sizes += range(256, largest + 1, rules.graph_step_above_256)
    if rules.graph_ceiling_by_decode:
        return tuple(sizes)
    if max_num_batched_tokens <= largest and max_num_batched_tokens not in sizes:
        sizes.append(max_num_batched_tokens)
    return tuple(sizes)


# Items whose formula is written in symbols: the numbers follow it.
_COMPUTED = ("activations.peak", "runtime.moe_workspace", "runtime.sampler_state")


def vllm_budget(shape: BudgetShape, settings: BudgetSettings, constants: Constants) -> VllmBudget:
    """Every item of one GPU. Raises KeyError if `constants` lacks one of its names."""
    constants = _of_vendor(constants, settings.vendor)
    basis = settings.rules.budget_basis
    slack = None
    if basis == "consumed":
        slack = _constant_item(
            "runtime.allocator_slack", constants["allocator_slack"], in_budget=True
        )
    items = [
        _forward_peak(shape, settings, constants),
        _moe_workspace(shape, settings, constants),
        _latent_workspace(shape, settings),
        _encoder_cache(shape, settings, constants),
        _sampler_state(shape, settings),
        _cuda_graphs(settings, constants),
        _constant_item("runtime.non_torch", constants["non_torch_growth"], in_budget=True),
        slack,
        _host_growth(settings, constants),
        _constant_item(
            "runtime.cuda_context", constants["cuda_context"], in_budget=basis == "all_in_use"
        ),
        _communication(settings, constants),
        _attention_workspace(settings),
        _block_tables(settings),
        _loose_states(settings),
        _device_use(settings, constants),
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


def _host_growth(settings: BudgetSettings, constants: Constants) -> BudgetItem | None:
    """Where GPU and host share one memory, what the host's processes take counts as consumed.

    vLLM asks the system there and not the driver how much is free, before and after loading and
    profiling: `utils/mem_utils.py:MemorySnapshot.measure`, psutil's available memory. Up to 0.26
    what torch allocated counts, and the rest is part of the growth beside torch.
    """
    if not settings.unified_memory or settings.rules.budget_basis != "consumed":
        return None
    return _constant_item("runtime.host_growth", constants["unified_host_growth"], in_budget=True)


def _of_vendor(constants: Constants, vendor: str) -> Constants:
    """Constants of a maker's GPUs take the place of those of NVIDIA's: `name_amd` for `name`."""
    if vendor.lower() == "nvidia":
        return constants
    suffix = f"_{vendor.lower()}"
    own = {
        name.removesuffix(suffix): constant
        for name, constant in constants.items()
        if name.endswith(suffix)
    }
    return {**constants, **own} if own else constants


def sampler_bytes(shape: BudgetShape, settings: BudgetSettings, constants: Constants) -> int:
    """Transient peak of the sampler's dummy run: `c * S * V`, c in bytes per logit."""
    return _sampler_band(shape, settings, constants)[0]


def moe_workspace_bytes(shape: BudgetShape, settings: BudgetSettings) -> int:
    """Scratch of the fused experts, allocated once and kept: two buffers of `T*k` rows.

    `T*k * (max(F, H) + max(2F, H)) * 2` for Triton, Marlin and CUTLASS; DeepGEMM pads the rows of
    every expert to 128 and keeps the narrower buffer in fp8; FlashInfer's own scratch is left out.
    Without kernels that send a token only to the ranks of its experts, all tokens of the
    data-parallel group meet on every rank; with them it is the balanced share.
    vLLM 0.32.0, `workspace_shapes` of `model_executor/layers/fused_moe/experts/`.
    """
    group = 1 if settings.sends_to_experts else settings.data_parallel_size
    return _expert_scratch_bytes(shape, settings, settings.max_num_batched_tokens * group)


def _expert_scratch_bytes(shape: BudgetShape, settings: BudgetSettings, tokens: int) -> int:
    moe = shape.moe
    if moe is None:
        return 0
    hidden, inner = shape.hidden_size, moe.intermediate_size
    tokens = min(tokens, settings.rules.moe_chunk_tokens or tokens)
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
            # Room for every token of every rank, since all may choose the same expert.
            tokens = settings.max_num_batched_tokens
            tokens = min(tokens, settings.rules.batched_chunk_tokens or tokens)
            rows = moe.num_local_experts * tokens * settings.data_parallel_size
            return rows * (hidden + 2 * inner) * _ACTIVATION_BYTES
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
    name = f"sampler_bytes_per_logit_{settings.model_runner}"
    return _band(constants[name], _sampled_rows(settings) * shape.vocab_size)


def _sampled_rows(settings: BudgetSettings) -> int:
    """Rows of logits in the sampler's dummy run: every guessed token has one of its own."""
    if not settings.is_last_stage:
        return 0
    return settings.max_num_seqs * (1 + settings.num_spec_tokens)


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
    if not settings.rules.moe_workspace_kept:
        # The experts' scratch comes and goes within the forward pass.
        scratch = _moe_workspace_band(shape, settings, constants)
        forward = (forward[0] + scratch[0], forward[1] + scratch[1], forward[2] + scratch[2])
    prefill = 0
    if shape.latent is not None and not shape.latent.sparse and settings.rules.latent_workspace:
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
    scratch_bytes = 0 if settings.rules.moe_workspace_kept else moe_workspace_bytes(shape, settings)
    logits = _sampled_rows(settings) * shape.vocab_size
    return BudgetItem(
        "activations.peak",
        "activations",
        best,
        low,
        high,
        "largest of: T * 2 * (3 F/t + 3 H) of the forward pass (4 H with experts);"
        " context * N/t * (nope + v) * 2 of a latent-attention prefill;"
        " c * S * V + T * H * 2 of the sampler;"
        f" forward = {_forward_bytes(shape, settings):,}, scratch = {scratch_bytes:,},"
        f" logits = {logits:,}, kept = {kept:,}",
        constants["forward_activation_factor"].source,
        in_budget=True,
    )


def _moe_workspace_band(
    shape: BudgetShape, settings: BudgetSettings, constants: Constants
) -> tuple[int, int, int]:
    best = moe_workspace_bytes(shape, settings)
    gathered = settings.max_num_batched_tokens * settings.data_parallel_size
    # Sent tokens may all choose the experts of one rank.
    high = _expert_scratch_bytes(shape, settings, gathered)
    if shape.moe is not None and settings.moe_backend in ("flashinfer", "triton_gpt_oss"):
        # The kernels allocate for themselves; the plain formula bounds it.
        tokens = min(gathered, settings.rules.moe_chunk_tokens or gathered)
        rows = tokens * shape.moe.experts_per_token
        inner, hidden = shape.moe.intermediate_size, shape.hidden_size
        high += rows * (2 * inner + hidden) * _ACTIVATION_BYTES
    factor = constants["moe_workspace_factor"]
    return best, round(best * factor.low), round(high * factor.high)


def _moe_workspace(
    shape: BudgetShape, settings: BudgetSettings, constants: Constants
) -> BudgetItem | None:
    if shape.moe is None or not settings.rules.moe_workspace_kept:
        return None
    best, low, high = _moe_workspace_band(shape, settings, constants)
    return BudgetItem(
        "runtime.moe_workspace",
        "runtime",
        best,
        low,
        high,
        _moe_workspace_formula(settings),
        "vLLM 0.32.0 model_executor/layers/fused_moe/experts/*:workspace_shapes",
        in_budget=True,
    )


def _moe_workspace_formula(settings: BudgetSettings) -> str:
    ranks = settings.data_parallel_size
    if settings.moe_backend == "batched":
        return f"E rows for each of T tokens of {ranks} ranks, hidden and gate and up wide"
    rows = "T*k rows"
    if ranks > 1:
        rows = f"T*k*{ranks} rows (the tokens of {ranks} data-parallel ranks meet)"
        if settings.sends_to_experts:
            rows = f"T*k rows (balanced; all that {ranks} data-parallel ranks may send at most)"
    return f"{rows} of two buffers as wide as hidden or intermediate size ({settings.moe_backend})"


def _latent_workspace(shape: BudgetShape, settings: BudgetSettings) -> BudgetItem | None:
    if shape.latent is None or shape.latent.sparse or not settings.rules.latent_workspace:
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
    forward = _forward_peak(shape, settings, constants)
    if encoder is None:
        return BudgetItem(
            name,
            "activations",
            outputs + max(0, round(constant.value) - forward.bytes),
            0,
            outputs + max(0, round(constant.high) - forward.low_bytes),
            "T * H * 2 of encoder outputs; what its own activations exceed the language model's by",
            source,
            in_budget=True,
        )
    tokens = max(tokens, encoder.largest_item)
    outputs = tokens * shape.hidden_size * _ACTIVATION_BYTES * encoder.output_widths
    inner = tokens * encoder.patches * encoder.patch_bytes
    # The tower's activations are gone when the language model runs: the larger of both counts.
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
    if settings.enforce_eager or settings.rules.graph_modes == "none":
        return None
    sizes = capture_sizes(
        settings.max_num_seqs,
        settings.max_num_batched_tokens,
        settings.compute_capability,
        settings.num_spec_tokens,
        settings.rules,
    )
    decode = settings.max_num_seqs * (1 + settings.num_spec_tokens)
    piecewise = len(sizes) if settings.rules.graph_modes != "full" else 0
    full = 0
    if settings.rules.graph_modes == "both":
        full = sum(size <= decode for size in sizes)
    elif settings.rules.graph_modes == "full":
        full = sum(size <= max(decode, sizes[0]) for size in sizes) if sizes else 0
    num_graphs = piecewise + full
    constant = constants["cuda_graph_bytes_per_graph_and_layer"]
    layers = max(1, settings.num_layers)
    best, low, high = _band(constant, num_graphs * layers)
    return BudgetItem(
        "runtime.cuda_graphs",
        "runtime",
        best,
        low,
        high,
        f"{num_graphs} graphs ({piecewise} piecewise, {full} full) * {layers} layers * "
        f"{format_bytes(round(constant.value))} per graph and layer",
        constant.source,
        in_budget=settings.rules.graphs_charged,
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
        in_budget=settings.rules.budget_basis in ("before_distributed", "all_in_use"),
    )


def _attention_workspace(settings: BudgetSettings) -> BudgetItem | None:
    if "FLASHINFER" not in settings.attention_backend:
        return None
    latent = "MLA" in settings.attention_backend
    size = settings.rules.flashinfer_workspace_bytes
    if latent:
        size = _FLASHINFER_MLA_WORKSPACE_BYTES
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


def _loose_states(settings: BudgetSettings) -> BudgetItem | None:
    """Recurrent states of all sequences, which the V0 engine makes in the first forward pass."""
    size = settings.max_num_seqs * settings.loose_state_bytes
    return BudgetItem(
        "runtime.recurrent_states",
        "runtime",
        size,
        size,
        # With graphs the number of sequences is rounded up to a captured size.
        size + 8 * settings.loose_state_bytes,
        "S x states of one sequence",
        "vLLM 0.9.2 model_executor/models/mamba_cache.py:MambaCacheManager",
        in_budget=True,
    )


def _device_use(settings: BudgetSettings, constants: Constants) -> BudgetItem | None:
    """What loading leaves on an AMD device beyond the tensors, and vLLM counts as weights.

    Whole segments of large tensors, libraries, and what the allocator keeps of experts that were
    written anew. vLLM up to 0.20 platforms/rocm.py:get_current_memory_usage.
    """
    if settings.vendor.lower() != "amd" or not settings.rules.device_use_as_weights:
        return None
    libraries, kept = constants["load_growth_amd"], constants["load_repacked_factor_amd"]
    module = settings.repacked_module_bytes
    return BudgetItem(
        "weights.device_use",
        "weights",
        settings.segment_bytes + round(libraries.value + kept.value * module),
        round(libraries.low + kept.low * module),
        settings.segment_bytes + round(libraries.high + kept.high * module),
        "segments in steps of 2 MiB + libraries + a share of the experts of a layer;"
        f" segments = {settings.segment_bytes:,}, libraries = {round(libraries.value):,},"
        f" experts = {module:,}",
        libraries.source,
        in_budget=True,
    )
