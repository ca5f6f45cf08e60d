"""The rules on real questions; verdicts are those that people or engines reported."""

from __future__ import annotations

import pytest
from judged import judge, pod

from moesize.check.rules import RULES

# --- memory --------------------------------------------------------------------------------------


def test_weights_that_do_not_fit() -> None:
    """vllm-project/vllm#2363: Mixtral-8x7B in bfloat16 runs out of memory on an A100 40 GB."""
    found = judge(pod("--model=mistralai/Mixtral-8x7B-v0.1", gpu="nvidia-tesla-a100"))
    assert found.servers[0].fits is False
    assert found.one("MS101").severity == "error"
    assert found.at("MS101") == "mistralai/Mixtral-8x7B-v0.1"
    assert "GPUs" in (found.one("MS101").fix or pytest.fail("no fix")).text


def test_96_gb_do_not_hold_mixtral_and_160_do() -> None:
    """The same thread: 2 x 48 GB fail at 8,000 tokens, 128 GB and more work."""
    model = ("--model=mistralai/Mixtral-8x7B-Instruct-v0.1", "--max-model-len=8000")
    two = ("--tensor-parallel-size=2",)
    small = judge(pod(*model, *two, gpu="", count=2), gpu="rtx-a6000")
    large = judge(pod(*model, *two, gpu="nvidia-a100-80gb", count=2))
    assert small.servers[0].fits is False
    assert small.rules & {"MS101", "MS103"}
    assert large.servers[0].fits is True
    assert not large.rules & {"MS101", "MS102", "MS103"}


@pytest.mark.parametrize("version", ["v0.10.1", "v0.11.0"])
def test_default_length_on_one_h100(version: str) -> None:
    """vllm-project/vllm#23278 and #27508: gpt-oss-120b at 131,072 tokens does not start."""
    image = f"vllm/vllm-openai:{version}"
    found = judge(pod("--model=openai/gpt-oss-120b", image=image))
    assert found.servers[0].fits is False
    assert found.rules & {"MS102", "MS103"}


def test_two_h200_where_one_h100_is_too_small() -> None:
    """The H200 has the memory: SkyPilot's published recipe names both as alternatives."""
    text = pod("--model=openai/gpt-oss-120b", image="vllm/vllm-openai:v0.10.1")
    assert judge(text.replace("nvidia-h100-80gb", "nvidia-h200-141gb")).servers[0].fits is True


def test_kv_cache_below_one_request_and_the_edit_that_helps() -> None:
    """QwenLM/Qwen3#16: Qwen1.5-7B-Chat-GPTQ-Int4 on a 3090 holds 24,320 of 32,768 tokens."""
    text = pod("--model=Qwen/Qwen1.5-7B-Chat-GPTQ-Int4", "--quantization=gptq", gpu="")
    found = judge(text, gpu="rtx-3090")
    assert found.servers[0].fits is False
    finding = found.one("MS102")
    assert "32,768" in finding.message
    fixed = found.fixed("MS102")
    assert "--max-model-len=" in fixed
    again = judge(fixed, gpu="rtx-3090")
    assert again.servers[0].fits is True
    assert "MS102" not in again.rules


def test_a_stated_length_is_edited_where_it_stands() -> None:
    text = pod("--model=Qwen/Qwen1.5-7B-Chat-GPTQ-Int4", '"--max-model-len=32768"', gpu="")
    found = judge(text, gpu="rtx-3090")
    assert found.at("MS102") == "32768"
    assert judge(found.fixed("MS102"), gpu="rtx-3090").servers[0].fits is True


@pytest.mark.parametrize(
    ("arguments", "gpu", "count"),
    [
        # vllm-project/vllm#6689: reported working.
        (("meta-llama/Meta-Llama-3.1-405B-Instruct-FP8", 8, 4096), "nvidia-a100-80gb", 8),
        (("meta-llama/Meta-Llama-3.1-8B-Instruct", 1, 1024), "nvidia-l4", 1),
        # vllm-project/vllm#16330: reported working with 4 x H100.
        (("meta-llama/Llama-4-Scout-17B-16E-Instruct", 4, 49152), "nvidia-h100-80gb", 4),
    ],
)
def test_what_people_run(arguments: tuple[str, int, int], gpu: str, count: int) -> None:
    model, tp, length = arguments
    flags = (f"--model={model}", f"--tensor-parallel-size={tp}", f"--max-model-len={length}")
    found = judge(pod(*flags, gpu=gpu, count=count))
    assert found.servers[0].fits is True
    assert not [f for f in found.findings if f.severity == "error"]


