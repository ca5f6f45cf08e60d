"""Pasted flags and serve commands: real ones, cited, and hostile ones."""

from __future__ import annotations

import importlib.util
import json
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

import moesize
from moesize.core.deployment import Request
from moesize.core.errors import InvalidInputError
from moesize.core.units import GIB
from moesize.engine_args import (
    ServeCommand,
    apply_engine_arguments,
    bare_model,
    engine_settings,
    parse_serve_command,
)
from moesize.engine_args.table import flag_table
from moesize.engine_args.values import READERS
from moesize.engine_args.words import version_of_image

ENGINES = ("vllm", "sglang", "llama.cpp", "tgi", "tensorrt-llm")
SCRIPT = Path(__file__).parent.parent / "scripts" / "engine_flags.py"
DATA = Path(moesize.__file__).parent / "data" / "flags"


def values(command: ServeCommand) -> dict[str, object]:
    """First target of each planned flag -> value, without the kind of target."""
    return {item.targets[0].partition(":")[2]: item.value for item in command.settings}


# -- real commands ---------------------------------------------------------------------------


def test_vllm_serve_with_a_speculative_config() -> None:
    # amasu/dgx-spark-qwen38@3b68c273 docker-compose.vllm.yml, its defaults put in.
    command = parse_serve_command(
        "vllm serve ${MODEL_ID:-unsloth/Qwen3.8-27B-NVFP4} --host 0.0.0.0 --port 8000 "
        '--tensor-parallel-size "1" --gpu-memory-utilization ${GPU_MEM_UTIL:-0.45} '
        "--max-model-len ${MAX_MODEL_LEN:-262144} --max-num-seqs ${MAX_NUM_SEQS:-4} "
        "--max-num-batched-tokens ${MAX_NUM_BATCHED_TOKENS:-8192} --trust-remote-code "
        "--reasoning-parser qwen3 --tool-call-parser qwen3_xml --enable-auto-tool-choice "
        "--distributed-executor-backend mp "
        """--speculative-config '{"method":"mtp","num_speculative_tokens":${SPEC_TOKENS:-5}}'"""
    )
    assert command.engine == "vllm"
    assert command.model == "unsloth/Qwen3.8-27B-NVFP4"
    assert values(command) == {
        "tensor_parallel_size": 1,
        "gpu_memory_utilization": 0.45,
        "context_tokens": 262144,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 8192,
        "num_spec_tokens": 5,
        "mtp": True,
        "spec_method": "mtp",
    }
    assert command.draft is None
    assert (command.unplanned, command.unknown, command.open_values) == ((), (), ())
    assert len(command.silent) == 7


def test_llama_server_with_experts_on_the_host() -> None:
    # carteakey/lllms@86e316ce run-llama-cpp.sh
    command = parse_serve_command(
        "./vendor/llama.cpp/build/bin/llama-server -m "
        "/models/ggml-org/gpt-oss-120b-GGUF/gpt-oss-120b-mxfp4-00001-of-00003.gguf "
        "--n-cpu-moe 31 --ctx-size 24576 --n-gpu-layers 999 --temp 1.0 --top-k 100.0 --min-p 0.0 "
        "--top-p 1.0 --threads 14 --cpu-range 0-5 --cpu-strict 1 --no-mmap --no-warmup -ub 2048 "
        "-b 2048 --cache-type-k q8_0 --cache-type-v q4_0 -fa on --jinja --reasoning-format none "
        "--chat-template-file /chat-template.jinja "
        '--chat-template-kwargs "{\\"reasoning_effort\\": \\"high\\"}" --host 0.0.0.0 --port 8502'
    )
    assert command.engine == "llama.cpp"
    assert command.model is not None
    assert command.model.endswith("gpt-oss-120b-mxfp4-00001-of-00003.gguf")
    assert values(command) == {
        "n_cpu_moe": 31,
        "ctx_size": 24576,
        "n_gpu_layers": 999,
        "ubatch_size": 2048,
        "batch_size": 2048,
        "cache_type_k": "q8_0",
        "cache_type_v": "q4_0",
        "flash_attn": "on",
        "load_mode": "none",
    }
    assert (command.unplanned, command.unknown) == ((), ())


