"""What a person reads of a plan, as plain strings: shared by the table and the markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesize.core.records import dataclass
from moesize.core.units import KIB, format_bytes, format_count, format_gib

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from moesize.core.ledger import GpuLedger, MemoryItem
    from moesize.core.plan import Plan


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a GPU's memory as it is shown: a group of ledger items."""

    label: str
    size_bytes: int
    low_bytes: int
    high_bytes: int
    style: str
    in_budget: bool

    @property
    def band(self) -> str:
        """`12.30 - 14.00` in GiB where the size is an estimate; empty where it is exact."""
        if self.low_bytes == self.high_bytes:
            return ""
        return f"{self.low_bytes / 2**30:,.2f} to {self.high_bytes / 2**30:,.2f}"


# Label, style and the items it holds: by full name first, then by category.
_SHARES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("routed experts", "magenta", ("weights.routed_experts",)),
    ("scales of quantized weights", "bright_magenta", ("weights.scales",)),
    ("other weights", "blue", ("weights",)),
    ("KV cache", "green", ("kv_cache",)),
    ("activations", "yellow", ("activations",)),
    ("draft model", "cyan", ("draft",)),
    ("LoRA adapters", "bright_cyan", ("lora",)),
    ("runtime", "bright_yellow", ("runtime", "reserve")),
    ("runtime outside the budget", "red", ()),
)


def shares(ledger: GpuLedger) -> list[Share]:
    """Groups of items, largest structure first; every item is in exactly one."""
    totals: dict[str, list[int]] = {label: [0, 0, 0] for label, _, _ in _SHARES}
    for item in ledger.items:
        label = _label(item.name, item.category, item.in_budget)
        for position, size in enumerate((item.size_bytes, item.low_bytes, item.high_bytes)):
            totals[label][position] += size
    return [
        Share(label, best, low, high, style, label != _SHARES[-1][0])
        for label, style, _ in _SHARES
        for best, low, high in [totals[label]]
        if high
    ]


def _label(name: str, category: str, in_budget: bool) -> str:
    if not in_budget:
        return _SHARES[-1][0]
    for wanted in (name, category):
        for label, _, names in _SHARES:
            if wanted in names:
                return label
    return "runtime"


def title(plan: Plan) -> str:
    """Model, GPUs and engine in one line."""
    settings = plan.deployment
    return (
        f"{plan.model.title} on {settings['gpu_count']} x {settings['gpu_name']}, "
        f"{plan.engine_title} {settings['engine_version']}"
    )


def allocates_at_start(plan: Plan) -> bool:
    """Whether the engine allocates its cache for a given number of tokens (llama.cpp)."""
    return "ctx_size" in plan.deployment.get("engine_settings", {})


_HOST = {
    "host.weights.embedding": "input embedding",
    "host.weights.layers": "weights",
    "host.kv_cache.full": "KV cache",
    "host.kv_cache.window": "KV cache of sliding windows",
    "host.kv_cache.state": "recurrent states",
    "host.output_buffer": "logits",
    "host.compute_buffer": "compute buffer",
}


def verdict_word(plan: Plan) -> str:
    """FITS, FITS, BUT CLOSE, or DOES NOT FIT."""
    if not plan.fits:
        return "DOES NOT FIT"
    return "FITS" if plan.verdict.certain else "FITS, BUT CLOSE"


def model_line(plan: Plan) -> str:
    """Parameters, and how many of them a token uses."""
    params = plan.model.params
    if not params.by_group["routed_experts"]:
        return f"{format_count(params.total)} parameters, all used by every token"
    share = params.by_group["routed_experts"] * 100 / params.total
    return (
        f"{format_count(params.total)} parameters, {format_count(params.active)} active per token "
        f"({share:.0f} % are routed experts)"
    )


def weights_line(plan: Plan) -> str:
    """The scheme and what all weights come to."""
    quantization = plan.quantization
    name = quantization.format if quantization.scheme == "checkpoint" else quantization.scheme
    return (
        f"{name}: {format_gib(quantization.weight_bytes)} in all, "
        f"{quantization.bits_per_weight:.2f} bits per weight"
    )