def test_a_share_that_leaves_no_room() -> None:
    """vLLM compares what is free beside its context with the share before it loads anything."""
    found = judge(pod("--model=Qwen/Qwen2.5-7B-Instruct", "--gpu-memory-utilization=0.999"))
    assert found.one("MS106").severity == "error"
    assert found.at("MS106") == "0.999"
    assert judge(found.fixed("MS106")).servers[0].fits is True


def test_little_headroom_is_a_warning() -> None:
    """Between the longest length that fits beyond doubt and the shortest that does not: close."""
    closest = [
        judge(pod("--model=Qwen/Qwen2.5-7B-Instruct", f"--max-model-len={n}", gpu="nvidia-l4"))
        for n in range(2048, 32769, 2048)
    ]
    verdicts = [(found.servers[0].fits, "MS104" in found.rules) for found in closest]
    assert (True, False) in verdicts
    strict = pod("--model=Qwen/Qwen2.5-7B-Instruct", "--max-model-len=2048", gpu="nvidia-l4")
    assert "MS104" in judge(strict, headroom=0.9).rules


def test_a_promise_the_cache_does_not_hold() -> None:
    text = pod("--model=Qwen/Qwen2.5-7B-Instruct", "--max-model-len=32768", gpu="nvidia-l4")
    found = judge(text, concurrency=500)
    assert found.one("MS105").severity == "warning"
    assert judge(text, concurrency=1).rules.isdisjoint({"MS105"})


def test_weights_on_the_host_are_named() -> None:
    found = judge(
        pod(
            "--model=meta-llama/Llama-3.3-70B-Instruct",
            "--max-model-len=32768",
            "--kv-cache-dtype=fp8",
            "--gpu-memory-utilization=0.98",
            "--cpu-offload-gb=60",
            gpu="",
        ),
        gpu="gh200-96gb",
    )
    assert found.servers[0].fits is True
    assert found.at("MS108") == "60"


def test_a_length_left_to_the_engine() -> None:
    """--max-model-len auto: vLLM lowers the length, so a small cache is no fault."""
    arguments = ("--model=Qwen/Qwen1.5-7B-Chat-GPTQ-Int4", "--max-model-len=auto")
    assert judge(pod(*arguments, gpu=""), gpu="rtx-3090").servers[0].fits is True


# --- layout --------------------------------------------------------------------------------------


def test_a_size_that_does_not_divide_the_heads() -> None:
    """Qwen2.5-7B has 28 heads."""
    found = judge(pod("--model=Qwen/Qwen2.5-7B-Instruct", "--tensor-parallel-size=3", count=3))
    assert found.at("MS201") == "3"
    assert "28" in found.one("MS201").message


def test_more_ranks_than_gpus() -> None:
    found = judge(pod("--model=Qwen/Qwen2.5-7B-Instruct", "--tensor-parallel-size=4", count=2))
    assert found.at("MS202") == "4"
    assert found.one("MS202").severity == "error"
    assert found.servers[0].fits is False


def test_idle_gpus() -> None:
    found = judge(pod("--model=google/gemma-3-27b-it", "--tensor-parallel-size=4", count=8))
    assert found.at("MS203") == "8"
    assert found.servers[0].fits is True


def test_latent_cache_under_tensor_parallelism() -> None:
    arguments = ("--model=deepseek-ai/DeepSeek-V3", "--tensor-parallel-size=8")
    found = judge(pod(*arguments, "--max-model-len=8192", gpu="nvidia-h200-141gb", count=8))
    assert "data-parallel" in found.one("MS204").message
    dense = judge(pod("--model=Qwen/Qwen2.5-72B-Instruct", "--tensor-parallel-size=8", count=8))
    assert "MS204" not in dense.rules


def test_a_pod_without_a_gpu() -> None:
    found = judge(pod("--model=Qwen/Qwen2.5-7B-Instruct", gpu="", count=None))
    assert "MS205" in found.rules


def test_more_gpus_than_the_machine_has() -> None:
    text = pod("--model=Qwen/Qwen2.5-7B-Instruct", "--tensor-parallel-size=4", count=4, gpu="x")
    text = text.replace(
        "cloud.google.com/gke-accelerator: x", "node.kubernetes.io/instance-type: g5.8xlarge"
    )
    assert judge(text).at("MS206") == "4"


# --- model ---------------------------------------------------------------------------------------


