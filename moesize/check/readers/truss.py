"""Truss: Baseten's config.yaml, with a start command, a TensorRT-LLM build, or a Python model.

Fields as in basetenlabs/truss truss/base/truss_config.py and trt_llm_config.py at 0bee989
(August 2026).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from moesize.check.formats import Context, Format
from moesize.check.readers import srt_slurm
from moesize.check.readers.engine_config import words_of_options
from moesize.check.readers.pods import nim_program
from moesize.check.readers.resource_fields import flag_words, is_open_word, value_of
from moesize.check.server import GpuClaim, Reading, Server, Stated
from moesize.check.source import Word
from moesize.check.yaml_tree import Node, Scalar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moesize.check.shell import Launch

# Keys that make a mapping with `resources` a Truss; each alone occurs elsewhere.
_OWN_KEYS = (
    "trt_llm",
    "bis_llm",
    "docker_server",
    "base_image",
    "model_metadata",
    "python_version",
    "model_cache",
    "hf_cache",
    "external_package_dirs",
    "system_packages",
    "spec_version",
    "weights",
)
# resources.accelerator -> how we call it, where it is not the GPU's own name. An H100_40GB is
# half of an H100 by MIG (docs.baseten.co, instance types); A100 has 80 GB there.
_ACCELERATORS = {"H100_40GB": "h100:3g.40gb", "A100": "a100-80gb"}
# trt_llm.build.quantization_type -> what the weights become; the rest serves no more.
_QUANTS = {"fp8": "fp8", "fp8_kv": "fp8", "fp4": "nvfp4", "fp4_kv": "nvfp4"}
_NO_DECODER = ("encoder", "encoder_bert", "whisper")
_ENGINES = ("vllm", "sglang")
_BACKENDS = {
    "vllm": "vllm",
    "sglang": "sglang",
    "trtllm": "tensorrt-llm",
    "trt_llm": "tensorrt-llm",
    "tensorrt_llm": "tensorrt-llm",
}
_DATA = re.compile(r"/app/data/([\w./-]{1,200})")
_MOST = 200


def _is_truss(document: Node) -> bool:
    resources = document.get("resources")
    if document.get("apiVersion") or not resources.is_mapping:
        return False
    if resources.key("accelerator") is None and resources.key("use_gpu") is None:
        return False
    keys = [key for key in _OWN_KEYS if document.key(key) is not None]
    return bool(keys) and not document.get("services").is_mapping


def _read(document: Node, context: Context) -> Reading:
    servers = list(_servers(document, context))
    for server in servers:
        _add_gpus(server, document.get("resources"))
    skipped = "" if servers else "no language model server that is known"
    return Reading(kind="truss", servers=servers, skipped=skipped)


def _servers(document: Node, context: Context) -> Iterator[Server]:
    name = document.get("model_name").text or Word("truss", document.span)
    if document.get("trt_llm").is_mapping:
        yield _of_build(document.get("trt_llm"), name)
    elif document.get("bis_llm", "config").is_mapping:
        yield _of_stack(document.get("bis_llm", "config"), name)
    elif document.get("docker_server").is_mapping:
        yield from _of_command(document, name, context)
    else:
        server = _of_python(document, name)
        if server is not None:
            yield server


def _add_gpus(server: Server, resources: Node) -> None:
    """`accelerator: H100:2`: a kind of GPU and how many, one where no number stands."""
    text = resources.get("accelerator").word
    if is_open_word(text):
        return
    name, colon, number = text.partition(":")
    called = text.cut(0, len(name)) if colon else text
    if not name:
        return
    server.gpus = (GpuClaim(called.becomes(_ACCELERATORS.get(name, name)), "accelerator"),)
    if not colon:
        server.gpus_per_node = Stated(1, text)
    elif number.isascii() and number.isdigit() and 0 < int(number[:4]) <= 1000:
        server.gpus_per_node = Stated(int(number[:4]), text.cut(len(name) + 1))
    nodes = resources.get("node_count").integer()
    if nodes is not None and 1 < nodes <= 1000:
        server.nodes = Stated(nodes, resources.get("node_count").word)


def _environment(document: Node) -> dict[str, Word]:
    found: dict[str, Word] = {}
    for key, value in document.get("environment_variables").items():
        if value.text is not None and len(found) < _MOST:
            found[str(key)] = value.word
    return found


# --- TensorRT-LLM -----------------------------------------------------------------------------


def _of_build(trt_llm: Node, name: Word) -> Server:
    """Engine-Builder-LLM (v1: all under build) and BIS-LLM (v2: sizes under runtime)."""
    build, runtime = trt_llm.get("build"), trt_llm.get("runtime")
    server = Server(name=str(name), place=name, engine="tensorrt-llm")
    repository = build.get("checkpoint_repository")
    server.model = repository.get("repo").text
    base = build.get("base_model").word
    if base in _NO_DECODER:
        server.skipped = f"a model that generates no text ({base})"
    pairs = (
        (build.get("tensor_parallel_count"), "--tensor-parallel-size"),
        (build.get("pipeline_parallel_count"), "--pipeline-parallel-size"),
        (build.get("max_seq_len"), "--max-seq-len"),
        (build.get("max_batch_size"), "--max-batch-size"),
        (build.get("max_num_tokens"), "--max-num-tokens"),
        (runtime.get("tensor_parallel_size"), "--tensor-parallel-size"),
        (runtime.get("max_seq_len"), "--max-seq-len"),
        (runtime.get("max_batch_size"), "--max-batch-size"),
        (runtime.get("max_num_tokens"), "--max-num-tokens"),
        (runtime.get("kv_cache_free_gpu_mem_fraction"), "--free-gpu-memory-fraction"),
    )
    words: list[Word] = []
    for node, flag in pairs:
        if node.text is not None and node.number() is not None:
            words += [Word(flag, node.span), node.word]
    options = runtime.get("patch_kwargs", "engine_config")
    if options.is_mapping:
        read = words_of_options(options, "tensorrt-llm")
        words += read.words
        server.notes += read.notes
    # Releases before max_seq_len: input and output apart.
    longest = [build.get(key) for key in ("max_input_len", "max_output_len")]
    lengths = [node.integer() for node in longest]
    if value_of(words, "--max-seq-len") is None and None not in lengths:
        total = sum(number for number in lengths if number is not None)
        words += [Word("--max-seq-len", longest[0].span), longest[0].word.becomes(str(total))]
    server.words = tuple(words)
    _quantize(server, build.get("quantization_type").word)
    return server


def _quantize(server: Server, kind: Word) -> None:
    """The weights are quantized when the engine is built: told by a flag where there is one."""
    from moesize.engine_args.table import flag_table

    scheme = _QUANTS.get(kind)
    if scheme is None:
        return
    if "--quantization" in flag_table("tensorrt-llm").names:
        server.words += (Word("--quantization", kind.span), kind.becomes(scheme))
    elif server.model is not None and "fp8" not in server.model.lower():
        # A name that says so is how checkpoints of that scheme are called.
        server.fallback_model = server.model
        server.model = server.model.becomes(f"{server.model}-{scheme.upper()}")
    server.notes += (f"quantized to {scheme} when the engine is built ({kind})",)


def _of_stack(config: Node, name: Word) -> Server:
    """bis_llm: an engine's own options below `engine_config`."""
    backend = config.get("engine_backend").word
    engine = _BACKENDS.get(backend.lower(), "tensorrt-llm" if not backend else None)
    server = Server(name=str(name), place=name, engine=engine)
    server.model = config.get("checkpoint_name").text or config.get("model_name").text
    if engine is None:
        server.skipped = f"the engine {backend[:40]!r} is not known"
        return server
    words: list[Word] = []
    for key in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        node = config.get(key)
        if node.integer() is not None:
            words += [Word("--" + key.replace("_", "-"), node.span), node.word]
    options = config.get("engine_config")
    if engine == "tensorrt-llm":
        read = words_of_options(options, engine)
        words += read.words
        server.notes += read.notes
    else:
        words += flag_words(options, engine)
    server.words = tuple(words)
    return server


