"""The JSON documents that moesize prints, as types: `moesize schema NAME` is generated from them.

Sizes are integers in bytes and end in `_bytes`. Fields may be added to a document without a new
version; none is renamed or removed. Readers should pass over fields that they do not know.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, Required

# typing.TypedDict is not accepted by pydantic before Python 3.12.
from typing_extensions import TypedDict


class Params(TypedDict):
    """Parameters in logical elements (no scales).

    `total` is what an engine loads by default: trunk, embeddings, head (once when tied), vision
    and audio towers; no MTP blocks. `stored` is everything the published files hold. The groups
    from `attention` on sum to `total`.
    """

    total: int
    mtp: int
    stored: int
    active: int
    active_without_embeddings: int
    attention: int
    routed_experts: int
    shared_experts: int
    router: int
    dense_mlp: int
    embedding: int
    lm_head: int
    norms: int
    towers: int
    other: int


class Model(TypedDict):
    """Which model, and where its facts come from.

    `params_exact`: the inventory was checked against the published element count.
    """

    id: str
    title: str
    source: Literal["catalogue", "hub", "config", "checkpoint", "gguf", "spec"]
    params: Params
    params_exact: bool
    num_layers: int
    max_context: int
    notes: list[str]


class Quantization(TypedDict):
    """The weights of the whole model: all ranks together, nothing replicated.

    `resolved` says why a family word such as 4bit became this scheme; empty otherwise.
    """

    scheme: str
    format: str
    bits_per_weight: float
    weight_bytes: int
    scale_bytes: int
    resolved: str


class Speculation(TypedDict):
    """How tokens are guessed: `method` as the engine names it, `draft` the id of a draft model."""

    method: str
    num_tokens: int
    draft: str | None


class Deployment(TypedDict):
    """Every setting after defaults were resolved; `defaulted` names those that were not given.

    A setting that an engine does not have is null; `engine_settings` are those it alone has.
    """

    engine: str
    engine_version: str
    gpu: str
    gpu_name: str
    gpu_count: int
    tp: int
    pp: int
    dp: int
    ep: bool
    dcp: NotRequired[int]
    context: int
    concurrency: int
    kv_dtype: str
    gpu_memory_utilization: float | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    block_size: int | None
    enforce_eager: bool
    kv_cache_memory_bytes: int | None
    attention_backend: str
    moe_backend: str | None
    num_redundant_experts: NotRequired[int]
    cpu_offload_bytes: NotRequired[int]
    speculation: NotRequired[Speculation | None]
    lora_rank: NotRequired[int | None]
    max_loras: NotRequired[int | None]
    engine_settings: dict[str, Any]
    defaulted: list[str]


class Item(TypedDict):
    """One reason why memory of a GPU is in use; `low_bytes` = `high_bytes` where it is exact."""

    name: str
    category: Literal["weights", "kv_cache", "activations", "runtime", "draft", "lora", "reserve"]
    bytes: int
    low_bytes: int
    high_bytes: int
    formula: str
    source: str
    in_budget: bool


class Gpu(TypedDict):
    """What one distinct rank must hold. `used_bytes` is the sum of its items.

    `count`: GPUs that hold the same; null = not said.
    """

    rank: int
    pp_stage: int
    count: int | None
    usable_bytes: int
    budget_bytes: int
    items: list[Item]
    used_bytes: int
    headroom_bytes: int


class Host(TypedDict):
    """What lies in the memory of the host, all ranks together."""

    items: list[Item]
    used_bytes: int


class KvGroup(TypedDict):
    """Layers whose cache the engine keeps in blocks of one shape."""

    kind: str
    layers: int
    block_tokens: int
    page_bytes: int


class KvCache(TypedDict):
    """The KV cache of one GPU of the limiting stage.

    `capacity_tokens` and `max_concurrency` mean what the engine of that version logs;
    `available_bytes` is negative when weights and runtime exceed the budget. With data parallelism
    the figures are those of one rank, `replicas` says how many have a cache of their own.
    """

    bytes_per_token: int
    state_bytes_per_sequence: int
    block_tokens: int
    blocks: int
    available_bytes: int
    available_low_bytes: int
    available_high_bytes: int
    needed_bytes: int
    capacity_tokens: int
    max_concurrency: float
    replicas: int
    total_capacity_tokens: int
    max_context: int
    dtype: str
    attention_backend: str
    groups: list[KvGroup]


class ExpertRange(TypedDict):
    """Experts of one layer on the rank with the fewest and on the one with the most."""

    min: int
    max: int


class RankLoad(TypedDict):
    """What one step brings to a rank, per layer.

    `rows` are (token, expert) pairs, `tokens` have one of their experts on it at least.
    """

    rows: float
    tokens: float
    distinct_experts: float


class StepLoad(TypedDict):
    """A step of `tokens` tokens over all ranks: the mean rank, and the busiest with the skew."""

    tokens: int
    balanced: RankLoad
    busiest: RankLoad


class StepCost(TypedDict):
    """A decode step on a rank; null where the speed cannot be said."""

    bytes: int
    ms: float | None


class StepCosts(TypedDict):
    """A decode step on the mean rank, and on the busiest, for which all others wait."""

    balanced: StepCost
    busiest: StepCost


class ExpertParallel(TypedDict):
    """Whole experts on `ranks` GPUs; `skew` = tokens of the busiest rank / mean, as given (or 1).

    `redundant` copies of experts are counted in `experts_per_rank`.
    """

    ranks: int
    experts: int
    redundant: int
    experts_per_rank: ExpertRange
    ranks_with_most: int
    skew: float
    decode: StepLoad
    prefill: StepLoad
    decode_step: StepCosts


class FlopsByPart(TypedDict):
    """FLOPs by part of the model; a part that costs nothing is left out.

    `excluded` says in words what the numbers leave out.
    """

    total: int
    attention_projections: NotRequired[int]
    attention_core: NotRequired[int]
    sparse_indexer: NotRequired[int]
    recurrent: NotRequired[int]
    router: NotRequired[int]
    routed_experts: NotRequired[int]
    shared_experts: NotRequired[int]
    dense_mlp: NotRequired[int]
    other: NotRequired[int]
    lm_head: NotRequired[int]
    encoder: NotRequired[int]
    excluded: list[str]


class DenseEquivalent(TypedDict):
    """What a token would cost if every expert were used, and how many times more that is."""

    flops: int
    ratio: float


class Compute(TypedDict):
    """What a token costs at the planned context; one multiply-add is two FLOPs.

    FLOPs are those of the whole model, bytes those of one GPU of the limiting stage in one step.
    `decode_bytes_by_part` maps parts (`weights.attention`, `kv_cache`, ...) to bytes.
    `expected_distinct_experts`: per layer and step; null for a dense model.
    """

    decode_flops_per_token: int
    decode_flops_by_module: FlopsByPart
    prefill_flops: int
    prefill_flops_by_module: FlopsByPart
    decode_bytes_per_step: int
    decode_bytes_by_part: dict[str, int]
    expected_distinct_experts: float | None
    arithmetic_intensity: float
    ridge_point: float | None
    bound: Literal["memory", "compute"] | None
    peak_format: str | None
    dense_equivalent: DenseEquivalent


class Estimate(TypedDict):
    """An estimate with its band."""

    low: float
    best: float
    high: float


class Performance(TypedDict):
    """Speed, estimated from bytes, FLOPs and calibrated efficiencies; null = cannot be said.

    `unknown` names what was missing for the fields that are null.
    """

    decode_tokens_per_s: Estimate | None
    decode_tokens_per_s_per_sequence: Estimate | None
    time_per_output_token_ms: Estimate | None
    time_to_first_token_ms: Estimate | None
    regime: str | None
    unknown: list[str]


class Verdict(TypedDict):
    """Yes or no, and how sure: `certain` is false when the band of the estimates holds both."""

    fits: bool
    reason: str
    shortfall_bytes: int
    limiting_rank: int
    confidence: Literal["exact", "calibrated", "estimated"]
    certain: bool


class Suggestion(TypedDict):
    """A change (options to add or to replace) that was itself planned, and fits."""

    what: str
    options: list[str]
    detail: str
    verdict: Verdict


class Note(TypedDict):
    """Something the reader should know that is no verdict."""

    code: str
    message: str


class PlanDocument(TypedDict):
    """What `moesize plan MODEL --gpu GPU --format json` prints."""

    schema: Literal["moesize.plan/1"]
    moesize_version: str
    model: Model
    quantization: Quantization
    deployment: Deployment
    gpus: list[Gpu]
    host: Host
    kv_cache: KvCache
    expert_parallel: ExpertParallel | None
    compute: Compute
    performance: Performance
    verdict: Verdict
    suggestions: list[Suggestion]
    warnings: list[Note]


class AuditTerm(TypedDict):
    """A figure that the log prints, beside the plan's. Null: not predicted; `why` says why.

    `error` is (predicted - logged) / logged. `ok`: inside the band (`low` to `high`) and what the
    rounding of the log allows. `line` is where the log prints it.
    """

    name: str
    predicted: int | float | None
    logged: int | float
    error: float | None
    unit: Literal["bytes", "tokens", "sequences"]
    why: str
    low: int | float | None
    high: int | float | None
    ok: bool | None
    rank: str | None
    line: int | None


class AuditAdvice(TypedDict):
    """A change of flags that was planned; gains are against the plan without it."""

    what: str
    options: list[str]
    detail: str
    gain_bytes: int
    gain_tokens: int
    fits: bool


class AuditOutcome(TypedDict):
    """How the start ended, and what the plan says; null = not known."""

    logged: Literal["started", "failed", "unknown"]
    predicted: Literal["fits", "fits, but close", "does not fit"] | None
    agrees: bool | None
    cause: str
    line: int | None


class AuditLog(TypedDict):
    """The file, the part of it that was audited, and names as it prints them."""

    name: str
    sha256: str
    size_bytes: int
    container: str | None
    first_line: int
    last_line: int
    model: str | None
    gpu: str | None


class CalibrationRecord(TypedDict):
    """A constant that was measured; `kind` is the kind of model that it holds for, or empty."""

    gpu: str
    engine: str
    version: str
    kind: str
    constant: str
    term: str
    value: float
    unit: str
    date: str
    log: str


class AuditDocument(TypedDict):
    """What `moesize audit LOG --format json` prints.

    `model` is the catalogue id it was planned as, or the name in the log; `settings` are the
    engine's own names. `agrees` is the exit code: something was compared, nothing is outside.
    """

    schema: Literal["moesize.audit/1"]
    moesize_version: str
    engine: Literal["vllm", "sglang", "llama.cpp"]
    engine_version: str | None
    model: str | None
    settings: dict[str, Any]
    terms: list[AuditTerm]
    advice: list[AuditAdvice]
    agrees: bool
    compared: int
    outcome: AuditOutcome
    log: AuditLog
    model_source: str | None
    quantization: str | None
    gpu: str | None
    gpu_count: int | None
    saved: list[CalibrationRecord]
    notes: list[str]


class VerifyTerm(TypedDict):
    """A figure in bytes: predicted beside measured; null where one of them is missing.

    `error` is (predicted - measured) / measured. `tolerance` is a share of the prediction; a band
    (`low_bytes` to `high_bytes`) counts as met inside of it. `ok` null: nothing was compared.
    """

    name: str
    predicted_bytes: int | None
    measured_bytes: int | None
    error: float | None
    tolerance: float
    ok: bool | None
    low_bytes: int | None
    high_bytes: int | None
    rank: int
    why: str


class VerifyFlopsPhase(TypedDict):
    """Operations of one sequence; `unseen` is what no counter of matrix products can see."""

    phase: Literal["prefill", "decode"]
    predicted: int
    measured: int
    unseen: int
    tolerance: float
    error: float
    ok: bool


class VerifyFlops(TypedDict):
    """Both phases together, what is unseen counted as measured."""

    predicted: int
    measured: int
    phases: list[VerifyFlopsPhase]


class VerifyDevice(TypedDict):
    """Where it was measured: kind is cuda (ROCm too), xpu, mps or cpu."""

    kind: str
    name: str
    total_bytes: int
    driver: str
    torch: str


class VerifySettings(TypedDict):
    """What was run; `rank` of `ranks` of tensor parallelism."""

    tokens: int
    sequences: int
    decode_steps: int
    dtype: str
    rank: int
    ranks: int
    seed: int


class VerifyPhase(TypedDict):
    """Allocated bytes before, at most during, and after a part of the run.

    `owners`: bytes of tensors when most was live, by the part of the pass that made them; empty
    where the device does not tell.
    """

    name: str
    begin_bytes: int
    peak_bytes: int
    end_bytes: int
    seconds: float
    owners: dict[str, int]


class VerifyExtrapolation(TypedDict):
    """A term of the whole model out of two runs: fixed + scale * predicted. Not measured."""

    name: str
    predicted_bytes: int
    extrapolated_bytes: int
    fixed_bytes: int
    scale: float


class VerifySpeed(TypedDict):
    """Loading, and what device and page cache can do, in 10^9 bytes a second.

    `to_device_gb_per_s` is the copy from page-locked memory, on a CPU that into new memory.
    `cached_share` of the bytes were in the page cache before the load; null = not known.
    """

    load_gb_per_s: float
    to_device_gb_per_s: float | None
    page_cache_gb_per_s: float | None
    cached_share: float | None


class VerifyFailure(TypedDict):
    """Memory ran out: the phase, bytes asked for, and what was live."""

    phase: str
    asked_bytes: int | None
    live: dict[str, int]
    message: str


class VerifyOwned(TypedDict):
    """Whose bytes a peak is made of: one part of the pass in one phase.

    `predicted_bytes` come from the same pass on shapes alone; null where it could not be made.
    """

    phase: str
    owner: str
    predicted_bytes: int | None
    measured_bytes: int


class VerifyDocument(TypedDict):
    """What `moesize verify MODEL --format json` prints.

    `layers` are the indices that were loaded; `agrees` is the exit code. `revision` is the hub's
    commit where shards came from there. `engine_version` is the release of transformers or vLLM.
    """

    schema: Literal["moesize.verify/1"]
    moesize_version: str
    model: str
    model_source: str
    spec_sha256: str
    revision: str | None
    quantization: str
    device: VerifyDevice
    engine: Literal["torch", "transformers", "vllm"]
    engine_version: str | None
    shards: str
    layers: list[int]
    num_layers: int
    settings: VerifySettings
    terms: list[VerifyTerm]
    flops: VerifyFlops
    phases: list[VerifyPhase]
    extrapolated: list[VerifyExtrapolation]
    speed: VerifySpeed | None
    attribution: list[VerifyOwned]
    failure: VerifyFailure | None
    agrees: bool
    date: str
    command: str
    notes: list[str]
    saved_to: str | None


class ModelKv(TypedDict):
    """Cache of one sequence before any engine's blocks.

    `state_bytes_per_sequence` is `window_bytes` + `recurrent_bytes`: what stops growing.
    """

    bytes_per_token: int
    state_bytes_per_sequence: int
    window_bytes: int
    recurrent_bytes: int
    dtype: str


class Checkpoint(TypedDict):
    """The published files: tensor bytes, headers not included."""

    stored_bytes: int


class TensorRow(TypedDict):
    """One entry of the inventory; `layers` 0 = outside the layers."""

    name: str
    role: str
    section: Literal["embedding", "encoder", "layers", "final", "tower", "mtp", "stored"]
    shape: list[int]
    copies_per_layer: int
    layers: int
    elements: int
    format: str
    bytes: int


class ModelDocument(TypedDict):
    """What `moesize show MODEL --format json` prints; `tensors` with --tensors."""

    schema: Literal["moesize.model/1"]
    moesize_version: str
    model: Model
    quantization: Quantization
    kv_cache: ModelKv
    checkpoint: Checkpoint
    tensors: NotRequired[list[TensorRow]]


class ModelRow(TypedDict):
    """A model of the catalogue; `exact` = checked against the published element count."""

    id: str
    title: str
    hub_id: str
    model_type: str
    aliases: list[str]
    total: int
    active: int
    layers: int
    context: int
    quantization: str
    exact: bool


class ModelsDocument(TypedDict):
    """What `moesize models --format json` prints."""

    schema: Literal["moesize.models/1"]
    models: list[ModelRow]


class GpuRow(TypedDict):
    """An accelerator. Peaks are dense; null = the hardware lacks it, or it is not known.

    `usable_bytes` is what a program can allocate; `usable_basis` says how that is known.
    """

    id: str
    name: str
    vendor: str
    architecture: str
    compute_capability: str | None
    one_device_is: str
    advertised_gb: float | None
    driver_total_bytes: int | None
    usable_bytes: int
    usable_low_bytes: int
    usable_high_bytes: int
    usable_basis: Literal["observed", "estimated", "given"]
    memory_bandwidth_bytes_per_s: int | None
    fp32_flops_per_s: int | None
    tf32_flops_per_s: int | None
    fp16_flops_per_s: int | None
    bf16_flops_per_s: int | None
    fp8_flops_per_s: int | None
    int8_flops_per_s: int | None
    fp4_flops_per_s: int | None
    nvlink_bytes_per_s_per_direction: int | None
    interconnect: str | None
    tdp_w: float | None
    aliases: list[str]
    mig_profiles: list[str]
    confidence: str
    notes: str | None


class GpusDocument(TypedDict):
    """What `moesize gpus --format json` prints."""

    schema: Literal["moesize.gpus/1"]
    gpus: list[GpuRow]


class QuantRow(TypedDict):
    """A quantization scheme; `bits_per_weight` of a large matrix, scales included."""

    name: str
    title: str
    bits_per_weight: float
    leaves_out: str
    min_compute_capability: str | None
    is_gguf: bool


class QuantsDocument(TypedDict):
    """What `moesize quants --format json` prints."""

    schema: Literal["moesize.quants/1"]
    quants: list[QuantRow]


class EngineRow(TypedDict):
    """An inference engine, and the versions whose rules are known.

    `calibration_records`: constants of the user's own logs (`audit --save`) that plans use.
    """

    name: str
    default_version: str
    versions: str
    oldest_version: str
    newest_version: str
    calibration_records: int
    note: str


class EnginesDocument(TypedDict):
    """What `moesize engines --format json` prints."""

    schema: Literal["moesize.engines/1"]
    engines: list[EngineRow]


class KvPool(TypedDict):
    """A KV pool that SGLang allocated: tokens, and GiB of K and V together."""

    tokens: int
    gb: float


class RecurrentPool(TypedDict):
    """SGLang's pool of recurrent states: slots, and GiB by kind of state."""

    slots: int
    conv_gib: float
    ssm_gib: float


