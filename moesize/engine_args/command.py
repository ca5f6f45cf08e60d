"""A pasted serve command, or flags alone, into what a Request takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from moesize.core.errors import InvalidInputError
from moesize.core.plan import Note
from moesize.core.records import dataclass
from moesize.engine_args.table import Flag, FlagTable, Found, flag_table
from moesize.engine_args.values import READERS
from moesize.engine_args.words import (
    Program,
    fill_in,
    find_program,
    is_open,
    split_text,
    version_of_image,
)

if TYPE_CHECKING:
    from moesize.core.deployment import Request

_MOST_NAMED = 24
_TITLES = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "llama.cpp": "llama.cpp",
    "ik_llama.cpp": "ik_llama.cpp",
    "transformers": "transformers",
    "tgi": "TGI",
    "tensorrt-llm": "TensorRT-LLM",
}
# Forks whose flags are those of another engine, and whose program has its name.
_FORKS = {"ik_llama.cpp": "llama.cpp"}
# Engine -> name of the dataclass of its own settings, in its core module or <module>_settings.
_SETTINGS = {
    "vllm": "VllmSettings",
    "sglang": "SglangSettings",
    "llama.cpp": "LlamaCppSettings",
    "ik_llama.cpp": "LlamaCppSettings",
    "transformers": "TransformersSettings",
    "tgi": "TgiSettings",
    "tensorrt-llm": "TensorrtLlmSettings",
}
# What an engine calls a quantization -> our scheme, for a checkpoint that is not quantized. Names
# from vLLM 0.33.0 layers/quantization/__init__.py, SGLang 0.5.23 arg_groups/choices.py and TGI
# 3.3.7 docs/source/reference/launcher.md.
_SCHEMES = {
    "fp8": "fp8",
    "fp8_per_tensor": "fp8",
    "ptpc_fp8": "fp8-dynamic",
    "fbgemm_fp8": "fp8-dynamic",
    "w8a8_fp8": "fp8-dynamic",
    "modelopt": "fp8",
    "modelopt_fp8": "fp8",
    "fp8_per_block": "fp8-block",
    "blockwise_int8": "int8",
    "experts_int8": "int8",
    "eetq": "int8",
    "w8a8_int8": "w8a8",
    "awq": "awq-4bit",
    "awq_marlin": "awq-4bit",
    "gptq": "gptq-4bit",
    "gptq_marlin": "gptq-4bit",
    "marlin": "gptq-4bit",
    "bitsandbytes": "nf4",
    "bitsandbytes-nf4": "nf4",
    "mxfp4": "mxfp4",
    "modelopt_fp4": "nvfp4",
    "petit_nvfp4": "nvfp4",
    "nvfp4": "nvfp4",
}


class Setting(NamedTuple):
    """One planned flag with its value: `targets` as in the flags data."""

    flag: str
    targets: tuple[str, ...]
    value: Any


class Typed(NamedTuple):
    """A flag or variable as it was typed: the very objects that were handed in, places and all.

    state   known; unknown: not the engine's; absent: not in this version; bad: see `problem`
    """

    flag: Flag | None
    word: str
    values: tuple[str, ...] = ()
    state: str = "known"
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeCommand:
    """What a pasted command, or flags alone, say.

    engine           None when only flags were given and no engine was named
    is_program       an engine is started; False: flags alone
    engine_version   the release that a container image names
    model            as typed: a hub id, a path, REPO:QUANT for llama-server -hf
    quant, scheme    --quantization as typed, and the scheme it makes of an unquantized checkpoint
    draft            the draft model as typed
    visible_gpus     GPUs that CUDA_VISIBLE_DEVICES or `docker run --gpus` lets the engine see
    settings         planned flags in the order of effect: variables first, the last flag wins
    planned, silent, unplanned, unknown, absent, open_values
                     flags as typed by what becomes of them: planned; cannot change memory; may
                     change it and are not planned; not the engine's; not in this version; of a
                     value that only the shell knows
    typed            every flag and variable, as given
    """

    engine: str | None
    is_program: bool = False
    engine_version: str | None = None
    image: str | None = None
    model: str | None = None
    quant: str | None = None
    draft: str | None = None
    visible_gpus: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    settings: tuple[Setting, ...] = ()
    planned: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    unplanned: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    open_values: tuple[str, ...] = ()
    typed: tuple[Typed, ...] = ()

    @property
    def scheme(self) -> str | None:
        """The scheme that --quantization, or the GGUF file, stands for; None: not known."""
        quant = (self.quant or "").lower()
        if self.is_gguf:
            return _gguf_scheme(quant)
        if self.engine == "tgi" and quant == "bitsandbytes":
            return "int8"
        return _SCHEMES.get(quant)

    @property
    def is_gguf(self) -> bool:
        """Whether the engine reads GGUF files: `quant` is then the type that the name ends in."""
        return _FORKS.get(self.engine or "", self.engine) == "llama.cpp"

    def changes(self, engine: str) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
        """(Request fields, engine settings, flags that this engine's planner does not look at)."""
        return _resolve(self.settings, engine)


def parse_serve_command(
    text: str | Sequence[str],
    *,
    engine: str | None = None,
    version: str | None = None,
    env: Mapping[str, str] | None = None,
) -> ServeCommand:
    """Read a pasted command or flags alone.

    `engine` is that of flags alone (vllm if None); a command names its own. `version` says which
    flags exist; without it, an image's tag, or all flags of all releases. Raises InvalidInputError
    that names the flag.
    """
    given = dict(env or {})
    if isinstance(text, str):
        segments = split_text(text)
        program = find_program(segments) if segments else Program(engine, (), {})
    else:
        program = find_program([list(text)]) if text else Program(engine, (), {})
    environment = {**given, **program.environment}
    if program.engine and engine and program.engine != _FORKS.get(engine, engine):
        raise InvalidInputError(
            f"--engine is {engine}, but the pasted command starts {program.engine}",
            "leave --engine out, or paste flags of that engine alone",
        )
    name = program.engine or _FORKS.get(engine or "", engine) or "vllm"
    tag = version_of_image(name, program.image) if program.image else None
    found = read_engine_words(name, program.words, version=version or tag, env=environment)
    return replace(
        found,
        engine=engine or program.engine,
        is_program=program.engine is not None,
        engine_version=tag,
        image=program.image,
        visible_gpus=program.visible,
        unplanned=tuple(dict.fromkeys((*found.unplanned, *program.opened))),
    )


def read_engine_words(
    engine: str,
    words: Sequence[str],
    *,
    version: str | None = None,
    env: Mapping[str, str] | None = None,
    lenient: bool = False,
) -> ServeCommand:
    """What follows an engine's program: its flags, and a model without one.

    `lenient` keeps flags with values that cannot be read in `typed` (state bad) instead of raising
    InvalidInputError for the first.
    """
    name = _FORKS.get(engine, engine)
    environment = dict(env or {})
    reader = _Reader(flag_table(name), version, environment, lenient=lenient)
    reader.read_variables()
    reader.read_words(words, positional_model=name in ("vllm", "tensorrt-llm"))
    reader.finish()
    return ServeCommand(
        engine=engine,
        is_program=True,
        model=reader.command.get("model"),
        quant=reader.command.get("quant") or gguf_type(reader.command, name),
        draft=reader.command.get("draft"),
        environment=environment,
        settings=tuple(reader.settings.values()),
        planned=tuple(dict.fromkeys(reader.planned)),
        silent=tuple(dict.fromkeys(reader.silent)),
        unplanned=tuple(dict.fromkeys(reader.unplanned)),
        unknown=tuple(dict.fromkeys(reader.unknown)),
        absent=tuple(dict.fromkeys(reader.absent)),
        open_values=tuple(dict.fromkeys(reader.open_values)),
        typed=tuple(reader.typed),
    )


_SPLIT = re.compile(r"(-\d{5}-of-\d{5})?\.gguf$", re.IGNORECASE)
_GGUF_TYPE = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q\d[A-Z0-9_]{0,10}|TQ\d_\d|MXFP4(?:_MOE)?|BF16|F16|F32))$",
    re.IGNORECASE,
)


