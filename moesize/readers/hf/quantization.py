"""quantization_config of a checkpoint -> CheckpointQuantization.

Every tool writes its own dialect: which matrices it converted is said by what it left out. The
lists of names (one for every layer, in large files) become a few regular expressions for
`QuantizationRule.modules`. A method or a layout that is not known is refused, never guessed.

Sources: the config classes of transformers 5.19.0 (`utils/quantization_config.py`) and vLLM 0.32.0
(`model_executor/layers/quantization`), compressed-tensors 0.20.0, NVIDIA ModelOpt 0.47.0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from moesize.core.checkpoint import compile_pattern, plain_name
from moesize.core.errors import InvalidInputError, UnsupportedError
from moesize.core.model_spec import CheckpointQuantization, QuantizationRule
from moesize.readers.hf.view import ConfigView

_MAX_NAMES = 1 << 16
_MAX_NAME_LENGTH = 512
_MAX_GROUPS = 64
_MAX_PATTERNS = 256
# Words in the names of vision and audio parts and of what joins them to the language model.
_TOWER_WORDS = ("vis", "audio", "image", "mm_proj", "multi_modal", "merger", "aligner")
_END = r"(?:\.|$)"

Reader = Callable[[ConfigView, ConfigView], CheckpointQuantization]


def read_quantization(
    config: ConfigView, quant_config: Mapping[str, Any] | None = None
) -> CheckpointQuantization | None:
    """How the files of this config are quantized; None when they are not.

    `quant_config` is the hf_quant_config.json beside the config, which ModelOpt writes; it counts
    only where the config itself says nothing. Raises InvalidSpecError for a malformed one and
    UnsupportedError for a method that is not known.
    """
    view = _find(config)
    if view is None:
        if quant_config is None:
            if "quantization" in config:
                raise _refuse(config, "mlx", "a `quantization` object is how MLX marks its files")
            return None
        outer = ConfigView(quant_config, config.file, "hf_quant_config")
        return _modelopt(config, outer.sub("quantization") or outer)
    method = _method(view)
    reader = _READERS.get(method)
    if reader is None:
        raise _refuse(view, method, _KNOWN_REFUSALS.get(method, ""))
    return reader(config, view)


def _find(config: ConfigView) -> ConfigView | None:
    for place in (config, config.sub("text_config", "llm_config", "language_config")):
        if place is not None:
            view = place.sub("quantization_config", "compression_config")
            if view is not None and view.data:
                return view
    return None


def _method(view: ConfigView) -> str:
    if "quant_method" not in view and view.flag("load_in_4bit", "load_in_8bit", default=False):
        return "bitsandbytes"
    method = view.text("quant_method", default="").lower().replace("_", "-")
    if not method and "quant_algo" in view:
        return "modelopt"
    # Mixed FP8 and NVFP4 files of DeepSeek-V4 call themselves fp8.
    return method.removeprefix("intel/")


_KNOWN_REFUSALS = {
    "hqq": "HQQ packs weights with scales and zeros of its own per group",
    "eetq": "EETQ stores int8 weights in an order of its own kernels",
    "aqlm": "AQLM stores codes into learned codebooks, not weights",
    "vptq": "VPTQ stores codes into learned codebooks, not weights",
    "torchao": "TorchAO files hold tensor subclasses whose parts depend on the recipe",
    "higgs": "HIGGS stores codes into grids",
    "spqr": "SpQR stores a sparse part beside the packed one",
    "bitnet": "BitNet packs four ternary weights a byte",
    "": "it names no quant_method",
}


def _refuse(view: ConfigView, method: str, known: str) -> UnsupportedError:
    shown = method if len(method) <= 40 else method[:37] + "..."
    facts = [f"{key} {view.data[key]}" for key in ("bits", "nbits", "group_size") if key in view]
    text = f"{view.file}: checkpoints quantized with {shown!r} cannot be counted yet"
    details = "; ".join(part for part in (known, ", ".join(facts)[:60]) if part)
    return UnsupportedError(
        text + (f" ({details})" if details else ""),
        f"methods that can: {', '.join(sorted(_READERS))}",
    )


# --- Names --------------------------------------------------------------------------------------


class _Names:
    """A list of module names as a config writes it, turned into few patterns.

    Plain names match the module and what is in it, `*` matches anything, `re:` starts a regular
    expression. Names that differ in the layer number only become one pattern.
    """

    def __init__(self, config: ConfigView, kept: list[Any] | None = None) -> None:
        """`kept`: the list of what is left out; towers are left out as a whole or not at all."""
        self.has_towers = any("vision" in key or "audio" in key for key in config.data)
        self.skip_towers = kept is not None and any(map(_is_tower, kept))
        inner = config.sub("text_config", "llm_config", "language_config") or config
        self.trunk = inner.int("num_hidden_layers", "n_layer", "n_layers", default=0, high=4096)
        # These MTP layers count on where the trunk ends; those of other families are called `mtp`.
        following = inner.count("num_nextn_predict_layers", default=0, high=64)
        self.layers = range(self.trunk + following)
        self.has_mtp = bool(following or inner.count("mtp_num_hidden_layers", default=0))
        self.experts = inner.count(
            "num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", default=0
        )

    def patterns(self, view: ConfigView, names: list[Any], key: str) -> tuple[str, ...]:
        """Regular expressions for `names`, for the canonical names that checkpoint.py matches."""
        regexes: list[str] = []
        singles: set[str] = set()
        stacked: dict[tuple[str, str], set[int]] = {}
        experts: dict[tuple[str, str, int], set[int]] = {}
        for name in self._checked(view, names, key):
            if name.startswith("re:"):
                regexes.append(_own_regex(view, name[3:], key))
                continue
            parts = plain_name(name.strip(".")).split(".")
            at = next((i for i, part in enumerate(parts) if part.rstrip("*").isdecimal()), None)
            if at is None or at == 0:
                singles.add(".".join(parts))
                continue
            head, digits, tail = ".".join(parts[:at]), parts[at], parts[at + 1 :]
            if len(tail) > 1 and tail[0] != "experts" and "experts" in tail:
                expert_at = tail.index("experts") + 1
            else:
                expert_at = 1 if tail[:1] == ["experts"] else len(tail)
            numbers = self._numbers(digits)
            if expert_at < len(tail) and tail[expert_at].isdecimal():
                expert, tail[expert_at] = int(tail[expert_at]), "#"
                for number in numbers:
                    experts.setdefault((head, ".".join(tail), number), set()).add(expert)
            stacked.setdefault((head, ".".join(tail)), set()).update(numbers)
        for (_, _, _), found in experts.items():
            if found != set(range(max(len(found), self.experts))):
                raise UnsupportedError(
                    f"{view.file}: {view.path(key)} names some experts of a layer but not all",
                    "moesize stores all experts of a layer in one format",
                )
        found_patterns = [*dict.fromkeys(regexes), *self._single(singles), *self._stacked(stacked)]
        if len(found_patterns) > _MAX_PATTERNS:
            raise view.fail(f"{view.path(key)} needs more than {_MAX_PATTERNS} different patterns")
        for pattern in found_patterns:
            _compile(view, pattern, key)
        return tuple(found_patterns)

    def convert_towers(self, view: ConfigView) -> bool:
        """Whether a tool that converts every linear module did so in the towers as well."""
        # Inside text_config it speaks of the language model only.
        return self.has_towers and not self.skip_towers and "." not in view.where

    def _checked(self, view: ConfigView, names: list[Any], key: str) -> list[str]:
        if len(names) > _MAX_NAMES:
            raise view.fail(f"{view.path(key)} has more than {_MAX_NAMES} entries")
        for name in names:
            if not isinstance(name, str) or len(name) > _MAX_NAME_LENGTH:
                raise view.fail(
                    f"{view.path(key)} must hold strings of at most {_MAX_NAME_LENGTH} characters"
                )
        return [
            name
            for name in names
            if name and not _is_no_matrix(name) and not (self.skip_towers and _is_tower(name))
        ]

    def _numbers(self, digits: str) -> set[int]:
        """Layers that `7` or `7*` stands for; as a wildcard `7*` is 70 as well."""
        bare = digits.rstrip("*")
        if bare == digits:
            return {int(bare[:9])}
        return {number for number in self.layers if str(number).startswith(bare)} or {int(bare[:9])}

    def _single(self, names: set[str]) -> list[str]:
        """Names without a layer number; a `*` in front frees them from where a name begins."""
        found: dict[tuple[str, str], list[str]] = {}
        for name in sorted(names):
            start = "" if name.startswith("*") else r"(?:^|\.)"
            end = "" if name.endswith("*") else _END
            found.setdefault((start, end), []).append(_escape(name.strip("*")))
        return [start + _any_of(parts) + end for (start, end), parts in found.items()]

    def _stacked(self, stacked: dict[tuple[str, str], set[int]]) -> list[str]:
        tails: dict[tuple[str, frozenset[int], bool], list[str]] = {}
        for (head, tail), numbers in stacked.items():
            open_ended = tail.endswith("*")
            key = (head, frozenset(numbers), open_ended)
            tails.setdefault(key, []).append(tail.rstrip("*") if open_ended else tail)
        out = []
        for (head, number_set, open_ended), found in sorted(
            tails.items(), key=lambda item: (item[0][0], sorted(item[0][1]), item[0][2])
        ):
            start = f"^{_escape(head)}\\.{self._alternatives(set(number_set))}"
            if "" in found:
                # The whole layer: whatever else is said about it adds nothing.
                out.append(start + (r"\." if open_ended else _END))
                continue
            end = "" if open_ended else _END
            out.append(f"{start}\\.{_any_of(sorted(_escape(tail) for tail in found))}{end}")
        return out

    def _alternatives(self, numbers: set[int]) -> str:
        missing = set(self.layers) - numbers
        if not missing and self.layers:
            return r"\d+"
        if self.layers and len(missing) * 2 < len(numbers):
            return rf"(?!{_any_of([str(n) for n in sorted(missing)])}\.)\d+"
        return _any_of([str(number) for number in sorted(numbers)])


# Last words of modules that are never quantized, whatever a list says of them: `checkpoint._NEVER`.
_NEVER = (
    "bias",
    "conv1d",
    "embed_tokens",
    "gate",
    "in_proj_a",
    "in_proj_b",
    "in_proj_ba",
    "indexers_proj",
    "router",
    "shared_expert_gate",
    "weights_proj",
)


def _is_no_matrix(name: str) -> bool:
    last = name.rpartition(".")[2]
    return not name.startswith("re:") and (
        last.endswith(("norm", "correction_bias")) or last in _NEVER
    )


def _is_tower(name: Any) -> bool:
    return isinstance(name, str) and any(word in name.lower() for word in _TOWER_WORDS)


def _escape(name: str) -> str:
    text = "".join(
        ".*" if char == "*" else char if char.isalnum() or char == "_" else "\\" + char
        for char in name
    )
    return re.sub(r"(?:\.\*)+", ".*", text).replace(r"\#", r"\d+")


def _any_of(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"


def _own_regex(view: ConfigView, pattern: str, key: str) -> str:
    """A `re:` entry: matched from the start of the name, as compressed-tensors does."""
    pattern = pattern.removeprefix("^")
    pattern = re.sub(r"(?<!\\)\.\*\$?$", "", pattern)
    # `.*` in front means anywhere; engines match from the start of a name.
    bare = re.sub(r"^(?:\.\*)+", "", pattern)
    final = bare if bare != pattern else f"^(?:{pattern})"
    _compile(view, final, key)
    return final


def _compile(view: ConfigView, pattern: str, key: str) -> None:
    """Refuse what cannot be matched safely while it is known where it stands."""
    try:
        compile_pattern(pattern)
    except InvalidInputError as error:
        raise view.fail(f"{view.path(key)}: {error.message}", error.hint) from error


def _keep(patterns: tuple[str, ...]) -> tuple[QuantizationRule, ...]:
    return (QuantizationRule(format="keep", modules=patterns),) if patterns else ()


def _names_head(names: list[Any]) -> bool:
    return any(
        isinstance(name, str) and ("lm_head" in name or name in ("head", "output"))
        for name in names
    )


# --- Methods ------------------------------------------------------------------------------------


def _group_size(view: ConfigView, default: int = 128) -> int:
    size = view.int("group_size", default=default, low=-1, high=1 << 20)
    if size == 0:
        raise view.fail(
            f"{view.path('group_size')} is 0; it must be positive, or -1 for whole rows"
        )
    return size


def _bits(view: ConfigView, default: int = 4) -> int:
    return view.int("bits", "w_bit", default=default, low=2, high=8)


def _keep_mtp(names: _Names) -> tuple[QuantizationRule, ...]:
    """GPTQ and AWQ convert the decoder layers only; MTP layers are no part of them."""
    extra = [str(number) for number in names.layers[names.trunk :]]
    patterns = [r"^mtp\."] if names.has_mtp else []
    if extra:
        patterns.append(rf"^layers\.{_any_of(extra)}\.")
    return _keep(tuple(patterns))


def _gptq(config: ConfigView, view: ConfigView) -> CheckpointQuantization:
    names = _Names(config)
    # Inferred: Qwen-7B-Chat-Int4 has this key (AutoGPTQ writes it) and its index has zero biases;
    # not checked on other files of AutoGPTQ.
    base = QuantizationRule(
        format="gptq-bias" if "model_file_base_name" in view else "gptq",
        bits=_bits(view),
        group_size=_group_size(view, -1),
        symmetric=view.flag("sym", default=True),
        act_order=view.flag("desc_act", default=False),
    )
    rules = [*_keep_mtp(names)]
    dynamic = view.sub("dynamic")
    if dynamic is not None:
        rules.extend(_gptq_dynamic(view, dynamic, base))
    inside = view.list("modules_in_block_to_quantize", max_length=_MAX_NAMES)
    if inside:
        flat = [name for item in inside for name in (item if isinstance(item, list) else [item])]
        base = replace(base, modules=names.patterns(view, flat, "modules_in_block_to_quantize"))
    rules.append(base)
    head = view.flag("lm_head", default=False)
    return CheckpointQuantization(method="gptq", rules=tuple(rules), quantized_head=head)


def _gptq_dynamic(
    view: ConfigView, dynamic: ConfigView, base: QuantizationRule
) -> list[QuantizationRule]:
    """GPTQModel: pattern -> overrides; `-:` leaves the module alone, `+:` or nothing changes it."""
    if len(dynamic.data) > _MAX_PATTERNS:
        raise view.fail(f"{dynamic.where} has more than {_MAX_PATTERNS} entries")
    rules = []
    left_out = []
    for key in dynamic.data:
        if len(key) > _MAX_NAME_LENGTH:
            raise view.fail(f"{dynamic.where} has a pattern of {len(key)} characters")
        pattern = _own_regex(view, key[2:] if key[:2] in ("-:", "+:") else key, "dynamic")
        if key.startswith("-:") or dynamic.data[key] is False:
            left_out.append(pattern)
            continue
        changes = dynamic.sub(key) or ConfigView({}, view.file, "dynamic")
        rule = replace(
            base,
            modules=(pattern,),
            bits=_bits(changes, base.bits),
            group_size=_group_size(changes, base.group_size),
            symmetric=changes.flag("sym", default=base.symmetric),
            act_order=changes.flag("desc_act", default=base.act_order),
        )
        rules.append(rule)
    return [*_keep(tuple(left_out)), *rules]


def _awq(config: ConfigView, view: ConfigView) -> CheckpointQuantization:
    version = view.text("version", default="gemm").lower()
    if version not in ("gemm", "gemv", "gemv_fast", "marlin"):
        raise _refuse(view, f"awq {version}", "")
    if version != "gemm":
        raise _refuse(view, f"awq {version}", "only the gemm layout is known")
    kept = view.list("modules_to_not_convert", max_length=_MAX_NAMES)
    names = _Names(config, kept)
    patterns = names.patterns(view, kept, "modules_to_not_convert")
    base = QuantizationRule(
        format="awq",
        bits=_bits(view),
        group_size=_group_size(view),
        symmetric=not view.flag("zero_point", default=True),
    )
    return CheckpointQuantization(method="awq", rules=(*_keep(patterns), *_keep_mtp(names), base))


def _auto_round(config: ConfigView, view: ConfigView) -> CheckpointQuantization:
    packing = view.text("packing_format", default="auto_round:auto_gptq")
    if packing not in ("auto_round:auto_gptq", "auto_round", "auto_round:gptq"):
        raise _refuse(view, f"auto-round {packing}", "")
    base = QuantizationRule(
        format="auto-round",
        bits=_bits(view),
        group_size=_group_size(view),
        symmetric=view.flag("sym", default=True),
    )
    names = _Names(config)
    kept: list[Any] = []
    extra = view.sub("extra_config")
    if extra is not None:
        if len(extra.data) > _MAX_NAMES:
            raise view.fail(f"{extra.where} has more than {_MAX_NAMES} entries")
        for key, value in extra.data.items():
            changes = ConfigView(
                value if isinstance(value, Mapping) else {}, view.file, extra.where
            )
            if changes.int("bits", default=base.bits, high=32) >= 16:
                kept.append(key)
            elif (_bits(changes, base.bits), _group_size(changes, base.group_size)) != (
                base.bits,
                base.group_size,
            ):
                raise _refuse(view, "auto-round", f"{key[:60]} has bits of its own")
    rules = (
        *_keep(names.patterns(view, kept, "extra_config")),
        *_keep_mtp(names),
        base,
    )
    return CheckpointQuantization(method="auto-round", rules=rules)


def _fp8(config: ConfigView, view: ConfigView) -> CheckpointQuantization:
    if "quantized_layers" in view:
        return _mixed(config, view)
    key = "ignored_layers" if "ignored_layers" in view else "modules_to_not_convert"
    kept = view.list(key, max_length=_MAX_NAMES)
    rules = [*_keep(_Names(config, kept).patterns(view, kept, key)), *_fp4_experts(config)]
    rules.append(_fp8_rule(config, view))
    return CheckpointQuantization(method="fp8", rules=tuple(rules), kv_dtype=_kv_dtype(view))


def _fp4_experts(config: ConfigView) -> tuple[QuantizationRule, ...]:
    """DeepSeek-V4: `expert_dtype: fp4` stores routed experts as MXFP4 beside FP8 tiles."""
    inner = config.sub("text_config", "llm_config", "language_config") or config
    kind = inner.text("expert_dtype", default="")
    if kind == "fp4":
        return (QuantizationRule(format="mxfp4", modules=(r"\.experts\.",)),)
    if kind not in ("", "fp8"):
        raise _refuse(config, f"expert_dtype {kind}", "")
    return ()


def _fp8_rule(config: ConfigView, view: ConfigView) -> QuantizationRule:
    block = view.list("weight_block_size", max_length=2)
    if not block:
        static = view.text("activation_scheme", default="dynamic") == "static"
        return QuantizationRule(format="fp8", static_input_scale=static)
    if len(block) != 2 or any(not isinstance(n, int) or not 1 <= n <= 1 << 20 for n in block):
        raise view.fail(f"{view.path('weight_block_size')} must be two positive integers")
    # `scale_fmt: ue8m0` says that scales are powers of two, not how they are stored. vLLM 0.32.0
    # makes one byte each (float8_e8m0fnu) for DeepSeek-V4 and float32 for V3.2; the files of V3.2
    # were not seen, so its scales are taken to be as vLLM holds them.
    deepseek_v4 = config.text("model_type", default="") == "deepseek_v4"
    e8m0 = deepseek_v4 and view.text("scale_fmt", default="") == "ue8m0"
    return QuantizationRule(
        format="fp8-block",
        block_rows=block[0],
        block_cols=block[1],
        scale_dtype="float8_e8m0" if e8m0 else "float32",
    )


def _fbgemm_fp8(config: ConfigView, view: ConfigView) -> CheckpointQuantization:
    kept = view.list("modules_to_not_convert", max_length=_MAX_NAMES)
    patterns = _Names(config, kept).patterns(view, kept, "modules_to_not_convert")
    rule = QuantizationRule(format="fp8-channel", scale_dtype="float32")
    return CheckpointQuantization(method="fbgemm_fp8", rules=(*_keep(patterns), rule))


def _bitsandbytes(config: ConfigView, view: ConfigView) -> CheckpointQuantization:
    kept = view.list("llm_int8_skip_modules", max_length=_MAX_NAMES)
    names = _Names(config, kept)
    rules = [*_keep(names.patterns(view, kept, "llm_int8_skip_modules"))]
    if view.flag("load_in_4bit", "_load_in_4bit", default=False):
        kind = view.text("bnb_4bit_quant_type", default="fp4")
        if kind not in ("nf4", "fp4"):
            raise _refuse(view, f"bitsandbytes {kind}", "")
        nested = view.flag("bnb_4bit_use_double_quant", default=False)
        rules.append(QuantizationRule(format="bnb-4bit", nested=nested))
    elif view.flag("load_in_8bit", "_load_in_8bit", default=False):
        rules.append(QuantizationRule(format="bnb-int8"))
    else:
        raise view.fail(f"{view.where} sets neither load_in_4bit nor load_in_8bit")
    return CheckpointQuantization(
        method="bitsandbytes", rules=tuple(rules), towers=names.convert_towers(view)
    )


def _mxfp4(config: ConfigView, view: ConfigView) -> CheckpointQuantization:
    """gpt-oss: experts only, whatever the list says."""
    kept = view.list("modules_to_not_convert", max_length=_MAX_NAMES)
    patterns = _Names(config, kept).patterns(view, kept, "modules_to_not_convert")
    experts = QuantizationRule(format="mxfp4", modules=(r"\.experts" + _END,))
    return CheckpointQuantization(method="mxfp4", rules=(*_keep(patterns), experts))


def _mxfp8(config: ConfigView, view: ConfigView) -> CheckpointQuantization:
    key = "ignored_layers" if "ignored_layers" in view else "modules_to_not_convert"
    kept = view.list(key, max_length=_MAX_NAMES)
    rules = (
        *_keep(_Names(config, kept).patterns(view, kept, key)),
        QuantizationRule(format="mxfp8"),
    )
    return CheckpointQuantization(method="mxfp8", rules=rules)


# --- compressed-tensors -------------------------------------------------------------------------


def _compressed_tensors(config: ConfigView, view: ConfigView) -> CheckpointQuantization:
    ignored = view.list("ignore", max_length=_MAX_NAMES)
    names = _Names(config, ignored)
    rules = list(_keep(names.patterns(view, ignored, "ignore")))
    if config.text("model_type", default="") == "kimi_k3":
        # Not in its list, yet vLLM 0.32.0 makes them in bfloat16 and only the experts in MXFP4.
        rules += _keep((r"\.routed_expert_(?:down|up)_proj" + _END,))
    by_class: list[QuantizationRule] = []
    head = False
    for group in _groups(view):
        rule = _compressed_rule(group, view.text("format", default=""))
        if rule is None:
            continue
        targets = group.list("targets", max_length=_MAX_NAMES)
        if "Linear" in targets:
            by_class.append(rule)
            head = head or not _names_head(ignored)
        named = [name for name in targets if name != "Linear"]
        if named:
            # `Attention` and the like stand for caches and carry no weights; names have dots.
            modules = [n for n in named if isinstance(n, str) and (n[:3] == "re:" or "." in n)]
            modules += [n for n in named if isinstance(n, str) and n.endswith("head")]
            patterns = names.patterns(group, modules, "targets")
            if len(set(modules)) != len(set(map(str, named))):
                raise _refuse(view, "compressed-tensors", f"targets {str(named)[:60]}")
            rules.append(replace(rule, modules=patterns))
            head = head or _names_head(modules)
    if not by_class and not any(rule.format != "keep" for rule in rules):
        return CheckpointQuantization(method="compressed-tensors", rules=(*rules, _KEEP_ALL))
    return CheckpointQuantization(
        method="compressed-tensors",
        rules=(*rules, *by_class),
        quantized_head=head,
        towers=bool(by_class) and names.convert_towers(view),
        kv_dtype=_kv_dtype(view),
    )


_KEEP_ALL = QuantizationRule(format="keep")


def _groups(view: ConfigView) -> list[ConfigView]:
    groups = view.need_sub("config_groups")
    if len(groups.data) > _MAX_GROUPS:
        raise view.fail(f"{groups.where} has more than {_MAX_GROUPS} groups")
    return [groups.need_sub(key) for key in groups.data]


def _compressed_rule(group: ConfigView, outer_format: str) -> QuantizationRule | None:
    """The storage format of one config group; None when its weights are not quantized."""
    weights = group.sub("weights")
    if weights is None:
        return None
    layout = group.text("format", default=outer_format)
    bits = weights.int("num_bits", default=8, high=16)
    kind = weights.text("type", default="int")
    strategy = weights.text("strategy", default="tensor")
    symmetric = weights.flag("symmetric", default=True)
    inputs = group.sub("input_activations")
    static = inputs is not None and inputs.data.get("dynamic", False) is False
    if layout == "nvfp4-pack-quantized":
        # The input's global scale is stored even where block scales are found at run time.
        return QuantizationRule(format="nvfp4", static_input_scale=inputs is not None)
    if layout == "mxfp4-pack-quantized":
        return QuantizationRule(format="mxfp4")
    if layout == "mxfp8-quantized":
        return QuantizationRule(format="mxfp8")
    if layout == "pack-quantized" and kind == "int" and strategy in ("group", "channel"):
        return QuantizationRule(
            format="pack",
            bits=bits,
            group_size=_group_size(weights, -1) if strategy == "group" else -1,
            symmetric=symmetric,
            act_order=weights.data.get("actorder") in ("group", "dynamic"),
        )
    plain_layouts = ("float-quantized", "int-quantized", "naive-quantized", "")
    if layout in plain_layouts and bits == 8:
        if kind == "float" and strategy == "tensor":
            return QuantizationRule(format="fp8", static_input_scale=static)
        if kind == "float" and strategy == "channel":
            return QuantizationRule(format="fp8-channel", scale_dtype="bfloat16")
        if kind == "float" and strategy == "block":
            block = weights.list("block_structure", max_length=2) or [128, 128]
            if any(not isinstance(n, int) or not 1 <= n <= 1 << 20 for n in block):
                raise weights.fail(f"{weights.path('block_structure')} must be two integers")
            return QuantizationRule(
                format="fp8-block",
                block_rows=block[0],
                block_cols=block[-1],
                scale_dtype="bfloat16",
            )
        if kind == "int" and strategy == "channel" and symmetric:
            return QuantizationRule(format="int8-channel", scale_dtype="bfloat16")
    raise _refuse(
        group,
        f"compressed-tensors {layout[:30]}",
        f"{bits}-bit {kind[:10]} by {strategy[:20]}{'' if symmetric else ', asymmetric'}",
    )


# --- ModelOpt -----------------------------------------------------------------------------------

_ALGORITHMS = {
    "FP8": QuantizationRule(format="fp8", static_input_scale=True),
    "FP8_PER_CHANNEL_PER_TOKEN": QuantizationRule(format="fp8-channel", scale_dtype="float32"),
    "FP8_PB_WO": QuantizationRule(
        format="fp8-block", block_rows=128, block_cols=128, scale_dtype="float32"
    ),
    "NVFP4": QuantizationRule(format="nvfp4", static_input_scale=True),
    "NVFP4_AWQ": QuantizationRule(format="nvfp4", static_input_scale=True),
    "W4A16_NVFP4": QuantizationRule(format="nvfp4"),
    "MXFP8": QuantizationRule(format="mxfp8"),
    "MXFP4": QuantizationRule(format="mxfp4"),
}


def _algorithm(view: ConfigView, name: str) -> QuantizationRule:
    rule = _ALGORITHMS.get(name.upper())
    if rule is None:
        raise _refuse(view, f"modelopt {name}", "its layout is not known")
    return rule


def _modelopt(config: ConfigView, view: ConfigView) -> CheckpointQuantization:
    view = view.sub("quantization") or view
    if "quantized_layers" in view:
        return _mixed(config, view)
    key = "ignore" if "ignore" in view else "exclude_modules"
    kept = view.list(key, max_length=_MAX_NAMES)
    names = _Names(config, kept)
    rules = [*_keep(names.patterns(view, kept, key))]
    rules.append(_algorithm(view, view.text("quant_algo")))
    return CheckpointQuantization(
        method="modelopt",
        rules=tuple(rules),
        # ModelOpt writes the list whenever it leaves anything out; without one, lm_head is left
        # out all the same (`configs/ptq/units/default_disabled_quantizers.yaml`).
        quantized_head=bool(kept) and not _names_head(kept),
        towers=bool(kept) and names.convert_towers(view),
        kv_dtype=_kv_dtype(view),
    )


def _mixed(config: ConfigView, view: ConfigView) -> CheckpointQuantization:
    """MIXED_PRECISION: an algorithm for each module by name; what is not named is kept.

    Files that are FP8 by method (DeepSeek-V4) keep their tiles where ModelOpt changed nothing.
    """
    layers = view.need_sub("quantized_layers")
    if len(layers.data) > _MAX_NAMES:
        raise view.fail(f"{layers.where} has more than {_MAX_NAMES} entries")
    by_algorithm: dict[str, list[str]] = {}
    for name in layers.data:
        algorithm = layers.need_sub(name).text("quant_algo")
        by_algorithm.setdefault(algorithm, []).append(name)
    names = _Names(config)
    rules = [
        replace(
            _algorithm(view, algorithm), modules=names.patterns(view, found, "quantized_layers")
        )
        for algorithm, found in by_algorithm.items()
    ]
    method = "modelopt"
    if view.text("quant_method", default="modelopt") == "fp8":
        method = "fp8"
        rules += [*_fp4_experts(config), _fp8_rule(config, view)]
    else:
        rules.append(_KEEP_ALL)
    return CheckpointQuantization(
        method=method,
        rules=tuple(rules),
        quantized_head=_names_head(list(layers.data)),
        towers=any(map(_is_tower, layers.data)),
        kv_dtype=_kv_dtype(view),
    )


def _kv_dtype(view: ConfigView) -> str:
    """Number format that the checkpoint asks for in the KV cache; "" when it asks for none."""
    stated = view.data.get("kv_cache_scheme")
    if isinstance(stated, str):
        algorithm = stated
    elif stated is not None:
        scheme = view.need_sub("kv_cache_scheme")
        bits, kind = scheme.int("num_bits", default=8), scheme.text("type", default="float")
        if (bits, kind) == (8, "float"):
            return "fp8_e4m3"
        raise _refuse(view, f"{bits}-bit {kind} KV cache", "")
    else:
        algorithm = view.text("kv_cache_quant_algo", default="")
    if algorithm in ("", "none", "None"):
        return ""
    if algorithm == "FP8":
        return "fp8_e4m3"
    if algorithm == "NVFP4":
        return "float4_e2m1"
    raise _refuse(view, f"kv_cache_quant_algo {algorithm}", "")


# --- Quark --------------------------------------------------------------------------------------


def _quark(config: ConfigView, view: ConfigView) -> CheckpointQuantization:
    excluded = view.list("exclude", max_length=_MAX_NAMES)
    names = _Names(config, excluded)
    rules = list(_keep(names.patterns(view, excluded, "exclude")))
    layers = view.sub("layer_quant_config")
    if layers is not None:
        if len(layers.data) > _MAX_NAMES:
            raise view.fail(f"{layers.where} has more than {_MAX_NAMES} entries")
        for name in layers.data:
            rule = _quark_rule(layers.need_sub(name))
            rules.append(replace(rule, modules=names.patterns(view, [name], "layer_quant_config")))
    rules.append(_quark_rule(view.need_sub("global_quant_config")))
    return CheckpointQuantization(
        method="quark",
        rules=tuple(rules),
        quantized_head=not _names_head(excluded),
        towers=names.convert_towers(view),
    )


def _quark_rule(group: ConfigView) -> QuantizationRule:
    weight = group.need_sub("weight")
    dtype, scheme = weight.text("dtype"), weight.text("qscheme", default="")
    inputs = group.sub("input_tensors")
    static = inputs is not None and not inputs.flag("is_dynamic", default=True)
    if dtype == "fp8_e4m3" and scheme == "per_tensor":
        return QuantizationRule(format="fp8", static_input_scale=static)
    if dtype == "fp8_e4m3" and scheme == "per_channel":
        return QuantizationRule(format="fp8-channel", scale_dtype="float32")
    if dtype == "fp4" and scheme == "per_group" and weight.int("group_size", default=32) == 32:
        return QuantizationRule(format="mxfp4")
    raise _refuse(group, f"quark {dtype[:20]} {scheme[:20]}", "")


_READERS: dict[str, Reader] = {
    "gptq": _gptq,
    "awq": _awq,
    "auto-round": _auto_round,
    "fp8": _fp8,
    "fbgemm-fp8": _fbgemm_fp8,
    "compressed-tensors": _compressed_tensors,
    "bitsandbytes": _bitsandbytes,
    "mxfp4": _mxfp4,
    "mxfp8": _mxfp8,
    "modelopt": _modelopt,
    "quark": _quark,
}