class Observed(TypedDict, total=False):
    """What an engine logged or a tool read. GiB and MiB are 2^30 and 2^20 bytes, on one GPU.

    docs/field-reports.md says which line of which engine each figure is from.
    """

    outcome: str | None
    weights_gib: float | None
    draft_weights_gb: float | None
    kv_cache_gib: float | None
    kv_cache_gib_min: float | None
    kv_cache_gib_max: float | None
    kv_cache_tokens: int | None
    kv_cache_tokens_min: float | None
    kv_cache_tokens_max: float | None
    kv_pools: list[KvPool] | None
    max_total_num_tokens: int | None
    max_concurrency: float | None
    max_concurrency_at_tokens: int | None
    gpu_blocks: int | None
    kv_needed_gib: float | None
    kv_needed_for_tokens: int | None
    estimated_max_model_len: int | None
    cuda_graph_gib: float | None
    cuda_graph_estimated_gib: float | None
    activation_peak_gib: float | None
    non_torch_gib: float | None
    weights_plus_non_torch_gib: float | None
    free_at_start_gib: float | None
    torch_allocated_at_failure_gib: float | None
    nvidia_smi_mib_per_gpu: int | None
    mem_avail_before_load_gb: float | None
    mem_avail_after_load_gb: float | None
    mem_avail_after_pool_gb: float | None
    mamba_cache: str | RecurrentPool | None
    model_buffer_mib: dict[str, float] | None
    kv_buffer_mib: dict[str, float] | None
    kv_self_mib: float | None
    kv_buffer_parts: dict[str, list[float]] | None
    kv_cells: dict[str, float] | None
    kv_detail: str | None
    compute_buffer_mib: dict[str, float] | None
    compute_buffer_requested_mib: dict[str, float] | None
    model_buffer_requested_mib: dict[str, float] | None
    draft_compute_buffer_mib: dict[str, float] | None
    output_buffer_mib: dict[str, float] | None
    rs_buffer_mib: dict[str, float] | None
    rs_total_mib: float | None
    projected_device_mib: float | None
    memory_breakdown_mib: dict[str, dict[str, float]] | None
    nvidia_smi_used_mib: int | dict[str, float] | None


