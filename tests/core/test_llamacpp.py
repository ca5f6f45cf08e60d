"""llama.cpp's buffers against what llama.cpp planned itself, and against server logs.

`tests/golden/llamacpp_plans.json` says where its rows come from. Logged figures are in MiB with two
digits; each names the report that quotes the log.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moesize
from moesize.api import make_plan
from moesize.catalog import resolve_model
from moesize.core.deployment import Request
from moesize.core.errors import (
    InvalidDeploymentError,
    MoesizeError,
    UnknownNameError,
    UnsupportedError,
)
from moesize.core.gguf_view import gguf_entries
from moesize.core.llamacpp import LlamaCppSettings
from moesize.core.llamacpp_kv import (
    KvRules,
    KvSettings,
    allocated_bytes,
    check_types,
    model_caches,
    plan_cells,
)
from moesize.core.llamacpp_weights import HOST, Split, layer_devices, place
from moesize.core.quantization import find_scheme
from moesize.core.weight_formats import BLOCK_TYPES
from moesize.engines import engine_profile
from moesize.gpus import find_gpu
from moesize.readers.hf.read import spec_from_config

if TYPE_CHECKING:
    from moesize.core.model_spec import ModelSpec
    from moesize.core.plan import Plan

_FOLDER = Path(__file__).parents[1] / "golden"
ROWS = json.loads((_FOLDER / "llamacpp_plans.json").read_text())["rows"]
CONFIGS = {
    row["hub_id"]: row for row in json.loads((_FOLDER / "gguf_sizes.json").read_text())["engine"]
}
MIB = 1 << 20
# Figures with two and three digits after the point.
LOGGED, STATED = 0.00501, 0.000501
Q8_0 = {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}
SCHEMES = {"F16": "fp16", "BF16": "bf16"}


# Its row of facts for sizes does not say which layers have a window.
CATALOGUED = {"google/gemma-3-27b-it": "gemma-3-27b"}


@cache
def spec_of(hub_id: str) -> ModelSpec:
    row = CONFIGS[hub_id]
    if hub_id in CATALOGUED:
        spec = resolve_model(CATALOGUED[hub_id])[0]
    else:
        spec = spec_from_config(row["config"], file=hub_id, hub_id=hub_id)
    if row.get("repeats_head"):
        spec = replace(spec, embedding=replace(spec.embedding, stored_tied_head=True))
    return replace(spec, quantization=None)


def kv_settings(row: dict[str, Any]) -> KvSettings:
    return KvSettings(
        n_ctx=row["n_ctx"],
        n_seq_max=row["n_seq_max"],
        unified=row["unified"],
        n_ubatch=row["n_ubatch"],
        type_k=row["type_k"],
        type_v=row["type_v"],
        flash_attention=row["flash_attention"],
        full_window=row.get("full_window", False),
        guessed_tokens=row.get("guessed_tokens", 0),
    )


def name_of(row: dict[str, Any]) -> str:
    shown = ("gpus", "n_ctx", "n_seq_max", "unified", "n_ubatch", "type_k", "type_v")
    extra = [key for key in ("full_window", "guessed_tokens", "host_pattern", "mtp") if key in row]
    flash = "" if row["flash_attention"] else "noflash"
    return "-".join(
        [row["model"].split("/")[1], row["type"], *(str(row[key]) for key in shown), flash, *extra]
    )


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_caches_are_as_planned_by_llamacpp(row: dict[str, Any]) -> None:
    spec, rules, settings = spec_of(row["model"]), KvRules(), kv_settings(row)
    caches = model_caches(spec, rules)
    if row.get("refused"):
        with pytest.raises(InvalidDeploymentError):
            check_types(caches, settings, spec.title)
        return
    check_types(caches, settings, spec.title)
    plan = plan_cells(caches, settings, rules)
    found: dict[str, int] = {}
    for layer in plan.layers:
        found[layer.name] = found.get(layer.name, 0) + layer.logged_bytes
    found.pop("compressor", None)  # in no line of the log, but in context_bytes
    assert {name: pytest.approx(size / MIB, abs=LOGGED) for name, size in found.items()} == row[
        "caches_mib"
    ]
    allocated = sum(item.gpu_bytes if row["gpus"] else item.host_bytes for item in plan.layers)
    assert allocated == row["context_bytes"]


@pytest.mark.parametrize("row", [row for row in ROWS if not row.get("refused")], ids=name_of)
def test_weights_are_placed_as_by_llamacpp(row: dict[str, Any]) -> None:
    spec = spec_of(row["model"])
    stored = gguf_entries(spec, find_scheme(SCHEMES.get(row["type"], row["type"])))
    pattern = row.get("host_pattern")
    split = Split(
        num_gpus=row["gpus"],
        overrides=((pattern, HOST),) if pattern else (),
        load_mtp=row.get("mtp", False),
        mapped=False,
    )
    placement = place(spec, stored, split)
    assert placement.host.buffer_bytes / MIB == pytest.approx(row["host_mib"], abs=STATED)
    assert [held.buffer_bytes / MIB for held in placement.gpus] == pytest.approx(
        row["gpu_mib"], abs=STATED
    )


def test_cuda_pads_the_last_row_once() -> None:
    # MLA's key row of 576 elements in q8_0: 61 layers x 512 bytes beyond K, as logged by
    # ik_llama.cpp for DeepSeek-R1 at 65,536 tokens (2333.25 MiB of K, 2333.28 allocated;
    # ikawrakow/ik_llama.cpp discussion 258).
    q8_0 = BLOCK_TYPES["Q8_0"]
    keys = 65_536 * q8_0.row_bytes(576)
    assert 61 * keys / MIB == pytest.approx(2333.25, abs=LOGGED)
    assert 61 * allocated_bytes(keys, 576, q8_0) / MIB == pytest.approx(2333.28, abs=LOGGED)


@pytest.mark.parametrize(
    ("blocks", "split", "layers", "on_host", "output"),
    [
        # llama.cpp 0c1e57098 planned two equal devices for 32 blocks: 17 and 15 + output.
        (32, Split(num_gpus=2), (17, 15), 0, 1),
        # Server log of Qwen3.5-27B, --tensor-split 17,13: 29 of 48 recurrent layers on the first
        # GPU, which is where 38 of its 65 blocks are (361.59 and 236.91 MiB of states).
        (65, Split(num_gpus=2, fractions=(17, 13)), (38, 27), 0, 1),
        # Builds of 2025: `offloaded 27/62`, -ts 17,20,21,45; KV of 5, 5, 6 and 11 layers on the
        # GPUs and of 34 on the host (ikawrakow/ik_llama.cpp discussions, log of 2025-04-01).
        (
            61,
            Split(num_gpus=4, gpu_layers=27, fractions=(17, 20, 21, 45), output_last=True),
            (5, 5, 6, 11),
            34,
            HOST,
        ),
        # The same log line of 2026 counts the output: one block less.
        (61, Split(num_gpus=1, gpu_layers=27), (26,), 35, 0),
        (61, Split(num_gpus=1, gpu_layers=0), (0,), 61, HOST),
    ],
)
def test_layers_go_to_devices(
    blocks: int, split: Split, layers: tuple[int, ...], on_host: int, output: int
) -> None:
    devices, home = layer_devices(blocks, split)
    assert tuple(devices.count(gpu) for gpu in range(split.num_gpus)) == layers
    assert devices.count(HOST) == on_host
    assert home == output
    # Whole runs: the host first, then GPU after GPU.
    assert list(devices) == sorted(devices)


def run(model: str, quant: str, gpu: str, request: Request) -> Plan:
    spec, source = resolve_model(model)
    scheme = find_scheme(quant) if quant else None
    return make_plan(spec, source, scheme, "", find_gpu(gpu).spec, request)


def category(plan: Plan, name: str, gpu: int = 0) -> float:
    return plan.gpus[gpu].category_bytes(name) / MIB  # type: ignore[arg-type]


def item(plan: Plan, name: str, gpu: int = 0) -> float:
    return next(x.size_bytes for x in plan.gpus[gpu].items if x.name == name) / MIB


def on_host(plan: Plan, name: str) -> float:
    return next(x.size_bytes for x in plan.host if x.name == name) / MIB


def test_gpt_oss_with_experts_on_the_host() -> None:
    # b6699, -c 131072 -ngl 99 --n-cpu-moe 99 -np 1: CUDA0 model 1242.03 MiB, KV 3072.00 + 18.00,
    # output 0.77 (ikawrakow/ik_llama.cpp issue 822).
    request = Request(
        engine="llama.cpp",
        engine_version="b6699",
        context_tokens=131_072,
        concurrency=1,
        offload_experts=99,
    )
    plan = run("gpt-oss-20b", "MXFP4_MOE", "8GiB", request)
    assert category(plan, "weights") == pytest.approx(1242.03, abs=LOGGED)
    assert item(plan, "kv_cache.full") == pytest.approx(3072.0, abs=LOGGED)
    assert item(plan, "kv_cache.window") == pytest.approx(18.0, abs=LOGGED)
    assert on_host(plan, "host.output_buffer") == pytest.approx(0.77, abs=LOGGED)
    assert plan.deployment["engine_settings"]["experts_on_host"] == 24
    assert plan.performance["decode_tokens_per_s"] is None  # the CPU's part is not known


def test_qwen_with_its_own_draft_on_two_gpus() -> None:
    # A 2026 server log: -c 262144 -ub 256 -ctk q8_0 -ctv q8_0 --tensor-split 17,13 with draft-mtp,
    # 3 tokens: 66/66 layers, embedding 682.03, KV 8704.00, states 361.59 and 236.91 MiB.
    settings = LlamaCppSettings(
        tensor_split=(17, 13),
        ctx_size=262_144,
        parallel=1,
        ubatch_size=256,
        cache_type_k="q8_0",
        cache_type_v="q8_0",
    )
    request = Request(
        engine="llama.cpp",
        num_gpus=2,
        mtp=True,
        num_spec_tokens=3,
        engine_settings=settings,
    )
    plan = run("qwen3.5-27b", "Q4_K_M", "16GiB", request)
    assert on_host(plan, "host.weights.embedding") == pytest.approx(682.03, abs=LOGGED)
    kv = item(plan, "kv_cache.full", 0) + item(plan, "kv_cache.full", 1)
    assert kv == pytest.approx(8704.0, abs=LOGGED)
    assert item(plan, "kv_cache.state", 0) == pytest.approx(361.59, abs=LOGGED)
    assert item(plan, "kv_cache.state", 1) == pytest.approx(236.91, abs=LOGGED)
    # The draft's cache is one f16 layer of 4 x 256 wide K and V at the full context, on the last.
    assert item(plan, "draft.mtp_kv_cache", 1) == 262_144 * 2 * 1024 * 2 / MIB
    assert plan.deployment["engine_settings"]["n_gpu_layers"] == 66


def test_gemma_windows_of_four_default_slots() -> None:
    # A 2026 log (Vulkan): -c 8192 -ub 2048, n_parallel auto: 128.00 + 1920.00 MiB, output 4.00.
    settings = LlamaCppSettings(ctx_size=8192, ubatch_size=2048)
    plan = run(
        "gemma-4-12b", "Q4_0", "12GiB", Request(engine="llama.cpp", engine_settings=settings)
    )
    assert item(plan, "kv_cache.full") == pytest.approx(128.0, abs=LOGGED)
    assert item(plan, "kv_cache.window") == pytest.approx(1920.0, abs=LOGGED)
    assert on_host(plan, "host.output_buffer") == pytest.approx(4.0, abs=LOGGED)
    assert plan.deployment["max_num_seqs"] == 4


@pytest.mark.parametrize(
    ("version", "megabytes"),
    [
        # V in a cache of its own until PR 19067 (2026-01-25): 576 + 512 wide, then 576.
        ("b7437", 61 * 32_768 * (576 + 512) * 2 / MIB),
        ("2026-02-15", 61 * 32_768 * 576 * 2 / MIB),
        # Before PR 12801 keys and values of all heads: 128 x (192 + 128).
        ("b5000", 61 * 32_768 * 128 * (192 + 128) * 2 / MIB),
    ],
)
def test_latents_by_build(version: str, megabytes: float) -> None:
    request = Request(
        engine="llama.cpp",
        engine_version=version,
        context_tokens=32_768,
        concurrency=1,
        num_gpus=8,
        engine_settings=LlamaCppSettings(flash_attn="on"),
    )
    plan = run("deepseek-v3", "Q4_K_M", "b200", request)
    kv = sum(category(plan, "kv_cache", gpu) for gpu in range(8))
    assert kv == pytest.approx(megabytes, rel=1e-9)


@pytest.mark.parametrize(
    ("model", "settings", "tokens", "megabytes"),
    [
        # ikawrakow/ik_llama.cpp logs: DeepSeek-R1 -mla 0, 512 tokens (discussion 242); V3 -mla 3
        # q8_0; Qwen3-235B q8_0 with its 512 bytes a layer; gpt-oss without window cache (issue
        # 822); GLM-4.5-Air of 2026 without its MTP block.
        ("deepseek-r1", {"mla": 0, "flash_attn": "off"}, 512, 2440.0),
        (
            "deepseek-v3",
            {"mla": 3, "cache_type_k": "q8_0", "cache_type_v": "q8_0"},
            32_768,
            1166.65,
        ),
        ("qwen3-235b-a22b", {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}, 65_536, 6392.05),
        ("gpt-oss-20b", {}, 131_072, 6144.0),
        ("glm-4.5-air", {}, 4096, 736.0),
    ],
)
def test_caches_of_ik_llamacpp(
    model: str, settings: dict[str, Any], tokens: int, megabytes: float
) -> None:
    request = Request(
        engine="ik_llama.cpp",
        context_tokens=tokens,
        num_gpus=4,
        engine_settings=LlamaCppSettings(**settings),
    )
    plan = run(model, "Q4_K_M", "b300-288gb-sxm", request)
    kv = sum(category(plan, "kv_cache", gpu) for gpu in range(4))
    assert kv == pytest.approx(megabytes, abs=2 * LOGGED)


def test_mtp_blocks_had_caches_in_2025() -> None:
    # GLM-4.5-Air at 65,536 tokens: 12032.00 MiB = 47 layers (ik_llama.cpp log of 2025-08-19).
    request = Request(
        engine="ik_llama.cpp",
        engine_version="2025-08-19",
        context_tokens=65_536,
        engine_settings=LlamaCppSettings(flash_attn="on"),
    )
    plan = run("glm-4.5-air", "Q4_K_M", "b300-288gb-sxm", request)
    assert category(plan, "kv_cache") == pytest.approx(12_032.0, abs=LOGGED)


class TestSlots:
    """-np, -c and what a plan's context and concurrency make of them."""

    def settings(self, **options: Any) -> dict[str, Any]:
        own = options.pop("own", None)
        request = Request(engine="llama.cpp", engine_settings=own, **options)
        plan = run("qwen3-8b", "Q4_K_M", "h100-80gb-sxm", request)
        return plan.deployment["engine_settings"] | {"context": plan.deployment["context"]}

    def test_nothing_given_is_the_servers_default(self) -> None:
        shown = self.settings(context_tokens=8192)
        assert (shown["parallel"], shown["kv_unified"], shown["ctx_size"]) == (4, True, 8192)

    def test_before_november_2025_there_was_one_slot(self) -> None:
        shown = self.settings(context_tokens=8192, engine_version="b6700")
        assert (shown["parallel"], shown["ctx_size"]) == (1, 8192)

    def test_every_planned_sequence_has_a_slot_of_its_own(self) -> None:
        shown = self.settings(context_tokens=10_000, concurrency=3)
        # n_ctx_seq = pad(pad(30000) / 3) to 256 (src/llama-context.cpp).
        assert (shown["parallel"], shown["kv_streams"]) == (3, 3)
        assert (shown["ctx_size_per_sequence"], shown["ctx_size"]) == (10_240, 30_720)

    def test_pasted_context_is_shared_out(self) -> None:
        shown = self.settings(own=LlamaCppSettings(ctx_size=32_768, parallel=4))
        assert (shown["ctx_size"], shown["ctx_size_per_sequence"]) == (32_768, 8192)
        assert shown["context"] == 8192

    def test_too_small_a_context_is_refused(self) -> None:
        with pytest.raises(InvalidDeploymentError, match="holds no 4 x 16,384"):
            self.settings(
                own=LlamaCppSettings(ctx_size=32_768), context_tokens=16_384, concurrency=4
            )

    def test_more_sequences_than_slots_are_refused(self) -> None:
        with pytest.raises(InvalidDeploymentError, match="as many slots"):
            self.settings(own=LlamaCppSettings(parallel=2), concurrency=4)


