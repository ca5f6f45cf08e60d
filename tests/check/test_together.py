"""The real readers and the real judge with what surrounds them."""

from __future__ import annotations

from pathlib import Path

import pytest

import moesize
from moesize.check.findings import CheckReport

pytestmark = pytest.mark.usefixtures("repository")
# 46.7 B parameters (https://huggingface.co/mistralai/Mixtral-8x7B-v0.1) at 16 bits are 93.4 GB: on
# four 80 GB GPUs they fit, on one they do not.
BASE = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: mixtral}
spec:
  selector: {matchLabels: {app: mixtral}}
  template:
    metadata: {labels: {app: mixtral}}
    spec:
      nodeSelector:
        cloud.google.com/gke-accelerator: nvidia-h100-80gb
      containers:
        - name: server
          image: vllm/vllm-openai:v0.11.0
          args:
            - --model=mistralai/Mixtral-8x7B-Instruct-v0.1
            - --tensor-parallel-size=4
          resources: {limits: {nvidia.com/gpu: 4}}
"""
KUSTOMIZATION = "resources: [deployment.yaml]\n"
OVERLAY = "resources: [../../base]\npatches:\n- path: small.yaml\n"
PATCH = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: mixtral}
spec:
  template:
    spec:
      containers:
        - name: server
          args:
            - --model=mistralai/Mixtral-8x7B-Instruct-v0.1
          resources: {limits: {nvidia.com/gpu: 1}}
"""


def write(name: str, text: str) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def errors(report: CheckReport) -> list[tuple[str, str, str]]:
    """Rule, the file that it stands under, the file that it points into."""
    return [
        (one.rule, file.path, one.span.path)
        for file in report.files
        for one in file.counted
        if one.severity == "error"
    ]


def judged(report: CheckReport) -> dict[str, list[bool | None]]:
    return {file.path: [server.fits for server in file.servers] for file in report.files}


def test_a_base_that_an_overlay_rewrites_is_judged_once() -> None:
    write("base/deployment.yaml", BASE)
    write("base/kustomization.yaml", KUSTOMIZATION)
    assert judged(moesize.check_files("."))["base/deployment.yaml"] == [True]
    write("overlays/small/kustomization.yaml", OVERLAY)
    write("overlays/small/small.yaml", PATCH)
    report = moesize.check_files(".")
    assert judged(report) == {"overlays/small/kustomization.yaml": [False]}
    assert errors(report) == [
        ("MS101", "overlays/small/kustomization.yaml", "overlays/small/small.yaml")
    ]
    assert report.texts["overlays/small/small.yaml"] == PATCH
    assert "read through the kustomization" in dict(report.ignored)["base/deployment.yaml"]
    # Named alone, the base is judged as it stands.
    assert judged(moesize.check_files("base/deployment.yaml")) == {"base/deployment.yaml": [True]}


def test_comments_in_the_files_that_an_overlay_is_made_of() -> None:
    write("base/deployment.yaml", BASE)
    write("base/kustomization.yaml", KUSTOMIZATION)
    write("overlays/small/kustomization.yaml", OVERLAY)
    known = "Instruct-v0.1  # moesize: ignore[MS101] a drill"
    write("overlays/small/small.yaml", PATCH.replace("Instruct-v0.1", known))
    report = moesize.check_files(".")
    assert errors(report) == []
    found = [one for file in report.files for one in file.findings]
    assert [one.rule for one in found if one.suppressed == "a drill"] == ["MS101"]


def test_a_gpu_in_a_comment() -> None:
    text = BASE.replace("nvidia-h100-80gb", "nvidia-l4  # moesize: gpu=h200")
    write("a.yaml", text)
    (server,) = moesize.check_files(".").files[0].servers
    assert (server.fits, server.gpu) == (True, "h200")


def test_a_model_in_a_comment() -> None:
    text = BASE.replace("--model=mistralai/Mixtral-8x7B-Instruct-v0.1", "--model=/mnt/models")
    write("a.yaml", text)
    assert [one.rule for one in moesize.check_files(".").findings] == ["MS301"]
    write("a.yaml", "# moesize: model=mixtral-8x7b\n" + text)
    (server,) = moesize.check_files(".").files[0].servers
    assert (server.fits, server.model_id) == (True, "mixtral-8x7b")


def test_a_model_in_the_configuration() -> None:
    write("a.yaml", BASE.replace("mistralai/Mixtral-8x7B-Instruct-v0.1", "/mnt/models"))
    write("moesize.toml", "[models]\n'/mnt/models' = 'mixtral-8x7b'\n")
    (server,) = moesize.check_files(".").files[0].servers
    assert server.model_id == "mixtral-8x7b"


def test_a_cluster_of_many_files_stays_in_bounds(repository: Path) -> None:
    import tracemalloc

    for number in range(100):
        write(f"team{number % 10}/{number}.yaml", BASE.replace("mixtral}", f"mixtral{number}}}"))
    moesize.check_files(".")
    tracemalloc.start()
    report = moesize.check_files(".")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(report.files) == 100
    assert peak < 20 << 20