class Report(TypedDict, total=False):
    """A field report: one line of the file that `moesize accuracy` reads.

    Only `id`, `engine`, `model` and `observed` must be there; null or left out means that nobody
    said. Fields from `gguf_file` on are llama.cpp's. Fields that are not listed are passed over.
    """

    id: Required[str]
    engine: Required[str]
    model: Required[str]
    observed: Required[Observed]
    source_url: str | None
    source_group: str | None
    date: str | None
    suspect: str | bool | None
    model_public: bool | None
    engine_version: str | None
    build: str | None
    gpu: str | list[str] | None
    gpu_count: int | None
    gpu_total_gib: float | None
    gpu_free_mib: int | dict[str, float] | None
    tp: int | None
    pp: int | None
    dp: int | None
    ep: bool | int | None
    dtype: str | None
    quantization: str | None
    kv_cache_dtype: str | None
    max_model_len: int | str | None
    gpu_memory_utilization: float | str | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    enforce_eager: bool | None
    block_size: int | None
    other_flags: list[str] | None
    moe: bool | None
    model_note: str | None
    unit_note: str | None
    quote: str | None
    gguf_file: str | None
    gguf_type: str | None
    params_b: float | None
    bpw: float | None
    file_size_gib: float | None
    tensor_type_counts: dict[str, int] | None
    hparams: dict[str, int | float | str | None] | None
    n_ctx: int | None
    n_batch: int | None
    n_ubatch: int | None
    n_parallel: int | None
    n_gpu_layers: str | int | None
    offloaded_layers: str | None
    flash_attn: str | bool | None
    type_k: str | None
    type_v: str | None
    flags: dict[str, bool | int | float | str | list[str] | None] | None


