"""Values of Helm charts: those whose templates are known, and the search in those of others."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_reading import context_of, flag, only, parse, readings, text_at

from moesize.check.readers import helm_values
from moesize.check.readers.helm_charts import fill_values
from moesize.check.server import Reading, Server
from moesize.check.source import Word

GIB = 1 << 30


def read(root: Path, text: str, files: dict[str, str] | None = None) -> Reading:
    context = context_of(root, {"values.yaml": text, **(files or {})}, "values.yaml")
    found = readings(context, helm_values)
    assert len(found) == 1
    return found[0]


def one(root: Path, text: str) -> Server:
    return only(read(root, text).servers)


def count(server: Server) -> int | None:
    return server.gpus_per_node.value if server.gpus_per_node else None


# --- production-stack -------------------------------------------------------------------------

STACK = """\
servingEngineSpec:
  modelSpec:
    - name: llama
      repository: vllm/vllm-openai
      tag: v0.10.2
      modelURL: meta-llama/Llama-3.1-8B-Instruct
      replicaCount: 2
      requestCPU: 8
      requestMemory: 32Gi
      limitMemory: 48Gi
      requestGPU: 2
"""


def test_production_stack(tmp_path: Path) -> None:
    text = (
        STACK
        + """\
      shmSize: 8Gi
      enableLoRA: true
      modelRevision: abc
      vllmConfig:
        enableChunkedPrefill: false
        maxModelLen: 4096
        dtype: bfloat16
        tensorParallelSize: 2
        maxNumSeqs: 32
        gpuMemoryUtilization: 0.8
        maxLoras: 4
        extraArgs: ["--kv-cache-dtype", "fp8"]
      nodeSelectorTerms:
        - matchExpressions:
            - {key: nvidia.com/gpu.product, operator: In, values: [NVIDIA-L40S]}
"""
    )
    server = one(tmp_path, text)
    assert (server.name, server.engine, server.image) == (
        "llama",
        "vllm",
        "vllm/vllm-openai:v0.10.2",
    )
    # helm/templates/deployment-vllm-multi.yaml, in its order
    assert server.words == (
        "meta-llama/Llama-3.1-8B-Instruct",
        "--enable-lora",
        "--no-enable-chunked-prefill",
        "--no-enable-prefix-caching",
        "--max-model-len",
        "4096",
        "--dtype",
        "bfloat16",
        "--tensor-parallel-size",
        "2",
        "--max-num-seqs",
        "32",
        "--gpu-memory-utilization",
        "0.8",
        "--max-loras",
        "4",
        "--kv-cache-dtype",
        "fp8",
        "--revision",
        "abc",
    )
    length = flag(server, "--max-model-len")
    assert length is not None
    assert length.exact
    assert text_at(tmp_path, length) == "4096"
    assert text_at(tmp_path, server.words[4]) == "maxModelLen"
    assert count(server) == 2
    assert [str(claim.text) for claim in server.gpus] == ["NVIDIA-L40S"]
    assert server.shm is not None
    assert (server.shm.value, text_at(tmp_path, server.shm.at)) == (8 * GIB, "8Gi")
    assert server.memory_limit is not None
    assert server.memory_limit.value == 48 * GIB


def test_the_charts_own_probes_and_shared_memory(tmp_path: Path) -> None:
    # helm/values.yaml: startupProbe 15 s + 60 x 10 s; no /dev/shm without tensorParallelSize
    server = one(tmp_path, STACK)
    assert [(d.seconds, d.what) for d in server.deadlines] == [(615, "startupProbe")]
    assert (server.shm, server.shm_is_default) == (None, True)
    with_size = one(tmp_path, STACK + "      vllmConfig: {tensorParallelSize: 2}\n")
    assert with_size.shm is not None
    assert with_size.shm.value == 20 * GIB


def test_probes_of_the_values(tmp_path: Path) -> None:
    text = STACK.replace(
        "servingEngineSpec:\n",
        "servingEngineSpec:\n  startupProbe: {failureThreshold: 120}\n",
    )
    deadline = one(tmp_path, text).deadlines[0]
    assert (deadline.seconds, text_at(tmp_path, deadline.at)) == (1215, "120")
    text = STACK.replace("servingEngineSpec:\n", "servingEngineSpec:\n  startupProbe: null\n")
    assert [(d.seconds, d.what) for d in one(tmp_path, text).deadlines] == [(45, "livenessProbe")]


def test_production_stack_on_ray(tmp_path: Path) -> None:
    text = (
        STACK
        + """\
      vllmConfig: {tensorParallelSize: 2, pipelineParallelSize: 3}
      raySpec: {enabled: true, headNode: {requestGPU: 2}}
