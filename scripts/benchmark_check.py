"""What `moesize check` costs over a made-up repository: files per second and memory.

    python scripts/benchmark_check.py [--manifests 1000] [--others 3000]

Manifests are Deployments, compose files, Helm values and scripts of a dozen models and GPUs, each
with another context length; others are YAML files that serve nothing. CPU time and peak memory of
one fresh process, as the operating system counts them.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

MODELS = (
    ("Qwen/Qwen2.5-7B-Instruct", 1),
    ("mistralai/Mixtral-8x7B-Instruct-v0.1", 2),
    ("meta-llama/Llama-3.3-70B-Instruct", 4),
    ("openai/gpt-oss-120b", 1),
    ("Qwen/Qwen3-30B-A3B", 2),
    ("deepseek-ai/DeepSeek-V3", 8),
    ("google/gemma-3-27b-it", 2),
    ("meta-llama/Llama-3.1-8B-Instruct", 1),
)
GPUS = ("nvidia-l4", "nvidia-a100-80gb", "nvidia-h100-80gb", "nvidia-h200-141gb", "")
DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {{name: server-{number}}}
spec:
  replicas: 2
  template:
    spec:
{selector}      containers:
      - name: vllm
        image: vllm/vllm-openai:v0.19.0
        args:
        - --model={model}
        - --tensor-parallel-size={tp}
        - --max-model-len={length}
        resources:
          limits: {{nvidia.com/gpu: {tp}}}
"""
COMPOSE = """\
services:
  server-{number}:
    image: vllm/vllm-openai:v0.19.0
    command: >
      --model {model} --tensor-parallel-size {tp}
      --max-model-len ${{LENGTH:-{length}}}
    deploy:
      resources:
        reservations:
          devices: [{{driver: nvidia, count: {tp}, capabilities: [gpu]}}]
"""
VALUES = """\
servingEngineSpec:
  modelSpec:
  - name: server-{number}
    repository: vllm/vllm-openai
    tag: v0.19.0
    modelURL: {model}
    requestGPU: {tp}
    vllmConfig: {{tensorParallelSize: {tp}, maxModelLen: {length}}}
"""
SCRIPT = """\
#!/bin/bash
export LENGTH={length}
exec vllm serve {model} \\
  --tensor-parallel-size {tp} --max-model-len $LENGTH
"""
OTHER = """\
apiVersion: v1
kind: Service
metadata: {{name: service-{number}}}
spec:
  selector: {{app: server-{number}}}
  ports: [{{port: 8000, targetPort: http, name: model-{number}}}]
"""


def write(folder: Path, manifests: int, others: int) -> None:
    """The repository: the same for the same numbers."""
    chosen = random.Random(4)
    for number in range(manifests):
        model, tp = chosen.choice(MODELS)
        gpu = chosen.choice(GPUS)
        selector = f"      nodeSelector: {{cloud.google.com/gke-accelerator: {gpu}}}\n"
        facts = {
            "number": number,
            "model": model,
            "tp": tp,
            "length": 4096 + 16 * number,
            "selector": selector if gpu else "",
        }
        template, name = chosen.choice(
            ((DEPLOYMENT, "deployment.yaml"),) * 3
            + ((COMPOSE, "compose.yaml"), (VALUES, "values.yaml"), (SCRIPT, "serve.sh"))
        )
        place = folder / f"team-{number % 40}" / f"app-{number}"
        place.mkdir(parents=True)
        (place / name).write_text(template.format(**facts), encoding="utf-8")
    for number in range(others):
        place = folder / "other" / f"group-{number % 60}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"service-{number}.yaml").write_text(OTHER.format(number=number), encoding="utf-8")


def measure(folder: Path) -> tuple[float, float, str]:
    """(CPU seconds, peak memory in MiB, summary line) of one run in a fresh process."""
    command = [sys.executable, "-m", "moesize", "check", str(folder), "--quiet", "--no-config"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    )
    assert process.stdout is not None
    text = process.stdout.read()
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    process.stdout.close()
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, text.strip()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--manifests", type=int, default=1000)
    parser.add_argument("--others", type=int, default=3000)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, options.manifests, options.others)
        runs = [measure(folder) for _ in range(options.runs)]
    seconds = min(run[0] for run in runs)
    files = options.manifests + options.others
    print(runs[0][2])
    print(
        f"{options.manifests:,} manifests among {files:,} files: {seconds:.1f} s CPU, "
        f"{options.manifests / seconds:,.0f} manifests/s, {files / seconds:,.0f} files/s, "
        f"peak {max(run[1] for run in runs):.0f} MiB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