class TestRefusals:
    """What llama.cpp does not start with, or what is not planned."""

    def plan(self, model: str = "deepseek-v3", quant: str = "Q4_K_M", **options: Any) -> Plan:
        own = options.pop("own", None)
        request = Request(engine="llama.cpp", engine_settings=own, **options)
        return run(model, quant, "b300-288gb-sxm", request)

    def test_two_types_for_one_latent(self) -> None:
        with pytest.raises(InvalidDeploymentError, match="one latent"):
            self.plan(own=LlamaCppSettings(cache_type_k="q8_0"))

    def test_quantized_values_need_flash_attention(self) -> None:
        own = LlamaCppSettings(cache_type_v="q8_0", flash_attn="off")
        with pytest.raises(InvalidDeploymentError, match="needs flash attention"):
            self.plan("qwen3-8b", own=own)

    def test_kv_types_of_other_engines(self) -> None:
        with pytest.raises(UnknownNameError):
            self.plan("qwen3-8b", kv_dtype="fp8")

    def test_published_fp8_is_no_gguf(self) -> None:
        with pytest.raises(UnsupportedError, match="as published"):
            self.plan(quant="")

    def test_schemes_of_other_engines(self) -> None:
        with pytest.raises(UnsupportedError, match="GGUF"):
            self.plan("qwen3-8b", "awq-4bit")

    def test_rows_are_not_split(self) -> None:
        with pytest.raises(UnsupportedError, match="split-mode row"):
            self.plan("qwen3-8b", num_gpus=2, own=LlamaCppSettings(split_mode="row"))

    def test_tensor_parallel_is_refused(self) -> None:
        with pytest.raises(UnsupportedError, match=r"--tp cannot be planned for llama\.cpp"):
            self.plan("qwen3-8b", num_gpus=2, tensor_parallel_size=2)

    def test_blocks_that_the_converter_drops(self) -> None:
        with pytest.raises(InvalidDeploymentError, match="drops them"):
            self.plan(mtp=True)

    def test_override_to_a_missing_gpu(self) -> None:
        own = LlamaCppSettings(override_tensor=r"blk\.1\.=CUDA3")
        with pytest.raises(InvalidDeploymentError, match="GPU 3"):
            self.plan("qwen3-8b", own=own)

    @pytest.mark.parametrize(
        "options",
        [
            {"n_gpu_layers": "some"},
            {"split_mode": "diagonal"},
            {"flash_attn": "perhaps"},
            {"n_cpu_moe": -1},
            {"override_tensor": "exps"},
            {"override_tensor": ",".join(["a=CPU"] * 2000)},
            {"ctx_size": 1 << 40},
        ],
    )
    def test_settings_without_meaning(self, options: dict[str, Any]) -> None:
        with pytest.raises(InvalidDeploymentError):
            LlamaCppSettings(**options)