"""
    )
    server = one(tmp_path, text)
    assert flag(server, "--pipeline-parallel-size") == "3"
    assert server.nodes is not None
    assert server.nodes.value == 3  # two workers and the head
    assert server.deadlines == ()
    # Without Ray the chart does not read the key.
    plain = one(tmp_path, text.replace("enabled: true", "enabled: false"))
    assert flag(plain, "--pipeline-parallel-size") is None
    assert any("pipelineParallelSize" in note for note in plain.notes)


@pytest.mark.parametrize(
    ("extra", "vendor", "claim"),
    [
        ("requestGPUType: nvidia.com/mig-1g.10gb", "nvidia", "nvidia.com/mig-1g.10gb"),
        ("requestGPUType: amd.com/gpu", "amd", None),
        ("requestGPUMem: '6000'", "nvidia", "6000MiB"),
    ],
)
def test_parts_and_makers_of_gpus(
    tmp_path: Path, extra: str, vendor: str, claim: str | None
) -> None:
    server = one(tmp_path, STACK + f"      {extra}\n")
    assert (server.vendor, count(server)) == (vendor, 2)
    assert [str(each.text) for each in server.gpus] == ([claim] if claim else [])


def test_keys_that_the_chart_does_not_read_are_named(tmp_path: Path) -> None:
    server = one(tmp_path, STACK + "      vllmConfig: {quantization: awq}\n")
    assert flag(server, "--quantization") is None
    assert server.notes == ("the chart does not read vllmConfig.quantization",)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("    - name: llama\n", "    - name: llama\n      enabled: false\n", "enabled is false"),
        ("modelURL: meta-llama/Llama-3.1-8B-Instruct", 'modelURL: ""', "modelURL is empty"),
        ("  modelSpec:", "  enableEngine: false\n  modelSpec:", "enableEngine is false"),
    ],
)
def test_what_is_turned_off(tmp_path: Path, old: str, new: str, reason: str) -> None:
    reading = read(tmp_path, STACK.replace(old, new))
    assert reason in reading.skipped
    assert reason in only(reading.servers).skipped


@pytest.mark.parametrize(
    "wrapped",
    [
        "vllm-stack:\n{}",
        "apiVersion: helm.toolkit.fluxcd.io/v2\nkind: HelmRelease\nspec:\n  values:\n{}",
        "apiVersion: argoproj.io/v1alpha1\nkind: Application\nspec:\n  source:\n    helm:\n"
        "      valuesObject:\n{}",
        "apiVersion: argoproj.io/v1alpha1\nkind: Application\nspec:\n  source:\n    helm:\n"
        "      values: |\n{}",
    ],
)
def test_values_inside_other_files(tmp_path: Path, wrapped: str) -> None:
    inner = "".join(f"        {line}\n" for line in STACK.splitlines())
    server = one(tmp_path, wrapped.format(inner))
    assert count(server) == 2
    assert text_at(tmp_path, server.words[0]) == "meta-llama/Llama-3.1-8B-Instruct"


# --- llm-d ------------------------------------------------------------------------------------

LLMD = """\
modelArtifacts:
  name: facebook/opt-125m
  uri: "hf://{{ .Values.modelArtifacts.name }}"
