"""Containers of pods: what serves, with which flags, on which GPUs, within which limits."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_reading import context_of, flag, only, parse, text_at

from moesize.check.readers.pod_resources import (
    cel_claims,
    gpu_claims,
    gpu_request,
    quantity,
    stated_bytes,
)
from moesize.check.readers.pods import (
    deadlines_of,
    environment_of,
    flag_value,
    integer_of,
    nim_model,
    servers_of_pod,
    shared_memory,
)
from moesize.check.server import Server, Stated
from moesize.check.source import Span, Word


def servers(
    root: Path,
    pod: str,
    *others: str,
    variables: dict[str, str] | None = None,
    nodes: Stated[int] | None = None,
) -> list[Server]:
    """The servers of a pod spec; further documents stand in the same file."""
    from textwrap import dedent

    text = "\n---\n".join(dedent(part) for part in (pod, *others))
    context = context_of(root, {"pod.yaml": text}, "pod.yaml", variables)
    return servers_of_pod(context.documents[0], context, kind="k8s_pod", nodes=nodes)


PLAIN = """
    containers:
    - name: main
      image: vllm/vllm-openai:v0.10.0
      args: [--model, google/gemma-7b, "--max-model-len=4096"]
      resources:
        limits: {nvidia.com/gpu: "2", memory: 16Gi}