def test_overrides_move_weights_and_leave_caches() -> None:
    plain = Request(engine="llama.cpp", context_tokens=4096)
    moved = replace(
        plain,
        engine_settings=LlamaCppSettings(override_tensor=r"blk\.(0|1)\.ffn_=CPU,^output\.=CPU"),
    )
    before, after = (run("qwen3-8b", "Q8_0", "rtx-4090", request) for request in (plain, moved))
    assert category(after, "kv_cache") == category(before, "kv_cache")
    # Two feed-forwards of 3 x 4096 x 12288 with their norms, and the head of 151936 x 4096.
    row = BLOCK_TYPES["Q8_0"].row_bytes
    feed_forward = 2 * 12_288 * row(4096) + 4096 * row(12_288) + 4 * 4096
    expected = 2 * feed_forward + 151_936 * row(4096)
    assert category(before, "weights") - category(after, "weights") == expected / MIB
    assert on_host(after, "host.weights.layers") == expected / MIB


def test_no_kv_offload_puts_the_cache_on_the_host() -> None:
    request = Request(
        engine="llama.cpp",
        context_tokens=32_768,
        engine_settings=LlamaCppSettings(no_kv_offload=True),
    )
    plan = run("qwen3-8b", "Q4_K_M", "rtx-4090", request)
    assert plan.kv_cache.needed_bytes == 0
    # 36 layers x 8 heads x 128 x K and V x 2 bytes.
    assert on_host(plan, "host.kv_cache.full") == 32_768 * 36 * 8 * 128 * 2 * 2 / MIB