def setting_line(plan: Plan) -> str:
    """The settings that decide, with a star on what was not given."""
    settings, defaulted = plan.deployment, set(plan.defaulted)

    def star(name: str) -> str:
        return "*" if name in defaulted else ""

    # Engines without a budget (llama.cpp, transformers) share whole layers out over GPUs.
    share = settings["gpu_memory_utilization"]
    by_layers = share is None
    if allocates_at_start(plan):
        return _server_settings(plan, star)
    parts = [] if by_layers else [f"TP {settings['tp']}{star('tp')}"]
    if settings["pp"] > 1 and not by_layers:
        parts.append(f"PP {settings['pp']}")
    if settings["dp"] > 1:
        inside = settings.get("engine_settings", {}).get("dp_attention")
        parts.append(f"DP {settings['dp']}" + (" of attention" if inside else ""))
    if settings.get("dcp", 1) > 1:
        parts.append(f"DCP {settings['dcp']}")
    if settings["ep"]:
        parts.append("expert parallel")
    if settings.get("speculation"):
        guess = settings["speculation"]
        parts.append(f"{guess['method']} with {plural(guess['num_tokens'], 'guess', 'guesses')}")
    if settings.get("lora_rank"):
        parts.append(f"{plural(settings['max_loras'], 'LoRA')} of rank {settings['lora_rank']}")
    parts += [
        f"context {settings['context']:,}{star('context')}",
        plural(settings["concurrency"], "sequence") + star("concurrency"),
        f"KV {settings['kv_dtype']}{star('kv_dtype')}",
    ]
    if share is not None:
        parts.append(f"utilization {share:g}{star('gpu_memory_utilization')}")
    return ", ".join(parts) + ("  (* default)" if defaulted else "")


def _server_settings(plan: Plan, star: Callable[[str], str]) -> str:
    """As `setting_line`, for llama.cpp: layers, slots and one context for all of them."""
    settings = plan.deployment
    own = settings["engine_settings"]
    parts = [f"{own['n_gpu_layers']} of {own['n_layers']} layers on GPU"]
    if own.get("experts_on_host"):
        parts.append(f"experts of {own['experts_on_host']} layers on the host")
    parts.append(f"context {settings['context']:,}{star('context')}")
    slots = settings["max_num_seqs"]
    shared = " sharing it" if own["kv_unified"] and slots > 1 else ""
    parts += [
        plural(slots, "slot") + shared + star("max_num_seqs"),
        f"KV {settings['kv_dtype']}{star('kv_dtype')}",
        settings["attention_backend"],
    ]
    return ", ".join(parts) + ("  (* default)" if plan.defaulted else "")


def kv_line(plan: Plan) -> str:
    """What a token of context costs and how many are left."""
    kv, settings = plan.kv_cache, plan.deployment
    if not kv.bytes_per_token and not kv.state_bytes_per_sequence:
        return "none: this model keeps nothing between tokens"
    cost = f"{kv.bytes_per_token / KIB:,.1f} KiB per token" if kv.bytes_per_token else ""
    if kv.state_bytes_per_sequence:
        fixed = f"{format_bytes(kv.state_bytes_per_sequence)} per sequence"
        cost = f"{cost} + {fixed}" if cost else fixed
    if allocates_at_start(plan):
        return _allocated_line(plan, cost)
    if kv.available_bytes <= 0:
        return f"{cost} on each GPU; nothing is left for it"
    return (
        f"{cost} on each GPU; {format_gib(kv.available_bytes)} left = "
        f"{kv.capacity_tokens:,} tokens, {kv.max_concurrency:,.2f} sequences of "
        f"{settings['context']:,}"
        + (f" on each of {kv.replicas} data-parallel ranks" if kv.replicas > 1 else "")
    )


def ledger_names(plan: Plan) -> list[str]:
    """What each ledger stands for: one GPU, all of them, a stage, or a device of its own."""
    many = plan.deployment["gpu_count"]
    stages = len({ledger.pp_stage for ledger in plan.gpus})
    names = []
    for ledger in plan.gpus:
        if len(plan.gpus) == 1:
            names.append(f"GPU {ledger.rank}" if many == 1 else f"each of {many} GPUs")
        elif len(plan.gpus) == many:
            layers = plan.deployment.get("engine_settings", {}).get("layers_by_gpu", ())
            part = layers[ledger.pp_stage : ledger.pp_stage + 1]
            names.append(f"GPU {ledger.rank}" + (f" ({part[0]} layers)" if part else ""))
        elif len(plan.gpus) == stages:
            names.append(f"GPUs of stage {ledger.pp_stage}")
        else:
            alike = f"{ledger.count} " if ledger.count else ""
            names.append(f"{alike}GPUs like rank {ledger.rank} (stage {ledger.pp_stage})")
    return names