def test_llama_server_of_the_time_when_flash_attention_was_a_switch() -> None:
    # carteakey/lllms@86e316ce llama-server-configs/qwen-3-cpu-only.sh
    command = parse_serve_command(
        "llama-server -hf unsloth/Qwen3-30B-A3B-GGUF:q4_k_m --n-gpu-layers 0 --jinja "
        "--reasoning-format deepseek -fa -sm row --temp 0.6 --top-k 20 --top-p 0.95 --min-p 0 "
        '-c 40960 -n 32768 --no-context-shift --port 8080 --metrics --alias "Qwen3-30B (CPU Only)"'
    )
    assert command.model == "unsloth/Qwen3-30B-A3B-GGUF:q4_k_m"
    assert values(command) == {
        "n_gpu_layers": 0,
        "flash_attn": "on",
        "split_mode": "row",
        "ctx_size": 40960,
    }
    assert command.unknown == ()


def test_llama_server_in_a_container() -> None:
    # carteakey/lllms@86e316ce llama-server-configs/docker.sh
    command = parse_serve_command(
        "docker run -d --gpus all --name llamacpp-chatgpt120 --restart unless-stopped -p 8080:8080 "
        "-v /home/user/llamacpp:/models llamacpp-server-cuda:latest --model "
        "/models/gpt-oss-120b-mxfp4-00001-of-00003.gguf --alias chatgpt --host 0.0.0.0 --port 8080 "
        "--jinja --ctx-size 32768 --n-cpu-moe 19 --flash-attn --temp 1.0 --n-gpu-layers 999"
    )
    assert command.engine == "llama.cpp"
    assert command.image == "llamacpp-server-cuda:latest"
    assert values(command)["n_cpu_moe"] == 19
    assert values(command)["flash_attn"] == "on"
    assert command.unknown == ()


def test_vllm_container_of_the_documentation() -> None:
    # vllm-project/vllm 0.10.2 docs/deployment/docker.md, with a tag and sizes.
    command = parse_serve_command(
        "docker run --runtime nvidia --gpus '\"device=0,1\"' \\\n"
        "    -v ~/.cache/huggingface:/root/.cache/huggingface \\\n"
        '    --env "HUGGING_FACE_HUB_TOKEN=$HF_TOKEN" \\\n'
        "    -e VLLM_ATTENTION_BACKEND=FLASHINFER \\\n"
        "    -p 8000:8000 --ipc=host vllm/vllm-openai:v0.10.2 \\\n"
        "    --model mistralai/Mistral-7B-v0.1 --tensor_parallel_size=2 --num-scheduler-steps 8"
    )
    assert (command.engine, command.engine_version) == ("vllm", "0.10.2")
    assert command.model == "mistralai/Mistral-7B-v0.1"
    assert command.visible_gpus == 2
    assert values(command) == {"attention_backend": "FLASHINFER", "tensor_parallel_size": 2}
    # --num-scheduler-steps left with V0: engine/arg_utils.py of 0.9.2 has it, 0.10.2 has not.
    assert command.absent == ("--num-scheduler-steps (up to 0.9.2)",)


def test_sglang_launch_server() -> None:
    # Written for this test in the form of SGLang's documentation; flags: 0.5.23 server_args.py.
    command = parse_serve_command(
        "python3 -m sglang.launch_server --model-path deepseek-ai/DeepSeek-V3 --tp 8 --dp 8 "
        "--enable-dp-attention --trust-remote-code --mem-fraction-static 0.85 "
        "--speculative-algorithm EAGLE --speculative-num-steps 1 --speculative-eagle-topk 1 "
        "--speculative-num-draft-tokens 2"
    )
    assert command.engine == "sglang"
    assert command.model == "deepseek-ai/DeepSeek-V3"
    assert values(command) == {
        "tensor_parallel_size": 8,
        "data_parallel_size": 8,
        "data_parallel_attention": True,
        "mem_fraction_static": 0.85,
        "speculative_num_steps": 1,
        "speculative_eagle_topk": 1,
        "speculative_num_draft_tokens": 2,
        "mtp": True,
        "speculative_algorithm": "EAGLE",
    }
    assert command.unknown == ()


def test_text_generation_launcher_reads_its_variables() -> None:
    # Options and variables: TGI 3.3.7 docs/source/reference/launcher.md.
    command = parse_serve_command(
        "QUANTIZE=bitsandbytes-nf4 NUM_SHARD=2 text-generation-launcher "
        "--model-id tiiuae/falcon-7b-instruct --max-total-tokens 4096 --num-shard 1"
    )
    assert command.model == "tiiuae/falcon-7b-instruct"
    assert command.scheme == "nf4"
    assert values(command) == {"tensor_parallel_size": 1, "context_tokens": 4096}