def gguf_type(command: Mapping[str, Any], engine: str) -> str | None:
    """Q4_K_M of REPO:Q4_K_M and model-Q4_K_M-00001-of-00002.gguf, as people name such files."""
    if engine != "llama.cpp":
        return None
    for name in (command.get("file"), command.get("model")):
        if name:
            last = name.replace("\\", "/").rpartition("/")[2]
            match = _GGUF_TYPE.search(last.partition(":")[2] or _SPLIT.sub("", last))
            if match:
                return match[1].upper()
    return None


def bare_model(name: str) -> str:
    """A model's name without owner, folder, revision, GGUF type and what else files add."""
    last = name.partition("@")[0].replace("\\", "/").rstrip("/").rpartition("/")[2]
    last = last.partition(":")[0]
    if _SPLIT.search(last):
        last = _SPLIT.sub("", last)
        match = _GGUF_TYPE.search(last)
        last = last[: match.start()] if match else last
    return last[:-5] if last.lower().endswith("-gguf") else last


def _gguf_scheme(quant: str) -> str | None:
    from moesize.core.errors import UnknownNameError
    from moesize.core.quantization import find_scheme

    plain = {"f16": "fp16", "f32": "fp32", "bf16": "bf16"}
    try:
        scheme = find_scheme(plain.get(quant, quant))
    except UnknownNameError:
        return None
    return scheme.name if scheme.is_gguf or quant in plain else None