def experts_line(plan: Plan) -> str:
    """Experts of a rank and what a decode step brings to it; empty without expert parallelism."""
    balance = plan.expert_parallel
    if balance is None:
        return ""
    least, most = balance["experts_per_rank"]["min"], balance["experts_per_rank"]["max"]
    held = f"{most}" if least == most else f"{least} or {most}"
    extra = f" + {balance['redundant']} redundant" if balance["redundant"] else ""
    decode = balance["decode"]
    mean, busiest = decode["balanced"], decode["busiest"]
    text = (
        f"{balance['experts']}{extra} on {balance['ranks']} ranks: {held} each; a step of "
        f"{plural(decode['tokens'], 'token')} brings {mean['rows']:,.1f} rows and reads "
        f"{mean['distinct_experts']:,.1f} experts per rank and layer"
    )
    if balance["skew"] > 1:
        costs = balance["decode_step"]
        text += (
            f"; {busiest['rows']:,.1f} rows and {busiest['distinct_experts']:,.1f} experts on the "
            f"busiest (skew {balance['skew']:g})"
        )
        if costs["busiest"]["ms"] is not None:
            text += f", {costs['busiest']['ms']:,.1f} ms a step for {costs['balanced']['ms']:,.1f}"
    return text


def host_line(plan: Plan) -> str:
    """What lies in host memory; empty if nothing does."""
    size = sum(item.size_bytes for item in plan.host)
    if not size:
        return ""
    items = sorted(plan.host, key=lambda item: -item.size_bytes)
    if len(items) > 1 and all(item.name in _HOST for item in items):
        each = ", ".join(f"{_HOST[item.name]} {format_bytes(item.size_bytes)}" for item in items)
        return f"{format_gib(size)} of host memory: {each}"
    return f"{format_gib(size)} of host memory, most of it {items[0].name.replace('_', ' ')}"


def _allocated_line(plan: Plan, cost: str) -> str:
    """The cache that is allocated at start, whatever is left beside it."""
    kv = plan.kv_cache
    where = " on this GPU" if len(plan.gpus) == 1 else f" on GPU {plan.verdict.limiting_rank}"
    if any(item.category == "kv_cache" for item in plan.host) and not kv.needed_bytes:
        held = sum(item.size_bytes for item in plan.host if item.category == "kv_cache")
        return f"{format_gib(held)} for {kv.capacity_tokens:,} tokens, on the host"
    return (
        f"{cost}{where}; {format_gib(kv.needed_bytes)} allocated at start for "
        f"{kv.capacity_tokens:,} tokens"
    )


def longest_line(plan: Plan) -> str:
    """The longest context that still fits, when it is not the one planned."""
    kv, settings = plan.kv_cache, plan.deployment
    if not kv.max_context or (plan.fits and not allocates_at_start(plan)):
        return ""
    if plan.fits and kv.max_context <= settings["context"]:
        return ""
    many = plural(settings["concurrency"], "sequence")
    return f"the longest context that fits {many} here is {kv.max_context:,} tokens"


def cost_lines(plan: Plan) -> list[str]:
    """FLOPs and bytes of a token, and the speed that follows."""
    compute, lines = plan.compute, []
    if compute:
        equivalent = compute["dense_equivalent"]
        text = f"{flops_text(compute['decode_flops_per_token'])} per decoded token"
        if equivalent["ratio"] > 1.005:
            text += f"; {equivalent['ratio']:.1f} x as many if every expert were used"
        lines.append(text)
        read = compute["decode_bytes_per_step"]
        text = f"{format_gib(read)} read per GPU and decode step"
        distinct = compute.get("expected_distinct_experts")
        if distinct:
            text += f" (about {distinct:.1f} distinct experts per layer)"
        if compute.get("bound"):
            text += f": bound by {compute['bound']}"
        lines.append(text)
    speed = plan.performance.get("decode_tokens_per_s") if plan.performance else None
    if speed and plan.fits:
        lines.append(
            f"{speed['low']:,.0f} to {speed['high']:,.0f} tokens/s decoding "
            f"(best guess {speed['best']:,.0f}), an estimate"
        )
    return lines


def suggestion_rows(plan: Plan) -> list[tuple[str, str]]:
    """(options, what they give) of every suggestion."""
    return [(" ".join(item.options), f"{item.what}: {item.detail}") for item in plan.suggestions]


def explain_rows(items: Sequence[MemoryItem]) -> list[dict[str, Any]]:
    """Every item with formula and source."""
    return [
        {
            "item": item.name,
            "size": format_bytes(item.size_bytes),
            "band": ""
            if item.exact
            else f"{format_bytes(item.low_bytes)} to {format_bytes(item.high_bytes)}",
            "formula": item.formula,
            "source": item.source,
        }
        for item in items
    ]


def plural(count: int, noun: str, nouns: str = "") -> str:
    """1 token, 2 tokens."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {nouns or noun + 's'}"


def flops_text(count: float, digits: int = 1) -> str:
    """42.7 GFLOP."""
    for unit, name in ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")):
        if count >= unit:
            return f"{count / unit:,.{digits}f} {name}"
    return f"{count:,.0f} FLOP"