class AccuracySummary(TypedDict):
    """One engine and term: how far predictions lie from observations that nobody doubts.

    Errors are fractions of what was observed; `median_error` keeps its sign (above 0: predicted
    too much). `in_band` is the share of covered observations between low and high. `of_card`
    figures are fractions of the memory of one GPU. Null where nothing is covered.
    """

    engine: str
    term: str
    n: int
    covered: int
    version_assumed: int
    median_abs_error: float | None
    p90_abs_error: float | None
    worst_abs_error: float | None
    median_error: float | None
    in_band: float | None
    median_abs_error_of_card: float | None
    p90_abs_error_of_card: float | None
    median_band_of_card: float | None


class AccuracyRow(TypedDict):
    """One figure of one report. `error` = (predicted - observed) / observed, a fraction.

    `not_covered` says why there is no prediction, else null. `device` is llama.cpp's name of the
    device that holds the buffer; `suspect_reason` is the collector's.
    """

    id: str
    line: int
    engine: str
    engine_version: str
    version_assumed: bool
    model: str
    model_id: str
    gpu: str
    term: str
    device: str
    unit: Literal["GiB", "MiB", "tokens", "requests", "blocks"]
    predicted: float | None
    low: float | None
    high: float | None
    observed: float
    error: float | None
    error_of_card: float | None
    in_band: bool | None
    suspect: bool
    suspect_reason: str
    not_covered: str | None
    notes: list[str]


