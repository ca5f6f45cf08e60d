"""Kubernetes objects: workloads, groups of pods, patches, and kinds that nobody heard of."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_reading import context_of, flag, only, readings, text_at

from moesize.check.readers import kubernetes
from moesize.check.server import Reading

CONTAINERS = """
containers:
- name: main
  image: vllm/vllm-openai:v0.10.0
  args: [--model=org/model, --tensor-parallel-size=2]
  resources: {limits: {nvidia.com/gpu: 2}}
"""


def read(root: Path, text: str, name: str = "a.yaml", **others: str) -> list[Reading]:
    return readings(context_of(root, {name: text, **others}, name), kubernetes)


def indented(text: str, depth: int) -> str:
    return "".join(" " * depth + line + "\n" for line in text.strip().split("\n"))


def workload(version: str, kind: str, path: tuple[str, ...]) -> str:
    """An object whose pod template is at a path."""
    text = f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: web}}\n"
    for depth, key in enumerate(path):
        text += " " * depth + f"{key}:\n"
    return text + indented(CONTAINERS, len(path))


@pytest.mark.parametrize(
    ("version", "kind", "path", "expected"),
    [
        ("apps/v1", "Deployment", ("spec", "template", "spec"), "k8s_deployment"),
        ("apps/v1", "StatefulSet", ("spec", "template", "spec"), "k8s_statefulset"),
        ("apps/v1", "DaemonSet", ("spec", "template", "spec"), "k8s_daemonset"),
        ("apps/v1", "ReplicaSet", ("spec", "template", "spec"), "k8s_replicaset"),
        ("batch/v1", "Job", ("spec", "template", "spec"), "k8s_job"),
        (
            "batch/v1",
            "CronJob",
            ("spec", "jobTemplate", "spec", "template", "spec"),
            "k8s_cronjob",
        ),
        ("v1", "Pod", ("spec",), "k8s_pod"),
        ("argoproj.io/v1alpha1", "Rollout", ("spec", "template", "spec"), "k8s_deployment"),
        ("serving.knative.dev/v1", "Service", ("spec", "template", "spec"), "knative_service"),
        ("example.com/v1", "Anything", ("spec", "a", "b", "c"), "k8s_custom"),
        ("kubeflow.org/v1", "PyTorchJob", ("spec", "specs", "template", "spec"), "k8s_custom"),
    ],
)  # fmt: skip
def test_workloads(
    tmp_path: Path, version: str, kind: str, path: tuple[str, ...], expected: str
) -> None:
    (reading,) = read(tmp_path, workload(version, kind, path))
    assert (reading.kind, reading.skipped) == (expected, "")
    server = only(reading.servers)
    assert server.name == "web/main"
    assert (server.engine, flag(server, "--model")) == ("vllm", "org/model")
    assert server.gpus_per_node is not None
    assert server.gpus_per_node.value == 2


def test_objects_of_other_groups_are_not_taken_for_workloads(tmp_path: Path) -> None:
    assert read(tmp_path, "apiVersion: v1\nkind: Service\nspec: {ports: []}\n") == []
    assert read(tmp_path, "apiVersion: v1\nkind: ConfigMap\ndata: {a: b}\n") == []
    assert read(tmp_path, "a: {containers: [{image: vllm/vllm-openai}]}\n") == []
    schema = """
        apiVersion: apiextensions.k8s.io/v1
        kind: CustomResourceDefinition
        spec: {x: {containers: [{image: vllm/vllm-openai}]}}
    """
    assert read(tmp_path, schema) == []


def test_a_workload_without_a_model_server_says_so(tmp_path: Path) -> None:
    text = workload("apps/v1", "Deployment", ("spec", "template", "spec"))
    text = text.replace("vllm/vllm-openai:v0.10.0", "nginx:1").replace("--tensor", "--t")
    (reading,) = read(tmp_path, text)
    assert reading.servers == []
    assert reading.skipped == "no container of it serves a model"


GROUP = """
    apiVersion: leaderworkerset.x-k8s.io/v1
    kind: LeaderWorkerSet
    metadata: {name: big}
    spec:
      replicas: 3
      leaderWorkerTemplate:
        size: 2
        leaderTemplate:
          metadata: {labels: {llm-d.ai/model: DeepSeek-R1}}
          spec:
            nodeSelector: {cloud.google.com/gke-accelerator: nvidia-h100-80gb}
            containers:
            - name: leader
              image: vllm/vllm-openai:v0.8.5
              command: [sh, -c]
              args:
              - "ray start --head;
                 vllm serve org/model --tensor-parallel-size 8 --pipeline_parallel_size $(LWS_GROUP_SIZE)"
              resources: {limits: {nvidia.com/gpu: LEADER}}
        workerTemplate:
          spec:
            containers:
            - name: worker
              image: vllm/vllm-openai:v0.8.5
              command: [sh, -c, "ray start --address=$(LWS_LEADER_ADDRESS):6379 --block"]
              resources: {limits: {nvidia.com/gpu: 8}}