"""


def test_args_of_an_engine_image_are_its_flags(tmp_path: Path) -> None:
    server = only(servers(tmp_path, PLAIN))
    assert server.engine == "vllm"
    assert server.words == ("--model", "google/gemma-7b", "--max-model-len=4096")
    assert [text_at(tmp_path, word) for word in server.words] == list(server.words)
    assert server.image == "vllm/vllm-openai:v0.10.0"
    assert server.gpus_per_node is not None
    assert (server.gpus_per_node.value, server.vendor) == (2, "nvidia")
    assert text_at(tmp_path, server.gpus_per_node.at) == "2"
    assert server.memory_limit is not None
    assert server.memory_limit.value == 16 << 30
    assert not server.skipped


def test_a_shell_text_is_read_with_the_containers_variables(tmp_path: Path) -> None:
    server = only(
        servers(
            tmp_path,
            """
            containers:
            - name: main
              image: internal/llm:3
              command: [/bin/bash, -c]
              args:
              - |
                export LEN=8192
                exec vllm serve $MODEL --max-model-len ${LEN} \\
                  --tensor-parallel-size $(TP)
              env:
              - {name: MODEL, value: org/model}
              - {name: TP, value: "4"}
            """,
        )
    )
    assert server.engine == "vllm"
    assert flag(server, "--max-model-len") == "8192"
    size = flag(server, "--tensor-parallel-size")
    assert size == "4"
    assert text_at(tmp_path, size) == "4"  # in `env`, where a fix would go
    assert server.words[0] == "org/model"


def test_variables_expand_in_order_and_config_maps_are_opened(tmp_path: Path) -> None:
    found = servers(
        tmp_path,
        """
        containers:
        - name: main
          image: vllm/vllm-openai
          args: [--model=$(MODEL_ID), --max-model-len=$(LATER), --seed=$(TOKEN)]
          envFrom:
          - configMapRef: {name: shared}
            prefix: P_
          env:
          - {name: ORG, value: google}
          - {name: MODEL_ID, value: "$(ORG)/$(P_NAME)"}
          - name: LATER
            valueFrom: {configMapKeyRef: {name: shared, key: LEN}}
          - {name: TOKEN, valueFrom: {secretKeyRef: {name: s, key: k}}}
        """,
        """
        apiVersion: v1
        kind: ConfigMap
        metadata: {name: shared}
        data: {NAME: gemma-7b, LEN: "2048"}
        """,
    )
    server = only(found)
    assert flag(server, "--model") == "google/gemma-7b"
    assert flag(server, "--max-model-len") == "2048"
    assert [one.name for one in server.unresolved] == ["TOKEN"]


def test_config_maps_beside_the_file_are_opened(tmp_path: Path) -> None:
    files = {
        "config.yaml": """
            apiVersion: v1
            kind: ConfigMap
            metadata: {name: cm}
            data: {MODEL_ID: org/other}
        """,
        "pod.yaml": """
            containers:
            - image: vllm/vllm-openai
              args: [--model=$(MODEL_ID)]
              envFrom: [{configMapRef: {name: cm}}]
        """,
    }
    context = context_of(tmp_path, files, "pod.yaml")
    server = only(servers_of_pod(context.documents[0], context, kind="k8s_pod"))
    assert flag(server, "--model") == "org/other"
    value = server.environment["MODEL_ID"]
    assert value.span is not None
    assert value.span.path == "config.yaml"


def test_what_the_user_sets_wins(tmp_path: Path) -> None:
    pod = """
        containers:
        - image: vllm/vllm-openai
          args: [--model=$(MODEL_ID)]
          env: [{name: MODEL_ID, value: org/written}]
    """
    server = only(servers(tmp_path, pod, variables={"MODEL_ID": "org/given"}))
    assert flag(server, "--model") == "org/given"


def test_a_script_that_a_config_map_mounts_is_read(tmp_path: Path) -> None:
    server = only(
        servers(
            tmp_path,
            """
            containers:
            - name: main
              image: vllm/vllm-openai
              command: [/bin/bash, /scripts/run.sh]
              volumeMounts: [{name: s, mountPath: /scripts}]
            volumes: [{name: s, configMap: {name: scripts}}]
            """,
            """
            apiVersion: v1
            kind: ConfigMap
            metadata: {name: scripts}
            data:
              run.sh: |
                set -e
                vllm serve org/model --max-model-len 1024
            """,
        )
    )
    assert flag(server, "--max-model-len") == "1024"
    assert server.words[0] == "org/model"


@pytest.mark.parametrize(
    "container",
    [
        "{name: r, image: 'lmcache/lmstack-router:latest', args: [--port, '80']}",
        "{name: r, image: 'ghcr.io/llm-d/llm-d-routing-sidecar:v0.7', args: [--vllm-port=1]}",
        "{name: r, image: 'vllm/vllm-router:1', command: [vllm-router]}",
        "{name: r, image: 'python:3', command: [python3, -m, sglang_router.launch_router]}",
        "{name: r, image: nginx}",
        "{name: r, image: 'ghcr.io/x/text-embeddings-inference:1', args: [--model-id, x]}",
    ],
)
def test_helpers_serve_no_model(tmp_path: Path, container: str) -> None:
    assert servers(tmp_path, f"containers: [{container}]") == []


def test_init_containers_do_not_serve_and_sidecars_only_when_they_say_so(tmp_path: Path) -> None:
    pod = """
        initContainers:
        - {name: download, image: vllm/vllm-openai, command: [vllm, serve, a/b]}
        - {name: side, image: vllm/vllm-openai, restartPolicy: Always, command: [vllm, serve, c/d]}
        - {name: idle, image: vllm/vllm-openai, restartPolicy: Always, command: [sleep, "9"]}
    """
    assert [server.words[0] for server in servers(tmp_path, pod)] == ["c/d"]


def test_an_engine_image_with_another_command_is_skipped(tmp_path: Path) -> None:
    pod = """
        containers:
        - name: main
          image: vllm/vllm-openai
          command: [python3, /app/serve.py]
          resources: {limits: {nvidia.com/gpu: 1}}
    """
    server = only(servers(tmp_path, pod))
    assert "starts no engine" in server.skipped
    idle = pod.replace("nvidia.com/gpu: 1", "cpu: 1")
    assert servers(tmp_path, idle) == []


def test_flags_tell_the_engine_of_an_image_that_does_not(tmp_path: Path) -> None:
    pod = """
        containers:
        - image: registry.local/mirror/openai:v1
          args: [--model=a/b, --tensor-parallel-size=2, --max-model-len=1024]
    """
    server = only(servers(tmp_path, pod))
    assert server.engine == "vllm"
    assert "taken for vllm" in server.notes[0]
    server = only(servers(tmp_path, pod.replace("a/b", "$(MODEL)")))
    assert [one.name for one in server.unresolved] == ["MODEL"]


def test_two_engines_in_one_container_share_its_gpus(tmp_path: Path) -> None:
    pod = """
        containers:
        - name: main
          image: vllm/vllm-openai
          command: [bash, -c]
          args:
          - |
            CUDA_VISIBLE_DEVICES=0 vllm serve a/b --port 1 &
            CUDA_VISIBLE_DEVICES=1,2 vllm serve c/d --port 2 &
            wait
          resources: {limits: {nvidia.com/gpu: 4}}
    """
    first, second = servers(tmp_path, pod)
    assert first.shares_with == second.shares_with != ""
    assert [one.gpus_per_node.value for one in (first, second) if one.gpus_per_node] == [1, 2]
    assert (first.device_ids, second.device_ids) == (("0",), ("1", "2"))
    assert first.name != second.name


def test_other_pods_of_a_group_are_counted_and_not_judged_again(tmp_path: Path) -> None:
    pod = """
        containers:
        - image: lmsysorg/sglang
          command: [python3, -m, sglang.launch_server, --model-path, a/b, --tp, "16"]
          args: [--nnodes, "2", --node-rank, "{rank}"]
    """
    first = only(servers(tmp_path, pod.replace("{rank}", "0")))
    assert first.nodes is not None
    assert (first.nodes.value, first.skipped) == (2, "")
    assert "further pod" in only(servers(tmp_path, pod.replace("{rank}", "1"))).skipped
    headless = """
        containers: [{image: vllm/vllm-openai, args: [--model, a/b, --headless]}]
    """
    assert "another one leads" in only(servers(tmp_path, headless)).skipped


def test_the_size_of_a_group_is_known_to_its_containers(tmp_path: Path) -> None:
    pod = """
        containers:
        - image: lmsysorg/sglang
          command: [python3, -m, sglang.launch_server, --nnodes, $(LWS_GROUP_SIZE)]
    """
    size = Word("3", Span("pod.yaml", 1, 1, 1, 2))
    server = only(servers(tmp_path, pod, nodes=Stated(3, size)))
    assert flag(server, "--nnodes") == "3"
    assert server.unresolved == ()


def test_tgi_reads_its_variables(tmp_path: Path) -> None:
    pod = """
        containers:
        - image: ghcr.io/huggingface/text-generation-inference:3.3.5
          env: [{name: MODEL_ID, value: org/model}, {name: NUM_SHARD, value: "2"}]
    """
    server = only(servers(tmp_path, pod))
    assert server.engine == "tgi"
    assert text_at(tmp_path, server.environment["NUM_SHARD"]) == "2"
    assert server.fallback_model == "org/model"


@pytest.mark.parametrize(
    ("image", "model"),
    [
        ("nvcr.io/nim/meta/llama-3.1-8b-instruct:1.8.4", "meta/llama-3.1-8b-instruct"),
        ("nvcr.io/nim/meta/llama3-8b-instruct", "meta/llama3-8b-instruct"),
        ("mirror.local:5000/nim/qwen/qwen3-32b@sha256:0", "qwen/qwen3-32b"),
        ("nvcr.io/nim/nvidia/llm-nim:1.14", ""),
        ("nvcr.io/nvidia/vllm:25.09", None),
        ("vllm/vllm-openai", None),
    ],
)
def test_the_model_of_a_nim_image(image: str, model: str | None) -> None:
    assert nim_model(Word(image)) == model


def test_nim_variables_become_flags(tmp_path: Path) -> None:
    pod = """
        containers:
        - name: nim
          image: nvcr.io/nim/nvidia/llm-nim:1.14
          env:
          - {name: NIM_MODEL_NAME, value: "hf://google/gemma-3-27b-it"}
          - {name: NIM_TENSOR_PARALLEL_SIZE, value: "2"}
    """
    server = only(servers(tmp_path, pod))
    assert (server.engine, server.model) == ("nim", "google/gemma-3-27b-it")
    assert server.model is not None
    assert text_at(tmp_path, server.model) == "google/gemma-3-27b-it"
    assert flag(server, "--tensor-parallel-size") == "2"


def test_nims_that_generate_no_text_are_skipped(tmp_path: Path) -> None:
    pod = "containers: [{image: 'nvcr.io/nim/nvidia/nv-embedqa-e5-v5:1.0'}]"
    assert "no text" in only(servers(tmp_path, pod)).skipped


def test_ollama_serves_what_it_pulls(tmp_path: Path) -> None:
    pod = """
        containers:
        - name: ollama
          image: ollama/ollama:0.5
          lifecycle: {postStart: {exec: {command: [/bin/sh, -c, "sleep 5; ollama pull qwen3:32b"]}}}
    """
    server = only(servers(tmp_path, pod))
    assert (server.engine, server.model) == ("ollama", "qwen3:32b")
    script = """
        containers:
        - image: ollama/ollama
          command: [sh, -c, "ollama serve & sleep 3; ollama pull a:7b; ollama pull b:8b; wait"]
    """
    first, second = servers(tmp_path, script)
    assert [first.model, second.model] == ["a:7b", "b:8b"]
    assert first.exclusive == second.exclusive != ""
    assert first.shares_with == ""


def test_a_script_of_triton_shows_its_parallel_sizes(tmp_path: Path) -> None:
    pod = """
        containers:
        - image: my-triton
          command: [sh, -c, "./run.py --tp=2 --pp 8 --triton_model_repo_dir=/tensorrtllm"]
          resources: {limits: {nvidia.com/gpu: 8}}
    """
    server = only(servers(tmp_path, pod))
    assert server.engine == "tensorrt-llm"
    assert server.words == ("--tp_size", "2", "--pp_size", "8")
    assert text_at(tmp_path, server.words[3]) == "8"


def test_a_label_or_variable_is_only_evidence_of_the_model(tmp_path: Path) -> None:
    context = context_of(tmp_path, {"p.yaml": PLAIN}, "p.yaml")
    labels = parse("{ai.gke.io/model: gemma-7b}")[0]
    server = only(servers_of_pod(context.documents[0], context, kind="k8s_pod", labels=labels))
    assert (server.model, server.fallback_model) == (None, "gemma-7b")


# --- GPUs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resources", "number", "vendor"),
    [
        ("limits: {nvidia.com/gpu: 8}", 8, "nvidia"),
        ("requests: {nvidia.com/gpu: '4'}", 4, "nvidia"),
        ("{limits: {nvidia.com/gpu: 2}, requests: {nvidia.com/gpu: 1}}", 2, "nvidia"),
        ("limits: {amd.com/gpu: 1}", 1, "amd"),
        ("limits: {habana.ai/gaudi: 8}", 8, "intel"),
        ("limits: {gpu.intel.com/xe: 1}", 1, "intel"),
        ("limits: {aws.amazon.com/neurondevice: 4}", 4, "aws"),
        ("limits: {google.com/tpu: 4}", 4, "google"),
        ("limits: {huawei.com/Ascend910: 4}", 4, "huawei"),
        ("limits: {nvidia.com/gpu: 0}", 0, "nvidia"),
        ("limits: {cpu: 8, nvidia.com/gpumem: 100}", None, ""),
        ("limits: {gpu.intel.com/memory.max: 4}", None, ""),
        ("limits: 3", None, ""),
    ],
)
def test_gpus_that_are_asked_for(resources: str, number: int | None, vendor: str) -> None:
    asked = gpu_request(parse(resources)[0])
    assert (asked.number.value if asked.number else None, asked.vendor) == (number, vendor)


def test_keys_of_other_kinds_count_where_they_are_told() -> None:
    resources = parse("limits: {gpu: '4'}")[0]
    assert gpu_request(resources).number is None
    asked = gpu_request(resources, ("gpu",))
    assert asked.number is not None
    assert (asked.number.value, asked.vendor) == (4, "")


def test_a_count_that_is_a_variable_is_named(tmp_path: Path) -> None:
    pod = PLAIN.replace('"2"', '"${GPU_COUNT}"')
    server = only(servers(tmp_path, pod))
    assert server.gpus_per_node is None
    assert [one.name for one in server.unresolved] == ["GPU_COUNT"]
    server = only(servers(tmp_path, pod, variables={"GPU_COUNT": "4"}))
    assert server.gpus_per_node is not None
    assert (server.gpus_per_node.value, server.unresolved) == (4, ())


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("{cloud.google.com/gke-accelerator: nvidia-l4}", [("nvidia-l4", "gke")]),
        ("{nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3}", [("NVIDIA-H100-80GB-HBM3", "driver")]),
        ("{node.kubernetes.io/instance-type: g5.8xlarge}", [("g5.8xlarge", "instance")]),
        ("{node.kubernetes.io/instance-type: p9.unheard}", []),
        ("{node.kubernetes.io/instance-type: standard_nd_new}", [("standard_nd_new", "instance")]),
        ("{node.kubernetes.io/instance-type: m5.large}", []),
        ("{karpenter.k8s.aws/instance-gpu-name: a10g}", [("a10g", "karpenter")]),
        ("{karpenter.k8s.aws/instance-family: g6}", [("l4", "typed")]),
        ("{gpu.nvidia.com/class: A100_NVLINK_80GB}", [("A100_NVLINK_80GB", "typed")]),
        ("{gpu-type: l40s}", [("l40s", "typed")]),
        ("{accelerator: big-one}", []),
        ("{gpu: '1'}", []),
        ("{nvidia.com/gpu.present: 'true', nvidia.com/gpu.count: '8'}", []),
        ("{nvidia.com/gpu.memory: '81559'}", [("81559MiB", "typed")]),
        # The machine says more than the label: its number of GPUs.
        (
            "{cloud.google.com/gke-accelerator: nvidia-h100-80gb,"
            " node.kubernetes.io/instance-type: a3-highgpu-8g}",
            [("a3-highgpu-8g", "instance")],
        ),
    ],
)
def test_node_selectors(selector: str, expected: list[tuple[str, str]]) -> None:
    pod = parse(f"nodeSelector: {selector}")[0]
    assert [(str(one.text), one.kind) for one in gpu_claims(pod)] == expected


AFFINITY = """
    affinity:
      nodeAffinity:
        {how}:
          nodeSelectorTerms:
          - matchExpressions:
            - {key: nvidia.com/gpu.product, operator: In, values: [NVIDIA-L4, NVIDIA-A10]}
            - {key: zone, operator: Exists}
          - matchExpressions:
            - {key: nvidia.com/gpu.product, operator: NotIn, values: [Tesla-T4]}
            - {key: nvidia.com/gpu.memory, operator: Gt, values: ["40000"]}
