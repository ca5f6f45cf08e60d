"""Versions, GPUs and settings of a report, as the engine's own flags."""

from __future__ import annotations

from typing import Any

import pytest
from reporting import report

from moesize.accuracy import runs
from moesize.accuracy.models import Resolved, resolve_report
from moesize.accuracy.runs import Run, run_of
from moesize.accuracy.terms import Plans, figures_of
from moesize.accuracy.versions import known_ranges, release_after, release_on, versions_of
from moesize.core.deployment import Request
from moesize.core.llamacpp import LlamaCppSettings


def run(**fields: Any) -> Run:
    made = report(**{"engine_version": "0.33.0", "gpu": "l4", "tp": 1, **fields})
    return run_of(made, resolve_report(made))


# https://pypi.org/project/vllm/#history
@pytest.mark.parametrize(
    ("date", "current", "following"),
    [
        ("2025-12-03", "0.12.0", "0.13.0"),
        ("2025-12-18", "0.12.0", "0.13.0"),
        ("2026-04-27", "0.20.0", "0.20.1"),
        ("2023-06-01", None, "0.0.1"),
    ],
)
def test_the_release_of_a_day(date: str, current: str | None, following: str) -> None:
    assert release_on("vllm", date) == current
    assert release_after("vllm", date) == following


@pytest.mark.parametrize(
    ("fields", "names", "assumed"),
    [
        ({"engine_version": "0.12.0", "date": "2026-01-01"}, ("0.12.0",), False),
        ({"engine_version": "vllm/vllm-openai:v0.9.2"}, ("v0.9.2",), False),
        # Numbered after a tag of a release branch; its code is that of the release that followed.
        ({"engine_version": "0.11.2.dev690+g67475a6e8.d20251209"}, ("0.13.0",), True),
        (
            {"engine_version": "0.19.2rc1.dev134+gfe9c3d6c5"},
            ("0.19.2rc1.dev134+gfe9c3d6c5",),
            False,
        ),
        ({"date": "2026-02-05"}, ("0.15.1",), True),
        ({"date": "2025-10"}, ("0.10.2", "0.11.0"), True),
        ({}, known_ranges("vllm"), True),
    ],
)
def test_versions(fields: dict[str, str], names: tuple[str, ...], assumed: bool) -> None:
    found = versions_of(report(**fields), "vllm")
    assert (found.names, found.assumed) == (names, assumed)
    assert bool(found.note) == assumed


@pytest.mark.parametrize(
    "version", ["fork (Anemll 0.1.1)", "nvcr.io/nvidia/vllm:99.01-py3", "main"]
)
def test_a_version_that_names_no_release_is_not_covered(version: str) -> None:
    found = versions_of(report(engine_version=version, date="2026-01-01"), "vllm")
    assert found.names == ()
    assert found.problem == f"version names no release: {version}"


def test_an_image_is_planned_as_the_release_in_it() -> None:
    """NVIDIA's vLLM release notes 25.10 name 0.10.2; 0.13.0 came out on 2025-12-19."""
    found = versions_of(report(engine_version="nvcr.io/nvidia/vllm:25.10-py3"), "vllm")
    assert (found.names, found.assumed) == (("0.10.2",), True)
    latest = report(engine_version="vllm/vllm-openai:latest", date="2025-12-20")
    assert versions_of(latest, "vllm").names == ("0.13.0",)
    undated = report(engine_version="vllm/vllm-openai:latest", date=None)
    assert versions_of(undated, "vllm").problem