"""  # noqa: E501


def test_a_leader_and_its_workers_are_one_server(tmp_path: Path) -> None:
    (reading,) = read(tmp_path, GROUP.replace("LEADER", "8"))
    assert reading.kind == "lws"
    server = only(reading.servers)
    assert server.nodes is not None
    assert (server.nodes.value, text_at(tmp_path, server.nodes.at)) == (2, "2")
    assert server.gpus_per_node is not None
    assert server.gpus_per_node.value == 8
    assert flag(server, "--pipeline_parallel_size") == "2"
    assert [str(claim.text) for claim in server.gpus] == ["nvidia-h100-80gb"]
    assert server.fallback_model == "DeepSeek-R1"


def test_a_leader_without_gpus_runs_no_rank(tmp_path: Path) -> None:
    text = GROUP.replace("{nvidia.com/gpu: LEADER}", "{cpu: 4}").replace("size: 2", "size: 3")
    (reading,) = read(tmp_path, text)
    server = only(reading.servers)
    assert server.nodes is not None
    assert server.gpus_per_node is not None
    assert (server.nodes.value, server.gpus_per_node.value) == (2, 8)


def test_a_group_of_workers_alone(tmp_path: Path) -> None:
    text = """
        apiVersion: leaderworkerset.x-k8s.io/v1
        kind: LeaderWorkerSet
        metadata: {name: wide}
        spec:
          leaderWorkerTemplate:
            size: 4
            workerTemplate:
              spec:
                initContainers:
                - {name: p, image: ghcr.io/llm-d/llm-d-routing-sidecar, restartPolicy: Always}
                containers:
                - name: vllm
                  image: ghcr.io/llm-d/llm-d-cuda:v0.7.0
                  command: [/bin/bash, -c]
                  args: ['exec vllm serve org/model --data-parallel-size $((LWS_GROUP_SIZE * DP))']
                  env: [{name: DP, value: "8"}]
                  resources: {limits: {nvidia.com/gpu: 8}}
    """
    server = only(read(tmp_path, text)[0].servers)
    assert flag(server, "--data-parallel-size") == "32"
    assert server.nodes is not None
    assert server.nodes.value == 4


def test_jobs_of_a_set_are_read_one_by_one(tmp_path: Path) -> None:
    job = "template:\n  spec:\n    template:\n      spec:\n" + indented(CONTAINERS, 8)
    text = (
        "apiVersion: jobset.x-k8s.io/v1alpha2\nkind: JobSet\nmetadata: {name: set}\n"
        "spec:\n  replicatedJobs:\n"
        + "  - name: first\n"
        + indented(job, 4)
        + "  - name: second\n"
        + indented(job, 4)
    )
    (reading,) = read(tmp_path, text)
    assert [server.name for server in reading.servers] == ["set/first/main", "set/second/main"]


@pytest.mark.parametrize(
    ("more", "promised"),
    [
        ("spec:\n      containerConcurrency: 20\n", 20),
        ("metadata: {annotations: {autoscaling.knative.dev/target: '7'}}\n    spec:\n", 7),
        (
            "metadata: {annotations: {autoscaling.knative.dev/target: '7',"
            " autoscaling.knative.dev/metric: rps}}\n    spec:\n",
            None,
        ),
        ("spec:\n      containerConcurrency: 0\n", None),
    ],
)
def test_knative_promises_concurrency(tmp_path: Path, more: str, promised: int | None) -> None:
    text = (
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: k}\n"
        f"spec:\n  template:\n    {more}" + indented(CONTAINERS, 6)
    )
    server = only(read(tmp_path, text)[0].servers)
    assert (server.concurrency.value if server.concurrency else None) == promised


# --- patches ----------------------------------------------------------------------------------


def test_a_patch_is_no_server_of_its_own(tmp_path: Path) -> None:
    text = """
        apiVersion: apps/v1
        kind: Deployment
        metadata: {name: web}
        spec:
          template:
            spec:
              containers: [{name: main, resources: {limits: {nvidia.com/gpu: 4}}}]
    """
    (reading,) = read(tmp_path, text)
    assert (reading.kind, reading.servers) == ("kustomize_patch", [])
    assert "patch" in reading.skipped


def test_a_patch_that_names_the_model_shows_it(tmp_path: Path) -> None:
    text = """
        apiVersion: apps/v1
        kind: Deployment
        metadata: {name: gemma-vllm}
        spec: {template: {spec: {containers: [
          {name: main, env: [{name: MODEL_ID, value: google/gemma-7b}]}]}}}
    """
    (reading,) = read(tmp_path, text)
    server = only(reading.servers)
    assert (reading.kind, reading.skipped) == ("kustomize_patch", "")
    assert (server.engine, server.model) == ("vllm", "google/gemma-7b")
    assert server.shm_is_default is False


@pytest.mark.parametrize("name", ["gpu.patch.yaml", "patch-vllm.yml", "patches/vllm.yaml"])
def test_names_of_files_tell_patches(tmp_path: Path, name: str) -> None:
    text = workload("apps/v1", "Deployment", ("spec", "template", "spec"))
    (reading,) = read(tmp_path, text, name)
    assert reading.kind == "kustomize_patch"
    assert flag(only(reading.servers), "--model") == "org/model"


def test_a_kustomization_tells_patches(tmp_path: Path) -> None:
    text = workload("apps/v1", "Deployment", ("spec", "template", "spec"))
    files = {"vllm.yaml": text, "kustomization.yaml": "patches: [{path: vllm.yaml}]\n"}
    (reading,) = readings(context_of(tmp_path, files, "vllm.yaml"), kubernetes)
    assert reading.kind == "kustomize_patch"
    (tmp_path / "kustomization.yaml").write_text("resources: [vllm.yaml]\n")
    (reading,) = readings(context_of(tmp_path, {"vllm.yaml": text}, "vllm.yaml"), kubernetes)
    assert reading.kind == "k8s_deployment"


# --- other kinds ------------------------------------------------------------------------------


def test_a_fleet_of_ray_clusters_is_a_server_over_its_pods(tmp_path: Path) -> None:
    text = """
        apiVersion: orchestration.aibrix.ai/v1alpha1
        kind: RayClusterFleet
        metadata: {name: coder}
        spec:
          template:
            metadata: {labels: {model.aibrix.ai/name: coder-7b}}
            spec:
              headGroupSpec:
                template:
                  spec:
                    containers:
                    - name: head
                      image: vllm/vllm-openai:v0.7.1
                      command: [/bin/bash, -c]
                      args: ["ray start --head & vllm serve org/coder --tensor-parallel-size 4"]
                      resources: {limits: {nvidia.com/gpu: 2}}
                    - {name: runtime, image: aibrix/runtime:v0.3.0, command: [aibrix_runtime]}
              workerGroupSpecs:
              - replicas: 1
                template:
                  spec:
                    containers:
                    - {name: w, image: vllm/vllm-openai:v0.7.1, command: [bash, -c, "ray start"],
                       resources: {limits: {nvidia.com/gpu: 2}}}
    """
    (reading,) = read(tmp_path, text)
    assert reading.kind == "aibrix"
    server = only(reading.servers)
    assert server.nodes is not None
    assert server.gpus_per_node is not None
    assert (server.nodes.value, server.gpus_per_node.value) == (2, 2)
    assert (server.words[0], server.fallback_model) == ("org/coder", "coder-7b")


def test_roles_of_a_group_are_servers(tmp_path: Path) -> None:
    text = """
        apiVersion: workloads.x-k8s.io/v1alpha2
        kind: RoleBasedGroup
        metadata: {name: pd}
        spec:
          roles:
          - name: router
            standalonePattern: {template: {spec: {containers: [
              {name: r, image: lmsysorg/sglang-router, command: [python3, -m, sglang_router]}]}}}
          - name: prefill
            leaderWorkerPattern:
              size: 4
              template:
                spec:
                  containers:
                  - name: sglang
                    image: lmsysorg/sglang:v0.5.9
                    command: [python3, -m, sglang.launch_server, --model-path, org/m, --tp-size]
                    args: ["4", --nnodes, $(RBG_LWP_GROUP_SIZE), --node-rank, $(RBG_LWP_WORKER_INDEX)]
                    resources: {limits: {nvidia.com/gpu: 1}}
    """  # noqa: E501
    (reading,) = read(tmp_path, text)
    assert reading.kind == "rbg"
    server = only(reading.servers)
    assert server.name == "pd/prefill/sglang"
    assert server.nodes is not None
    assert server.nodes.value == 4
    assert (flag(server, "--nnodes"), server.unresolved, server.skipped) == ("4", (), "")


RUNTIME = """
    apiVersion: ome.io/v1beta1
    kind: ClusterServingRuntime
    metadata: {name: srt}
    spec:
      engineConfig:
        nodeSelector: {node.kubernetes.io/instance-type: BM.GPU.H100.8}
        leader:
          nodeSelector: {node.kubernetes.io/instance-type: BM.GPU.H100.8}
          runner:
            name: ome-container
            image: lmsysorg/sglang:v0.5.5
            command: [sh, -c, "python3 -m sglang.launch_server --model-path ${MODEL_PATH} --tp-size ${PARALLELISM_SIZE}"]
            resources: {limits: {nvidia.com/gpu: 8}}
        worker:
          size: 1
          runner: {name: w, image: "lmsysorg/sglang:v0.5.5"}