"""


def test_required_affinities_are_alternatives_and_preferred_ones_nothing() -> None:
    required = AFFINITY.replace("{how}", "requiredDuringSchedulingIgnoredDuringExecution")
    claims = gpu_claims(parse(required)[0])
    assert [str(one.text) for one in claims] == ["NVIDIA-L4", "NVIDIA-A10", "40000MiB"]
    preferred = AFFINITY.replace("{how}", "preferredDuringSchedulingIgnoredDuringExecution")
    assert gpu_claims(parse(preferred)[0]) == ()


def test_mig_profiles_are_parts_of_the_gpu_that_is_selected(tmp_path: Path) -> None:
    pod = """
        nodeSelector: {nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3}
        containers:
        - image: vllm/vllm-openai
          args: [--model, a/b]
          resources: {limits: {nvidia.com/mig-3g.40gb: 1}}
    """
    claim = only(servers(tmp_path, pod)).gpus[0]
    assert (claim.text, claim.kind) == ("h100-80gb-sxm:3g.40gb", "kubernetes")
    assert text_at(tmp_path, claim.text) == "nvidia.com/mig-3g.40gb"
    alone = pod.replace("nodeSelector", "labels")
    claim = only(servers(tmp_path, alone)).gpus[0]
    assert (claim.text, claim.kind) == ("nvidia.com/mig-3g.40gb", "kubernetes")


def test_resource_claims_name_gpus(tmp_path: Path) -> None:
    pod = """
        resourceClaims:
        - {name: gpu, resourceClaimTemplateName: two}
        containers:
        - image: vllm/vllm-openai
          args: [--model, a/b]
          resources: {claims: [{name: gpu}]}
    """
    template = """
        apiVersion: resource.k8s.io/v1
        kind: ResourceClaimTemplate
        metadata: {name: two}
        spec:
          spec:
            devices:
              requests:
              - name: gpus
                exactly:
                  deviceClassName: gpu.nvidia.com
                  count: 2
                  selectors:
                  - cel:
                      expression: device.attributes["gpu.nvidia.com"].productName == "NVIDIA L4"
    """
    server = only(servers(tmp_path, pod, template))
    assert server.gpus_per_node is not None
    assert text_at(tmp_path, server.gpus_per_node.at) == "2"
    assert server.vendor == "nvidia"
    assert [(str(one.text), one.via) for one in server.gpus] == [("NVIDIA L4", "DRA")]
    without = only(servers(tmp_path, pod))
    assert (without.gpus_per_node, without.gpus) == (None, ())


@pytest.mark.parametrize(
    ("expression", "claims"),
    [
        ("device.attributes['gpu.nvidia.com']['type'] == 'H200'", ["H200"]),
        (
            'device.attributes["gpu.nvidia.com"].productName.lowerAscii().matches("^.*l40s.*$")',
            ["l40s"],
        ),
        ("device.capacity['gpu.nvidia.com'].memory.compareTo(quantity('40Gi')) >= 0", ["40GiB"]),
        (
            "device.attributes['gpu.nvidia.com'].productName == 'A100' && "
            "device.capacity['gpu.nvidia.com']['memory'].isGreaterThan(quantity('40Gi'))",
            ["a100-40gb-sxm"],
        ),
        ("device.attributes['gpu.nvidia.com'].type == 'gpu'", []),
        ("device.driver == 'gpu.nvidia.com'", []),
    ],
)
def test_cel_selectors(expression: str, claims: list[str]) -> None:
    assert [str(one.text) for one in cel_claims([Word(expression)])] == claims


# --- limits, probes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4", 4),
        ("1500m", 1.5),
        ("80Gi", 80 << 30),
        ("1.5G", 1.5e9),
        ("1e3", 1000),
        ("0.5Ki", 512),
        ("128974848", 128974848),
        ("80GiB", None),
        ("-1", None),
        ("", None),
        ("x" * 100, None),
    ],
)
def test_quantities(text: str, number: float | None) -> None:
    assert quantity(text) == number


def test_bytes_are_positive_and_bounded() -> None:
    assert stated_bytes(parse("0")[0]) is None
    assert stated_bytes(parse("999999999E")[0]) is None
    assert stated_bytes(parse("[1]")[0]) is None


@pytest.mark.parametrize(
    ("mount", "volume", "pod", "size", "is_default"),
    [
        ("/none", "emptyDir: {}", "", None, True),
        ("/dev/shm", "emptyDir: {sizeLimit: 8Gi}", "", 8 << 30, False),
        ("/dev/shm/", "emptyDir: {medium: Memory}", "", None, False),
        ("/dev/shm", "hostPath: {path: /dev/shm}", "", None, False),
        ("/data", "emptyDir: {sizeLimit: 8Gi}", "", None, True),
        ("/data", "emptyDir: {}", "hostIPC: true", None, False),
    ],
)
def test_shared_memory(
    mount: str, volume: str, pod: str, size: int | None, is_default: bool
) -> None:
    mounts = f"main: {{volumeMounts: [{{name: s, mountPath: {mount}}}]}}"
    spec = parse(f"volumes: [{{name: s, {volume}}}]\n{pod}\n{mounts}")[0]
    stated, default = shared_memory(spec.get("main"), spec)
    assert (stated.value if stated else None, default) == (size, is_default)


@pytest.mark.parametrize(
    ("probes", "seconds", "at"),
    [
        ("startupProbe: {failureThreshold: 30, periodSeconds: 20}", 600, "30"),
        ("startupProbe: {initialDelaySeconds: 60, failureThreshold: 30}", 360, "30"),
        ("livenessProbe: {initialDelaySeconds: 120}", 150, "120"),
        ("livenessProbe: {httpGet: {path: /health}}", 30, "livenessProbe"),
        ("{livenessProbe: {failureThreshold: 2}, startupProbe: {failureThreshold: 9}}", 90, "9"),
    ],
)
def test_deadlines(probes: str, seconds: int, at: str) -> None:
    (found,) = deadlines_of(parse(probes)[0])
    assert (found.seconds, found.at) == (seconds, at)


def test_a_readiness_probe_ends_nothing() -> None:
    assert deadlines_of(parse("readinessProbe: {failureThreshold: 1}")[0]) == ()


# --- small parts ------------------------------------------------------------------------------


def test_flag_values() -> None:
    words = [Word("--a_b=1"), Word("--c"), Word("x"), Word("--end")]
    assert flag_value(words, "--a-b") == "1"
    assert flag_value(words, "--c") == "x"
    assert flag_value(words, "--end") is None
    assert flag_value(words, "--none") is None
    assert (integer_of(Word("12")), integer_of(Word("x")), integer_of(Word("²"))) == (
        12,
        None,
        None,
    )


def test_null_is_an_empty_variable_and_wrong_shapes_are_none(tmp_path: Path) -> None:
    text = """
        env:
        - {name: EMPTY}
        - {name: NULL, value: null}
        - [1]
        - text
        - {value: x}
        - {name: FIELD, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        envFrom: {a: b}
    """
    context = context_of(tmp_path, {"c.yaml": text}, "c.yaml")
    found = environment_of(context.documents[0], context)
    stated = {name: value for name, value in found.items() if name in ("EMPTY", "FIELD")}
    assert stated == {"EMPTY": ""}