def test_an_excerpt_without_a_command_line_is_planned_both_ways() -> None:
    """Qwen3.5 has an MTP block and recurrent states: neither version nor flags show which is on."""
    bare = {"model": "Qwen/Qwen3.5-27B", "gpu": "H100", "other_flags": [], "date": "2026-05-07"}
    found = run(**bare, engine_version=None)
    kinds = {
        (
            way.request.num_spec_tokens or 0,
            getattr(way.request.engine_settings, "enable_prefix_caching", None),
        )
        for way in found.variants
    }
    assert kinds == {(0, True), (1, None), (3, None), (1, True), (3, True)}
    assert not run(**bare, engine_version="0.19.0").variants
    cut = run(
        **{**bare, "other_flags": ["speculative_config (truncated)"]}, engine_version="0.19.0"
    )
    assert cut.variants
    assert not run(model="Qwen/Qwen3-8B", other_flags=[], engine_version=None).variants


def test_a_version_older_than_what_is_known_is_not_covered() -> None:
    assert run(engine_version="0.2.7").problem == "version not planned: vllm 0.2.7"
    assert run(engine="sorcery").problem == "engine not planned: sorcery"


def test_settings_become_flags() -> None:
    found = run(
        tp=4,
        ep=True,
        max_model_len=16384,
        max_num_seqs=64,
        max_num_batched_tokens=2048,
        gpu_memory_utilization=0.85,
        kv_cache_dtype="fp8",
        enforce_eager=True,
        block_size=32,
        model="qwen3-30b-a3b",
    )
    (candidate,) = found.candidates
    assert candidate.gpu.id == "l4"
    assert candidate.request == Request(
        engine="vllm",
        engine_version="0.33.0",
        num_gpus=4,
        tensor_parallel_size=4,
        expert_parallel=True,
        context_tokens=16384,
        max_num_seqs=64,
        max_num_batched_tokens=2048,
        gpu_memory_utilization=0.85,
        kv_dtype="fp8",
        enforce_eager=True,
        block_tokens=32,
    )


@pytest.mark.parametrize(
    ("stated", "share"), [("default", None), ("default (0.9)", 0.9), (0.5, 0.5), ("odd (x)", None)]
)
def test_a_default_stays_the_engine_s_own(stated: object, share: float | None) -> None:
    (candidate,) = run(gpu_memory_utilization=stated).candidates
    assert candidate.request.gpu_memory_utilization == share


def test_a_block_that_the_engine_made_is_no_setting() -> None:
    (candidate,) = run(block_size=1568).candidates
    assert candidate.request.block_tokens is None


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["compilation_config (truncated)"], "flag not planned: compilation_config (truncated)"),
        (["cpu_offload_gb=4", "config=x.yaml"], "flag not planned: --"),
    ],
)
def test_a_flag_that_is_not_planned_leaves_the_report_uncovered(
    flags: list[str], reason: str
) -> None:
    assert run(other_flags=flags).problem.startswith(reason)


@pytest.mark.parametrize(
    ("unplanned", "problem"),
    [(("--deepep-mode", "--kv-transfer-config X"), ""), (("--deepep-mode", "--sleep"), "--sleep")],
)
def test_flags_beside_weights_and_caches_leave_these_comparable(
    monkeypatch: pytest.MonkeyPatch, unplanned: tuple[str, ...], problem: str
) -> None:
    monkeypatch.setattr(runs, "read_flags", lambda request, words: (request, unplanned))
    made = report(
        engine_version="0.33.0",
        gpu="l40s",
        tp=1,
        max_model_len=8192,
        observed={"weights_gib": 14.9889, "kv_cache_gib": 5.0, "outcome": "ok"},
    )
    model = resolve_report(made)
    found = run_of(made, model)
    assert found.problem.endswith(problem)
    assert bool(found.problem) == bool(problem)
    plans = Plans(made, model, found)
    covered = {
        figure.term: not isinstance(plans.predict(figure), str)
        for figure in figures_of(made, given_blocks=())
    }
    assert covered == {"weights": not problem, "kv_gib": False}
    assert isinstance(plans.verdict(), str)