def test_variables_of_a_manifest() -> None:
    # GoogleCloudPlatform/kubernetes-engine-samples ai-ml tgi-7b-bitsandbytes-nf4.yaml
    command = parse_serve_command(
        ["--model-id=$(MODEL_ID)", "--num-shard=2", "--quantize=bitsandbytes-nf4"],
        engine="tgi",
        env={"MODEL_ID": "google/gemma-7b", "PORT": "8000"},
    )
    assert (command.model, command.scheme) == ("google/gemma-7b", "nf4")
    assert values(command) == {"tensor_parallel_size": 2}
    assert (command.unknown, command.open_values) == ((), ())


def test_trtllm_serve() -> None:
    command = parse_serve_command(
        "trtllm-serve nvidia/Qwen3-235B-A22B-FP8 --tp_size 4 --ep_size 4 --max_batch_size 64 "
        "--kv_cache_free_gpu_memory_fraction 0.8 --extra_llm_api_options extra.yml"
    )
    assert command.model == "nvidia/Qwen3-235B-A22B-FP8"
    assert values(command) == {
        "tensor_parallel_size": 4,
        "moe_expert_parallel_size": 4,
        "max_num_seqs": 64,
        "free_gpu_memory_fraction": 0.8,
    }
    assert command.unplanned == ("--extra-llm-api-options extra.yml",)


@pytest.mark.parametrize(
    ("text", "engine", "model"),
    [
        ("vllm serve a/b", "vllm", "a/b"),
        ("python -m vllm.entrypoints.openai.api_server --model a/b", "vllm", "a/b"),
        ("python3 -u -m vllm.entrypoints.openai.api_server --model=a/b", "vllm", "a/b"),
        ("sglang serve --model-path a/b", "sglang", "a/b"),
        ("uv run vllm serve a/b", "vllm", "a/b"),
        (
            "sudo docker run --rm -it lmsysorg/sglang:latest sglang serve --model a/b",
            "sglang",
            "a/b",
        ),
        ("podman run ghcr.io/ggml-org/llama.cpp:server-cuda -m b.gguf", "llama.cpp", "b.gguf"),
        ("bash -c 'export M=a/b && exec vllm serve $M --port 80'", "vllm", "a/b"),
        ("cd /app; pip install -U vllm\nvllm serve a/b > log 2>&1 &", "vllm", "a/b"),
        (r"C:\llama\llama-server.exe -m b.gguf".replace("\\", "\\\\"), "llama.cpp", "b.gguf"),
        ("vllm serve --enforce-eager --model a/b", "vllm", "a/b"),
    ],
)
def test_the_program_and_its_model(text: str, engine: str, model: str) -> None:
    command = parse_serve_command(text)
    assert (command.engine, command.model) == (engine, model)


# -- how the engines read flags ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "tokens"),
    [
        # vLLM 0.32.0 utils/argparse_utils.py: human_readable_int, its own examples
        ("1k", 1_000),
        ("1K", 1_024),
        ("25.6k", 25_600),
        ("32K", 32_768),
        ("1.5k", 1_500),
        ("131072", 131_072),
        ("2M", 2 << 20),
    ],
)
def test_human_sizes_of_vllm(typed: str, tokens: int) -> None:
    assert values(parse_serve_command(f"--max-model-len {typed}"))["context_tokens"] == tokens


def test_a_binary_suffix_takes_no_decimals() -> None:
    with pytest.raises(InvalidInputError, match=r"--max-model-len.*decimals"):
        parse_serve_command("--max-model-len 1.5K")


@pytest.mark.parametrize("typed", ["-1", "auto"])
def test_a_context_that_vllm_chooses_is_named(typed: str) -> None:
    _, notes = apply_engine_arguments(Request(), f"--max-model-len {typed}")
    assert "--max-model-len auto" in notes[0].message


def test_spellings_of_one_flag() -> None:
    for text in (
        "--tensor-parallel-size 2",
        "--tensor_parallel_size=2",
        "--tensor-parallel 2",
        "-tp 2",
        "-tp=2",
        "-tp 8 --tensor-parallel-size 2",  # the last wins
    ):
        assert values(parse_serve_command(text)) == {"tensor_parallel_size": 2}, text


