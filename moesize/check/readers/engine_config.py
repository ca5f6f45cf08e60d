"""Files of engine options: `vllm serve --config`, `sglang --config`, TensorRT-LLM's options.

They are flat mappings of long flag names, with dashes or underscores. What the file is is told by
the flags: enough of them must be an engine's, and one at least that other programs do not have.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from moesize.check.formats import Context, Format
from moesize.check.server import Reading, Server
from moesize.check.source import Word
from moesize.check.yaml_tree import Node, Scalar
from moesize.engine_args.table import Flag, flag_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_KINDS = {
    "vllm": "vllm_config_yaml",
    "sglang": "sglang_config_yaml",
    "tensorrt-llm": "trtllm_options_yaml",
}
_MOST_KEYS = 200
_KNOWN_SHARE = 0.7
# Flags that other programs have, too: they tell nothing about the file.
_COMMON = frozenset(
    (
        "api-key",
        "batch-size",
        "chat-template",
        "context-length",
        "data-parallel-size",
        "load-format",
        "log-level",
        "max-batch-size",
        "model-path",
        "served-model-name",
        "tokenizer-mode",
        "tokenizer-path",
        "trust-remote-code",
    )
)
# One of these alone says enough.
_TELLING = frozenset(
    (
        "gpu-memory-utilization",
        "kv-cache-config",
        "max-model-len",
        "mem-fraction-static",
        "pipeline-parallel-size",
        "tensor-parallel-size",
    )
)
# Fields of TensorRT-LLM's LlmArgs (tensorrt_llm/llmapi/llm_args.py) that are no flags, and keys
# of the launchers around it.
_LLM_ARGS = frozenset(
    (
        "allreduce-strategy",
        "attention-dp-config",
        "attn-backend",
        "backend",
        "batched-logits-processor",
        "batch-wait-timeout-ms",
        "build-config",
        "cache-transceiver-config",
        "cp-config",
        "cuda-graph-batch-sizes",
        "cuda-graph-config",
        "cuda-graph-max-batch-size",
        "cuda-graph-padding-enabled",
        "disable-overlap-scheduler",
        "disaggregation-mode",
        "dtype",
        "enable-attention-dp",
        "enable-autotuner",
        "enable-block-reuse",
        "enable-iter-perf-stats",
        "enable-layerwise-nvtx-marker",
        "enable-lora",
        "extended-runtime-perf-knob-config",
        "gather-generation-logits",
        "garbage-collection-gen0-threshold",
        "guided-decoding-backend",
        "kv-cache-config",
        "kv-cache-dtype",
        "kv-cache-free-gpu-mem-fraction",
        "kv-connector-config",
        "llm-api-args",
        "load-format",
        "lora-config",
        "max-input-len",
        "max-stats-len",
        "mm-encoder-only",
        "moe-backend",
        "moe-config",
        "moe-load-balancer",
        "moe-max-num-tokens",
        "moe-tensor-parallel-size",
        "mpi-session",
        "nvfp4-gemm-config",
        "otlp-traces-endpoint",
        "perf-metrics-max-requests",
        "peft-cache-config",
        "postprocess-tokenizer-dir",
        "print-iter-log",
        "pytorch-backend-config",
        "quant-config",
        "ray-worker-extension-cls",
        "return-perf-metrics",
        "sampler-type",
        "scheduler-config",
        "skip-tokenizer-init",
        "sparse-attention-config",
        "speculative-config",
        "stream-interval",
        "tokenizer-mode",
        "torch-compile-config",
        "use-cuda-graph",
        "use-torch-sampler",
    )
)
_ONLY_LLM_ARGS = frozenset(
    (
        "cache-transceiver-config",
        "cuda-graph-config",
        "cuda-graph-padding-enabled",
        "enable-attention-dp",
        "kv-cache-config",
        "kv-cache-free-gpu-mem-fraction",
        "llm-api-args",
        "moe-config",
        "print-iter-log",
        "pytorch-backend-config",
        "torch-compile-config",
    )
)
# Where a field inside a table of LlmArgs is a flag, too.
_INNER_FLAGS = {
    ("kv-cache-config", "free-gpu-memory-fraction"): "--free_gpu_memory_fraction",
    ("build-config", "max-batch-size"): "--max_batch_size",
    ("build-config", "max-num-tokens"): "--max_num_tokens",
    ("build-config", "max-seq-len"): "--max_seq_len",
    ("build-config", "max-beam-width"): "--max_beam_width",
}
_RENAMED = {"kv-cache-free-gpu-mem-fraction": "--free_gpu_memory_fraction"}
_YES, _NO = ("true", "yes", "on"), ("false", "no", "off")


class Options(NamedTuple):
    """Options as words of an engine's command line.

    left   options that are no flags of the engine, by name
    """

    words: tuple[Word, ...]
    left: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """The options left out, in words."""
        listed = ", ".join(dict.fromkeys(self.left))
        return (f"not looked at: {listed[:300]}",) if listed else ()


def plain_key(key: str) -> str:
    """A key as flags are called: dashes for underscores, without dashes before it."""
    return key.strip().lstrip("-").replace("_", "-")


def knows(engine: str, key: str) -> bool:
    """Whether a key is a flag of an engine (or an option that its option files take)."""
    name = plain_key(key)
    if engine == "tensorrt-llm" and name in _LLM_ARGS:
        return True
    return find_flag(engine, key) is not None


def find_flag(engine: str, key: str) -> Flag | None:
    """The flag of an engine that a key names, abbreviated where the engine takes that."""
    return _find_flag(engine, plain_key(key)[:100])


@lru_cache(maxsize=4096)
def _find_flag(engine: str, name: str) -> Flag | None:
    found = flag_table(engine).find("--" + name, None)
    return None if isinstance(found, list) else found.flag


def engine_of_flags(names: Iterable[str], least: int = 1) -> str | None:
    """The engine whose flags these are, by those that it alone has; None: not clear.

    `least` is how many of its own flags that change memory it takes.
    """
    keys = {plain_key(name.partition("=")[0]) for name in names}
    engines = ("vllm", "sglang", "tensorrt-llm", "tgi", "llama.cpp")
    scores: dict[str, int] = {}
    for engine in engines:
        table = flag_table(engine).names
        others = [flag_table(other).names for other in engines if other != engine]
        own = [key for key in keys if "--" + key in table]
        alone = [key for key in own if not any("--" + key in other for other in others)]
        telling = [key for key in alone if table["--" + key].flag.effect != "none"]
        if len(telling) >= least:
            scores[engine] = len(own)
    best = [engine for engine, score in scores.items() if score == max(scores.values())]
    return best[0] if len(best) == 1 else None


def _engines_of(document: Node) -> list[str]:
    """The engines that a mapping of options may be for, the likeliest first."""
    keys = [plain_key(key) for key, _ in document.items()]
    if not 1 <= len(keys) <= _MOST_KEYS or "apiVersion" in keys or "kind" in keys:
        return []
    if len(keys) == 1 and keys[0] not in _TELLING | _ONLY_LLM_ARGS:
        return []
    scores: dict[str, int] = {}
    for engine in _KINDS:
        known = [key for key in keys if knows(engine, key)]
        if len(known) < _KNOWN_SHARE * len(keys):
            continue
        telling = _ONLY_LLM_ARGS if engine == "tensorrt-llm" else frozenset()
        if any(key in telling or _is_telling(engine, key) for key in known):
            scores[engine] = len(known)
    best = max(scores.values(), default=0)
    return [engine for engine, score in scores.items() if score == best]


def _is_telling(engine: str, key: str) -> bool:
    if key in _COMMON or "-" not in key or "--" + key not in flag_table(engine).names:
        return False
    return engine != "tensorrt-llm" or key in _TELLING or key.endswith(("-parallel-size", "p-size"))


def _bodies(document: Node) -> Iterator[tuple[Node, list[str]]]:
    """The mappings of options in a document: itself, or one below each engine's name."""
    engines = _engines_of(document)
    if engines:
        yield document, engines
        return
    names = {"vllm": "vllm", "sglang": "sglang", "trtllm": "tensorrt-llm"}
    entries = list(document.items())[: len(names) + 1]
    if entries and all(str(key) in names for key, _ in entries):
        for key, node in entries:
            if names[str(key)] in _engines_of(node):
                yield node, [names[str(key)]]