# --- commands and Python models ---------------------------------------------------------------


def _of_command(document: Node, name: Word, context: Context) -> Iterator[Server]:
    """`docker_server`: a server of its own in `base_image`, with or without a start command."""
    from moesize.check.shell import launches_in, launches_of

    image = document.get("base_image", "image").text
    command = document.get("docker_server", "start_command")
    environment = _environment(document)
    launches: list[Launch] = []
    if isinstance(command, Scalar) and command.text is not None:
        launches = launches_in(command.source_text(), environment)
        if not launches:
            # The folder `data` of a Truss is brought to /app/data.
            folder = document.get("data_dir").word or "data"
            for path in _DATA.findall(command.value[:4000])[:8]:
                script = context.folder.read(f"{folder}/{path}")
                launches += launches_in(script, environment) if script is not None else []
    elif image is not None:
        nim = nim_program(image, environment)
        if nim is not None:
            yield Server(
                name=str(name),
                place=name,
                engine=nim.engine,
                words=nim.words,
                environment=environment,
                image=image,
                model=nim.model,
                skipped=nim.skipped,
            )
            return
        launches = launches_of((), environment, image=image)
    repository = document.get("model_metadata", "repo_id").text
    if not launches and image is not None and repository is not None:
        yield _of_script(name, image, repository)
    mounted = list(_mounted(document))
    for launch in launches[:_MOST]:
        server = Server(
            name=str(name),
            place=launch.place if launch.place.span is not None else name,
            engine=launch.engine,
            environment=dict(launch.environment),
            image=launch.image or image,
            unresolved=launch.unresolved,
        )
        server.words = tuple(_from_hub(word, mounted) for word in launch.words)
        server.fallback_model = repository or value_of(server.words, "--served-model-name")
        yield server


