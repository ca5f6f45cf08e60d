"""A server of a file as a question to the planner: model, engine, version, settings, GPUs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from moesize.core.errors import MoesizeError, UnsupportedError
from moesize.core.quantization import find_scheme
from moesize.core.units import GIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moesize.check.devices import Device
    from moesize.check.flags import Flags
    from moesize.check.naming import Named
    from moesize.check.server import Server
    from moesize.core.deployment import Request
    from moesize.core.gpu import GpuSpec
    from moesize.core.plan import Note, Plan, Suggestion
    from moesize.core.quantization import Scheme

# Engines of deployment files that are judged by the rules of another: what is said about it.
STAND_INS = {
    "ollama": ("llama.cpp", ""),
    "nim": ("vllm", "NIM chooses precision and engine by itself: judged as vLLM would run it"),
    "aphrodite": ("vllm", "Aphrodite is judged by the rules of vLLM, from which it was made"),
}
# Engines that use every GPU that they see unless told otherwise. TGI: its launcher (from memory);
# llama.cpp: --split-mode layer; NIM: profiles by the number of GPUs.
_USE_ALL = ("tgi", "llama.cpp", "ik_llama.cpp", "ollama", "nim", "transformers")
# Engines that use one GPU unless a flag says how many.
_SIZED = ("vllm", "sglang", "tensorrt-llm")
# What "these fit" names, small to large: cards that people can rent or have.
COMMON_GPUS = (
    "t4",
    "l4",
    "a10g",
    "rtx-4090",
    "rtx-5090",
    "l40s",
    "a100-40gb-sxm",
    "a100-80gb-sxm",
    "h100-80gb-sxm",
    "h200-141gb-sxm",
    "mi300x",
    "b200",
    "b300",
)
_MOST_GIB = 512


@dataclass(slots=True, kw_only=True)
class Case:
    """A server that can be planned.

    engine     the planner's engine; `called` is what the file runs (ollama, nim)
    request    settings of the file, without GPUs
    available  GPUs of one replica that the file asks for, None: not said
    notes      what the reading of the flags had to say
    takes_what_fits   the length is left to an engine that lowers it to what the cache holds
    by_later_rules    the file's release is older than any that is known
    """

    server: Server
    flags: Flags
    engine: str
    called: str
    version: str | None
    named: Named
    scheme: Scheme | None
    resolved: str
    request: Request
    available: int | None
    notes: list[Note] = field(default_factory=list)
    takes_what_fits: bool = False
    by_later_rules: bool = False

    def plan(self, gpu: GpuSpec, count: int | None = None, **changes: Any) -> Plan:
        """The plan on `count` GPUs of this kind. Raises MoesizeError."""
        request = self.on(count)
        if changes:
            request = replace(request, **changes)
        plan = self._plan(gpu, request)
        if self.takes_what_fits and not plan.fits and plan.kv_cache.max_context:
            return self._plan(gpu, replace(request, context_tokens=plan.kv_cache.max_context))
        return plan

    def _plan(self, gpu: GpuSpec, request: Request) -> Plan:
        from moesize.api import make_plan

        return make_plan(
            self.named.spec, self.named.source, self.scheme, "", gpu, request, with_costs=False
        )

    def on(self, count: int | None = None) -> Request:
        """The request for a number of GPUs: what the sizes of the file use, else all there are."""
        if count is None:
            count = self.num_gpus
        return replace(self.request, num_gpus=count)

    @property
    def num_gpus(self) -> int:
        """GPUs that one replica uses."""
        sizes = self.request
        if sizes.tensor_parallel_size or sizes.pipeline_parallel_size or sizes.data_parallel_size:
            data = 1 if sizes.data_parallel_attention else sizes.data_parallel_size or 1
            return (sizes.tensor_parallel_size or 1) * (sizes.pipeline_parallel_size or 1) * data
        if self.called in _USE_ALL and self.available:
            return self.available
        return 1

    def suggestions(self, gpu: GpuSpec) -> tuple[Suggestion, ...]:
        """What would fit instead, each planned; changes that need no other repository first."""
        from moesize.suggestions import suggestions

        request = self.on()
        if self.engine in _SIZED:
            # Said, so that suggestions say theirs: a file that gets more GPUs needs the flag too.
            request = replace(request, tensor_parallel_size=request.tensor_parallel_size or 1)
        spec, source = self.named.spec, self.named.source
        found = suggestions(spec, source, self.scheme, gpu, request)
        return tuple(sorted(found, key=lambda item: "--quant" in item.options))


class Refused(NamedTuple):
    """A server that the planner does not take, and why."""

    error: MoesizeError


def version_of(engine: str, image: str | None) -> tuple[str | None, str]:
    """(the release that an image names, a remark where its rules are not known)."""
    from moesize.engine_args.words import version_of_image

    found = version_of_image(engine, image) if image else None
    return (None, "") if found is None else known_version(engine, found)


def known_version(engine: str, found: str) -> tuple[str, str]:
    """(a release whose rules are known, a remark where it is another than the one asked for)."""
    from moesize.engines import engine_profile, oldest_version

    try:
        engine_profile(engine, found)
    except UnsupportedError:
        oldest = oldest_version(engine)
        return oldest, f"{engine} {found} is older than what is known: judged by {oldest}"
    return found, ""


def make_case(
    server: Server,
    flags: Flags,
    engine: str,
    called: str,
    version: str | None,
    named: Named,
    *,
    online: bool = False,
    by_later_rules: bool = False,
) -> Case | Refused:
    """Everything that the planner needs but the GPU."""
    from moesize.api import apply_serve_command, scheme_of
    from moesize.core.deployment import Request
    from moesize.engines import engine_profile

    command = flags.command
    available = available_gpus(server)
    try:
        request = Request(engine=engine, engine_version=version)
        request, notes, quant = apply_serve_command(
            command,
            request,
            named.spec,
            str(command.model or ""),
            named.quant,
            online,
            offline=not online,
        )
        # What the command's own sizes made of the number of GPUs is decided by the case.
        request = replace(request, num_gpus=1)
        request = _ollama_defaults(server, called, request)
        request = _older_defaults(engine, request, by_later_rules)
        if quant == "checkpoint" and engine_profile(engine).facts.get("weights") == "gguf":
            quant = _gguf_quant(named, called)
        scheme, resolved = scheme_of(quant, engine, named.spec)
        if _is_open(flags, "request:tensor_parallel_size") and available:
            rest = (request.pipeline_parallel_size or 1) * (request.data_parallel_size or 1)
            if available % rest == 0:
                request = replace(request, tensor_parallel_size=available // rest)
    except MoesizeError as error:
        return Refused(error)
    return Case(
        server=server,
        flags=flags,
        engine=engine,
        called=called,
        version=version,
        named=named,
        scheme=scheme,
        resolved=resolved,
        request=request,
        available=available,
        notes=_shown_notes(notes),
        takes_what_fits=_takes_what_fits(flags),
        by_later_rules=by_later_rules,
    )


def _older_defaults(engine: str, request: Request, by_later_rules: bool) -> Request:
    """What releases before the oldest known one took by themselves.

    SGLang before 0.4.6, server_args.py (from memory): --enable-dp-attention made the data-parallel
    size that of tensor parallelism; later ones ask for it.
    """
    if (
        by_later_rules
        and engine == "sglang"
        and request.data_parallel_attention
        and (request.data_parallel_size or 1) == 1
    ):
        return replace(request, data_parallel_size=request.tensor_parallel_size)
    return request


_AUTO = ("auto", "-1")
# Engines that start with a cache below one request of the default length: they serve, and refuse,
# what is longer. SGLang: max_req_len of its scheduler; TGI: max_total_tokens by what is
# allocatable; TensorRT-LLM: max_seq_len lowered with a warning. From memory, except TGI's, which
# its docs state.
_LOWER_BY_THEMSELVES = ("sglang", "tgi", "tensorrt-llm")


def _takes_what_fits(flags: Flags) -> bool:
    asked = flags.value(flags.context)
    if flags.engine in _LOWER_BY_THEMSELVES:
        return asked is None
    # vLLM lowers a length that is left to it in words.
    return flags.engine == "vllm" and asked in _AUTO


def _shown_notes(notes: Sequence[Note]) -> list[Note]:
    """Notes for the result: not those on the model's name or on a length that is planned here."""
    shown = []
    for note in notes:
        text = note.message.replace("--max-model-len auto, ", "")
        text = text.replace(", --max-model-len auto", "")
        if note.code != "engine-args-model" and not text.endswith(": --max-model-len auto"):
            shown.append(replace(note, message=text))
    return shown