class OutcomeCase(TypedDict):
    """A report whose outcome the plan got wrong. `certain` False: the plan says it is close."""

    id: str
    line: int
    engine: str
    model: str
    predicted: Literal["fits", "does_not_fit"]
    observed: str
    certain: bool
    suspect: bool
    reason: str


class Outcomes(TypedDict):
    """Fits or does not fit, against what happened; suspect reports are counted apart.

    `false_fits_without_warning` are those where the plan did not say that it is close.
    """

    n: int
    covered: int
    agree: int
    false_fits: int
    false_fits_without_warning: int
    false_does_not_fit: int
    suspect: int
    not_covered: dict[str, int]
    cases: list[OutcomeCase]


class Coverage(TypedDict):
    """Reports of an engine, and of how many the main figures were predicted.

    Main figures are weights and what the KV cache holds. `covered`: one of them is predicted, and
    those that are not are left open by the report itself (how a mixed file stores its weights, the
    card); `fully_covered`: all are. Both count reports of public models that have a figure or an
    outcome to compare, as `public` does; `share` = covered / public. `reasons` counts reports that
    are not covered by why.
    """

    engine: str
    reports: int
    public: int
    covered: int
    fully_covered: int
    share: float | None
    version_assumed: int
    suspect: int
    reasons: dict[str, int]