class _Reader:
    """Walks over words and variables and sorts what it finds."""

    def __init__(
        self,
        table: FlagTable,
        version: str | None,
        environment: dict[str, str],
        *,
        lenient: bool = False,
    ) -> None:
        self.lenient = lenient
        self.typed: list[Typed] = []
        self.table = table
        self.version = version
        self.environment = environment
        self.settings: dict[tuple[str, ...], Setting] = {}
        self.command: dict[str, Any] = {}
        self.merged: dict[str, tuple[Flag, dict[str, Any]]] = {}
        self.planned: list[str] = []
        self.silent: list[str] = []
        self.unplanned: list[str] = []
        self.unknown: list[str] = []
        self.absent: list[str] = []
        self.open_values: list[str] = []

    def read_variables(self) -> None:
        """Variables that the engine reads; those of other programs are no concern."""
        prefixes = {"vllm": "VLLM_", "sglang": "SGLANG_", "llama.cpp": "LLAMA_ARG_"}
        own = prefixes.get(self.table.engine)
        for name, value in self.environment.items():
            flag = self.table.variables.get(name)
            if flag is None:
                if name in self.table.silent:
                    self.silent.append(name)
                elif name.startswith(("NCCL_BUFF", "NCCL_MAX", "NCCL_CUMEM", "PYTORCH_CUDA_ALLOC")):
                    self.unplanned.append(name)
                elif own and name.startswith(own):
                    self.unknown.append(name)
                continue
            self.typed.append(Typed(flag, name, (value,)))
            self._guard(self._variable, flag, name, value)

    def _variable(self, flag: Flag, name: str, value: str) -> None:
        if flag.effect == "none":
            self.silent.append(name)
        elif is_open(value):
            self.open_values.append(name)
        elif name.startswith("LLAMA_ARG_NO_") and flag.env != name:
            self._set(flag, name, "0", on=True)
        elif flag.kind == "switch" and flag.env == name:
            self._set(flag, name, value if value.strip() else "0", on=True)
        else:
            self._take(Found(flag), name, value)

    def _guard(self, read: Callable[..., None], *arguments: Any) -> None:
        """Read the flag that was typed last; what cannot be read is kept if that is wanted."""
        if not self.lenient:
            read(*arguments)
            return
        try:
            read(*arguments)
        except InvalidInputError as error:
            problem = error.message.removeprefix("--engine-args: ")
            self.typed[-1] = self.typed[-1]._replace(state="bad", problem=problem)

    def read_words(self, words: Sequence[str], *, positional_model: bool) -> None:
        """The flags of a command line, as argparse or llama.cpp reads them."""
        position = 0
        while position < len(words):
            typed = words[position]
            position += 1
            if typed == "--":
                continue
            if not _is_flag(typed):
                if positional_model and "model" not in self.command and not _is_stray(typed):
                    self.typed.append(Typed(None, typed, state="model"))
                    self._model(fill_in(typed, self.environment))
                continue
            word, equals, value = typed.partition("=")
            word = _level(word, words[position : position + 1])
            if word.startswith("--optimization-level") and "=" not in typed and word != typed:
                word, equals, value = word.partition("=")
                if value and typed == "-O":
                    position += 1
            name, dot, key = word.partition(".")
            name = name.replace("_", "-") if name.startswith("--") else name
            found = self.table.find(name, self.version)
            if isinstance(found, list):
                passed = self._not_found(name, found, words, position, bool(equals))
                following = tuple(words[position : position + passed])
                unknown = Typed(None, typed, following, "unknown", self.unknown[-1])
                self.typed.append(unknown)
                position += passed
                continue
            values: list[str] = [value] if equals else []
            if not equals:
                try:
                    values, position = self._values(found, name, words, position, dotted=bool(dot))
                except InvalidInputError as error:
                    if not self.lenient:
                        raise
                    problem = error.message.removeprefix("--engine-args: ")
                    self.typed.append(Typed(found.flag, typed, (), "bad", problem))
                    continue
            here = Typed(found.flag, typed, () if equals else tuple(values))
            if self.version and not self.table.has(found.flag, self.version):
                last = self.table.last_with(found.flag)
                self.absent.append(f"{name} (up to {last})" if last else name)
                self.typed.append(here._replace(state="absent", problem=self.absent[-1]))
                continue
            self.typed.append(here)
            values = [fill_in(each, self.environment) for each in values]
            self._guard(self._word, found, name, key if dot else None, values)

    def _word(self, found: Found, name: str, key: str | None, values: Sequence[str]) -> None:
        """One flag with its values; `key` is the dotted part of its name."""
        if key is not None:
            self._dotted(found.flag, name, key, values[0])
        elif found.flag.kind == "switch":
            self._set(found.flag, name, values[0] if values else "1", on=found.on)
        elif found.flag.kind == "two values":
            self._take(found, name, " ".join(values))
        elif found.flag.kind == "optional" and not values:
            self._take(found, name, "true")
        else:
            self._take(found, name, " ".join(values))

    def _not_found(
        self, name: str, near: list[str], words: Sequence[str], position: int, has_value: bool
    ) -> int:
        """Name a word that is no flag; gives how many words to pass over."""
        shown = _shown(name)
        if near:
            shown += f" (short for {', '.join(near[:3])}?)"
        else:
            from difflib import get_close_matches

            close = get_close_matches(name[:60], self.table.names, n=1, cutoff=0.84)
            shown += f" (did you mean {close[0]}?)" if close else ""
        self.unknown.append(shown)
        rest = words[position : position + 1]
        return 1 if not has_value and rest and not _is_flag(rest[0]) else 0

    def _values(
        self, found: Found, name: str, words: Sequence[str], position: int, *, dotted: bool
    ) -> tuple[list[str], int]:
        """The words that belong to a flag, and where the next flag stands."""
        kind = "value" if dotted else found.flag.kind
        if kind == "switch":
            return [], position
        following = words[position : position + 1]
        if kind == "optional":
            good = bool(following) and not _is_flag(following[0])
            if good and found.flag.read in ("bool", "llama_onoff"):
                try:
                    READERS[found.flag.read](following[0])
                except InvalidInputError:
                    good = False
            return (list(following), position + 1) if good else ([], position)
        if kind == "list":
            end = position
            while end < len(words) and not _is_flag(words[end]):
                end += 1
            return list(words[position:end]), end
        count = 2 if kind == "two values" else 1
        taken = list(words[position : position + count])
        strict = self.table.engine != "llama.cpp"
        if len(taken) < count or (strict and any(map(self._is_known, taken))):
            raise InvalidInputError(f"--engine-args: {_shown(name)} needs a value")
        return taken, position + count

    def _is_known(self, word: str) -> bool:
        name = word.partition("=")[0].replace("_", "-")
        return _is_flag(word) and not isinstance(self.table.find(name, self.version), list)

    def _model(self, text: str) -> None:
        if not is_open(text):
            self.command["model"] = text
        else:
            self.open_values.append(f"the model {_shown(text)}")

    def _dotted(self, flag: Flag, name: str, key: str, text: str) -> None:
        """--speculative-config.method mtp: put into the table of the flag."""
        from moesize.engine_args.values import human, json_value

        if is_open(text) and flag.effect != "none":
            self.open_values.append(f"{name}.{_shown(key)} {_shown(text)}")
            return
        value: Any = text
        if key.endswith("+"):
            key, value = key[:-1], text.split(",")
        else:
            for read in (json_value, human):
                try:
                    value = read(text)
                    break
                except InvalidInputError:
                    continue
        keys = key.split(".")
        if len(keys) > 16:
            raise InvalidInputError(f"--engine-args: {_shown(name)} goes too deep")
        _, known = self.merged.setdefault(flag.name, (flag, {}))
        for part in keys[:-1]:
            inner = known.setdefault(part.replace("-", "_"), {})
            if not isinstance(inner, dict):
                inner = known[part.replace("-", "_")] = {}
            known = inner
        known[keys[-1].replace("-", "_")] = value

    def _set(self, flag: Flag, name: str, text: str, *, on: bool) -> None:
        """A switch: turned on or off."""
        if flag.effect != "planned":
            self._take(Found(flag), name, text if on else "")
            return
        if is_open(text):
            self.open_values.append(name)
            return
        try:
            value: Any = READERS["bool"](text) is on
            if flag.read != "bool":
                value = READERS[flag.read]("true" if value else "false")
        except InvalidInputError as error:
            raise InvalidInputError(f"--engine-args: {_shown(name)}: {error.message}") from error
        self._keep(flag, name, value)

    def _take(self, found: Found, name: str, text: str) -> None:
        """A flag with its text."""
        flag = found.flag
        if flag.effect == "none":
            self.silent.append(name)
        elif flag.effect == "memory":
            if text.strip().lower() in flag.harmless:
                self.silent.append(name)
            else:
                self.unplanned.append(f"{name} {_shown(text)}" if text and text != "1" else name)
        elif is_open(text):
            self.open_values.append(f"{name} {_shown(text)}")
        else:
            try:
                value = READERS[flag.read](text)
            except InvalidInputError as error:
                message = f"--engine-args: {_shown(name)}: {error.message}"
                raise InvalidInputError(message, error.hint) from error
            if not found.on and isinstance(value, bool):
                value = not value
            self._keep(flag, name, value)

    def _keep(self, flag: Flag, name: str, value: Any) -> None:
        self.planned.append(name)
        kind, _, target = flag.targets[0].partition(":")
        if kind == "command":
            if target in ("speculative", "eplb", "compilation"):
                self.merged[flag.name] = (flag, dict(value))
            else:
                self.command[target] = value
            return
        self.settings.pop(flag.targets, None)
        if value is not None:
            self.settings[flag.targets] = Setting(name, flag.targets, value)

    def _put(self, flag: str, target: str, value: Any) -> None:
        if value is not None:
            self.settings[(target,)] = Setting(flag, (target,), value)

    def finish(self) -> None:
        """Tables, LoRA and speculation into settings; a parallel size of llama.cpp and so on."""
        for flag, config in self.merged.values():
            if flag.effect == "none":
                self.silent.append(flag.name)
            elif flag.effect == "memory":
                self.unplanned.append(flag.name)
            else:
                kind = flag.targets[0].partition(":")[2]
                try:
                    self._table(flag, kind, config)
                except InvalidInputError as error:
                    message = f"--engine-args: {flag.name}: {error.message}"
                    if not self.lenient:
                        raise InvalidInputError(message, error.hint) from error
                    self.typed.append(Typed(flag, flag.name, (), "bad", message[15:]))
        self._lora()
        self._speculation()

    def _table(self, flag: Flag, kind: str, config: dict[str, Any]) -> None:
        import json

        try:
            text = json.dumps(config)
        except (TypeError, ValueError) as error:
            raise InvalidInputError("a table that is no JSON") from error
        known: tuple[str, ...]
        if kind == "speculative":
            config = READERS[flag.read](text)
            self.command.setdefault("draft", config.get("model"))
            self.command["spec_method"] = config.get("method")
            self._put(flag.name, "request:num_spec_tokens", config.get("num_speculative_tokens"))
            self._put(
                flag.name,
                "setting:draft_tensor_parallel_size",
                config.get("draft_tensor_parallel_size"),
            )
            known = (
                "model",
                "method",
                "num_speculative_tokens",
                "draft_tensor_parallel_size",
                # No memory of its own: how guesses are looked up and accepted.
                "prompt_lookup_max",
                "prompt_lookup_min",
                "disable_log_stats",
                "revision",
                "enforce_eager",
                "rejection_sample_method",
            )
        elif kind == "eplb":
            config = READERS[flag.read](text)
            redundant = config.get("num_redundant_experts")
            self._put(flag.name, "request:num_redundant_experts", redundant)
            known = ("num_redundant_experts", "step_interval", "log_balancedness", "policy")
        elif kind == "compilation":
            config = READERS[flag.read](text)
            sizes = config.get("cudagraph_capture_sizes")
            if sizes is not None:
                self._put(flag.name, "setting:cudagraph_capture_sizes", tuple(sizes))
            largest = config.get("max_cudagraph_capture_size")
            self._put(flag.name, "setting:max_cudagraph_capture_size", largest)
            for key in ("cudagraph_mode", "mode"):
                value = config.get(key)
                if value is not None:
                    name = "compilation_mode" if key == "mode" else key
                    self._put(flag.name, f"setting:{name}", str(value)[:40])
            known = (
                "cudagraph_capture_sizes",
                "max_cudagraph_capture_size",
                "cudagraph_mode",
                "mode",
                "cache_dir",
                "debug_dump_path",
                "cudagraph_num_of_warmups",
            )
        else:
            self._put(flag.name, flag.targets[0], READERS[flag.read](text))
            known = tuple(config)
        left = [f"{flag.name}.{_shown(str(key))}" for key in config if key not in known]
        self.unplanned += left[:_MOST_NAMED]

    def _lora(self) -> None:
        """Rank and number of adapters count only where LoRA is switched on."""
        keys = (("request:lora_rank",), ("request:max_loras",))
        if self.command.get("enable_lora"):
            defaults = self.table.lora_defaults
            for key in keys:
                default = defaults.get(key[0].partition(":")[2])
                if key not in self.settings and default is not None:
                    self._put("--enable-lora", key[0], default)
            if keys[0] not in self.settings:
                self.unplanned.append("--enable-lora (rank of the adapters not given)")
        elif "enable_lora" not in self.command and self.table.engine == "sglang":
            return  # --lora-paths switches it on too
        else:
            for key in keys:
                self.settings.pop(key, None)

    def _speculation(self) -> None:
        """Method and draft: MTP blocks of the model itself, or a model beside it."""
        method = self.command.get("spec_method")
        draft = self.command.get("draft")
        lowered = (method or "").lower()
        own_blocks = lowered.endswith("mtp") or lowered in ("draft-mtp", "nextn")
        if self.table.engine == "sglang" and lowered in ("eagle", "nextn") and not draft:
            own_blocks = True  # SGLang: EAGLE without a draft model runs the MTP blocks
        if own_blocks:
            self._put(f"speculation by {method}", "request:mtp", True)
            self.command.pop("draft", None)
        elif self.table.engine == "llama.cpp":
            # Without MTP blocks they belong to a draft, which is planned with it or not at all.
            self.settings.pop(("request:num_spec_tokens",), None)
        if method:
            targets = {"sglang": "speculative_algorithm", "llama.cpp": "spec_type"}
            name = targets.get(self.table.engine, "spec_method")
            self._put(f"speculation by {_shown(method)}", f"setting:{name}", method)
        if self.command.get("draft") and self.table.engine == "vllm":
            self.settings.setdefault(
                ("request:num_spec_tokens",),
                Setting("--speculative-config", ("request:num_spec_tokens",), None),
            )
            if self.settings[("request:num_spec_tokens",)].value is None:
                self.settings.pop(("request:num_spec_tokens",))
                self.unplanned.append("speculation (num_speculative_tokens not given)")