def test_a_shortened_flag_must_be_unique() -> None:
    # --max-num-batched-tokens and --max-num-seqs begin alike, among others
    command = parse_serve_command("--max-num 8", version="0.33.0")
    assert values(command) == {}
    assert "short for" in command.unknown[0]
    # argparse on the parser of vLLM 0.32.0: short for --enable-chunked-prefill alone, though
    # --enable-chunked-mm-input turns --disable-chunked-mm-input off from 0.33 on.
    assert values(parse_serve_command("--enable-ch", version="0.32.0")) == {
        "enable_chunked_prefill": True
    }


def test_llama_server_knows_no_shortened_flags() -> None:
    command = parse_serve_command("llama-server -m a.gguf --ctx 4096 -ngl 3")
    assert values(command) == {"n_gpu_layers": 3}
    assert command.unknown == ("--ctx",)


def test_switches_have_negative_forms() -> None:
    assert values(parse_serve_command("--no-enable-prefix-caching")) == {
        "enable_prefix_caching": False
    }
    assert values(parse_serve_command("--enforce-eager --no-enforce-eager")) == {
        "enforce_eager": False
    }
    # vLLM 0.33.0 argparse_utils.py:EnableDisableAction
    assert values(parse_serve_command("--disable-expert-parallel")) == {"expert_parallel": False}
    assert values(parse_serve_command("llama-server -nkvo")) == {"no_kv_offload": True}
    assert values(parse_serve_command("llama-server --no-kv-unified")) == {"kv_unified": False}


def test_json_keys_may_be_typed_one_by_one() -> None:
    dotted = parse_serve_command(
        "--speculative-config.method eagle3 --speculative-config.model=a/draft "
        "--speculative_config.num_speculative_tokens 3"
    )
    whole = parse_serve_command(
        """--speculative-config '{"method":"eagle3","model":"a/draft","""
        """"num_speculative_tokens":3}'"""
    )
    assert dotted.settings == whole.settings
    assert dotted.draft == whole.draft == "a/draft"
    assert values(dotted) == {"num_spec_tokens": 3, "spec_method": "eagle3"}


def test_compilation_config() -> None:
    command = parse_serve_command(
        """-cc '{"cudagraph_capture_sizes":[1,2,4],"cudagraph_mode":"FULL","mode":3}' """
        "-cc.pass_config.fuse_norm true -O3",
    )
    assert values(command) == {
        "cudagraph_capture_sizes": (1, 2, 4),
        "cudagraph_mode": "FULL",
        "compilation_mode": "3",
    }
    assert command.unplanned == (
        "--optimization-level 3",
        "--compilation-config.pass_config",
    )


def test_redundant_experts_and_a_comment() -> None:
    # llm-d/llm-d guides/wide-ep-lws decode.yaml: numbers in quotes, a script with comments
    script = (
        "# what isn't run: $(rm -rf /)\n"
        "exec vllm serve deepseek-ai/DeepSeek-R1-0528 # as published\n"
        "  --enable-eplb \\\n"
        """  --eplb-config '{"window_size":"1000","num_redundant_experts":"32"}'"""
    )
    command = parse_serve_command(f"bash -c {shlex.quote(script)}")
    assert values(command) == {"enable_eplb": True, "num_redundant_experts": 32}
    assert command.unplanned == ("--eplb-config.window_size",)
    assert command.model == "deepseek-ai/DeepSeek-R1-0528"


def test_limits_of_images_old_and_new() -> None:
    expected = (("image", 2), ("video", 0))
    for text in (
        "--limit-mm-per-prompt image=2,video=0",
        """--limit-mm-per-prompt '{"image": 2, "video": 0}'""",
        """--limit-mm-per-prompt '{"image": {"count": 2, "width": 512}, "video": 0}'""",
        "--limit-mm-per-prompt.image 2 --limit-mm-per-prompt.video 0",
    ):
        assert values(parse_serve_command(text)) == {"limit_mm_per_prompt": expected}, text


def test_lora_counts_only_where_it_is_on() -> None:
    # vLLM 0.33.0 config/lora.py: max_lora_rank 16, max_loras 1
    assert values(parse_serve_command("--max-lora-rank 64")) == {}
    assert values(parse_serve_command("--enable-lora --max-loras 4")) == {
        "max_loras": 4,
        "lora_rank": 16,
    }


