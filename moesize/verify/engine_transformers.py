"""transformers' own class over real shards: load, a prompt, steps with the library's own cache.

weights   the files' tensors; the class stacks experts and ties heads, which changes no byte
cache     as `core.hf_transformers` plans it, per layer: keys and values of the tokens so far; of a
          window of w tokens w (the slice of w - 1 that is kept holds on to the tensor behind it);
          MLA by release; a convolution of k keeps k inputs
peaks     the plan's worst moment of a prompt, with its band

On a GPU the model is built on the host and moved; quantized ones are loaded by the library's own
placement. Memory is read through the same meters as for our own pass.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from moesize.core.attention import GroupedQueryAttention, LatentAttention
from moesize.core.errors import EnvironmentProblem, MoesizeError, UnsupportedError
from moesize.core.hf_transformers import TransformersRules, prompt_peak, state_sizes
from moesize.core.units import format_bytes
from moesize.core.weight_formats import number_bytes
from moesize.engines import engine_rules
from moesize.verify import predict
from moesize.verify.devices import CpuMeter, Meter, find_meter
from moesize.verify.other_engines import Job, Outcome
from moesize.verify.passes import Stopwatch
from moesize.verify.phases import out_of_memory
from moesize.verify.report import Device, Failure, Term
from moesize.verify.terms import WORKSPACE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moesize.core.mixers import Mixer
    from moesize.core.model_spec import ModelSpec
    from moesize.verify.passes import Workload

# Buffers (rotary tables, windows) are not in files: some KiB.
_WEIGHTS = 0.001
_CACHE = 0.001
# `dtype` took the place of `torch_dtype`.
_DTYPE_SINCE = (4, 56)
_SHOWN = 3
# Share of a class's bytes that synthetic shards may lack.
_MISSING = 0.001
# A windowed layer's cache keeps its window as a number; and what else is no key or value.
_BESIDE_BYTES = 64


class Place(NamedTuple):
    """A device and its meter."""

    meter: Meter
    device: Device
    free_bytes: int


def find_place(device: str) -> Place:
    """The device of `--device`. Raises MoesizeError."""
    meter = find_meter(device)
    facts = Device(meter.kind, meter.name, meter.total_bytes(), meter.driver, torch.__version__)
    return Place(meter, facts, meter.free_bytes())


def run(job: Job, place: Place, version: str) -> Outcome:
    """Load, run, compare. Raises UnsupportedError for what the library does not load."""
    meter = place.meter
    rules = engine_rules("transformers", version)
    _check_room(job, place, rules)
    _check_import(version)
    if job.limit_bytes is not None:
        meter.limit(job.limit_bytes)
    one = _Run(job, meter, version)
    failure = None
    with meter.watch(), _quiet_and_seen(meter):
        start = meter.reading()
        try:
            one.measure()
        except MoesizeError:
            raise
        except Exception as error:
            asked = out_of_memory(error)
            if asked is None:
                raise UnsupportedError(
                    f"transformers {version} fails in {one.watch.current}: {_first_line(error)}"
                ) from error
            failure = Failure(one.watch.current, asked or None, dict(one.found), _first_line(error))
        one.model = one.cache = None
        meter.release()
        meter.synchronize()
        one.found["after_free"] = meter.reading().allocated - start.allocated
    return Outcome(_terms(job, one, meter, rules), tuple(one.watch.records), failure, one.notes)


def _check_room(job: Job, place: Place, rules: TransformersRules) -> None:
    """Room for weights, cache and a prompt; the host holds the model before it is moved to a GPU.

    Raises EnvironmentProblem.
    """
    subject, work = job.subject, job.work
    held = predict.weights(subject).requested_bytes
    _, _, prompt, _ = prompt_peak(subject.spec, rules, work.tokens, work.sequences, eager=False)
    needed = held + cache_bytes(subject.spec, rules, work) + prompt
    if needed > place.free_bytes:
        raise EnvironmentProblem(
            f"weights, cache and a prompt take up to {format_bytes(needed)}, and "
            f"{format_bytes(place.free_bytes)} are free",
            "fewer --tokens or --sequences; nothing was loaded",
        )
    free = CpuMeter().free_bytes()
    if place.meter.kind != "cpu" and held > free:
        raise EnvironmentProblem(
            f"transformers loads {format_bytes(held)} into the host's memory first, and "
            f"{format_bytes(free)} are free there",
            "fewer --layers with --synthetic; --engine torch loads onto the GPU",
        )


def _check_import(version: str) -> None:
    """A library that does not go with this torch says so here. Raises EnvironmentProblem."""
    try:
        _ = import_module("transformers").AutoModelForCausalLM
    except Exception as error:
        raise EnvironmentProblem(
            f"transformers {version} cannot be imported: {_first_line(error)}",
            "does it go with the torch that is installed?",
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return "".join(char for char in lines[0] if char.isprintable())[:240]


@contextmanager
def _quiet_and_seen(meter: Meter) -> Iterator[None]:
    """No bars and warnings of the library; on a CPU it loads in this thread, the one that is seen.

    Restored afterwards.
    """
    logging: Any = import_module("transformers.utils.logging")
    name, before = "HF_DEACTIVATE_ASYNC_LOAD", os.environ.get("HF_DEACTIVATE_ASYNC_LOAD")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if meter.kind == "cpu":
        os.environ[name] = "1"
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


# --- The run --------------------------------------------------------------------------------------


class _Run:
    """What is held, and what was found so far."""

    def __init__(self, job: Job, meter: Meter, version: str) -> None:
        self.job, self.meter, self.version = job, meter, version
        self.watch = Stopwatch(meter, lambda name: job.say(name, 0, 0))
        self.found: dict[str, int] = {}
        self.model: Any = None
        self.cache: Any = None
        self.attention = "sdpa"
        self._notes: list[str] = []

    def measure(self) -> None:
        """Load, a prompt, steps."""
        self._load()
        with torch.no_grad():
            self._passes()

    @property
    def notes(self) -> tuple[str, ...]:
        """What class and files do not have in common."""
        return tuple(self._notes)

    def _load(self) -> None:
        begin = self.watch.begin("load")
        before = self.meter.reading().requested
        try:
            self.model = self._pretrained()
        except Exception as error:
            if out_of_memory(error) is not None or isinstance(error, MoesizeError):
                raise
            raise UnsupportedError(
                f"transformers {self.version} does not load this model: {_first_line(error)}"
            ) from error
        self.model.eval()
        live = getattr(self.meter, "live", None)
        if live is not None:
            live.adopt([*self.model.parameters(), *self.model.buffers()])
        record = self.watch.end()
        self.found["weights"] = self.meter.reading().requested - before
        self.found["load_peak"] = record.peak_bytes - begin

    def _pretrained(self) -> Any:
        library: Any = import_module("transformers")
        folder, dtype = self.job.folder, self.job.subject.torch_dtype
        config = library.AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        options: dict[str, Any] = {
            "dtype" if _release(self.version) >= _DTYPE_SINCE else "torch_dtype": dtype
        }
        quantized = getattr(config, "quantization_config", None) is not None
        if quantized:
            _check_quantization(config.quantization_config, self.version)
            options["device_map"] = {"": str(self.meter.device)}
        model, info = library.AutoModelForCausalLM.from_pretrained(
            folder, config=config, trust_remote_code=False, use_safetensors=True,
            local_files_only=True, output_loading_info=True, **options,
        )  # fmt: skip
        self._check_missing(model, sorted(map(str, info.get("missing_keys", ()))))
        unused = sorted(map(str, info.get("unexpected_keys", ())))
        if unused:
            self._notes.append(
                f"{len(unused):,} tensors of the files are not in the class: {_some(unused)}"
            )
        self.attention = str(getattr(model.config, "_attn_implementation", "") or "sdpa")
        return model if quantized else model.to(self.meter.device)

    def _check_missing(self, model: Any, names: list[str]) -> None:
        """The library fills what the files lack with random numbers. Raises UnsupportedError.

        Synthetic shards are random anyway, and a spec leaves out scalars and tables of a class.
        """
        if not names:
            return
        sizes = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        size = sum(sizes[name].nbytes for name in names if name in sizes)
        whole = sum(tensor.nbytes for tensor in sizes.values())
        text = f"{len(names):,} tensors of transformers' class: " + _some(names)
        if not self.job.synthetic or size > _MISSING * whole:
            raise UnsupportedError(f"the shards lack {text}")
        self._notes.append(f"not in the synthetic shards: {text}")

    def _passes(self) -> None:
        from inspect import signature

        work, watch, model = self.job.work, self.watch, self.model
        rows = self.job.subject.spec.embedding.vocab_size
        generator = torch.Generator().manual_seed(work.seed)
        ids = torch.randint(rows, (work.sequences, work.longest), generator=generator)
        ids = ids.to(self.meter.device)
        # Logits of the last position, as `generate` asks for them.
        last = "logits_to_keep" in signature(model.forward).parameters
        options = {"use_cache": True, **({"logits_to_keep": 1} if last else {})}
        start = watch.begin("prefill")
        held = self.meter.reading().requested
        out = model(ids[:, : work.tokens], **options)
        # Mamba's classes have a name of their own for it.
        name = "cache_params" if hasattr(out, "cache_params") else "past_key_values"
        self.cache = getattr(out, name, None)
        del out
        if self.cache is None:
            raise UnsupportedError("the library's class keeps no cache that is known here")
        record = watch.end()
        kept = max(0, record.end_bytes - start)
        self.found["prefill_peak"] = record.peak_bytes - start - kept
        decode = 0
        for step in range(work.decode_steps):
            start = watch.begin(f"decode {step}")
            at = work.tokens + step
            out = model(ids[:, at : at + 1], **{name: self.cache}, **options)
            del out
            decode = max(decode, watch.end().peak_bytes - start)
        self.found["decode_peak"] = decode
        self.found["kv_cache.growing"] = self.meter.reading().requested - held


def _some(names: list[str]) -> str:
    """The first few, printable."""
    return ", ".join(name[:80] if name.isprintable() else "?" for name in names[:_SHOWN])


def _release(version: str) -> tuple[int, ...]:
    parts = version.split(".")[:2]
    return tuple(int(part) for part in parts if part.isdigit())


def _check_quantization(given: Any, version: str) -> None:
    """The packages that a format needs are here, and it stays what it is.

    Without a suitable GPU or kernels the library turns FP8 and MXFP4 into 16 bits, which is
    another model as far as memory goes. Raises UnsupportedError.
    """
    quantizers: Any = import_module("transformers.quantizers.auto")
    try:
        quantizer = quantizers.AutoHfQuantizer.from_config(given, pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
    except Exception as error:
        raise UnsupportedError(
            f"transformers {version} does not load this format: {_first_line(error)}"
        ) from error
    if getattr(quantizer.quantization_config, "dequantize", False):
        method = getattr(quantizer.quantization_config, "quant_method", "this format")
        raise UnsupportedError(
            f"transformers {version} would turn {getattr(method, 'value', method)} into 16 bits "
            "here: it needs a GPU for the format, and for MXFP4 triton and `kernels`",
            "--engine torch loads it as it is",
        )


# --- Terms ----------------------------------------------------------------------------------------


def cache_bytes(spec: ModelSpec, rules: TransformersRules, work: Workload) -> int:
    """Bytes of the cache's tensors after the last step, without rounding.

    Keys and values of min(T, w) tokens for a window of w, of all T without; states of recurrent
    layers in float32, as its kernels leave them; convolutions with k inputs where engines keep
    k - 1.
    """
    return work.sequences * sum(
        _layer_cache(mixer, spec, rules, work.longest)
        for name in spec.layout
        for mixer in spec.block(name).mixers
    )


def _layer_cache(mixer: Mixer, spec: ModelSpec, rules: TransformersRules, tokens: int) -> int:
    element = number_bytes(spec.dtype, 1)
    if isinstance(mixer, LatentAttention) and rules.latent_cache == "expanded":
        key = mixer.qk_nope_head_dim + mixer.qk_rope_head_dim
        return tokens * mixer.num_heads * (key + mixer.v_head_dim) * element
    total = 0
    for cache in mixer.cache():
        if cache.ratio > 1:
            raise UnsupportedError("the cache of compressed attention in transformers is not known")
        bound = cache.window
        if isinstance(mixer, GroupedQueryAttention):
            bound = bound or cache.chunk
        rows = min(tokens, bound or tokens)
        total += rows * max(1, cache.heads) * (cache.key_size + cache.value_size) * element
    return total + sum(state_sizes(mixer, element))


def _terms(job: Job, one: _Run, meter: Meter, rules: TransformersRules) -> tuple[Term, ...]:
    subject, work, found = job.subject, job.work, one.found
    spec = subject.spec
    held = predict.weights(subject)
    cached = cache_bytes(spec, rules, work)
    rows = [
        _term(
            "weights", held.requested_bytes, _WEIGHTS,
            f"{held.tensors:,} tensors of the files; rotary tables of the class are some KiB more",
        ),
        _load_term(held.allocated_bytes, meter),
        replace(
            _term(
                "kv_cache.growing", cached, _CACHE,
                f"the library's own cache: {work.sequences} sequences of {work.longest:,} tokens",
            ),
            low_bytes=cached, high_bytes=cached + _BESIDE_BYTES * spec.num_layers,
        ),
        _prompt_term(job, one, meter, rules),
        _term("decode_peak", None, 0.0, "not predicted: a step, and a copy of each cache"),
        _term("after_free", 0, 0.0, "still live after everything was let go"),
    ]  # fmt: skip
    if meter.counts_blocks:
        rows[-1] = replace(rows[-1], low_bytes=0, high_bytes=WORKSPACE_BYTES)
    return tuple(
        replace(
            row,
            measured_bytes=found.get(row.name),
            tolerance=row.tolerance if job.tolerance is None else job.tolerance,
        )
        for row in rows
    )


def _prompt_term(job: Job, one: _Run, meter: Meter, rules: TransformersRules) -> Term:
    """The plan's activations, which are those of a GPU; recurrent layers are not counted there."""
    spec, work = job.subject.spec, job.work
    if any(mixer.state() for block in spec.blocks for mixer in block.mixers):
        return _term("prefill_peak", None, 0.0, "not predicted: kernels of recurrent layers")
    best, low, high, moment = prompt_peak(
        spec, rules, work.tokens, work.sequences, eager=one.attention == "eager"
    )
    why = f"beyond weights and cache, attention {one.attention}; {moment}"
    if meter.kind == "cpu":
        return _term(
            "prefill_peak", None, 0.0, f"a GPU's is planned as {format_bytes(best)}; {why}"
        )
    return replace(_term("prefill_peak", best, 0.0, why), low_bytes=low, high_bytes=high)


def _load_term(held_bytes: int, meter: Meter) -> Term:
    """On a GPU the load peak is the model itself; what a host needs beside it is not predicted."""
    if meter.kind == "cpu":
        why = "not predicted: the library's loader; experts are stacked from single ones meanwhile"
        return _term("load_peak", None, 0.0, why)
    return _term("load_peak", held_bytes, 0.01, "built on the host and moved tensor by tensor")


def _term(name: str, predicted: int | None, tolerance: float, why: str) -> Term:
    return Term(
        name=name, predicted_bytes=predicted, measured_bytes=None, tolerance=tolerance, why=why
    )