def _is_flag(word: str) -> bool:
    """Whether a word is a flag and no negative number."""
    return len(word) > 1 and word[0] == "-" and not (word[1].isdigit() or word[1] == ".")


def _is_stray(word: str) -> bool:
    return word.lower() in ("true", "false", "\\") or word.isdigit()


def _level(word: str, following: Sequence[str]) -> str:
    """vLLM -O3, -O=3 and -O 3 are --optimization-level."""
    if word.startswith("-O") and not word.startswith("--"):
        if len(word) > 2 and word[2:].isdigit():
            return f"--optimization-level={word[2:]}"
        if word == "-O" and following and following[0] in ("0", "1", "2", "3"):
            return f"--optimization-level={following[0]}"
    return word


def _shown(text: str) -> str:
    """A piece of a stranger's text, short and printable."""
    cleaned = "".join(char if char.isprintable() else " " for char in text)
    return cleaned if len(cleaned) <= 60 else cleaned[:57] + "..."


def settings_type(engine: str) -> type | None:
    """The dataclass of an engine's own settings; None where it has none."""
    from importlib import import_module, util

    from moesize.engines import engine_module

    module = engine_module(engine)
    wanted = _SETTINGS.get(engine, "")
    if module is None:
        return None
    for name in (module, f"{module}_settings"):
        if util.find_spec(name) is not None:
            found = getattr(import_module(name), wanted, None)
            if isinstance(found, type):
                return found
    return None