def test_sizes_in_gib() -> None:
    found = values(parse_serve_command("--cpu-offload-gb 1.5 --kv-offloading-size 20"))
    assert found == {"cpu_offload_bytes": 3 * GIB // 2, "kv_offloading_bytes": 20 * GIB}


def test_tensors_of_llama_cpp() -> None:
    command = parse_serve_command(
        r'llama-server -m a.gguf -ot "blk\.[0-9]+\.ffn_(up|down)_exps\.=CPU" -ts 3,1 -fa auto '
        "-ngl all -c 0 -np 4 -ctk q8_0 -cmoe --mmproj p.gguf -md draft.gguf --spec-draft-n-max 8"
    )
    assert values(command) == {
        "override_tensor": r"blk\.[0-9]+\.ffn_(up|down)_exps\.=CPU",
        "tensor_split": (3.0, 1.0),
        "flash_attn": "auto",
        "n_gpu_layers": "all",
        "ctx_size": 0,
        "parallel": 4,
        "cache_type_k": "q8_0",
        "cpu_moe": True,
        "mmproj": "p.gguf",
    }
    assert command.draft == "draft.gguf"


def test_variables_of_the_engines() -> None:
    command = parse_serve_command(
        "VLLM_ATTENTION_BACKEND=FLASHMLA VLLM_PP_LAYER_PARTITION=31,30 VLLM_USE_V1=1 "
        "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=0 CUDA_VISIBLE_DEVICES=0,1,2,3 "
        "VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE=536870912 VLLM_LOGGING_LEVEL=DEBUG "
        "VLLM_MLA_DISABLE=1 VLLM_NOT_A_THING=1 HF_TOKEN=x vllm serve a/b"
    )
    assert command.visible_gpus == 4
    assert values(command) == {
        "attention_backend": "FLASHMLA",
        "pp_layer_partition": (31, 30),
        "use_v1": True,
        "profile_cuda_graphs": False,
        "flashinfer_workspace_bytes": 1 << 29,
    }
    assert command.silent == ("VLLM_LOGGING_LEVEL",)
    assert command.unplanned == ("VLLM_MLA_DISABLE",)
    assert command.unknown == ("VLLM_NOT_A_THING",)
    # llama.cpp common/arg.cpp: every option has a variable, a flag overrides it, _NO_ turns off
    command = parse_serve_command(
        "LLAMA_ARG_CTX_SIZE=8192 LLAMA_ARG_N_GPU_LAYERS=10 LLAMA_ARG_NO_KV_OFFLOAD=1 "
        "LLAMA_ARG_FLASH_ATTN=off llama-server -m a.gguf -ngl 20"
    )
    assert values(command) == {
        "ctx_size": 8192,
        "no_kv_offload": True,
        "flash_attn": "off",
        "n_gpu_layers": 20,
    }


def test_what_only_the_shell_knows_is_named() -> None:
    command = parse_serve_command(
        "vllm serve $MODEL -tp $(nproc) --max-model-len {{ctx}} --port $PORT --max-num-seqs 8"
    )
    assert values(command) == {"max_num_seqs": 8}
    assert command.model is None
    assert any("$MODEL" in name for name in command.open_values)
    assert any(name.startswith("-tp") for name in command.open_values)


def test_flags_that_change_nothing_pass_in_silence() -> None:
    _, notes = apply_engine_arguments(
        Request(), "--host 0.0.0.0 --port 1 --served-model-name a b --seed 3 --load-format auto"
    )
    assert notes == ()


def test_what_may_change_memory_is_named() -> None:
    request, notes = apply_engine_arguments(
        Request(),
        "--hf-overrides '{\"num_hidden_layers\": 4}' --load-format bitsandbytes --flag-of-nobody 3 "
        "--gpu-memory-utilisation 0.5 --config serve.yaml",
        version="0.32.0",
    )
    text = " ".join(note.message for note in notes)
    for name in ("--hf-overrides", "--load-format bitsandbytes", "--config serve.yaml"):
        assert name in text
    assert "--flag-of-nobody" in text
    assert "did you mean --gpu-memory-utilization?" in text
    assert {note.code for note in notes} == {"engine-args"}
    assert request == Request()


def test_a_flag_of_another_version_is_named_and_not_used() -> None:
    request, notes = apply_engine_arguments(
        Request(), "--num-redundant-experts 8", version="0.32.0"
    )
    assert request.num_redundant_experts is None
    assert "--num-redundant-experts (up to 0.11.2)" in notes[0].message
    # Between two releases that were read, one having it, it counts as there.
    table = flag_table("vllm")
    flag = table.names["--num-scheduler-steps"].flag
    assert [table.has(flag, v) for v in ("0.8.0", "0.9.2", "0.10.0", "0.10.2", "0.33.0")] == [
        True,
        True,
        True,
        False,
        False,
    ]


# -- into a request ----------------------------------------------------------------------------


def test_options_of_the_request_win() -> None:
    request = Request(context_tokens=4096, tensor_parallel_size=2, num_gpus=2)
    changed, _ = apply_engine_arguments(request, "--max-model-len 8192 -tp 4 --max-num-seqs 7")
    assert (changed.context_tokens, changed.tensor_parallel_size, changed.num_gpus) == (4096, 2, 2)
    assert changed.max_num_seqs == 7


def test_sizes_say_how_many_gpus() -> None:
    changed, notes = apply_engine_arguments(Request(), "-tp 4 -pp 2")
    assert (changed.num_gpus, notes) == (8, ())
    changed, notes = apply_engine_arguments(Request(num_gpus=8), "-tp 4")
    assert changed.num_gpus == 4
    assert "use 4 of the 8 GPUs" in notes[0].message


def test_a_command_without_sizes_uses_one_gpu() -> None:
    changed, notes = apply_engine_arguments(Request(num_gpus=8), "vllm serve a/b")
    assert changed.num_gpus == 8
    assert "would use 1 of the 8 GPUs" in notes[0].message
    assert apply_engine_arguments(Request(num_gpus=8), "--max-num-seqs 4")[1] == ()
    given = Request(num_gpus=8, tensor_parallel_size=8)
    assert apply_engine_arguments(given, "vllm serve a/b")[1] == ()


def test_replicas_need_gpus_of_their_own() -> None:
    changed, _ = apply_engine_arguments(Request(), "vllm serve a/b -tp 2 -dp 4")
    assert (changed.data_parallel_size, changed.num_gpus) == (4, 8)
    changed, _ = apply_engine_arguments(Request(), "vllm serve a/b -dp 4")
    assert changed.num_gpus == 4


def test_settings_of_an_engine_become_its_dataclass() -> None:
    from moesize.core.hf_transformers import TransformersSettings

    settings, left = engine_settings(
        "transformers", {"attn_implementation": "eager", "no_such_thing": 1}
    )
    assert settings == TransformersSettings(attn_implementation="eager")
    assert left == ["no_such_thing"]
    assert engine_settings("tgi", {"speculate": 2}) == (None, ["speculate"])


def test_a_whole_command_planned() -> None:
    plan = moesize.plan(
        "qwen3-30b-a3b",
        gpu="h100-80gb-sxm",
        engine_args="vllm serve Qwen/Qwen3-30B-A3B -tp 2 --max-model-len 16k --quantization fp8",
    )
    assert plan.deployment["tp"] == 2
    assert plan.deployment["gpu_count"] == 2
    assert plan.deployment["context"] == 16_000
    assert plan.quantization.scheme == "fp8"
    assert [note.code for note in plan.warnings if note.code.startswith("engine-args")] == []


def test_quant_of_the_request_and_of_the_checkpoint_win() -> None:
    args = "vllm serve Qwen/Qwen3-30B-A3B --quantization fp8"
    own = moesize.plan("qwen3-30b-a3b", gpu="h200", quant="awq-4bit", engine_args=args)
    assert own.quantization.scheme == "awq-4bit"
    published = moesize.plan("gpt-oss-20b", gpu="h200", engine_args="--quantization fp8")
    assert published.quantization.scheme == "checkpoint"


@pytest.mark.parametrize(
    ("text", "quant", "scheme", "model"),
    [
        ("-hf unsloth/Qwen3-30B-A3B-GGUF:q4_k_m", "Q4_K_M", "Q4_K_M", "Qwen3-30B-A3B"),
        ("-m /m/Qwen_QwQ-32B-Q4_K_M.gguf", "Q4_K_M", "Q4_K_M", "Qwen_QwQ-32B"),
        ("-m DeepSeek-R1-F16-00001-of-00030.gguf", "F16", "fp16", "DeepSeek-R1"),
        ("-hf a/B-GGUF:UD-Q4_K_XL", "UD-Q4_K_XL", None, "B"),
        ("-hf a/B-GGUF", None, None, "B"),
        ("-hf a/B-GGUF -hff B-IQ4_XS.gguf", "IQ4_XS", "IQ4_XS", "B"),
    ],
)
def test_gguf_names(text: str, quant: str | None, scheme: str | None, model: str) -> None:
    command = parse_serve_command(f"llama-server {text}")
    assert (command.quant, command.scheme) == (quant, scheme)
    assert command.model is not None
    assert bare_model(command.model) == model


def test_a_quantization_that_is_no_scheme_is_named() -> None:
    plan = moesize.plan("qwen3-30b-a3b", gpu="h200", engine_args="--quantization torchao")
    assert any("torchao" in note.message for note in plan.warnings)


def test_another_model_in_the_command_is_named() -> None:
    plan = moesize.plan("qwen3-30b-a3b", gpu="h200", engine_args="vllm serve Qwen/Qwen3-8B")
    assert "Qwen/Qwen3-8B" in next(
        note.message for note in plan.warnings if note.code == "engine-args-model"
    )


def test_another_engine_in_the_command_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="starts sglang"):
        moesize.plan(
            "qwen3-30b-a3b", gpu="h200", engine="vllm", engine_args="sglang serve --model-path a/b"
        )