def test_flags_of_a_log_as_they_would_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def read(request: Request, words: list[str]) -> tuple[Request, tuple[str, ...]]:
        seen.append(words)
        return request, ()

    monkeypatch.setattr(runs, "read_flags", read)
    run(
        other_flags=[
            "enable_prefix_caching=False",
            "async_scheduling=True",
            "limit_mm_per_prompt={'image': 0, 'video': 2}",
            "VLLM_USE_V1=1",
            "moe_backend=None",
        ]
    )
    assert seen == [
        [
            "VLLM_USE_V1=1",
            "--no-enable-prefix-caching",
            "--async-scheduling",
            "--limit-mm-per-prompt",
            '{"image": 0, "video": 2}',
        ]
    ]
    words = runs._llamacpp_words(
        report(
            "llama.cpp",
            n_ctx=32768,
            n_ubatch=1024,
            type_k="q8_0",
            type_v="none(MLA)",
            offloaded_layers="27/62",
            flash_attn="1",
            flags={"override_tensor": ["exps=CPU", '"blk\\.3.*=CUDA0"'], "tensor_split": "17,13"},
        )
    )
    assert words == [
        *("--ctx-size", "32768", "--ubatch-size", "1024"),
        *("--cache-type-k", "q8_0", "--cache-type-v", "q8_0"),
        *("--flash-attn", "on", "--n-gpu-layers", "27"),
        *("--override-tensor", "exps=CPU,blk\\.3.*=CUDA0"),
        *("--tensor-split", "17,13"),
    ]
    words = runs._serving_words(
        report("sglang", tp=16, dp=4, ep=16, max_num_batched_tokens=-1, block_size=128), "sglang"
    )
    assert words == [
        *("--tp-size", "16", "--dp-size", "4", "--ep-size", "16"),
        *("--chunked-prefill-size", "-1", "--page-size", "128"),
    ]


def test_a_gpu_that_nobody_stated_becomes_one_of_each_generation() -> None:
    found = run(gpu=None)
    assert found.gpu_known is False
    capabilities = {c.gpu.compute_capability for c in found.candidates}
    assert {"8.0", "8.9", "9.0", "10.0", None} <= capabilities
    assert run(gpu="RTX 5080 + RTX 5070 Ti").gpu_known is False
    assert run(gpu=None, gpu_total_gib=39.39).gpu_known is True


def test_a_name_with_two_memories_means_the_smallest_that_holds_what_was_held() -> None:
    small = run(gpu="A100", observed={"weights_gib": 14.99, "kv_cache_gib": 19.24})
    large = run(gpu="A100", observed={"weights_gib": 14.99, "kv_cache_gib": 55.79})
    unknown = run(gpu="A100")
    assert (small.gpu, large.gpu) == ("a100-40gb-sxm", "a100-80gb-sxm")
    assert unknown.gpu_known is False
    assert len(unknown.candidates) == 2


def test_the_memory_that_the_report_states_takes_the_place_of_the_catalogue_s() -> None:
    (candidate,) = run(gpu="RTX 4090", gpu_total_gib=23.65).candidates
    assert round(candidate.gpu.usable_memory().best_bytes / 2**30, 2) == 23.65


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"tp": None, "gpu_count": 4}, "layout not stated: several GPUs"),
        ({"tp": 0}, "setting not planned: tp is 0"),
        ({"ep": 3, "tp": 4}, "setting not planned: expert parallel over 3 of 4 ranks"),
    ],
)
def test_layouts_that_are_not_stated_or_make_no_sense(fields: dict[str, Any], problem: str) -> None:
    assert run(**fields).problem.startswith(problem)