def engine_settings(engine: str, values: Mapping[str, Any]) -> tuple[object | None, list[str]]:
    """(the engine's dataclass with the values that it has fields for, names of the others).

    Raises InvalidDeploymentError where the dataclass refuses a value.
    """
    made = settings_type(engine)
    known = {item.name for item in fields(made)} if made is not None else set()
    taken = {name: value for name, value in values.items() if name in known}
    settings = made(**taken) if made is not None and taken else None
    return settings, [name for name in values if name not in known]


# How a value changes where a flag sets another field than the one it was read for.
_ADAPTED: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("ep_size", "expert_parallel"): lambda value: value > 1,
    ("moe_expert_parallel_size", "expert_parallel"): lambda value: value > 1,
    ("cpu_moe", "offload_experts"): lambda value: "all" if value else None,
    ("n_cpu_moe", "offload_experts"): lambda value: value if value > 0 else None,
    ("chunked_prefill_size", "max_num_batched_tokens"): lambda value: value if value > 0 else None,
}
# Values that are the default of every engine: no need to plan them.
_TRIVIAL = {
    "data_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "tensor_parallel_size": 1,
    "decode_context_parallel_size": 1,
    "expert_parallel": False,
    "data_parallel_attention": False,
    "enforce_eager": False,
    "num_redundant_experts": 0,
    "cpu_offload_bytes": 0,
    "kv_dtype": "auto",
}