def test_a_fork_takes_the_flags_of_its_origin() -> None:
    command = parse_serve_command("./llama-server -m a.gguf -mla 3 -fmoe", engine="ik_llama.cpp")
    assert command.engine == "ik_llama.cpp"
    assert values(command) == {"mla": 3}
    assert command.unplanned == ("-fmoe",)


def test_the_engine_of_the_command_is_planned() -> None:
    plan = moesize.plan(
        "qwen3-30b-a3b",
        gpu="h200",
        engine_args="text-generation-launcher --model-id Qwen/Qwen3-30B-A3B --num-shard 2",
    )
    assert (plan.deployment["engine"], plan.deployment["gpu_count"]) == ("tgi", 2)


# -- hostile input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("x" * (1 << 20), "characters"),
        ("a " * 60_000, "words"),
        ("vllm serve 'a", "quotation"),
        ("vllm serve a \x1b[31m", "0x1b"),
        ("--speculative-config '" + "[" * 20_000 + "'", "--speculative-config"),
        ("--speculative-config '" + '{"a":' * 40 + "1" + "}" * 40 + "'", "--speculative-config"),
        ("--speculative-config '{\"num_speculative_tokens\": -1}'", "--speculative-config"),
        ("--speculative-config '{\"num_speculative_tokens\": NaN}'", "--speculative-config"),
        ("--speculative-config '{\"method\": 3}'", "--speculative-config"),
        ('--compilation-config \'{"cudagraph_capture_sizes": ["a"]}\'', "--compilation-config"),
        ("--gpu-memory-utilization nan", "--gpu-memory-utilization"),
        ("--gpu-memory-utilization 1e999", "--gpu-memory-utilization"),
        ("--max-num-seqs " + "9" * 5_000, "--max-num-seqs"),
        ("--max-num-seqs ٣", "--max-num-seqs"),
        ("--max-num-seqs 3.5", "--max-num-seqs"),
        ("--max-model-len -5", "--max-model-len"),
        ("--cpu-offload-gb -1", "--cpu-offload-gb"),
        ("--cuda-graph-sizes " + "1 " * 5_000, "--cuda-graph-sizes"),
        ("--max-model-len", "--max-model-len"),
        ("--max-model-len --port 8000", "--max-model-len"),
        ("llama-server -ts a,b", "-ts"),
        ("llama-server -fa perhaps -c many", "-c"),
        ("--limit-mm-per-prompt image=-2", "--limit-mm-per-prompt"),
        (
            "--" + "a." * 50 + "b 1 --speculative-config." + "a." * 50 + "b 1",
            "--speculative-config",
        ),
        ("rm -rf /", "rm"),
        ("ls | grep vllm", "ls"),
    ],
)
def test_hostile_text_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(InvalidInputError, match="--engine-args") as caught:
        parse_serve_command(text)
    assert named in caught.value.message
    assert len(caught.value.message) < 400