class ReportProblem(TypedDict):
    """A line of the file that could not be used, or should be looked at."""

    line: int
    message: str


class AccuracyDocument(TypedDict):
    """What `moesize accuracy --format json` prints.

    `summary_suspect` has the same figures for reports that the collector doubts.
    """

    schema: Literal["moesize.accuracy/1"]
    moesize_version: str
    file: str
    reports: int
    problems: list[ReportProblem]
    unread_fields: dict[str, int]
    summary: list[AccuracySummary]
    summary_suspect: list[AccuracySummary]
    coverage: list[Coverage]
    outcomes: Outcomes
    rows: list[AccuracyRow]


class CheckEdit(TypedDict):
    """Replace what stands between two places of a file by `text`; columns count characters."""

    path: str
    line: int
    column: int
    end_line: int
    end_column: int
    text: str


class CheckFix(TypedDict):
    """What to write instead. `safe`: `check --fix` makes these edits."""

    text: str
    safe: bool
    edits: list[CheckEdit]


class CheckPlace(TypedDict):
    """A second place that a finding points at."""

    path: str
    line: int
    column: int
    message: str


class CheckFinding(TypedDict):
    """One finding. Lines and columns count from 1, columns in characters; the end is exclusive.

    `path` is where it points, mostly the file it stands under. `server` is empty for findings
    about a file. `confidence` is that of the plan behind it, null where none was made.
    `suppressed` says why it does not count: the reason of an ignore comment, `baseline`, or null.
    """

    rule: str
    severity: Literal["error", "warning", "info"]
    message: str
    line: int
    column: int
    end_line: int
    end_column: int
    path: str
    server: str
    details: list[str]
    related: list[CheckPlace]
    confidence: Literal["exact", "calibrated", "estimated"] | None
    fix: CheckFix | None
    suppressed: str | None