def test_longest_context_is_the_longest_that_fits() -> None:
    request = Request(engine="llama.cpp", context_tokens=4096, concurrency=2)
    plan = run("qwen3-32b", "Q4_K_M", "rtx-4090", request)
    longest = plan.kv_cache.max_context
    assert 4096 < longest < 40_960
    assert run("qwen3-32b", "Q4_K_M", "rtx-4090", replace(request, context_tokens=longest)).fits
    beyond = replace(request, context_tokens=longest + 1024)
    assert not run("qwen3-32b", "Q4_K_M", "rtx-4090", beyond).fits


class TestFit:
    """--fit lowers a context that nobody gave (common/fit.cpp): 1024 MiB stay free, 4096 tokens."""

    def plan(self, **options: Any) -> Plan:
        return run("qwen3-32b", "Q4_K_M", "rtx-4090", Request(engine="llama.cpp", **options))

    def test_lowers_the_context(self) -> None:
        plan = self.plan()
        assert plan.fits
        assert 4096 < plan.deployment["context"] < 40_960
        assert 1024 * MIB <= plan.gpus[0].headroom_bytes < 1120 * MIB
        assert "context" in plan.defaulted

    def test_leaves_a_given_context(self) -> None:
        assert not self.plan(context_tokens=40_960).fits
        own = LlamaCppSettings(ctx_size=40_960)
        assert not self.plan(engine_settings=own).fits

    def test_can_be_switched_off(self) -> None:
        plan = self.plan(engine_settings=LlamaCppSettings(fit="off"))
        assert plan.deployment["context"] == 40_960
        assert not plan.fits

    def test_takes_another_margin(self) -> None:
        plan = self.plan(engine_settings=LlamaCppSettings(fit_target="2048"))
        assert 2048 * MIB <= plan.gpus[0].headroom_bytes < 2144 * MIB

    def test_goes_no_lower_than_4096(self) -> None:
        plan = run("qwen3-32b", "Q8_0", "rtx-4090", Request(engine="llama.cpp"))
        assert plan.deployment["context"] == 4096
        assert not plan.fits

    def test_came_in_december_2025(self) -> None:
        plan = self.plan(engine_version="2025-11-30")
        assert plan.deployment["context"] == 40_960