"""  # noqa: E501


def test_a_runtime_of_ome_has_no_model(tmp_path: Path) -> None:
    (reading,) = read(tmp_path, RUNTIME)
    assert reading.kind == "ome"
    assert "runtime" in reading.skipped
    server = only(reading.servers)
    assert flag(server, "--tp-size") == "16"
    assert [str(claim.text) for claim in server.gpus] == ["BM.GPU.H100.8"]
    assert server.skipped


def test_a_runtime_of_ome_may_be_made_for_one_model(tmp_path: Path) -> None:
    text = RUNTIME.replace("--tp-size", "--served-model-name org/model --tp-size")
    (reading,) = read(tmp_path, text)
    server = only(reading.servers)
    assert (reading.skipped, server.skipped, server.fallback_model) == ("", "", "org/model")
    assert server.unresolved == ()


def test_a_service_of_ome_takes_its_runtime_from_the_folder(tmp_path: Path) -> None:
    service = """
        apiVersion: ome.io/v1beta1
        kind: InferenceService
        metadata: {name: chat}
        spec: {model: {name: deepseek-v3}, runtime: {name: srt}, engine: {minReplicas: 1}}
    """
    (alone,) = read(tmp_path, service)
    assert "runtime" in alone.skipped
    files = {"a.yaml": service, "runtime.yaml": RUNTIME}
    (reading,) = readings(context_of(tmp_path, files, "a.yaml"), kubernetes)
    server = only(reading.servers)
    assert (reading.skipped, server.fallback_model, server.engine) == ("", "deepseek-v3", "sglang")
    assert server.nodes is not None
    assert server.nodes.value == 2