def test_where_buffers_lie_is_known_or_not() -> None:
    def moved(**flags: object) -> str:
        return runs._weights_moved(report("llama.cpp", flags=flags))

    assert moved(n_tensors_overridden=174).startswith("tensors were moved by hand")
    assert moved(n_tensors_overridden=174, override_tensor="exps=CPU") == ""
    two = {"model_buffer_mib": {"CUDA0": 1.0, "CUDA1": 1.0, "CPU": 2.0}}
    # Equal cards have unequal free memory.
    assert runs._split_problem(report("llama.cpp", observed=two, gpu=["a", "a"]))
    free = {"CUDA0": 9000, "CUDA1": 9000}
    assert not runs._split_problem(report("llama.cpp", observed=two, gpu_free_mib=free))
    assert runs._split_problem(report("ik_llama.cpp", observed=two, gpu_free_mib=free))
    given = {"tensor_split": "1,1"}
    assert not runs._split_problem(report("ik_llama.cpp", observed=two, flags=given))
    rows = {"model_buffer_mib": {"CUDA_Split": 9.0, "CPU": 2.0}}
    assert runs._devices_problem(report("llama.cpp", observed=rows))
    assert not runs._devices_problem(report("llama.cpp", observed=two))
    assert runs.is_mapped(report(observed={"model_buffer_mib": {"CPU_Mapped": 9.0, "CUDA0": 1.0}}))
    assert runs.is_mapped(report(observed={"model_buffer_mib": {"CPU_Mapped": 9.0, "AMX": 1.0}}))
    assert not runs.is_mapped(report(observed={"model_buffer_mib": {"CPU_Mapped": 9.0}}))
    assert not runs.is_mapped(
        report(observed={"model_buffer_mib": {"CPU": 9.0, "CUDA_Host": 1.0, "CUDA0": 1.0}})
    )


@pytest.mark.parametrize("flags", [{"override_tensor": 3}, {"no_such_flag": "x"}])
def test_flags_of_llama_cpp_that_make_no_sense(flags: dict[str, Any]) -> None:
    with pytest.raises(runs._NotCoveredError, match="not planned"):
        runs._llamacpp_words(report("llama.cpp", flags=flags))


def test_a_model_that_is_not_known_is_not_planned() -> None:
    made = report(model="nobody/nothing", engine_version="0.33.0")
    model = resolve_report(made)
    assert isinstance(model, Resolved)
    assert model.spec is None


def test_a_fork_s_own_flags_become_settings() -> None:
    made = report(
        "ik_llama.cpp",
        model="DeepSeek-R1",
        date="2025-06-09",
        n_ctx=4096,
        flags={"mla_attn": "3", "attn_max_batch_mib": "512", "rtr": True},
    )
    settings = run_of(made, resolve_report(made)).candidates[0].request.engine_settings
    assert isinstance(settings, LlamaCppSettings)
    assert (settings.mla, settings.amb, settings.rtr) == (3, 512, True)
    # Without a GPU in the log nothing is moved to one.
    assert settings.no_op_offload is True

    def repacked(date: str, name: str) -> bool:
        return runs._rows_for_the_cpu(report("ik_llama.cpp", date=date, gguf_file=name))

    assert repacked("2025-05-14", "DeepSeek-V3-0324-IQ4_K_R4-00001-of-00010.gguf")
    assert not repacked("2025-06-09", "DeepSeek-V3-0324-IQ4_K_R4-00001-of-00010.gguf")
    assert not repacked("2025-05-14", "DeepSeek-R1-Q4_K_M.gguf")


@pytest.mark.parametrize(
    ("settings", "problem", "said"),
    [
        ({"n_ctx": None}, "context_problem", "does not state"),
        ({"flags": {"mla_attn": "0"}}, "graph_problem", "-mla 0"),
        (
            {"date": "2025-03-09", "flash_attn": "1", "flags": {"mla_attn": "2"}},
            "graph_problem",
            "pull request 253",
        ),
        ({"offloaded_layers": "27/62"}, "host_graph_problem", "on the host"),
        ({}, "sequences_problem", "which program"),
    ],
)
def test_what_a_report_leaves_open_is_named(
    settings: dict[str, Any], problem: str, said: str
) -> None:
    stated = {"date": "2025-06-09", "n_ctx": 4096, "flags": {"mla_attn": "3"}, **settings}
    made = report("ik_llama.cpp", model="DeepSeek-R1", **stated)
    assert said in getattr(run_of(made, resolve_report(made)), problem)