@pytest.mark.parametrize("name", ["b7771", "7771"])
def test_builds_are_versions(name: str) -> None:
    profile = engine_profile("llama.cpp", name)
    assert not profile.is_newer_than_known
    assert profile.facts["default_slots"] == {"slots": 4, "unified": True}


def test_days_are_builds() -> None:
    # ggml-org/llama.cpp issue 23652 of 2026-05-25 names b9265.
    assert engine_profile("llama.cpp", "2026-05-25").version == "b9265"
    assert engine_profile("llama.cpp", "2030-01-01").version == "b11160"
    for bad in ("2020-01-01", "2026-13-45", "0.5.0"):
        with pytest.raises(UnsupportedError):
            engine_profile("llama.cpp", bad)


def test_family_words() -> None:
    plan = moesize.plan("deepseek-v2-lite", gpu="rtx-4090", engine="llama.cpp", quant="4bit")
    assert plan.quantization.scheme == "Q4_K_M"


def test_every_catalogued_model_is_planned_or_refused() -> None:
    from moesize.catalog import list_models

    planned = 0
    for row in list_models():
        try:
            plan = moesize.plan(
                row["id"], gpu="b300-288gb-sxm", gpus=8, engine="llama.cpp", quant="Q4_K_M",
                suggest=False,
            )  # fmt: skip
        except MoesizeError:
            continue
        planned += 1
        for ledger in plan.gpus:
            assert all(x.low_bytes <= x.size_bytes <= x.high_bytes for x in ledger.items)
        # Nothing is lost: what the GPUs and the host hold is the file, plus tied copies and
        # padding, less MTP blocks.
        held = sum(ledger.category_bytes("weights") for ledger in plan.gpus)
        held += sum(x.size_bytes for x in plan.host if x.category == "weights")
        assert held >= plan.quantization.weight_bytes
        # Gemma 3 270M is mostly its tied table: 1.72.
        assert held < plan.quantization.weight_bytes * 1.75
    assert planned > 100