def available_gpus(server: Server, device: Device | None = None) -> int | None:
    """GPUs of one replica that the file asks for: of each pod or machine, times their number."""
    each = server.gpus_per_node.value if server.gpus_per_node else None
    if each is None and device is not None:
        each = device.stated
    if each is None:
        each = flags_visible(server)
    if each is None:
        return None
    return each * (server.nodes.value if server.nodes else 1)


def flags_visible(server: Server) -> int | None:
    """GPUs that the file names one by one."""
    return len(server.device_ids) or None


def _is_open(flags: Flags, target: str) -> bool:
    """Whether a flag is given with a value that no file states."""
    from moesize.engine_args.words import is_open

    found = flags.value(target)
    return found is not None and is_open(str(found))


# --- Ollama ---------------------------------------------------------------------------------------

# What Ollama's library serves for a tag without a type: Q4_K_M since 2024 (ollama.com/library).
_OLLAMA_QUANT = "Q4_K_M"
# OLLAMA_CONTEXT_LENGTH 0: by GPU memory (ollama server/routes.go of August 2026).
OLLAMA_CONTEXTS = ((24 * GIB, 4096), (48 * GIB, 32768), (None, 262144))


def _gguf_quant(named: Named, called: str) -> str:
    """The type that a file's name or tag states (gemma3:27b-it-q8_0), else what Ollama serves."""
    stated = named.note.removeprefix("weights as ") if named.note.startswith("weights as ") else ""
    if stated:
        name = stated.replace("-", "_").upper()
        try:
            return find_scheme({"F16": "fp16", "BF16": "bf16", "F32": "fp32"}.get(name, name)).name
        except MoesizeError:
            return "checkpoint"
    published = named.spec.quantization
    if called != "ollama" or (published is not None and published.method == "gguf"):
        return "checkpoint"
    # gpt-oss is served as it was published.
    return "MXFP4_MOE" if published and published.method == "mxfp4" else _OLLAMA_QUANT


