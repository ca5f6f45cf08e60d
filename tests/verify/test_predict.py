"""Predictions against formulas written out here, and against real passes on the CPU."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from moesize.catalog import read_config_file, resolve_model
from moesize.core.checkpoint import published
from moesize.core.compute import prefill_flops
from moesize.core.kv_cache import sequence_cost
from moesize.core.units import MIB
from moesize.verify import dry_run, predict
from moesize.verify.dry_run import Routing, decisive, even_routing
from moesize.verify.forward import Numerics
from moesize.verify.live_bytes import LiveBytes
from moesize.verify.passes import PassPeaks, Workload, logits_bytes, sample_tokens, sampling_bytes
from moesize.verify.predict import Subject
from moesize.verify.rank_spec import rank_spec
from moesize.verify.selection import Selection
from verify.configs import FAMILIES, write_config

WORK = Workload(tokens=100, sequences=3, decode_steps=4)


@pytest.fixture(autouse=True)
def young_heap() -> Iterator[None]:
    """Passes collect cycles at each phase; what pytest holds need not be looked through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def subject(name: str, layers: tuple[int, ...], *, rank: int = 0, size: int = 1) -> Subject:
    spec, _ = resolve_model(name)
    return Subject(
        spec=spec, stored=published(spec), numerics=Numerics.neutral(spec),
        selection=Selection(layers, True, rank, size), dtype="bfloat16",
    )  # fmt: skip


def test_weights_of_a_rank_of_mixtral() -> None:
    """Shapes of mistralai/Mixtral-8x7B-v0.1: two layers of TP 2 in bfloat16."""
    hidden, inner, vocab = 4096, 14336, 32000
    attention = (hidden * hidden * 2 + 2 * 1024 * hidden) // 2
    layer = attention + 8 * 3 * hidden * inner // 2 + 8 * hidden + 2 * hidden
    elements = 2 * layer + vocab * hidden + hidden
    held = predict.weights(subject("mixtral-8x7b", (0, 5), rank=1, size=2))
    assert held.requested_bytes == 2 * elements


def test_segments_of_weights() -> None:
    held = subject("mixtral-8x7b", (0,))
    reserved = predict.weights_in_allocator(held).reserved
    allocated = predict.weights(held).allocated_bytes
    assert allocated <= reserved < allocated + 40 * MIB


def test_cache_of_a_model_without_windows() -> None:
    """104 tokens of 2 layers: 2 * K * d * 2 bytes each; blocks of 16 make 112 of them."""
    two = subject("mixtral-8x7b", (0, 1))
    per_token = 2 * (2 * 8 * 128 * 2)
    assert predict.cache_bytes(two, WORK, "growing") == 3 * 104 * per_token
    assert predict.cache_bytes(two, WORK, "static") == 3 * 112 * per_token
    whole = subject("mixtral-8x7b", tuple(range(32)))
    expected = sequence_cost(whole.spec, "bfloat16").bytes_per_token * 104 * 3
    assert predict.cache_bytes(whole, WORK, "growing") == expected


def test_cache_of_windows_and_ranks() -> None:
    long = Workload(tokens=300, sequences=1, decode_steps=1)
    window = subject("gpt-oss-20b", (0,))  # 128 tokens, K 8, d 64
    assert predict.cache_bytes(window, long, "growing") == 128 * 2 * 8 * 64 * 2
    assert predict.cache_bytes(window, long, "static") == 304 * 2 * 8 * 64 * 2
    # More ranks than KV heads: each holds one.
    narrow = subject("gpt-oss-20b", (1,), rank=3, size=16)
    assert predict.cache_bytes(narrow, long, "growing") == 301 * 2 * 1 * 64 * 2
    latent = subject("deepseek-v3", (0,), size=8)
    assert predict.cache_bytes(latent, long, "growing") == 301 * 576 * 2


@pytest.mark.parametrize("rows", [1000, 16])
def test_logits_and_sampling_follow_their_formulas(rows: int) -> None:
    """Also where a rank's part of the vocabulary is narrower than the hidden states."""
    count = 5
    live = LiveBytes()
    with live:
        hidden, head = torch.randn(count, 1, 64), torch.randn(rows, 64)
        live.reset_peak()
        before = live.live_bytes
        logits = torch.nn.functional.linear(hidden, head).float() * 1.0
        assert live.peak_bytes - before == logits_bytes(count, rows)
        live.reset_peak()
        before = live.live_bytes
        tokens = sample_tokens(logits[:, 0])
        assert live.peak_bytes - before == sampling_bytes(count, rows)
    assert tokens.shape == (count,)
    assert int(tokens.min()) >= 0
    assert int(tokens.max()) < rows