TOKENS = st.integers(1, 300_000)
SMALL = ("mixtral-8x7b", "gpt-oss-20b", "qwen3.5-35b-a3b", "deepseek-v2-lite", "gemma-3-27b")


@given(st.sampled_from(SMALL), TOKENS, TOKENS, st.integers(1, 64), st.booleans())
@settings(max_examples=150, deadline=None)
def test_laws_of_caches(model: str, first: int, second: int, slots: int, unified: bool) -> None:
    caches = model_caches(resolve_model(model)[0], KvRules())
    short, long = sorted((first, second))
    plans = [
        plan_cells(caches, KvSettings(n_ctx=tokens, n_seq_max=slots, unified=unified), KvRules())
        for tokens in (max(short, slots), max(long, slots))
    ]
    sizes = [sum(layer.gpu_bytes for layer in plan.layers) for plan in plans]
    assert sizes[0] <= sizes[1]  # never less for more tokens
    for plan, tokens in zip(plans, (short, long), strict=True):
        assert plan.n_ctx >= tokens
        assert plan.n_ctx_seq % 256 == 0
        assert plan.streams == (1 if unified else slots)
        for layer in plan.layers:
            # Alignment and one padding row a tensor, and nothing else.
            assert 0 <= layer.gpu_bytes - layer.logged_bytes < 2 * (128 + 512 * 4)