def _states_context(request: Request) -> bool:
    """Whether a length is given, for one sequence or for all slots together."""
    slots = getattr(request.engine_settings, "ctx_size", None)
    return request.context_tokens is not None or bool(slots)


def _ollama_defaults(server: Server, called: str, request: Request) -> Request:
    if called != "ollama" or _states_context(request):
        return request
    text = server.environment.get("OLLAMA_CONTEXT_LENGTH")
    if text is not None and text.strip().isdigit() and int(text) > 0:
        return replace(request, context_tokens=int(text))
    return request


def ollama_context(case: Case, gpu: GpuSpec) -> int | None:
    """The context that Ollama takes by itself on a GPU; None where the file says one."""
    if case.called != "ollama" or _states_context(case.request):
        return None
    memory = gpu.usable_memory().best_bytes * case.num_gpus
    longest = case.named.spec.max_context
    for most, context in OLLAMA_CONTEXTS:
        if most is None or memory < most:
            return min(context, longest) if longest else context
    return None


# --- no GPU named ---------------------------------------------------------------------------------


class Needs(NamedTuple):
    """What a server needs where nobody says on which GPU it runs.

    least_bytes  usable memory of each GPU from which it fits; None: with no size tried
    fitting      GPUs of COMMON_GPUS on which it fits, by name; not_fitting: the others
    """

    least_bytes: int | None
    fitting: tuple[str, ...]
    not_fitting: tuple[str, ...]
    num_gpus: int


def needs(case: Case, vendor: str = "") -> Needs:
    """The least memory per GPU, and which common GPUs have it."""
    key = _key(case, vendor)
    found = _NEEDS.get(key)
    if found is None:
        if len(_NEEDS) > _MOST_KEPT:
            _NEEDS.clear()
        found = _NEEDS[key] = _needs(case, vendor)
    return found


# Dev, staging and production hold the same server; what it needs is found once.
_NEEDS: dict[tuple[object, ...], Needs] = {}
_MOST_KEPT = 2_000


def _key(case: Case, vendor: str) -> tuple[object, ...]:
    request = case.request
    draft = request.draft.spec.id if request.draft is not None else ""
    scheme = case.scheme.name if case.scheme is not None else ""
    rest = replace(request, draft=None)
    return (case.named.spec.id, scheme, case.called, case.num_gpus, case.takes_what_fits,
            vendor, draft, rest)  # fmt: skip


def _needs(case: Case, vendor: str) -> Needs:
    from moesize.gpus import find_gpu

    least = _least_gib(case)
    fitting: list[str] = []
    not_fitting: list[str] = []
    for name in COMMON_GPUS:
        gpu = find_gpu(name).spec
        if vendor and gpu.vendor.lower() != vendor:
            continue
        # Defaults follow the size of the GPU, so that close ones are planned.
        usable = gpu.usable_memory().best_bytes
        hopeless = least is None or usable < least * GIB * 3 // 4
        (not_fitting if hopeless or not _fits(case, gpu) else fitting).append(name)
    size_bytes = None if least is None else least * GIB
    return Needs(size_bytes, tuple(fitting), tuple(not_fitting), case.num_gpus)


def _least_gib(case: Case) -> int | None:
    """The least whole number of GiB on which it fits, by halving; None: not even on the most."""
    from moesize.gpus import find_gpu

    low, high = 0, _MOST_GIB
    try:
        largest = case.plan(find_gpu(f"{high}GiB").spec)
    except MoesizeError:
        return None
    if not largest.fits:
        return None
    # Weights have to fit whatever else does: halving need not begin at nothing.
    weights = max(ledger.category_bytes("weights") for ledger in largest.gpus)
    low = max(0, weights // GIB - 1) if case.called != "ollama" else 0
    step = 8
    while low + step < high and not _fits(case, find_gpu(f"{low + step}GiB").spec):
        low, step = low + step, step * 2
    high = min(high, low + step)
    while high - low > 1:
        middle = (low + high) // 2
        if _fits(case, find_gpu(f"{middle}GiB").spec):
            high = middle
        else:
            low = middle
    return high


def _fits(case: Case, gpu: GpuSpec) -> bool:
    try:
        context = ollama_context(case, gpu)
        changes = {} if context is None else {"context_tokens": context}
        return case.plan(gpu, **changes).fits
    except MoesizeError:
        return False
