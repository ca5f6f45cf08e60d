"""The rules of `moesize check`: id, severity, what each finds, why it matters, how to fix it.

The one list: messages, docs/rules/, `check --list-rules` and the SARIF driver are made from it. An
id is never given to another rule. Families: MS0xx the file, MS1xx memory, MS2xx layout of GPUs,
MS3xx model, quantization and number formats, MS4xx engine flags, MS5xx the GPU, MS6xx the pod.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from moesize.core.errors import UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moesize.check.findings import Severity


class Rule(NamedTuple):
    """One rule.

    id        never changes
    name      in words-with-dashes; works wherever the id does
    severity  unless the configuration says otherwise
    summary   one line
    why       what happens without the fix
    bad, good an example, as people write it
    fixable   `check --fix` can make the change
    """

    id: str
    name: str
    severity: Severity
    summary: str
    why: str
    bad: str = ""
    good: str = ""
    fixable: bool = False


RULES: tuple[Rule, ...] = (
    Rule(
        "MS001",
        "unreadable-file",
        "error",
        "the file cannot be read: not YAML, hostile, or not UTF-8",
        "Tools that apply the file would fail in the same place; nothing in it was checked. YAML "
        "that swells (anchors of anchors), nests without end or asks for objects to be built is "
        "refused on purpose.",
        "args: [--max-model-len=32768",
        'args: ["--max-model-len=32768"]',
    ),
    Rule(
        "MS002",
        "template-not-rendered",
        "info",
        "a template that only Helm (or another engine) can turn into a deployment",
        "Templates are not guessed at. With the `helm` program installed, charts are rendered with "
        "their default values and checked; otherwise check the values file, or pipe the output of "
        "`helm template` into `moesize check -`.",
        "--tensor-parallel-size={{ .Values.tp }}",
        "helm template . | moesize check - --stdin-filename chart.yaml",
    ),
    Rule(
        "MS003",
        "unresolved-variable",
        "warning",
        "a value comes from a variable that no file of the folder defines",
        "The server cannot be judged, or is judged without this value. Define the variable in the "
        "file, in a ConfigMap or .env file beside it, or give it with --set NAME=VALUE.",
        'args: ["--model=$(MODEL_ID)"]',
        "moesize check . --set MODEL_ID=mistralai/Mixtral-8x7B-Instruct-v0.1",
    ),
    Rule(
        "MS004",
        "unused-ignore",
        "warning",
        "an ignore comment that silences nothing",
        "The finding it was written for is gone, or the rule is misspelled. Remove it, so that it "
        "cannot hide the next finding.",
        "- --max-model-len=8192  # moesize: ignore[MS102] fits since June",
        "- --max-model-len=8192",
        fixable=True,
    ),
    Rule(
        "MS005",
        "duplicate-key",
        "warning",
        "a key stands twice in one mapping",
        "YAML forbids it; most tools take the last value in silence, some refuse the file.",
        "nvidia.com/gpu: 1\n            nvidia.com/gpu: 2",
        "nvidia.com/gpu: 2",
    ),
    Rule(
        "MS101",
        "weights-do-not-fit",
        "error",
        "the weights alone need more than the engine may use of the GPU",
        "The server stops while loading with an out-of-memory error, after minutes of download. "
        "All experts of a mixture-of-experts model must be resident, active or not.",
        "--model=mistralai/Mixtral-8x7B-v0.1   # 1 x A100 40 GB",
        "--model=mistralai/Mixtral-8x7B-v0.1 --tensor-parallel-size=4",
    ),
    Rule(
        "MS102",
        "kv-cache-below-one-request",
        "error",
        "the KV cache cannot hold one request of the maximum length",
        'vLLM refuses to start: "To serve at least one request with the model\'s max seq len ...". '
        "Where no length is set, the engine takes the model's longest.",
        "vllm serve openai/gpt-oss-120b   # 1 x H100, 131072 tokens by default",
        "vllm serve openai/gpt-oss-120b --max-model-len 65536",
        fixable=True,
    ),
    Rule(
        "MS103",
        "start-up-peak-does-not-fit",
        "error",
        "weights, activations, graphs and runtime leave nothing for the KV cache",
        'The engine stops after loading: "No available memory for the cache blocks", or runs out '
        "of memory in its profile run.",
        "--max-num-batched-tokens=65536",
        "--max-num-batched-tokens=8192",
        fixable=True,
    ),
    Rule(
        "MS104",
        "little-headroom",
        "warning",
        "it fits, but so closely that it may not",
        "Another driver, engine release or longer prompt turns the answer over. The threshold is "
        "`headroom` in the configuration (5 % of the budget unless set).",
        "--gpu-memory-utilization=0.98",
        "--max-model-len=24576",
    ),
    Rule(
        "MS105",
        "capacity-below-concurrency",
        "warning",
        "the KV cache holds fewer full-length requests than the file promises to serve at once",
        "Requests queue, or are preempted and computed again; latency grows long before anything "
        "fails. A warning where less than 2,048 tokens are left for each request, else a remark: "
        "few requests are as long as the maximum.",
        "targetRequests: 64   # the cache holds 11 requests of 32768 tokens",
        "args: [--max-model-len=8192]",
    ),
    Rule(
        "MS106",
        "utilization-leaves-no-room",
        "error",
        "the share of memory that the engine claims leaves no room for its runtime",
        "What the engine does not charge to its share (CUDA context, NCCL, graphs) still needs "
        "memory: the server does not start, or runs out of memory when it runs.",
        "--gpu-memory-utilization=0.995",
        "--gpu-memory-utilization=0.92",
        fixable=True,
    ),
    Rule(
        "MS107",
        "servers-share-a-gpu",
        "error",
        "servers on the same GPU claim more than all of its memory",
        "The one that starts second finds too little free memory and stops. vLLM's "
        "--gpu-memory-utilization counts from the whole card, not from what is left.",
        "two services, each --gpu-memory-utilization 0.9, one GPU",
        "--gpu-memory-utilization 0.5 and 0.4",
    ),
    Rule(
        "MS108",
        "fits-only-with-host-memory",
        "info",
        "part of the model runs from the memory of the host",
        "It works, at a fraction of the speed: every token waits for the link to the host.",
        "ollama: a 43 GB model on a 24 GB GPU",
        "a GPU that holds all of it, or a smaller quantization",
    ),
    Rule(
        "MS109",
        "host-memory-too-small",
        "warning",
        "the container's memory limit is below what loading or offloading needs",
        "The kernel kills the container (OOMKilled, exit code 137) while it loads or when the "
        "offload is allocated.",
        "limits: {memory: 16Gi}   # with --cpu-offload-gb 60",
        "limits: {memory: 96Gi}",
        fixable=True,
    ),
    Rule(
        "MS110",
        "shared-memory-too-small",
        "warning",
        "/dev/shm is too small for several GPUs in one container",
        "NCCL and the worker processes exchange data through /dev/shm. With the container "
        'runtime\'s 64 MiB they fail with "Bus error" or "No space left on device", often hours '
        "after the start.",
        "resources: {limits: {nvidia.com/gpu: 4}}   # no /dev/shm volume",
        "volumes: [{name: shm, emptyDir: {medium: Memory, sizeLimit: 16Gi}}]",
    ),
    Rule(
        "MS201",
        "parallel-size-does-not-divide",
        "error",
        "the tensor-parallel size does not divide the model's heads, experts or widths",
        'The engine stops: "Total number of attention heads must be divisible by tensor parallel '
        'size".',
        "--tensor-parallel-size=3",
        "--tensor-parallel-size=4",
    ),
    Rule(
        "MS202",
        "too-few-gpus",
        "error",
        "the parallel sizes need more GPUs than the file asks for",
        "Ranks wait for GPUs that never come, or the engine stops before loading.",
        "--tensor-parallel-size=4 with nvidia.com/gpu: 2",
        "nvidia.com/gpu: 4",
        fixable=True,
    ),
    Rule(
        "MS203",
        "idle-gpus",
        "warning",
        "the file asks for more GPUs than the server uses",
        "Idle GPUs are reserved and paid for.",
        "nvidia.com/gpu: 8 with --tensor-parallel-size=4",
        "--tensor-parallel-size=8",
    ),
    Rule(
        "MS204",
        "mla-under-tensor-parallel",
        "info",
        "a latent (MLA) cache is copied to every tensor-parallel rank",
        "MLA keeps one latent vector per token, which tensor parallelism cannot split: every GPU "
        "holds the whole cache. Data-parallel attention divides it.",
        "sglang ... deepseek-ai/DeepSeek-V3 --tp 8",
        "sglang ... deepseek-ai/DeepSeek-V3 --tp 8 --dp 8 --enable-dp-attention",
    ),
    Rule(
        "MS205",
        "no-gpu-requested",
        "warning",
        "a GPU server that asks for no GPU",
        "The pod is scheduled anywhere and the engine finds no device, or takes GPUs behind the "
        "scheduler's back.",
        "resources: {limits: {cpu: 8}}",
        "resources: {limits: {nvidia.com/gpu: 1}}",
    ),
    Rule(
        "MS206",
        "more-gpus-than-the-machine",
        "error",
        "more GPUs are asked for than the machine type has",
        "The pod stays pending for ever.",
        "instance-type: g5.8xlarge with nvidia.com/gpu: 4",
        "instance-type: g5.12xlarge",
    ),
    Rule(
        "MS301",
        "model-unknown",
        "warning",
        "the model is not in the catalogue",
        "Nothing was judged. Add --online to read its config.json, map the name in the "
        "configuration ([models]), or write a spec with `moesize import`.",
        "--model=/mnt/models",
        '[models]\n"/mnt/models" = "mixtral-8x7b"',
    ),
    Rule(
        "MS302",
        "quantization-contradicts-checkpoint",
        "error",
        "the quantization asked for is not that of the checkpoint",
        "AWQ and GPTQ are made beforehand and not at load: the engine stops with a configuration "
        "error, or loads other weights than meant.",
        "--model=meta-llama/Llama-3.1-70B-Instruct --quantization=awq",
        "--model=hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4",
    ),
    Rule(
        "MS303",
        "quantization-not-on-this-gpu",
        "error",
        "the GPU has no kernels for this quantization",
        'The engine stops: "The quantization method ... is not supported for the current GPU".',
        "--quantization=fp8 on a V100",
        "--quantization=awq",
    ),
    Rule(
        "MS304",
        "dtype-not-on-this-gpu",
        "error",
        "the GPU lacks the number format asked for",
        'The engine stops: "Bfloat16 is only supported on GPUs with compute capability of at least '
        '8.0".',
        "--dtype=bfloat16 on a T4",
        "--dtype=half",
        fixable=True,
    ),
    Rule(
        "MS305",
        "context-beyond-model",
        "error",
        "the context asked for is longer than the model was made for",
        'vLLM stops: "User-specified max_model_len is greater than the derived max_model_len"; '
        "other engines answer nonsense past the limit.",
        "--max-model-len=200000   # the model has 131072",
        "--max-model-len=131072",
        fixable=True,
    ),
    Rule(
        "MS306",
        "engine-does-not-run-model",
        "warning",
        "this engine, or this release of it, cannot be planned with the model",
        "Either the engine refuses the architecture, or moesize does not know how it stores it. "
        "Nothing was judged.",
    ),
    Rule(
        "MS401",
        "flag-not-in-this-version",
        "error",
        "a flag that this release of the engine does not have",
        'The server stops at once: "unrecognized arguments".',
        "image: vllm/vllm-openai:v0.18.0, --swap-space=16",
        "without --swap-space",
    ),
    Rule(
        "MS402",
        "unknown-flag",
        "error",
        "a flag that no known release of the engine has",
        'The server stops at once: "unrecognized arguments".',
        "--max-modle-len=8192",
        "--max-model-len=8192",
    ),
    Rule(
        "MS403",
        "bad-flag-value",
        "error",
        "a flag's value that the engine cannot read",
        "The server stops at once with a usage error.",
        "--gpu-memory-utilization=90%",
        "--gpu-memory-utilization=0.9",
    ),
    Rule(
        "MS404",
        "unpinned-version",
        "info",
        "the image names no release: judged as the newest known",
        "Defaults that decide over memory change between releases; `latest` today is not `latest` "
        "at the next restart. Shown with --verbose only.",
        "image: vllm/vllm-openai:latest",
        "image: vllm/vllm-openai:v0.19.1",
    ),
    Rule(
        "MS501",
        "gpu-unknown",
        "warning",
        "the file does not say which GPU it runs on",
        "Nothing to compare with: the finding says what each GPU must hold and which do. Name the "
        "GPU with --gpu, in the configuration ([gpu]), or in a comment: # moesize: gpu=h100",
        "resources: {limits: {nvidia.com/gpu: 1}}",
        "nodeSelector: {cloud.google.com/gke-accelerator: nvidia-l4}",
    ),
    Rule(
        "MS502",
        "gpu-name-unknown",
        "warning",
        "the GPU that is named is not in the catalogue",
        "`moesize gpus` lists what is known; map the name in the configuration ([gpu.names]).",
        "nodeSelector: {gpu: big-one}",
        '[gpu.names]\n"big-one" = "h100"',
    ),
    Rule(
        "MS601",
        "probe-kills-loading-server",
        "warning",
        "a probe gives up before the weights can be loaded",
        "Kubernetes kills the container while it still loads, and starts it again, for ever.",
        "livenessProbe: {initialDelaySeconds: 60, failureThreshold: 3}   # 140 GB to load",
        "startupProbe: {failureThreshold: 120, periodSeconds: 10}",
        fixable=True,
    ),
)

_BY_NAME = {name: rule for rule in RULES for name in (rule.id.lower(), rule.name)}


def find_rule(name: str) -> Rule:
    """A rule by id or name. Raises UnknownNameError."""
    found = _BY_NAME.get(name.strip().lower())
    if found is None:
        from difflib import get_close_matches

        near = get_close_matches(name.strip().lower()[:60], _BY_NAME, n=3)
        near = [name.upper() if name == _BY_NAME[name].id.lower() else name for name in near]
        raise UnknownNameError("rule", name, near, "moesize check --list-rules")
    return found


def expand_rules(names: Iterable[str]) -> set[str]:
    """Ids for ids, names and beginnings such as MS1 (all of MS1xx). Raises UnknownNameError."""
    found: set[str] = set()
    for name in names:
        text = name.strip()
        if text.upper() == "ALL":
            found.update(rule.id for rule in RULES)
            continue
        started = {rule.id for rule in RULES if text and rule.id.startswith(text.upper())}
        found |= started if started and text.upper() != "M" else {find_rule(text).id}
    return found