@given(
    st.integers(1, 200),
    st.lists(st.floats(0.05, 100), min_size=1, max_size=16),
    st.one_of(st.none(), st.integers(0, 250)),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_laws_of_layers(
    blocks: int, fractions: list[float], layers: int | None, output_last: bool
) -> None:
    split = Split(
        num_gpus=len(fractions),
        fractions=tuple(fractions),
        gpu_layers=layers,
        output_last=output_last,
    )
    devices, output = layer_devices(blocks, split)
    offloaded = min(blocks + 1 if layers is None else layers, blocks + 1)
    assert sum(device != HOST for device in (*devices, output)) == offloaded
    assert list(devices) == sorted(devices)
    assert output in (HOST, max((*devices, output)))


@given(
    st.sampled_from(SMALL),
    st.sampled_from(("Q4_K_M", "Q8_0", "IQ4_XS", "bf16")),
    st.integers(1, 8),
    st.one_of(st.none(), st.integers(0, 50)),
    st.integers(0, 50),
)
@settings(max_examples=60, deadline=None)
def test_no_tensor_is_lost(
    model: str, quant: str, gpus: int, layers: int | None, on_host: int
) -> None:
    """However a model is placed, host and GPUs together hold every tensor once, but for copies."""
    spec = resolve_model(model)[0]
    stored = gguf_entries(replace(spec, quantization=None), find_scheme(quant))
    whole = place(spec, stored, Split(num_gpus=0))
    pattern = "|".join(rf"blk\.{i}\.ffn_.*_exps" for i in range(on_host)) or "nothing"
    split = Split(num_gpus=gpus, gpu_layers=layers, overrides=((pattern, HOST),))
    parts = place(spec, stored, split)
    tensors = sum(held.num_tensors for held in (*parts.gpus, parts.host))
    copies = 1 + gpus  # a tied head, and rotary factors on every GPU
    assert whole.host.num_tensors <= tensors <= whole.host.num_tensors + copies
