"""What most decoder families share: stacking layers, embeddings, rotary tables, attention."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

from moesize.core.attention import GroupedQueryAttention
from moesize.core.feed_forward import DenseMlp, FeedForward
from moesize.core.model_spec import Block, Embedding, LayerRun, RotaryTable
from moesize.readers.hf.view import MAX_CONTEXT, ConfigView

if TYPE_CHECKING:
    from collections.abc import Sequence

_DTYPES = {"bfloat16", "float16", "float32"}

# Largest factor of a rope scaling that is believed; the largest published one is 64.
_MAX_STRETCH = 4096


def model_dtype(config: ConfigView, outer: ConfigView | None = None) -> str:
    """Element type of unquantized weights: `torch_dtype` or `dtype`; bfloat16 when unstated.

    Engines serve float32 checkpoints as they are asked to; the file size follows this type.
    """
    for view in (config, outer):
        if view is not None and ("torch_dtype" in view or "dtype" in view):
            name = view.text("torch_dtype", "dtype").removeprefix("torch.")
            if name not in _DTYPES:
                raise view.fail(f"dtype {name!r} is not one of {sorted(_DTYPES)}")
            return name
    return "bfloat16"


def head_dim(config: ConfigView, *keys: str) -> int:
    """Stated head size, or hidden size / query heads where the family divides it."""
    if any(key in config for key in keys or ("head_dim",)):
        return config.int(*(keys or ("head_dim",)))
    hidden, heads = config.int("hidden_size"), config.int("num_attention_heads")
    if hidden % heads:
        raise config.fail(
            f"hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads}) "
            "and head_dim is not given"
        )
    return hidden // heads


def kv_heads(config: ConfigView) -> int:
    """KV heads; as many as query heads when the config does not say (multi-head attention)."""
    heads = config.int("num_attention_heads")
    groups = config.int("num_key_value_heads", default=heads)
    if heads % groups:
        raise config.fail(
            f"num_key_value_heads ({groups}) must divide num_attention_heads ({heads})"
        )
    return groups


def grouped_query_attention(config: ConfigView, **overrides: Any) -> GroupedQueryAttention:
    """The usual attention of a decoder layer; keyword arguments override single facts."""
    size = head_dim(config)
    facts: dict[str, Any] = {
        "num_heads": config.int("num_attention_heads"),
        "num_kv_heads": kv_heads(config),
        "head_dim": size,
        "v_head_dim": size,
        **overrides,
    }
    return GroupedQueryAttention(**facts)


def dense_mlp(config: ConfigView, *keys: str, **overrides: Any) -> DenseMlp:
    """The usual MLP of width `intermediate_size`."""
    return DenseMlp(intermediate_size=config.int(*(keys or ("intermediate_size",))), **overrides)


def embedding(config: ConfigView, *, tied: bool, outer: ConfigView | None = None) -> Embedding:
    """Token embedding and head; `tied` is the family's default when the config does not say."""
    for view in (outer, config):
        if view is not None and "tie_word_embeddings" in view:
            tied = view.flag("tie_word_embeddings")
            break
    return Embedding(vocab_size=config.int("vocab_size"), tied=tied)


def max_context(config: ConfigView, *keys: str, default: int | None = None) -> int:
    """Longest context that the config states."""
    names = keys or ("max_position_embeddings",)
    if default is None:
        return config.int(*names, high=MAX_CONTEXT)
    return config.int(*names, default=default, high=MAX_CONTEXT)