class CheckAlternative(TypedDict):
    """A server on one of the kinds of GPU that its file names."""

    gpu: str
    gpu_count: int
    fits: bool
    confidence: Literal["exact", "calibrated", "estimated"]
    needed_bytes: int
    budget_bytes: int
    usable_bytes: int
    verdict: str


class CheckServer(TypedDict):
    """A model server of a file, with settings after defaults were resolved where it was planned.

    `fits` null: not judged, or the GPU is not known; `needed_bytes` is then what each GPU must
    hold at least. `gpu_as_written` is the file's word, `gpu` the catalogue's, `vendor` what is
    known where no kind is named. `skipped` says why there was nothing to judge.
    """

    name: str
    line: int
    column: int
    engine: str | None
    engine_version: str | None
    model: str | None
    model_id: str | None
    gpu: str | None
    gpu_as_written: str | None
    vendor: str | None
    gpu_count: int | None
    gpus_per_node: int | None
    nodes: int | None
    tensor_parallel_size: int | None
    pipeline_parallel_size: int | None
    data_parallel_size: int | None
    quantization: str | None
    max_model_len: int | str | None
    gpu_memory_utilization: float | None
    fits: bool | None
    verdict: str
    needed_bytes: int | None
    budget_bytes: int | None
    usable_bytes: int | None
    alternatives: list[CheckAlternative]
    skipped: str | None
    notes: list[str]