def test_a_value_that_the_deployment_cannot_have_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="max num seqs"):
        apply_engine_arguments(Request(), "--max-num-seqs -4")
    with pytest.raises(InvalidInputError, match="utilization"):
        apply_engine_arguments(Request(), "--gpu-memory-utilization 3")


def test_variables_that_swell_are_left_alone() -> None:
    lines = ["X0=" + "a" * 100, *(f"X{i}=$X{i - 1}$X{i - 1}" for i in range(1, 60))]
    command = parse_serve_command("\n".join(lines) + "\nvllm serve m --max-num-seqs $X59")
    assert command.open_values[0].startswith("--max-num-seqs $X")
    assert max(map(len, command.environment.values())) < 10_000


def test_many_strange_flags_make_a_short_warning() -> None:
    _, notes = apply_engine_arguments(Request(), " ".join(f"--zz{i} {i}" for i in range(500)))
    assert "and 476 more" in notes[0].message
    assert len(notes[0].message) < 1_000


# -- the data ----------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_flag_data_is_sound(engine: str) -> None:
    known = json.loads((DATA / f"{engine}.json").read_text("utf-8"))
    request = {item.name for item in fields(Request)}
    names = [name for row in known["flags"] for name in row["names"]]
    names += [name for row in known["flags"] for name in row.get("negative", ())]
    assert len(names) == len(set(names))
    assert all(name.startswith("-") and name == name.strip() for name in names)
    variables = [row["env"] for row in known["flags"] if "env" in row]
    variables += [row["name"] for row in known["environment"]]
    variables += known["environment_without_effect"]
    assert len(variables) == len(set(variables))
    versions = known["versions_read"]
    for row in (*known["flags"], *known["environment"]):
        assert row["effect"] in ("planned", "memory", "none"), row
        assert ("sets" in row) == (row["effect"] == "planned"), row
        assert row.get("read", "text") in READERS, row
        targets = row.get("sets", [])
        for target in [targets] if isinstance(targets, str) else targets:
            kind, _, name = target.partition(":")
            assert kind in ("request", "setting", "command"), row
            assert kind != "request" or name in request, row
        for key in ("from", "before"):
            assert key not in row or row[key] in versions, row
    kinds = {row["kind"] for row in known["flags"]}
    assert kinds <= {"value", "switch", "optional", "list", "json", "two values"}