def rotary_table(
    config: ConfigView, size: int, positions: int, *, partial: float = 1.0
) -> RotaryTable:
    """The cos/sin cache an engine keeps for one rotary setting: positions x rotary size.

    Yarn scaling stretches the original positions by its factor and is kept in float32.
    Source: vLLM 0.32.0 model_executor/layers/rotary_embedding.
    """
    scaling = config.sub("rope_scaling", "rope_parameters")
    rotary = int(size * partial)
    kind = ""
    if scaling is not None:
        kind = scaling.text("rope_type", "type", default="default")
        if kind in ("yarn", "deepseek_yarn", "longrope", "su"):
            stated = config.int(
                "original_max_position_embeddings", default=positions, high=MAX_CONTEXT
            )
            original = scaling.int(
                "original_max_position_embeddings", default=stated, high=MAX_CONTEXT
            )
            factor = scaling.number("factor", default=1.0)
            if kind in ("yarn", "deepseek_yarn"):
                positions = _stretched(config, original, factor)
            else:  # one table for short sequences, one for long ones, behind each other
                positions += original
        elif kind == "linear":
            positions = _stretched(config, positions, scaling.number("factor"))
    stated_kind = "" if kind == "default" else kind
    return RotaryTable(positions=positions, rotary_dim=rotary, scaling=stated_kind)


def _stretched(config: ConfigView, positions: int, factor: float) -> int:
    """positions * factor, as whole positions."""
    if not 0 < factor <= _MAX_STRETCH:
        raise config.fail(f"rope factor {factor} must lie in 0..{_MAX_STRETCH}")
    return ceil(positions * factor)


def stack(layout: Sequence[Block]) -> tuple[tuple[Block, ...], tuple[LayerRun, ...]]:
    """Distinct blocks and the runs that stack them, from one block per layer.

    Equal neighbours become one run; a repeating pattern becomes one run of several blocks.
    """
    blocks: dict[str, Block] = {}
    for block in layout:
        if blocks.setdefault(block.name, block) != block:
            raise ValueError(f"two different blocks are named {block.name!r}")
    names = [block.name for block in layout]
    return tuple(blocks.values()), tuple(_runs(names))


def _runs(names: Sequence[str]) -> list[LayerRun]:
    runs: list[LayerRun] = []
    start = 0
    while start < len(names):
        best_length, best_repeat = 1, 1
        for length in range(1, min(16, len(names) - start) + 1):
            pattern = names[start : start + length]
            repeat = 1
            while names[start + repeat * length : start + (repeat + 1) * length] == pattern:
                repeat += 1
            gain = length * repeat
            if repeat > 1 and gain > best_length * best_repeat:
                best_length, best_repeat = length, repeat
        if best_repeat == 1:
            best_length = 1
        block_names = tuple(names[start : start + best_length])
        if best_repeat == 1 and runs and runs[-1].repeat == 1:
            runs[-1] = LayerRun(blocks=runs[-1].blocks + block_names)
        else:
            runs.append(LayerRun(blocks=block_names, repeat=best_repeat))
        start += best_length * best_repeat
    return runs


def layer_types(config: ConfigView, num_layers: int) -> list[str]:
    """The `layer_types` list, checked for its length; empty when the config has none."""
    types = config.list("layer_types")
    if types and len(types) != num_layers:
        raise config.fail(f"layer_types has {len(types)} entries for {num_layers} layers")
    if any(not isinstance(kind, str) for kind in types):
        raise config.fail("layer_types must be a list of strings")
    return types


def with_defaults(config: ConfigView, **facts: Any) -> ConfigView:
    """The config with the defaults of its transformers config class for keys that it leaves out.

    A key that is present with null stays null: it overrides the default.
    """
    return ConfigView({**facts, **config.data}, config.file, config.where)


def sliding_window(config: ConfigView, *, default: int | None = None) -> int | None:
    """`sliding_window`: null and 0 mean none, a missing key means the config class's default.

    Source: vLLM 0.32.0 config/model.py (0 is turned into no window).
    """
    if "sliding_window" not in config.data:
        return default
    return config.count("sliding_window", default=0) or None


def layer_windows(
    config: ConfigView,
    num_layers: int,
    *,
    default: int | None = None,
    pattern: Sequence[str] = (),
) -> list[int | None]:
    """Window of every layer.

    With `layer_types` (or the config class's `pattern` for them) only sliding layers have the
    window; without, every layer has it. Source: vLLM 0.32.0 engine/arg_utils.py.
    """
    window = sliding_window(config, default=default)
    types = layer_types(config, num_layers) or pattern
    if not types:
        return [window] * num_layers
    unknown = sorted(set(types) - {"sliding_attention", "full_attention"})
    if unknown:
        raise config.fail(f"layer_types has kinds that this model type does not know: {unknown}")
    return [window if kind == "sliding_attention" else None for kind in types]


