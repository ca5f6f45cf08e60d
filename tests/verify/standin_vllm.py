"""A package that is called vllm: it checks how it is called, and prints what releases print.

Tests copy this file as `vllm/__init__.py`. STANDIN says how it behaves, STANDIN_FILE is where it
leaves what it was given. Lines are of the forms of fixtures/logs/vllm-qwen3-30b-fp8-h100.log (0.22)
and of 0.33's v1/worker/gpu_worker.py; the engine's come from a process of its own, as vLLM's do.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

_NAMES = json.loads(Path(os.environ["STANDIN_NAMES"]).read_text())
_MODE = os.environ.get("STANDIN", "ok")
_STAMP = "06-18 10:02:11"


def _say(level, place, text):
    who = multiprocessing.current_process().name
    print(f"({who} pid={os.getpid()}) {level} {_STAMP} [{place}] {text}", flush=True)


def _note(**facts):
    path = Path(os.environ["STANDIN_FILE"])
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **facts}))


def _check(what, given):
    unknown = set(given) - set(_NAMES[what])
    if unknown:
        raise TypeError(f"{what}() got an unexpected keyword argument {sorted(unknown)[0]!r}")


def _weights(folder):
    """Bytes of tensors: what stands behind the headers."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as stream:
            total += path.stat().st_size - 8 - int.from_bytes(stream.read(8), "little")
    return total


def _out_of_memory():
    for line in (
        "EngineCore failed to start.",
        "Traceback (most recent call last):",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total "
        "capacity of 79.19 GiB of which 1.02 GiB is free.",
    ):
        _say("ERROR", "core.py:1584", line)
    sys.exit(1)


def _engine(given, ready, wait):
    folder = Path(given["model"])
    config = json.loads((folder / "config.json").read_text())
    _note(engine_pid=os.getpid(), config=config)
    if _MODE == "hang":
        # An engine that does not listen to SIGTERM either.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    _say(
        "INFO", "core.py:107",
        f"Initializing a V1 LLM engine (v0.33.0) with config: model='{given['model']}', "
        f"skip_tokenizer_init=True, dtype=torch.bfloat16, max_seq_len={given['max_model_len']}, "
        "load_format=safetensors, tensor_parallel_size=1, pipeline_parallel_size=1, "
        "data_parallel_size=1, quantization=None, enforce_eager=False, kv_cache_dtype=auto",
    )  # fmt: skip
    size = _weights(folder) / (1 << 30) + float(os.environ.get("STANDIN_MORE_GIB", "0"))
    if _MODE == "oom":
        _out_of_memory()
    if _MODE == "crash":
        _say("ERROR", "core.py:1584", "ValueError: There is no module named 'layers.7.mixer'")
        sys.exit(1)
    _say("INFO", "model.py:4772", f"Model loading took {size:.2f} GiB memory and 5.31 seconds")
    kv = os.environ.get("STANDIN_KV_GIB", "")
    if kv:
        _say("INFO", "gpu_worker.py:774", f"Available KV cache memory: {kv} GiB")
    took = "init engine (profile, create kv cache, warmup model) took 54.11 s"
    _say("INFO", "core.py:282", f"{took} (compilation: 21.50 s)")
    ready.set()
    if _MODE == "oom_later":
        _out_of_memory()
    wait.wait(60)


class SamplingParams:
    def __init__(self, **given):
        _check("SamplingParams", given)
        self.given = given


class _Output:
    def __init__(self, tokens):
        self.token_ids = [1] * tokens


class _Request:
    def __init__(self, tokens):
        self.outputs = [_Output(tokens)]


class LLM:
    def __init__(self, **given):
        _check("LLM", given)
        _note(llm=given, pid=os.getpid(), cwd=str(Path.cwd()), environment=dict(os.environ))
        if _MODE == "garbage":
            sys.stdout.buffer.write(bytes(range(256)) * 64)
            sys.stdout.flush()
            sys.exit(0)
        _say("INFO", "utils.py:233", f"non-default args: {given}")
        if _MODE == "flood":
            line = ("INFO " + "x" * 1000 + "\n") * 1000
            for _ in range(30):
                sys.stdout.write(line)
        self.done, ready = multiprocessing.Event(), multiprocessing.Event()
        self.engine = multiprocessing.Process(
            target=_engine, args=(given, ready, self.done), name="EngineCore", daemon=True
        )
        self.engine.start()
        if _MODE in ("oom", "crash", "hang"):
            self.engine.join()
            raise RuntimeError("Engine core initialization failed. See root cause above.")
        ready.wait(60)

    def generate(self, prompts, sampling_params=None, **given):
        _check("LLM.generate", given)
        _note(prompts=prompts, sampling=sampling_params.given)
        if _MODE == "oom_later":
            self.engine.join()
            raise RuntimeError("EngineDeadError: EngineCore encountered an issue.")
        self.done.set()
        self.engine.join()
        return [_Request(sampling_params.given["max_tokens"]) for _ in prompts]