def _of_script(name: Word, image: Word, repository: Word) -> Server:
    """A command that is not here: the image tells the engine, the metadata the model."""
    from moesize.engine_args.words import engine_of_image

    skipped = "its start command is a script that is not here"
    engine = engine_of_image(image)
    if engine is None:
        skipped = "its start command starts no engine that is known"
    return Server(
        name=str(name), place=name, engine=engine, image=image, model=repository, skipped=skipped
    )


def _mounted(document: Node) -> Iterator[tuple[str, Word]]:
    """Folders that weights are brought to before the server starts, and whose they are."""
    for source in document.get("weights").elements()[:_MOST]:
        at, address = source.get("mount_location").word, source.get("source").word
        if at and address.startswith("hf://"):
            end = address.find("@")
            yield at.rstrip("/"), address.cut(5, end if end > 0 else None)
    for key in ("model_cache", "hf_cache"):
        for source in document.get(key).elements()[:_MOST]:
            folder, repository = source.get("volume_folder").word, source.get("repo_id").word
            kind = source.get("kind").word
            if folder and repository and kind in ("", "hf"):
                yield f"/app/model_cache/{folder.strip('/')}", repository


def _from_hub(word: Word, mounted: list[tuple[str, Word]]) -> Word:
    """A mounted folder as the repository that it holds."""
    name, equals, value = word.partition("=")
    path = value if equals and name.startswith("-") else str(word)
    for at, repository in mounted:
        if path.rstrip("/") == at:
            text = str(repository)
            return word.becomes(f"{name}={text}" if path is value else text)
    return word


def _of_python(document: Node, name: Word) -> Server | None:
    """A Python model that brings its engine along: its settings stand in model_metadata."""
    requirements = " ".join(document.get("requirements").words()[:_MOST]).lower()
    image = document.get("base_image", "image").text
    if image is None:
        image = document.get("base_image").text
    about = f"{requirements} {image or ''}".lower()
    engine = next((known for known in _ENGINES if known in about), None)
    metadata = document.get("model_metadata")
    if engine is None:
        return None
    server = Server(name=str(name), place=name, engine=engine, image=image)
    words: list[Word] = []
    for key in ("tensor_parallel", "tensor_parallel_size"):
        node = metadata.get(key)
        if node.integer() is not None:
            words += [Word("--tensor-parallel-size", node.span), node.word]
    options = [metadata.get(f"{engine}_config"), metadata.get("engine_args")]
    for node in options:
        words += flag_words(node, engine)
    server.words = tuple(words)
    server.environment = _environment(document)
    for key in ("repo_id", "model_id", "main_model", "base_model"):
        server.model = server.model or metadata.get(key).text
    named = server.model or value_of(words, "--model", "--model-path")
    if named is None:
        server.skipped = "a Python model: which weights it loads is not said"
    return server


FORMATS = [Format("truss", _is_truss, _read), *srt_slurm.FORMATS]