def words_of_options(node: Node, engine: str) -> Options:
    """Options as the engine's own reader of such files turns them into flags."""
    words: list[Word] = []
    left: list[str] = []
    for key, value in node.items():
        if len(words) > 4 * _MOST_KEYS:
            break
        name = plain_key(key)
        if engine == "tensorrt-llm" and name == "llm-api-args":
            continue  # applied last
        if engine == "tensorrt-llm" and find_flag(engine, key) is None:
            inner, others = _llm_args(key, value)
            words += inner
            left += others
            continue
        words += flag_words(key, value, find_flag(engine, key))
    if engine == "tensorrt-llm":
        for key, value in node.items():
            if plain_key(key) == "llm-api-args" and value.is_mapping:
                last = words_of_options(value, engine)
                words += last.words
                left += last.left
    return Options(tuple(words), tuple(left))


def options_of(documents: Iterable[Node], engine: str) -> Options | None:
    """The options of an engine in a file that something names; None: it holds none."""
    for document in documents:
        for node, engines in _bodies(document):
            if engine in engines:
                return words_of_options(node, engine)
    return None


def _llm_args(key: Word, value: Node) -> tuple[list[Word], list[str]]:
    """A field of LlmArgs: the flags that it, or what is in it, stands for; the rest by name."""
    name = plain_key(key)
    if name in _RENAMED:
        return flag_words(key.becomes(_RENAMED[name]), value, None), []
    words: list[Word] = []
    left: list[str] = []
    for inner, node in value.items():
        flag = _INNER_FLAGS.get((name, plain_key(inner)))
        if flag is not None:
            words += flag_words(inner.becomes(flag), node, None)
        elif len(left) < 20:
            left.append(f"{key}.{inner}")
    if not value.is_mapping:
        left.append(str(key))
    return words, left