decode:
  replicas: 1
  parallelism: {tensor: 2, data: 4, dataLocal: 2}
  containers:
    - name: vllm
      image: ghcr.io/llm-d/llm-d-cuda:v0.4.0
      modelCommand: vllmServe
      args: ["--max-model-len", "4096"]
      resources: {limits: {memory: 64Gi}}
"""


def test_modelservice(tmp_path: Path) -> None:
    server = one(tmp_path, LLMD)
    assert (server.name, server.engine) == ("decode/vllm", "vllm")
    # templates/_helpers.tpl, vllmServeModelCommand
    assert server.words == (
        "facebook/opt-125m",
        "--tensor-parallel-size",
        "2",
        "--data-parallel-size",
        "4",
        "--data-parallel-size-local",
        "2",
        "--served-model-name",
        "facebook/opt-125m",
        "--max-model-len",
        "4096",
    )
    assert text_at(tmp_path, server.words[0]) == "facebook/opt-125m"
    assert count(server) == 4  # tensor x dataLocal
    assert server.environment["TP_SIZE"] == "2"
    assert server.memory_limit is not None
    assert server.nodes is None
    many = one(tmp_path, "multinode: true\n" + LLMD)
    assert many.nodes is not None
    assert many.nodes.value == 2  # data / dataLocal


@pytest.mark.parametrize(
    ("uri", "model"),
    [
        ("hf://a/b", "a/b"),
        ("pvc://claim/models/b", "/model-cache/models/b"),
        ("pvc+hf://claim/hub/a/b", "a/b"),
    ],
)
def test_where_the_model_is_kept(tmp_path: Path, uri: str, model: str) -> None:
    text = LLMD.replace("hf://{{ .Values.modelArtifacts.name }}", uri)
    server = one(tmp_path, text)
    assert server.words[0] == model
    assert server.fallback_model == "facebook/opt-125m"


def test_an_explicit_number_of_gpus_wins(tmp_path: Path) -> None:
    text = LLMD.replace("{memory: 64Gi}", "{memory: 64Gi, nvidia.com/gpu: 8}")
    server = one(tmp_path, text)
    assert count(server) == 8
    assert server.gpus_per_node is not None
    assert text_at(tmp_path, server.gpus_per_node.at) == "8"


def test_commands_of_the_image_and_of_ones_own(tmp_path: Path) -> None:
    text = LLMD.replace("ghcr.io/llm-d/llm-d-cuda:v0.4.0", "vllm/vllm-openai:v0.10.2")
    default = one(tmp_path, text.replace("vllmServe", "imageDefault"))
    assert default.words[:2] == ("--model", "facebook/opt-125m")
    custom = one(
        tmp_path,
        text.replace("vllmServe", "custom").replace(
            'args: ["--max-model-len", "4096"]',
            "command: [sh, -c]\n      args: ['vllm serve a/b --tensor-parallel-size $TP_SIZE']",
        ),
    )
    assert custom.words == ("a/b", "--tensor-parallel-size", "2")


def test_accelerators_by_role(tmp_path: Path) -> None:
    text = LLMD + (
        "  acceleratorTypes: {labelKey: nvidia.com/gpu.product, labelValues: [NVIDIA-L40S]}\n"
        "prefill:\n"
        "  accelerator: {type: intel-gaudi, dra: true}\n"
        "  containers:\n"
        "    - {name: vllm, image: 'ghcr.io/llm-d/llm-d-hpu:v1', modelCommand: vllmServe}\n"
        "accelerator:\n"
        "  type: nvidia\n"
        "  resourceClaimTemplates: {intel-gaudi: {count: 3}}\n"
    )
    decode, prefill = read(tmp_path, text).servers
    assert [str(claim.text) for claim in decode.gpus] == ["NVIDIA-L40S"]
    assert (decode.vendor, prefill.vendor) == ("nvidia", "intel")
    assert count(prefill) == 3


def test_simulators_and_roles_that_are_turned_off(tmp_path: Path) -> None:
    sim = LLMD.replace("llm-d-cuda:v0.4.0", "llm-d-inference-sim:latest")
    assert "imitates" in read(tmp_path, sim).skipped
    off = LLMD.replace("decode:\n", "decode:\n  create: false\n")
    assert one(tmp_path, off).skipped == "create is false"


def test_the_older_llm_d_chart(tmp_path: Path) -> None:
    text = """\
        sampleApplication:
          model: {modelArtifactURI: hf://a/b, modelName: served}
          resources: {limits: {nvidia.com/gpu: 4}}
          decode: {extraArgs: ["--tensor-parallel-size", "4"]}
          prefill: {extraArgs: ["--max-model-len", "2048"]}
        """
    prefill, decode = read(tmp_path, text).servers
    assert (prefill.name, decode.name) == ("prefill/vllm", "decode/vllm")
    assert (prefill.words[0], decode.words[0]) == ("a/b", "a/b")
    assert flag(decode, "--tensor-parallel-size") == "4"
    assert (count(prefill), count(decode)) == (4, 4)
    # One GPU is what the chart asks for of itself.
    without = text.replace("resources: {limits: {nvidia.com/gpu: 4}}", "metrics: {}")
    assert [count(server) for server in read(tmp_path, without).servers] == [1, 1]


def test_a_model_service(tmp_path: Path) -> None:
    server = one(
        tmp_path,
        """\
        apiVersion: llm-d.ai/v1alpha1
        kind: ModelService
        spec:
          modelArtifacts: {uri: "pvc://claim/models/b"}
          routing: {modelName: a/b}
          decode:
            containers:
              - name: vllm
                image: ghcr.io/llm-d/llm-d:0.0.8
                args: ["--max-model-len", "2048"]
                resources: {limits: {nvidia.com/gpu: 1}}
        """,
    )
    assert server.words == ("/model-cache/models/b", "--max-model-len", "2048")
    assert (server.fallback_model, count(server)) == ("a/b", 1)


def test_values_in_values() -> None:
    values = parse("a: {b: c/d, n: 4}\nx: '{{ .Values.a.b }}'\n")[0]
    assert fill_values(Word("{{ .Values.a.b }}"), values) == "c/d"
    assert fill_values(Word('"{{ .Values.a.b | quote }}"'), values) == "c/d"
    assert fill_values(Word("{{- .Values.a.n -}} GPUs"), values) == "4 GPUs"
    assert fill_values(Word("{{ .Values.no }}"), values) == "{{ .Values.no }}"
    assert fill_values(Word("{{ .Release.Name }}-x"), values) == "{{ .Release.Name }}-x"


# --- Ollama -----------------------------------------------------------------------------------


def test_ollama_serves_the_models_that_it_pulls(tmp_path: Path) -> None:
    reading = read(
        tmp_path,
        """\
        image: {repository: ollama/ollama, tag: 0.12.0}
        ollama:
          gpu: {enabled: true, number: 2}
          models:
            pull: [llama3.1:70b, mistral]
            run: [llama3.1:70b]
        nodeSelector: {cloud.google.com/gke-accelerator: nvidia-l4}
        """,
    )
    assert reading.kind == "ollama"
    assert [(str(s.model), count(s)) for s in reading.servers] == [
        ("llama3.1:70b", 2),
        ("mistral", 2),
    ]
    assert len({server.exclusive for server in reading.servers}) == 1
    assert [str(claim.text) for claim in reading.servers[0].gpus] == ["nvidia-l4"]
    assert reading.servers[0].image == "ollama/ollama:0.12.0"


@pytest.mark.parametrize(
    ("gpu", "vendor", "claim"),
    [
        ("{enabled: true, type: amd}", "amd", []),
        ("{enabled: true, nvidiaResource: nvidia.com/mig-1g.10gb}", "nvidia", ["mig"]),
        ("{enabled: true, mig: {enabled: true, devices: {3g.40gb: 1}}}", "nvidia", ["mig"]),
    ],
)
def test_gpus_of_ollama(tmp_path: Path, gpu: str, vendor: str, claim: list[str]) -> None:
    server = one(tmp_path, f"ollama:\n  gpu: {gpu}\n  models: {{pull: [a]}}\n")
    assert (server.vendor, count(server)) == (vendor, 1)
    assert ["mig" for each in server.gpus if "mig" in each.text] == claim


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ollama: {gpu: {enabled: true}, models: {pull: []}}\n", "no model is named"),
        ("ollama: {gpu: {enabled: false}, models: {pull: [a]}}\n", "processor"),
    ],
)
def test_ollama_with_nothing_to_judge(tmp_path: Path, text: str, reason: str) -> None:
    assert reason in read(tmp_path, text).skipped


# --- charts that are not known ----------------------------------------------------------------


def test_a_chart_of_ones_own(tmp_path: Path) -> None:
    reading = read(
        tmp_path,
        """\
        model:
          name: meta-llama/Llama-3.1-70B-Instruct
          tp_size: 4
        job:
          image: {repository: vllm/vllm-openai, tag: v0.10.2}
          gpus: 4
        vllm:
          replicaCount: 1
          serverArgs:
            max-model-len: 32768
            enforce-eager: true
        nodeSelector: {nvidia.com/gpu.product: NVIDIA-L40S}
        """,
    )
    assert reading.kind == "custom_helm_values"
    server = only(reading.servers)
    assert (server.engine, server.image) == ("vllm", "vllm/vllm-openai:v0.10.2")
    assert server.model == "meta-llama/Llama-3.1-70B-Instruct"
    assert server.words == (
        "--tensor-parallel-size",
        "4",
        "--max-model-len",
        "32768",
        "--enforce-eager",
    )
    length = flag(server, "--max-model-len")
    assert length is not None
    assert text_at(tmp_path, length) == "32768"
    assert count(server) == 4
    assert [str(claim.text) for claim in server.gpus] == ["NVIDIA-L40S"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("vllmConfig: {maxModelLen: 4096}", ("--max-model-len", "4096")),
        ("engineArgs: {max_model_len: 4096}", ("--max-model-len", "4096")),
        ("extraArgs: [--max-model-len, '4096']", ("--max-model-len", "4096")),
        ("extraArgs: ['--max-model-len 4096']", ("--max-model-len", "4096")),
        ("extraArgs: ['--max-model-len=4096']", ("--max-model-len=4096",)),
        ("extraArgs: '--max-model-len 4096'", ("--max-model-len", "4096")),
        ("maxModelLen: 4096", ("--max-model-len", "4096")),
        ("max_model_len: 4096", ("--max-model-len", "4096")),
        ("tensorParallelism: 2", ("--tensor-parallel-size", "2")),
        ("quantization: awq", ("--quantization", "awq")),
        ("other: {quantization: awq}", ()),
    ],
)
def test_how_flags_are_written(tmp_path: Path, arguments: str, words: tuple[str, ...]) -> None:
    text = f"engine: vllm\nmodelId: a/b\ngpus: 1\n{arguments}\n"
    assert one(tmp_path, text).words == words


@pytest.mark.parametrize(
    ("gpus", "number", "vendor"),
    [
        ("resources: {limits: {nvidia.com/gpu: 2}}", 2, "nvidia"),
        ("resources: {limits: {amd.com/gpu: '2'}}", 2, "amd"),
        ("gpuCount: 2", 2, ""),
        ("gpu: {count: 2, type: nvidia-l4}", 2, ""),
        ("gpu: 2", 2, ""),
    ],
)
def test_how_gpus_are_written(tmp_path: Path, gpus: str, number: int, vendor: str) -> None:
    server = one(tmp_path, f"framework: sglang\nmodel: a/b\n{gpus}\n")
    assert (server.engine, count(server), server.vendor) == ("sglang", number, vendor)


def test_a_kind_of_gpu_by_key(tmp_path: Path) -> None:
    server = one(tmp_path, "engine: vllm\nmodel: a/b\ngpu: {count: 2, type: nvidia-l4}\n")
    assert [str(claim.text) for claim in server.gpus] == ["nvidia-l4"]


def test_text_generation_inference(tmp_path: Path) -> None:
    reading = read(
        tmp_path,
        """\
        model: mistralai/Mistral-7B-Instruct-v0.3
        quantize: bitsandbytes-nf4
        image: {repository: ghcr.io/huggingface/text-generation-inference, tag: "3.3"}
        resources: {limits: {nvidia.com/gpu: 1}}
        env: {MAX_TOTAL_TOKENS: "4096"}
        """,
    )
    assert reading.kind == "tgi_helm"
    server = only(reading.servers)
    assert (server.engine, server.words) == ("tgi", ("--quantize", "bitsandbytes-nf4"))
    assert server.environment["MAX_TOTAL_TOKENS"] == "4096"


def test_a_command_in_the_values(tmp_path: Path) -> None:
    server = one(
        tmp_path,
        """\
        image:
          repository: vllm/vllm-openai
          tag: v0.10.2
          command: [vllm, serve, a/b, --max-model-len, "4096"]
        resources: {limits: {nvidia.com/gpu: 2}}
        nodeSelector: {nvidia.com/gpu.product: NVIDIA-L40S}
        """,
    )
    assert server.words == ("a/b", "--max-model-len", "4096")
    assert (server.image, count(server)) == ("vllm/vllm-openai:v0.10.2", 2)
    assert server.gpus


def test_several_models_keep_their_own_settings(tmp_path: Path) -> None:
    reading = read(
        tmp_path,
        """\
        defaults: {image: "vllm/vllm-openai:v0.10.2"}
        engine: vllm
        models:
          - {modelId: a/b, gpus: 1, maxModelLen: 1024}
          - {modelId: c/d, gpus: 4, tensorParallelSize: 4}
          - {modelId: e/f, gpus: 1, enabled: false}
        """,
    )
    assert [(str(s.model), count(s), s.words, s.skipped) for s in reading.servers] == [
        ("a/b", 1, ("--max-model-len", "1024"), ""),
        ("c/d", 4, ("--tensor-parallel-size", "4"), ""),
        ("e/f", 1, (), "enabled is false"),
    ]


@pytest.mark.parametrize("model", ["", "null", "<model>", "your-model-here", "${MODEL}", "???"])
def test_a_model_to_be_filled_in(tmp_path: Path, model: str) -> None:
    value = model if model == "null" else f'"{model}"'
    reading = read(tmp_path, f"framework: vllm\nmodel: {{name: {value}}}\ngpus: 8\n")
    assert "names no model" in reading.skipped
    server = only(reading.servers)
    assert (server.engine, count(server), server.model) == ("vllm", 8, None)


def test_options_in_a_file_beside_the_values(tmp_path: Path) -> None:
    reading = read(
        tmp_path,
        "workload: {model: {name: a/b}, framework: vllm, gpus: 4, configFile: args.yaml}\n",
        {"args.yaml": "max-model-len: 2645\ntensor-parallel-size: 4\n"},
    )
    server = only(reading.servers)
    length = flag(server, "--max-model-len")
    assert length == "2645"
    assert length.span is not None
    assert length.span.path == "args.yaml"


OTHERS = {
    "airflow": """\
        executor: KubernetesExecutor
        images: {airflow: {repository: apache/airflow, tag: 2.9.1}}
        workers: {replicas: 2, resources: {limits: {cpu: 1, nvidia.com/gpu: 1}}, args: [celery]}
        config: {core: {parallelism: 32}}
        """,
    "client of a server": """\
        image: {repository: example/rag-app, tag: "1"}
        llm: {engine: vllm, baseUrl: "http://vllm:8000/v1", model: meta-llama/Llama-3.1-8B-Instruct}
        resources: {limits: {cpu: 1}}
        """,
    "workflow": """\
        on: push
        jobs:
          test: {runs-on: gpu, env: {MODEL: a/b, engine: vllm}, steps: [{run: vllm serve a/b}]}
        """,
    "openapi": """\
        openapi: 3.0.0
        paths: {}
        components: {schemas: {M: {properties: {model: {default: a/b}, engine: {enum: [vllm]}}}}}
        """,
    "training": """\
        model: {name: meta-llama/Llama-3.1-8B}
        trainer: {gpus: 8, learning_rate: 1.0e-5}
        rollout: {engine: vllm, tensor_parallel_size: 2, gpu_memory_utilization: 0.4}
        """,
    "prometheus": """\
        prometheus: {image: {repository: quay.io/prometheus/prometheus, tag: v2.53.0}}
        serverFiles: {alerts: {groups: [{name: gpu, rules: [{expr: "vllm:num_requests > 5"}]}]}}
        """,
    "evaluation": """\
        model: a/b
        tasks: [gsm8k]
        backend: vllm
        gpus: 1
        """,
    "router": """\
        image: {repository: lmcache/lmstack-router, tag: latest}
        model: a/b
        resources: {limits: {cpu: 1}}
        """,
    "an object of Kubernetes": """\
        apiVersion: example.com/v1
        kind: Thing
        spec: {engine: vllm, model: a/b, gpus: 1}
        """,
    "embeddings beside": """\
        replicaCount: 1
        embedding: {engine: vllm, model: BAAI/bge-m3, gpus: 1}
        """,
    "a recipe of another program": """\
        spec: {model: bert, gpus: 8, tp_size: [1, 2], micro_batch_size: 4, n-gpu-layers: 2}
        """,
    "an evaluation to be filled in": """\
        deployment: {type: vllm, model: "???", extra_args: --gpu-memory-utilization 0.95}
        """,
    "a list": "- engine: vllm\n  model: a/b\n  gpus: 1\n",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_left_alone(tmp_path: Path, name: str) -> None:
    context = context_of(tmp_path, {"values.yaml": OTHERS[name]}, "values.yaml")
    assert readings(context, helm_values) == []


@pytest.mark.parametrize(
    "text",
    [
        "servingEngineSpec: {modelSpec: [1, [2], null, {name: [a], modelURL: {b: c}}]}",
        "servingEngineSpec: {modelSpec: [{vllmConfig: [a], env: {a: b}, raySpec: {enabled: yes}}]}",
        "modelArtifacts: {uri: [a]}\ndecode: {containers: {a: b}, parallelism: [1]}",
        "modelArtifacts: {uri: 'pvc://'}\ndecode: {containers: [{modelCommand: vllmServe}]}",
        "modelArtifacts: {uri: '://'}\nprefill: {containers: [{modelCommand: [a], args: x}]}",
        "sampleApplication: {model: {modelName: {a: b}}, resources: [x], decode: 5}",
        "ollama: {gpu: [a], models: {pull: {a: b}, create: [{template: 'FROM '}, 5]}}",
        "engine: [vllm]\nmodel: {name: [a]}\ngpus: {count: x}\nextraArgs: {a: [b]}",
        "engine: vllm\nmodel: a/b\nresources: [a]\nenv: [a, {name: [b]}]\nimage: [c]\ngpus: 1",
    ],
)
def test_wrong_shapes_raise_nothing(tmp_path: Path, text: str) -> None:
    context = context_of(tmp_path, {"values.yaml": text + "\n"}, "values.yaml")
    for reading in readings(context, helm_values):
        assert reading.servers or reading.skipped