def _resolve(
    settings: Sequence[Setting], engine: str
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    from moesize.engines import planned_fields

    planned = planned_fields(engine)
    made = settings_type(engine)
    known = {item.name for item in fields(made)} if made is not None else set()
    changes: dict[str, Any] = {}
    own: dict[str, Any] = {}
    left: list[str] = []
    for flag, targets, typed in settings:
        first = targets[0].partition(":")[2]
        for target in targets:
            kind, _, name = target.partition(":")
            adapt = _ADAPTED.get((first, name))
            value = adapt(typed) if adapt else typed
            if name == "context_tokens" and value == "auto":
                left.append(f"{flag} auto")
                break
            if name == "context_tokens" and value == 0:
                break
            if kind == "setting" and name in known:
                own[name] = value
                break
            if kind == "request" and name in planned and value is not None:
                changes[name] = value
                break
            if kind == "request" and _TRIVIAL.get(name, _TRIVIAL) == value:
                break
        else:
            left.append(flag)
    return changes, own, left


def apply_engine_arguments(
    request: Request,
    text_or_words: str | Sequence[str],
    engine: str | None = None,
    version: str | None = None,
    env: Mapping[str, str] | None = None,
) -> tuple[Request, tuple[Note, ...]]:
    """Put pasted flags into a request; what may change memory and is not planned is named.

    Options of the request win over pasted ones. Model, quantization and draft of the command are
    left to the caller (`parse_serve_command`, `apply_command`). Raises InvalidInputError.
    """
    engine = engine or request.engine
    version = version or request.engine_version
    command = parse_serve_command(text_or_words, engine=engine, version=version, env=env)
    return apply_command(request, command)


def apply_command(request: Request, command: ServeCommand) -> tuple[Request, tuple[Note, ...]]:
    """A parsed command put into a request, with notes on what is not planned."""
    engine = request.engine
    changes, own, left = command.changes(engine)
    given = request.given()
    # mtp and a draft decide together who guesses: what the request says stands.
    if given & {"mtp", "draft"}:
        given |= {"mtp", "draft", "num_spec_tokens"}
    changes = {name: value for name, value in changes.items() if name not in given}
    notes: list[Note] = []
    gpus = _num_gpus(request, command, changes, given)
    if gpus is not None and gpus != request.num_gpus:
        if request.num_gpus != 1:
            message = (
                f"--engine-args: the pasted sizes use {gpus} of the {request.num_gpus} GPUs; "
                f"planned on {gpus}"
            )
            notes.append(Note(code="engine-args", message=message))
        changes["num_gpus"] = gpus
    elif gpus is None and _uses_one_gpu(request, command, given):
        message = (
            f"--engine-args: the pasted command names no parallel size and would use 1 of the "
            f"{request.num_gpus} GPUs; planned on all"
        )
        notes.append(Note(code="engine-args", message=message))
    if own:
        settings, _ = engine_settings(engine, own)
        older = request.engine_settings
        if older is not None and settings is not None:
            mine = {
                item.name: value
                for item in fields(settings)  # type: ignore[arg-type]
                if item.name in own
                and getattr(older, item.name, None) is None
                and (value := getattr(settings, item.name)) is not None
            }
            settings = replace(older, **mine)  # type: ignore[type-var]
        changes["engine_settings"] = settings
    notes += _notes(command, left, engine, request.engine_version or command.engine_version)
    return replace(request, **changes), tuple(notes)


def _uses_one_gpu(request: Request, command: ServeCommand, given: set[str]) -> bool:
    """Whether a command without sizes, run as pasted, would leave GPUs idle."""
    sizes = {"tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"}
    engines = ("vllm", "sglang", "tensorrt-llm")
    return (
        command.is_program
        and request.engine in engines
        and request.num_gpus > 1
        and not sizes & given
    )


def _num_gpus(
    request: Request, command: ServeCommand, changes: dict[str, Any], given: set[str]
) -> int | None:
    """GPUs that the pasted sizes use; None where they say nothing."""
    if {"tensor_parallel_size", "pipeline_parallel_size"} & given:
        return None
    if request.engine in ("llama.cpp", "ik_llama.cpp", "transformers"):
        return command.visible_gpus if request.num_gpus == 1 else None
    sizes = [changes.get(f"{name}_parallel_size") for name in ("tensor", "pipeline", "data")]
    if changes.get("data_parallel_attention") or request.data_parallel_attention:
        sizes[2] = None  # its ranks are those of the tensor-parallel group
    if sizes == [None, None, None]:
        if request.engine == "tgi" and request.num_gpus == 1:
            return command.visible_gpus
        return None
    count: int = (sizes[0] or 1) * (sizes[1] or 1) * (sizes[2] or request.data_parallel_size or 1)
    return count if 1 <= count <= 1 << 16 else None


def _notes(
    command: ServeCommand, left: Sequence[str], engine: str, version: str | None
) -> list[Note]:
    title = _TITLES.get(engine, engine)
    release = f"{title} {version}" if version else f"this {title}"
    unplanned = tuple(dict.fromkeys((*command.unplanned, *left)))
    kinds = (
        ("not planned, though it may change memory", unplanned),
        (f"not known to {title}, so not planned", command.unknown),
        (f"not in {release}, so not planned", command.absent),
        ("value not known, so not planned", command.open_values),
    )
    notes = []
    for words, names in kinds:
        if names:
            more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            listed = ", ".join(name[:200] for name in names[:_MOST_NAMED])
            notes.append(
                Note(code="engine-args", message=f"--engine-args: {words}: {listed}{more}")
            )
    return notes