def test_an_unknown_model_is_a_warning_at_its_name() -> None:
    found = judge(pod("--model=acme/secret-model-13b"))
    assert found.at("MS301") == "acme/secret-model-13b"
    assert found.servers[0].fits is None
    mapped = judge(
        pod("--model=acme/secret-model-13b"), models={"acme/secret-model-13b": "qwen2.5-14b"}
    )
    assert mapped.servers[0].fits is True


def test_awq_of_weights_that_are_not() -> None:
    """AWQ is made beforehand: the engine finds no quantization config in the repository."""
    found = judge(pod("--model=meta-llama/Llama-3.1-70B-Instruct", "--quantization=awq", count=2))
    assert found.at("MS302") == "awq"
    named = judge(pod("--model=hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4", "-q=awq"))
    assert "MS302" not in named.rules


def test_quantization_that_the_gpu_cannot_run() -> None:
    """FP8 weights need compute capability 8.0 (Marlin) in vLLM; a V100 has 7.0."""
    found = judge(
        pod("--model=Qwen/Qwen2.5-7B-Instruct", "--quantization=fp8", gpu=""), gpu="v100-32gb"
    )
    assert found.at("MS303") == "fp8"
    assert found.servers[0].fits is None


def test_bfloat16_on_a_t4() -> None:
    found = judge(
        pod("--model=Qwen/Qwen2.5-3B-Instruct", "--dtype=bfloat16", gpu="nvidia-tesla-t4")
    )
    assert found.at("MS304") == "bfloat16"
    assert "MS304" not in judge(found.fixed("MS304")).rules


def test_a_context_beyond_the_model() -> None:
    """Llama-3.1 was made for 131,072 tokens; vLLM refuses more."""
    text = pod("--model=meta-llama/Llama-3.1-8B-Instruct", "--max-model-len=200000")
    found = judge(text)
    assert found.at("MS305") == "200000"
    assert "--max-model-len=131072" in found.fixed("MS305")


def test_a_model_that_the_engine_is_not_planned_with() -> None:
    found = judge(pod("--model=meta-llama/Llama-3.2-11B-Vision-Instruct"))
    assert "MS306" in found.rules
    assert found.servers[0].fits is None


# --- flags ---------------------------------------------------------------------------------------


def test_a_flag_that_was_removed() -> None:
    """--swap-space is in vLLM up to 0.17 (argument definitions of the releases)."""
    arguments = ("--model=Qwen/Qwen2.5-7B-Instruct", "--swap-space=16")
    assert "MS401" not in judge(pod(*arguments, image="vllm/vllm-openai:v0.10.0")).rules
    found = judge(pod(*arguments, image="vllm/vllm-openai:v0.19.0"))
    assert found.one("MS401").severity == "error"
    assert found.at("MS401").startswith("--swap-space")


def test_a_misspelled_flag_and_an_abbreviated_one() -> None:
    found = judge(pod("--model=Qwen/Qwen2.5-7B-Instruct", "--max-modle-len=8192"))
    assert "--max-model-len" in found.one("MS402").message
    short = judge(pod("--model=Qwen/Qwen2.5-7B-Instruct", "--gpu-memory-util=0.8"))
    assert "MS402" not in short.rules
    assert short.servers[0].gpu_memory_utilization == 0.8


def test_a_value_that_cannot_be_read() -> None:
    found = judge(pod("--model=Qwen/Qwen2.5-7B-Instruct", "--gpu-memory-utilization=90%"))
    assert found.at("MS403") == "90%"


def test_an_unpinned_image_is_remarked() -> None:
    found = judge(pod("--model=Qwen/Qwen2.5-7B-Instruct", image="vllm/vllm-openai:latest"))
    assert any(finding.rule == "MS404" for finding in found.findings)


def test_a_variable_that_nobody_defines() -> None:
    found = judge(pod("--model=$(MODEL_ID)"))
    assert found.one("MS003").severity == "warning"
    assert found.servers[0].fits is None
    # One that cannot matter for memory is nobody's business.
    assert "MS003" not in judge(pod("--model=Qwen/Qwen2.5-7B-Instruct", "--api-key=$(KEY)")).rules


# --- the GPU -------------------------------------------------------------------------------------