def test_a_flag_that_changed_its_first_name_is_one_flag() -> None:
    # SGLang 0.5.5 server_args.py: --tensor-parallel-size, --tp-size; 0.5.23: --tp-size alone first
    for version in ("0.5.5", "0.5.23"):
        command = parse_serve_command(
            "sglang serve --model-path a/b --tp 2 --ep 2 --tensor-parallel-size 4", version=version
        )
        assert (command.absent, command.unknown) == ((), ())
        assert values(command) == {"ep_size": 2, "tensor_parallel_size": 4}


def test_regenerating_writes_what_is_there() -> None:
    # scripts/engine_flags.py and hand-made changes agree on one form, so that diffs stay small.
    spec = importlib.util.spec_from_file_location("engine_flags", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for engine in ENGINES:
        text = (DATA / f"{engine}.json").read_text("utf-8")
        assert script.dump(json.loads(text)) == text, engine


def test_every_flag_file_is_tested() -> None:
    assert {path.stem for path in DATA.glob("*.json")} == set(ENGINES)


@pytest.mark.parametrize(
    ("engine", "image", "version"),
    [
        ("vllm", "vllm/vllm-openai:v0.10.2", "0.10.2"),
        ("vllm", "docker.io/vllm/vllm-openai:v0.6.6.post1@sha256:abc", "0.6.6.post1"),
        ("vllm", "vllm/vllm-openai:latest", None),
        ("vllm", "registry:5000/vllm-openai", None),
        ("vllm", "ghcr.io/llm-d/llm-d-cuda:v0.3.0", None),  # its own numbers
        ("sglang", "lmsysorg/sglang:v0.5.5-cu129", "0.5.5"),
        ("tgi", "ghcr.io/huggingface/text-generation-inference:3.3.4", "3.3.4"),
        ("tensorrt-llm", "nvcr.io/nvidia/tensorrt-llm/release:1.0.0", "1.0.0"),
        ("llama.cpp", "ghcr.io/ggml-org/llama.cpp:server-cuda-b4719", None),
    ],
)
def test_release_of_an_image(engine: str, image: str, version: str | None) -> None:
    assert version_of_image(engine, image) == version


def test_the_data_is_not_read_without_pasted_flags() -> None:
    import subprocess
    import sys

    code = (
        "import sys, moesize; moesize.plan('qwen3-30b-a3b', gpu='h200');"
        "sys.exit(any(name.startswith('moesize.engine_args') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