def test_experts_that_decide_a_peak() -> None:
    assert decisive(()) == ()
    assert decisive((3, 1)) == (3, 1)
    # All alike: one behind another, wherever they stand.
    assert decisive((5,) * 128) == (1, 5, 5)
    # The busiest, and one that has fewer tokens behind a busier one.
    assert decisive((1, 2, 9, 8, 1, 1, 2, 2, 1)) == (1, 2, 9, 1, 9, 8)


def test_leaving_out_experts_changes_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    one = subject("mixtral-8x7b", (0, 1))
    generator = random.Random(5)
    for _ in range(5):
        loads = [tuple(generator.randint(1, 60) for _ in range(8)) for _ in range(2)]
        prompt = Routing(tuple(loads))
        step = Routing(((2, 1, 1), (1, 3)))
        routings = predict.Routings((prompt, step, step), (prompt, step, step))

        def peaks(routings: predict.Routings = routings) -> list[PassPeaks]:
            found = predict.dry_peaks(one, WORK, routings, blocks=True)
            return [passes._replace(phases=()) for passes in found]

        short = peaks()
        with monkeypatch.context() as patch:
            patch.setattr(dry_run, "decisive", tuple)
            assert peaks() == short


def test_sampling_never_leaves_the_nucleus() -> None:
    logits = torch.full((200, 50), -20.0)
    logits[:, 7], logits[:, 9] = 10.0, 9.0
    assert set(sample_tokens(logits).tolist()) == {7, 9}


def test_a_dense_prefill_peaks_in_scores_or_mlp() -> None:
    """Bounds by hand: scores (N, T, T) float32 twice while they are masked or normalized, or
    gate, up and their product (T, F) of the MLP."""
    one = subject("llama-3.1-8b", (0,))
    for tokens in (64, 128):
        work = Workload(tokens=tokens, sequences=1, decode_steps=1)
        peaks = predict.dry_peaks(one, work, predict.even(one, work))
        scores = 32 * tokens * tokens * 4
        mlp = 3 * tokens * 14336 * 2
        assert peaks.static.prefill > max(2 * scores, mlp)
        assert peaks.static.prefill < 3 * scores + 2 * mlp


def test_even_routing() -> None:
    spec = resolve_model("mixtral-8x7b")[0]
    assert even_routing(spec, (0, 1), 100) == Routing(((25,) * 8, (25,) * 8))
    assert even_routing(spec, (0,), 1).loads == ((1, 1),)
    assert even_routing(spec, (0,), 3).busiest == 1


def test_more_tokens_at_one_expert_need_more_memory() -> None:
    one = subject("mixtral-8x7b", (0,))
    even = predict.dry_peaks(one, WORK, predict.even(one, WORK))
    skewed = Routing(((300, 300),))
    step = even_routing(one.spec, (0,), 3)
    routings = predict.Routings((skewed, step), (skewed, step))
    assert predict.dry_peaks(one, WORK, routings).static.prefill > even.static.prefill


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v3", "qwen3-next-80b-a3b"])
def test_ranks_share_out_flops(name: str) -> None:
    """What all ranks compute is the model and the repeats of what is not cut."""
    spec = resolve_model(name)[0]
    layers = range(spec.num_layers)
    whole = prefill_flops(spec, 128).total
    part = prefill_flops(rank_spec(spec, layers, 2), 128).total
    assert whole / 2 <= part < whole * 0.6
    assert prefill_flops(rank_spec(spec, layers, 1), 128).total == whole


def test_flops_of_some_layers_add_up_to_those_of_all(tmp_path: Path) -> None:
    spec = read_config_file(write_config("MLA MoE", tmp_path) / "config.json")
    first, second, both = (
        prefill_flops(rank_spec(spec, layers), 64) for layers in ((0,), (1,), (0, 1))
    )
    assert first.total + second.total - first.lm_head == both.total


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_never_less_than_tensors(family: str, tmp_path: Path) -> None:
    spec = read_config_file(write_config(family, tmp_path) / "config.json")
    own = Subject(
        spec=spec, stored=published(spec), numerics=Numerics.neutral(spec),
        selection=Selection(tuple(range(spec.num_layers))), dtype=spec.dtype,
    )  # fmt: skip
    routings = predict.even(own, WORK)
    plain = predict.dry_peaks(own, WORK, routings)
    blocks = predict.dry_peaks(own, WORK, routings, blocks=True)
    assert blocks.total >= plain.total
    assert blocks.static.cache == plain.static.cache == predict.cache_bytes(own, WORK, "static")
