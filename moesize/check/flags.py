"""A server's flags with their places: what each sets, where its value stands, how to write it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.check.source import Word

if TYPE_CHECKING:
    from moesize.check.server import Server
    from moesize.engine_args import ServeCommand, Typed

# What a finding wants changed -> how each engine calls it. The names are those of the engines'
# own help; a flag of the file, if there is one, is called as the file calls it.
_NAMES = {
    "request:context_tokens": {
        "vllm": "--max-model-len",
        "sglang": "--context-length",
        "tgi": "--max-total-tokens",
        "tensorrt-llm": "--max_seq_len",
    },
    "setting:ctx_size": {"llama.cpp": "--ctx-size", "ik_llama.cpp": "--ctx-size"},
    "request:tensor_parallel_size": {
        "vllm": "--tensor-parallel-size",
        "sglang": "--tp-size",
        "tgi": "--num-shard",
        "tensorrt-llm": "--tp_size",
    },
    "request:gpu_memory_utilization": {
        "vllm": "--gpu-memory-utilization",
        "sglang": "--mem-fraction-static",
        "tgi": "--cuda-memory-fraction",
        "tensorrt-llm": "--kv_cache_free_gpu_memory_fraction",
    },
    "request:max_num_seqs": {
        "vllm": "--max-num-seqs",
        "sglang": "--max-running-requests",
        "llama.cpp": "--parallel",
        "tensorrt-llm": "--max_batch_size",
    },
    "setting:dtype": {"vllm": "--dtype", "sglang": "--dtype", "tgi": "--dtype"},
    "command:quant": {"vllm": "--quantization", "sglang": "--quantization", "tgi": "--quantize"},
}


class Flags:
    """The flags of one server as its engine reads them."""

    def __init__(self, server: Server, command: ServeCommand, engine: str) -> None:
        self.server = server
        self.command = command
        self.engine = engine

    @property
    def context(self) -> str:
        """The target of the flag that sets the length: llama.cpp's is of all its slots."""
        return "setting:ctx_size" if "llama" in self.engine else "request:context_tokens"

    def find(self, target: str) -> Typed | None:
        """The flag that sets a target (`request:context_tokens`), the last if several do."""
        for typed in reversed(self.command.typed):
            if typed.flag is not None and target in typed.flag.targets and typed.state == "known":
                return typed
        return None

    def value(self, target: str) -> Word | None:
        """The value of a flag, where it stands; its name where it has none."""
        typed = self.find(target)
        return None if typed is None else value_word(typed, self.server)

    def place(self, *targets: str) -> Word:
        """The value of the first of these that is given, else the server itself."""
        for target in targets:
            found = self.value(target)
            if found is not None and found.span is not None:
                return found
        return self.server.place

    def model_place(self) -> Word:
        """Where the model is named."""
        if self.server.model is not None and self.server.model.span is not None:
            return self.server.model
        for typed in self.command.typed:
            if typed.state == "model" and isinstance(typed.word, Word) and typed.word.span:
                return typed.word
        found = self.value("command:model")
        return found if found is not None and found.span is not None else self.server.place

    def name(self, target: str) -> str:
        """How the file, or else the engine, calls the flag that sets a target."""
        typed = self.find(target)
        if typed is not None and typed.word.startswith("-"):
            return typed.word.partition("=")[0]
        return _NAMES.get(target, {}).get(self.engine, "")


def value_word(typed: Typed, server: Server) -> Word:
    """The value of a typed flag as a word with its place (its name where it has none)."""
    name, equals, _ = typed.word.partition("=")
    if equals and isinstance(typed.word, Word):
        return typed.word.cut(len(name) + 1)
    for value in typed.values:
        if isinstance(value, Word):
            return value
    if isinstance(typed.word, Word):
        return typed.word
    # A variable: its name is the engine's, its value stands in the environment.
    found = server.environment.get(typed.word)
    return found if found is not None else server.place