class CheckFile(TypedDict):
    """A file that was recognised. `skipped` says why no server in it could be judged."""

    path: str
    kind: str | None
    servers: list[CheckServer]
    findings: list[CheckFinding]
    skipped: str | None


class CheckSummary(TypedDict):
    """Counts. `passed`: no finding that counts is of the severity `fail_on` or above.

    `files_ignored` were looked at and hold no deployment; `baseline_stale` entries of the baseline
    no longer occur.
    """

    files: int
    files_skipped: int
    files_ignored: int
    servers: int
    fit: int
    do_not_fit: int
    unknown: int
    errors: int
    warnings: int
    infos: int
    suppressed: int
    baseline_stale: int
    fail_on: Literal["error", "warning", "info", "never"]
    passed: bool


class CheckDocument(TypedDict):
    """What `moesize check --format json` prints."""

    schema: Literal["moesize.check/1"]
    moesize_version: str
    files: list[CheckFile]
    summary: CheckSummary


class RuleRow(TypedDict):
    """A rule of `moesize check`; `bad` and `good` are an example, empty where there is none."""

    id: str
    name: str
    severity: Literal["error", "warning", "info"]
    summary: str
    why: str
    bad: str
    good: str
    fixable: bool


class RulesDocument(TypedDict):
    """What `moesize check --list-rules --format json` prints."""

    schema: Literal["moesize.rules/1"]
    rules: list[RuleRow]


class Error(TypedDict):
    """What is wrong, in one line, and what to do about it."""

    kind: Literal[
        "usage",
        "invalid_input",
        "invalid_spec",
        "invalid_deployment",
        "unknown_name",
        "cannot_answer",
        "unsupported",
        "environment",
    ]
    message: str
    hint: str


class ErrorDocument(TypedDict):
    """What any command prints with `--format json` when it exits with 2 or 3."""

    error: Error


DOCUMENTS: dict[str, type] = {
    "plan": PlanDocument,
    "check": CheckDocument,
    "rules": RulesDocument,
    "audit": AuditDocument,
    "verify": VerifyDocument,
    "model": ModelDocument,
    "models": ModelsDocument,
    "gpus": GpusDocument,
    "quants": QuantsDocument,
    "engines": EnginesDocument,
    "accuracy": AccuracyDocument,
    "report": Report,
    "error": ErrorDocument,
}