def test_no_gpu_named() -> None:
    """141 GB of bfloat16 weights over 2 GPUs: 80 GB cards do, 48 GB ones do not."""
    arguments = ("--model=meta-llama/Llama-3.3-70B-Instruct", "--tensor-parallel-size=2")
    found = judge(pod(*arguments, "--max-model-len=8192", gpu="", count=2))
    finding = found.one("MS501")
    assert finding.severity == "warning"
    assert found.servers[0].fits is None
    fits, does_not = finding.details[0], finding.details[1]
    assert "h100-80gb-sxm" in fits
    assert "l40s" in does_not
    named = judge(pod(*arguments, "--max-model-len=8192", gpu="", count=2), gpu="h100")
    assert named.servers[0].fits is True
    assert "MS501" not in named.rules


def test_a_gpu_that_nobody_knows() -> None:
    text = pod("--model=Qwen/Qwen2.5-7B-Instruct", gpu="nvidia-z9000")
    found = judge(text)
    assert found.at("MS502") == "nvidia-z9000"
    assert judge(text, gpu_names={"nvidia-z9000": "l4"}).servers[0].gpu_id == "l4"


# --- the pod -------------------------------------------------------------------------------------


def test_host_memory_below_the_offload() -> None:
    arguments = ("--model=meta-llama/Llama-3.3-70B-Instruct", "--max-model-len=8192")
    offload = ("--cpu-offload-gb=80", "--gpu-memory-utilization=0.95")
    text = pod(*arguments, *offload, limits="            memory: 16Gi\n")
    assert judge(text).at("MS109") == "16Gi"
    assert "MS109" not in judge(text.replace("16Gi", "160Gi")).rules


def test_default_shared_memory_with_several_ranks() -> None:
    arguments = ("--model=Qwen/Qwen2.5-7B-Instruct", "--tensor-parallel-size=2")
    found = judge(pod(*arguments, count=2))
    assert "64 MiB" in found.one("MS110").message
    mounted = pod(
        *arguments,
        count=2,
        extra="        volumeMounts: [{name: shm, mountPath: /dev/shm}]\n"
        "      volumes: [{name: shm, emptyDir: {medium: Memory, sizeLimit: 8Gi}}]\n",
    )
    assert "MS110" not in judge(mounted).rules
    assert "MS110" not in judge(pod("--model=Qwen/Qwen2.5-7B-Instruct")).rules


def test_a_probe_that_kills_a_loading_server() -> None:
    probe = "        livenessProbe:\n          httpGet: {path: /health, port: 8000}\n"
    slow = probe + "          initialDelaySeconds: 60\n          failureThreshold: 3\n"
    arguments = ("--model=meta-llama/Llama-3.3-70B-Instruct", "--tensor-parallel-size=2")
    found = judge(pod(*arguments, "--max-model-len=8192", count=2, extra=slow))
    assert found.at("MS601") in ("3", "60")
    assert "MS601" not in judge(found.fixed("MS601")).rules


def test_two_servers_on_one_gpu() -> None:
    service = (
        "  {name}:\n    image: vllm/vllm-openai:v0.19.0\n"
        "    command: --model Qwen/Qwen2.5-{size}B-Instruct --gpu-memory-utilization {share}\n"
        "    deploy: {{resources: {{reservations: {{devices: [{{driver: nvidia, "
        'device_ids: ["0"], capabilities: [gpu]}}]}}}}}}\n'
    )
    first = service.format(name="a", size="7", share="0.7")
    second = service.format(name="b", size="0.5", share="0.5")
    found = judge(f"services:\n{first}{second}", "compose.yaml", gpu="h100")
    assert found.one("MS107").severity == "error"
    assert "1.20" in found.one("MS107").message
    calm = service.format(name="b", size="0.5", share="0.2")
    assert "MS107" not in judge(f"services:\n{first}{calm}", "compose.yaml", gpu="h100").rules


def test_the_release_that_a_script_installs() -> None:
    """vllm-project/vllm#23278: gpt-oss-120b at its default length does not start in 0.10."""
    script = "pip install vllm=={}\nvllm serve openai/gpt-oss-120b\n"
    older = judge(script.format("0.10.2"), "run.sh", gpu="h100")
    assert older.servers[0].engine_version == "0.10.2"
    assert older.servers[0].fits is False
    newer = judge(script.format("0.20.0"), "run.sh", gpu="h100")
    assert newer.servers[0].engine_version == "0.20.0"


# --- all of them ---------------------------------------------------------------------------------


def test_every_rule_is_tested() -> None:
    """A rule that no test names could stop to fire unnoticed."""
    from pathlib import Path

    texts = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [rule.id for rule in RULES if f'"{rule.id}"' not in texts] == []