def every_nth_full(num_layers: int, every: int) -> list[str]:
    """Layer types where every n-th layer sees all tokens and the others a window."""
    return [
        "full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(num_layers)
    ]


def partial_rotary(config: ConfigView, *keys: str, default: float = 1.0) -> float:
    """Share of a head that is rotated; transformers 5 keeps it inside `rope_parameters`."""
    names = keys or ("partial_rotary_factor",)
    rope = config.sub("rope_parameters", "rope_scaling")
    for view in (rope, config):
        if view is not None and any(name in view for name in names):
            share = view.number(*names)
            if not 0 < share <= 1:
                raise view.fail(f"{view.path(names[0])} is {share}; it must lie in 0..1")
            return share
    return default


def scaled_context(config: ConfigView, *keys: str, default: int | None = None) -> int:
    """Longest context as vLLM derives it: the smallest stated length, stretched by rope scaling.

    `model_max_length` overrides (Command R). Kinds of scaling whose length is stated already
    stretched (llama3, yarn, longrope) do not stretch it again.
    Source: vLLM 0.32.0 config/model.py, _get_and_verify_max_len.
    """
    names = keys or ("max_position_embeddings",)
    stated = [max_context(config, name) for name in names if name in config]
    context = min(stated) if stated else max_context(config, *names, default=default)
    context = config.int("model_max_length", default=context, high=MAX_CONTEXT)
    rope = config.sub("rope_parameters", "rope_scaling")
    if rope is not None and rope.text("rope_type", "type", default="default") in (
        "linear",
        "dynamic",
        "ntk",
    ):
        context = int(_stretched(config, context, rope.number("factor", default=1.0)))
    return context


def decoder_fields(
    config: ConfigView, layout: Sequence[Block], *, tied: bool, **facts: Any
) -> dict[str, Any]:
    """ModelSpec fields of a decoder from one block per layer; `facts` override or add fields.

    `tied` is the family's default when the config does not say.
    """
    blocks, layers = stack(layout)
    fields: dict[str, Any] = {"blocks": blocks, "layers": layers, **facts}
    if "hidden_size" not in fields:
        fields["hidden_size"] = config.int("hidden_size")
    if "embedding" not in fields:
        fields["embedding"] = embedding(config, tied=tied)
    if "max_context" not in fields:
        fields["max_context"] = scaled_context(config)
    return fields


def layer_blocks(
    config: ConfigView,
    windows: Sequence[int | None],
    *,
    mlp: FeedForward | None = None,
    attention: dict[str, Any] | None = None,
    **facts: Any,
) -> list[Block]:
    """One block per layer, alike but for the window: `sliding` and `full`, or just `layer`."""
    mixed = len(set(windows)) > 1
    feed_forward = mlp or dense_mlp(config)
    blocks: dict[int | None, Block] = {}
    for window in windows:
        if window not in blocks:
            name = "layer" if not mixed else "full" if window is None else "sliding"
            blocks[window] = Block(
                name=name,
                mixers=(grouped_query_attention(config, window=window, **(attention or {})),),
                feed_forwards=(feed_forward,),
                **facts,
            )
    return [blocks[window] for window in windows]


def one_table(
    config: ConfigView, *, positions: int | None = None, partial: float | None = None
) -> tuple[RotaryTable, ...]:
    """The single rotary table of a family that rotates every layer alike."""
    size = grouped_query_attention(config).head_dim
    share = partial_rotary(config) if partial is None else partial
    return (rotary_table(config, size, positions or max_context(config), partial=share),)


def biases(config: ConfigView, key: str, *, default: bool = False) -> dict[str, bool]:
    """One flag for the biases of q, k, v and of the output projection."""
    flag = config.flag(key, default=default)
    return {"qkv_bias": flag, "out_bias": flag}