def flag_words(key: Word, value: Node, flag: Flag | None) -> list[Word]:
    """A key and its value as words; nothing for null and for false, as the engines have it."""
    name = key if key.startswith("-") else key.becomes("--" + key.strip())
    if value.is_mapping:
        return [name, _json(value)]
    if value.is_sequence:
        items = [_item(item) for item in value.elements()[:_MOST_KEYS]]
        if flag is not None and flag.kind not in ("list", "two values") and len(items) > 1:
            return [name, _json(value)]
        return [name, *items] if items else []
    if not isinstance(value, Scalar) or value.text is None:
        return []
    lowered = value.value.strip().lower()
    if value.style == "" and lowered in _YES:
        return [name]
    if value.style == "" and lowered in _NO:
        return []
    return [name, value.word]


def _item(node: Node) -> Word:
    return node.word if isinstance(node, Scalar) else _json(node)


def _json(node: Node) -> Word:
    return Word(json.dumps(node.plain()), node.span)


# --- files ------------------------------------------------------------------------------------


def _read(document: Node, context: Context) -> Reading:
    reading = Reading(kind="vllm_config_yaml")
    for node, engines in _bodies(document):
        engine = _by_path(engines, context.path)
        reading.kind = _KINDS[engine]
        reading.servers.append(_server(node, engine))
    if reading.servers and all(server.skipped for server in reading.servers):
        reading.skipped = reading.servers[0].skipped
    return reading


def _by_path(engines: list[str], path: str) -> str:
    """Of engines that all have these flags, the one that the path names."""
    lowered = path.lower()
    words = {
        "vllm": ("vllm",),
        "sglang": ("sglang",),
        "tensorrt-llm": ("trtllm", "tensorrt", "trt"),
    }
    for engine in engines:
        if len(engines) > 1 and any(word in lowered for word in words[engine]):
            return engine
    return engines[0]


def _server(node: Node, engine: str) -> Server:
    options = words_of_options(node, engine)
    keys = {plain_key(key): (key, value) for key, value in node.items()}
    first = next(iter(keys.values()))[0]
    served = keys["served-model-name"][1] if "served-model-name" in keys else None
    fallback: Word | None = None
    if served is not None:
        fallback = served.text or next(iter(served.words()), None)
    has_model = any(
        name in keys and keys[name][1].text is not None
        for name in ("model", "model-path", "model-tag")
    )
    model = keys["model-tag"][1].text if "model-tag" in keys else None
    named = has_model or (fallback is not None and "/" in fallback)
    return Server(
        name=str(fallback or "options"),
        place=first,
        engine=engine,
        words=options.words,
        model=model,
        fallback_model=fallback,
        skipped="" if named else "engine options without a model",
        notes=options.notes,
    )


def _is_for(engine: str, document: Node) -> bool:
    return any(engine in engines for _, engines in _bodies(document))


def _is_vllm(document: Node) -> bool:
    return _is_for("vllm", document)


def _is_sglang(document: Node) -> bool:
    return _is_for("sglang", document)


def _is_trtllm(document: Node) -> bool:
    return _is_for("tensorrt-llm", document)


FORMATS = [
    Format("vllm_config_yaml", _is_vllm, _read),
    Format("sglang_config_yaml", _is_sglang, _read),
    Format("trtllm_options_yaml", _is_trtllm, _read),
]
