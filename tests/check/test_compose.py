"""Docker Compose: interpolation as the Compose Specification has it, and what a service may use."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_reading import context_of, flag, only, readings, text_at

from moesize.check.readers import compose
from moesize.check.readers.compose_words import read_env_file
from moesize.check.server import Server
from moesize.check.source import SourceFile, SourceText

GIB = 1 << 30


def servers(
    root: Path,
    text: str,
    files: dict[str, str] | None = None,
    variables: dict[str, str] | None = None,
) -> list[Server]:
    """The servers of a compose file with these files beside it."""
    context = context_of(root, {"compose.yaml": text, **(files or {})}, "compose.yaml", variables)
    found = readings(context, compose)
    assert [reading.kind for reading in found] == ["docker_compose"]
    return found[0].servers


def test_a_service_with_a_command_list(tmp_path: Path) -> None:
    server = only(
        servers(
            tmp_path,
            """\
            services:
              llm:
                image: vllm/vllm-openai:v0.10.2
                command: ["--model", "Qwen/Qwen2.5-7B-Instruct", "--max-model-len=8192"]
                deploy:
                  resources:
                    reservations:
                      devices:
                        - {driver: nvidia, count: 2, capabilities: [gpu]}
              web:
                image: nginx:1.27
            """,
        )
    )
    assert (server.name, server.engine, server.image) == ("llm", "vllm", "vllm/vllm-openai:v0.10.2")
    assert flag(server, "--model") == "Qwen/Qwen2.5-7B-Instruct"
    length = flag(server, "--max-model-len")
    assert length == "8192"
    assert length.exact
    assert text_at(tmp_path, length) == "8192"
    assert server.gpus_per_node is not None
    assert (server.gpus_per_node.value, server.device_ids) == (2, ("0", "1"))
    assert text_at(tmp_path, server.place) == "llm"


@pytest.mark.parametrize(
    ("written", "variables", "env", "read"),
    [
        ("${LEN:-4096}", {}, "", "4096"),
        ("${LEN-4096}", {}, "", "4096"),
        ("${LEN:-4096}", {}, "LEN=\n", "4096"),
        ("${LEN-4096}", {}, "LEN=\n", ""),
        ("${LEN:-4096}", {}, "LEN=1024\n", "1024"),
        ("${LEN:-4096}", {"LEN": "512"}, "LEN=1024\n", "512"),
        ("$LEN", {}, "LEN=1024\n", "1024"),
        ("${LEN:?set it}", {"LEN": "512"}, "", "512"),
        ("${A:-${B:-2048}}", {}, "", "2048"),
        ("${A:-${B:-2048}}", {}, "B=64\n", "64"),
        ("${A:+16}", {}, "A=x\n", "16"),
        ("${A:+16}", {}, "", ""),
        ("${A+16}", {}, "A=\n", "16"),
        ("1${A:-0}24", {}, "", "1024"),
        ("$${LEN}", {}, "LEN=1\n", "${LEN}"),
        ("${LEN!4096}", {}, "", "${LEN!4096}"),
        ("${LEN", {}, "LEN=1\n", "${LEN"),
    ],
)
def test_interpolation(
    tmp_path: Path, written: str, variables: dict[str, str], env: str, read: str
) -> None:
    text = f"""\
services:
  llm:
    image: vllm/vllm-openai
    command: ["--model", "a/b", "--max-model-len", "{written}"]
"""
    server = only(servers(tmp_path, text, {".env": env} if env else {}, variables))
    assert flag(server, "--max-model-len") == read


def test_a_default_is_edited_where_it_stands(tmp_path: Path) -> None:
    server = only(
        servers(
            tmp_path,
            """\
            services:
              llm:
                image: vllm/vllm-openai
                command:
                  - --model=${MODEL:-a/b}
                  - --max-model-len
                  - ${LEN:-32768}
            """,
        )
    )
    length = flag(server, "--max-model-len")
    assert length is not None
    assert length.exact
    assert text_at(tmp_path, length) == "32768"
    model = flag(server, "--model")
    assert model == "a/b"


def test_a_variable_of_the_env_file_points_into_it(tmp_path: Path) -> None:
    server = only(
        servers(
            tmp_path,
            """\
            services:
              llm:
                image: vllm/vllm-openai
                command: --model a/b --max-model-len ${LEN}
            """,
            {".env": "# limits\nLEN=16384 # tokens\n"},
        )
    )
    length = flag(server, "--max-model-len")
    assert length == "16384"
    assert length.span is not None
    assert length.span.path == ".env"
    assert text_at(tmp_path, length) == "16384"


def test_what_nobody_defines_stays_open(tmp_path: Path) -> None:
    server = only(
        servers(
            tmp_path,
            """\
            services:
              llm:
                image: vllm/vllm-openai
                command: --model ${MODEL} --max-model-len ${LEN:?missing}
            """,
        )
    )
    assert flag(server, "--model") == "${MODEL}"
    assert {unresolved.name for unresolved in server.unresolved} == {"MODEL", "LEN"}


def test_an_example_file_stands_in_for_a_private_env(tmp_path: Path) -> None:
    text = """\
        services:
          llm:
            image: vllm/vllm-openai
            command: --model ${MODEL}
        """
    example = {".env.example": "MODEL=a/b\n"}
    server = only(servers(tmp_path, text, example))
    assert flag(server, "--model") == "a/b"
    assert any(".env.example" in note for note in server.notes)
    (tmp_path / ".env").write_text("MODEL=c/d\n")
    server = only(servers(tmp_path, text, example))
    assert (flag(server, "--model"), server.notes) == ("c/d", ())


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("A=b\n", "A", "b"),
        ("export A=b\n", "A", "b"),
        ("A = b \n", "A", "b"),
        ("A=b # c\n", "A", "b"),
        ("A=b#c\n", "A", "b#c"),
        ('A="b # c" # d\n', "A", "b # c"),
        ("A='$B'\n", "A", "$B"),
        ("B=x\nA=${B}/y\n", "A", "x/y"),
        ("A=\n", "A", ""),
    ],
)
def test_env_files(text: str, name: str, value: str) -> None:
    found = read_env_file(SourceText.of_file(SourceFile(".env", text)))
    assert found[name] == value


def test_env_files_that_swell_stay_small() -> None:
    lines = "A0=xxxxxxxxxxxxxxxx\n" + "".join(
        f"A{n}=$A{n - 1}$A{n - 1}$A{n - 1}$A{n - 1}\n" for n in range(1, 40)
    )
    found = read_env_file(SourceText.of_file(SourceFile(".env", lines)))
    assert max(map(len, found.values())) < 1 << 14


def test_container_variables_are_not_compose_variables(tmp_path: Path) -> None:
    server = only(
        servers(
            tmp_path,
            """\
            services:
              llm:
                image: ghcr.io/huggingface/text-generation-inference:3.3.4
                env_file: tgi.env
                environment:
                  NUM_SHARD: ${SHARDS:-4}
                  QUANTIZE: null
                deploy: {resources: {reservations: {devices: [{capabilities: [gpu]}]}}}
            """,
            {"tgi.env": "MODEL_ID=a/b\nNUM_SHARD=2\n"},
        )
    )
    assert server.engine == "tgi"
    assert server.environment["MODEL_ID"] == "a/b"
    assert server.environment["NUM_SHARD"] == "4"  # what `environment` says wins


def test_environment_as_a_list(tmp_path: Path) -> None:
    server = only(
        servers(
            tmp_path,
            """\
            services:
              llm:
                image: ghcr.io/huggingface/text-generation-inference:3.3.4
                environment:
                  - MODEL_ID=${MODEL:-a/b}
                  - HF_TOKEN
                  - EMPTY=
                gpus: all
            """,
        )
    )
    model = server.environment["MODEL_ID"]
    assert model == "a/b"
    assert text_at(tmp_path, model) == "a/b"
    assert server.environment["EMPTY"] == ""
    assert "HF_TOKEN" not in server.environment


def test_shell_scripts_in_a_command_keep_their_places(tmp_path: Path) -> None:
    server = only(
        servers(
            tmp_path,
            """\
            services:
              llm:
                image: vllm/vllm-openai:v0.10.2
                entrypoint: ["/bin/bash", "-c"]
                environment: {LEN: "2048"}
                command:
                  - |
                    pip install extra
                    vllm serve ${MODEL:-a/b} --max-model-len $$LEN \\
                      --tensor-parallel-size 2
            """,
        )
    )
    assert server.words[0] == "a/b"
    assert flag(server, "--max-model-len") == "2048"
    size = flag(server, "--tensor-parallel-size")
    assert size is not None
    assert text_at(tmp_path, size) == "2"


def test_a_command_in_quotes_is_split_once(tmp_path: Path) -> None:
    server = only(
        servers(
            tmp_path,
            """\
            services:
              llm:
                image: lmsysorg/sglang:v0.5.3
                command: >-
                  bash -c "python3 -m sglang.launch_server --model-path a/b
                  --tp ${TP:-4}"
            """,
        )
    )
    assert server.engine == "sglang"
    assert flag(server, "--tp") == "4"


# --- GPUs -------------------------------------------------------------------------------------


def _with(tmp_path: Path, body: str, environment: str = "{}") -> Server:
    lines = "\n".join("    " + line for line in body.splitlines())
    text = f"""\
services:
  llm:
    image: vllm/vllm-openai
    command: --model a/b
    environment: {environment}
{lines}
"""
    return only(servers(tmp_path, text))


@pytest.mark.parametrize(
    ("body", "environment", "number", "ids", "vendor"),
    [
        ("", "{}", None, (), ""),
        ("gpus: all", "{}", None, (), "nvidia"),
        ("gpus: 2", "{}", 2, ("0", "1"), "nvidia"),
        ("gpus: [{driver: nvidia, device_ids: ['3']}]", "{}", 1, ("3",), "nvidia"),
        ("runtime: nvidia", "{}", None, (), "nvidia"),
        ("runtime: nvidia", "{NVIDIA_VISIBLE_DEVICES: '0,1'}", 2, ("0", "1"), "nvidia"),
        ("runtime: nvidia", "{CUDA_VISIBLE_DEVICES: '2'}", 1, ("2",), "nvidia"),
        ("devices: ['nvidia.com/gpu=1']", "{}", 1, ("1",), "nvidia"),
        ("devices: ['nvidia.com/gpu=all']", "{}", None, (), "nvidia"),
        ("devices: ['/dev/kfd', '/dev/dri']", "{}", None, (), "amd"),
        ("gpus: all", "{CUDA_VISIBLE_DEVICES: '0,1,2'}", 3, ("0", "1", "2"), "nvidia"),
        # Numbers inside the container count what it was given.
        (
            "gpus: [{driver: nvidia, device_ids: ['4', '5']}]",
            "{CUDA_VISIBLE_DEVICES: '1'}",
            1,
            ("5",),
            "nvidia",
        ),
    ],
)
def test_gpus(
    tmp_path: Path,
    body: str,
    environment: str,
    number: int | None,
    ids: tuple[str, ...],
    vendor: str,
) -> None:
    server = _with(tmp_path, body, environment)
    stated = server.gpus_per_node.value if server.gpus_per_node else None
    assert (stated, server.device_ids, server.vendor) == (number, ids, vendor)


@pytest.mark.parametrize(
    ("request_", "number", "ids"),
    [
        ("count: all", None, ()),
        ("count: '3'", 3, ("0", "1", "2")),
        ("count: ${N:-1}", 1, ("0",)),
        ("device_ids: ['${GPU:-7}']", 1, ("7",)),
        ("device_ids: ['nvidia.com/gpu=2']", 1, ("2",)),
        ("options: {}", None, ()),
    ],
)
def test_device_reservations(
    tmp_path: Path, request_: str, number: int | None, ids: tuple[str, ...]
) -> None:
    body = f"""\
deploy:
  resources:
    reservations:
      devices:
        - driver: nvidia
          capabilities: [gpu]
          {request_}"""
    server = _with(tmp_path, body)
    stated = server.gpus_per_node.value if server.gpus_per_node else None
    assert (stated, server.device_ids) == (number, ids)


def test_only_numbers_can_be_replaced_by_numbers(tmp_path: Path) -> None:
    by_id = _with(tmp_path, "gpus: [{device_ids: ['0', '1'], capabilities: [gpu]}]").gpus_per_node
    by_count = _with(tmp_path, "gpus: [{count: 2, capabilities: [gpu]}]").gpus_per_node
    assert by_id is not None
    assert by_count is not None
    assert (by_id.value, by_id.at.exact, text_at(tmp_path, by_count.at)) == (2, False, "2")
    assert by_count.at.exact


def test_services_on_one_machine_share_it(tmp_path: Path) -> None:
    found = servers(
        tmp_path,
        """\
        x-gpu: &gpu
          image: vllm/vllm-openai
          deploy: {resources: {reservations: {devices: [{count: 1, capabilities: [gpu]}]}}}
        services:
          one: {<<: *gpu, command: --model a/b --gpu-memory-utilization 0.5}
          two: {<<: *gpu, command: --model c/d --gpu-memory-utilization 0.4}
        """,
    )
    assert [server.name for server in found] == ["one", "two"]
    assert len({server.shares_with for server in found}) == 1
    assert found[0].shares_with
    assert [server.device_ids for server in found] == [("0",), ("0",)]
    assert not any(server.exclusive for server in found)


def test_profiles_that_exclude_each_other(tmp_path: Path) -> None:
    text = """\
        services:
          base: {{image: vllm/vllm-openai, command: --model a/b, gpus: all}}
          small: {{image: vllm/vllm-openai, command: --model c/d, gpus: all, profiles: [small]}}
          big: {{image: vllm/vllm-openai, command: --model e/f, gpus: all, profiles: {names}}}
        """
    apart = servers(tmp_path, text.format(names="[big]"))
    assert [bool(server.exclusive) for server in apart] == [False, True, True]
    assert apart[1].exclusive == apart[2].exclusive
    together = servers(tmp_path, text.format(names="[big, small]"))
    assert not any(server.exclusive for server in together)


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "shm", "is_default"),
    [
        ("", None, True),
        ("shm_size: 16g", 16 * GIB, False),
        ("shm_size: '16GB'", 16 * GIB, False),
        ("shm_size: 512m", GIB // 2, False),
        ("shm_size: 1073741824", GIB, False),
        ("ipc: host", None, False),
        ("ipc: host\nshm_size: 16g", None, False),
        ("ipc: shareable", None, True),
        ("tmpfs: /dev/shm:size=8g", 8 * GIB, False),
        ("tmpfs: [/run, /dev/shm]", None, False),
        ("volumes: ['/dev/shm:/dev/shm']", None, False),
        (
            "volumes: [{type: tmpfs, target: /dev/shm, tmpfs: {size: 2147483648}}]",
            2 * GIB,
            False,
        ),
    ],
)
def test_shared_memory(tmp_path: Path, body: str, shm: int | None, is_default: bool) -> None:
    server = _with(tmp_path, "gpus: all\n" + body)
    assert (server.shm.value if server.shm else None) == shm
    assert server.shm_is_default is is_default


@pytest.mark.parametrize(
    "body", ["mem_limit: 24g", "deploy: {resources: {limits: {memory: 24576M}}}"]
)
def test_memory_limits(tmp_path: Path, body: str) -> None:
    limit = _with(tmp_path, body).memory_limit
    assert limit is not None
    assert limit.value == 24 * GIB


# --- where a service comes from ---------------------------------------------------------------


def test_extends_and_override_files(tmp_path: Path) -> None:
    context = context_of(
        tmp_path,
        {
            "compose.yaml": """\
                services:
                  llm:
                    extends: {file: common.yaml, service: engine}
                    command: --model a/b
                """,
            "common.yaml": """\
                services:
                  engine:
                    image: vllm/vllm-openai:v0.10.2
                    shm_size: 8g
                    environment: {A: "1"}
                """,
            "compose.gpu.yaml": """\
                services:
                  llm:
                    deploy:
                      resources: {reservations: {devices: [{count: 4, capabilities: [gpu]}]}}
                """,
        },
        "compose.yaml",
    )
    server = only(readings(context, compose)[0].servers)
    assert server.image == "vllm/vllm-openai:v0.10.2"
    assert server.shm is not None
    assert server.environment["A"] == "1"
    override = context_of(tmp_path, {}, "compose.gpu.yaml")
    server = only(readings(override, compose)[0].servers)
    assert server.gpus_per_node is not None
    assert (server.engine, server.gpus_per_node.value) == ("vllm", 4)


def test_extends_without_end(tmp_path: Path) -> None:
    found = servers(
        tmp_path,
        """\
        services:
          a: {extends: {service: b}, image: vllm/vllm-openai, command: --model a/b}
          b: {extends: {service: a}}
        """,
    )
    assert [server.name for server in found] == ["a", "b"]


def test_a_service_that_is_built_here(tmp_path: Path) -> None:
    server = only(
        servers(
            tmp_path,
            """\
            services:
              llm:
                build: {context: ./docker, args: {TAG: v0.10.2}}
                gpus: all
            """,
            {
                "docker/Dockerfile": """\
                    ARG TAG=latest
                    FROM vllm/vllm-openai:${TAG} AS base
                    ENV HF_HOME=/data VLLM_LOGGING_LEVEL=INFO
                    FROM base
                    # the model is downloaded at the start
                    CMD ["--model", "a/b", \\
                         "--max-model-len", "4096"]
                    """
            },
        )
    )
    assert (server.engine, server.image) == ("vllm", "vllm/vllm-openai:v0.10.2")
    assert flag(server, "--max-model-len") == "4096"
    assert server.environment["HF_HOME"] == "/data"


def test_an_options_file_that_a_volume_brings(tmp_path: Path) -> None:
    server = only(
        servers(
            tmp_path,
            """\
            services:
              llm:
                image: vllm/vllm-openai
                command: --model a/b --config /etc/vllm/options.yaml --max-num-seqs 8
                volumes: ["./conf:/etc/vllm:ro"]
            """,
            {"conf/options.yaml": "max-model-len: 2048\ntensor-parallel-size: 2\n"},
        )
    )
    length = flag(server, "--max-model-len")
    assert length == "2048"
    assert length.span is not None
    assert length.span.path == "conf/options.yaml"
    # The command line beats the file: it comes last.
    assert server.words[-2:] == ("--max-num-seqs", "8")


def test_a_model_from_a_folder_of_the_host(tmp_path: Path) -> None:
    server = only(
        servers(
            tmp_path,
            """\
            services:
              llm:
                image: vllm/vllm-openai
                command: --model /weights
                volumes: ["/srv/Qwen2.5-7B-Instruct:/weights"]
            """,
        )
    )
    assert server.fallback_model == "Qwen2.5-7B-Instruct"


# --- engines that are no command line ---------------------------------------------------------


def test_ollama_without_a_model_is_skipped(tmp_path: Path) -> None:
    server = _ollama(tmp_path, "")
    assert (server.engine, server.model) == ("ollama", None)
    assert "none is named" in server.skipped


@pytest.mark.parametrize(
    "extra",
    [
        "    entrypoint: [sh, -c, 'ollama serve & sleep 5; ollama pull llama3.1:8b; wait']\n",
        "  pull:\n    image: ollama/ollama\n    entrypoint: [ollama, pull, 'llama3.1:8b']\n",
    ],
)
def test_ollama_with_a_model_that_is_pulled(tmp_path: Path, extra: str) -> None:
    server = _ollama(tmp_path, extra)
    assert (server.model, server.skipped) == ("llama3.1:8b", "")


def _ollama(tmp_path: Path, extra: str) -> Server:
    text = f"""\
services:
  ollama:
    image: ollama/ollama:0.12.0
    gpus: all
{extra}"""
    return only(servers(tmp_path, text))


def test_nim_images(tmp_path: Path) -> None:
    found = servers(
        tmp_path,
        """\
        services:
          llm: {image: "nvcr.io/nim/meta/llama-3.1-8b-instruct:1.8", gpus: all}
          embed: {image: "nvcr.io/nim/nvidia/nv-embedqa-e5-v5:1.0", gpus: all}
        """,
    )
    assert [(server.engine, server.model) for server in found] == [
        ("nim", "meta/llama-3.1-8b-instruct"),
        ("nim", "nvidia/nv-embedqa-e5-v5"),
    ]
    assert [bool(server.skipped) for server in found] == [False, True]


def test_an_image_that_tells_nothing_by_its_flags(tmp_path: Path) -> None:
    server = only(
        servers(
            tmp_path,
            """\
            services:
              llm:
                image: registry.example/team/serve:3
                command: --model a/b --gpu-memory-utilization 0.8 --max-num-seqs 4
                gpus: all
              tool:
                image: registry.example/team/tool:1
                command: --host 0.0.0.0 --port 8000
            """,
        )
    )
    assert server.engine == "vllm"
    assert server.notes


def test_engines_on_the_processor_are_skipped(tmp_path: Path) -> None:
    server = only(
        servers(
            tmp_path,
            """\
            services:
              llm:
                image: ghcr.io/ggml-org/llama.cpp:server
                command: -hf ggml-org/gemma-3-4b-it-GGUF -c 4096
            """,
        )
    )
    assert server.engine == "llama.cpp"
    assert "processor" in server.skipped


@pytest.mark.parametrize(
    "text",
    [
        "openapi: 3.0.0\nservices: {}\n",
        "apiVersion: v1\nkind: Service\nservices: {a: {image: vllm/vllm-openai}}\n",
        "services: [a, b]\n",
        "services: {a: text, b: [1]}\n",
        "jobs: {build: {services: {db: {image: postgres}}}}\n",
    ],
)
def test_other_files_are_left_alone(tmp_path: Path, text: str) -> None:
    assert readings(context_of(tmp_path, {"a.yaml": text}, "a.yaml"), compose) == []


@pytest.mark.parametrize(
    "body",
    [
        "image: [a]\ncommand: {a: b}",
        "image: vllm/vllm-openai\ncommand: 5\nenvironment: [1, [2], {a: b}]\ndeploy: [x]",
        "image: vllm/vllm-openai\ndeploy: {resources: {reservations: {devices: {a: b}}}}",
        "image: vllm/vllm-openai\nvolumes: {a: 1}\nprofiles: {a: b}\ngpus: {a: b}\nshm_size: x",
        "extends: [a]\nimage: vllm/vllm-openai\nenv_file: {a: b}\nbuild: [a]",
        "image: '${A:-${B:-${C'\ncommand: '${ $ ${} ${1} $1 ${A:'",
    ],
)
def test_wrong_shapes_raise_nothing(tmp_path: Path, body: str) -> None:
    lines = "\n".join("    " + line for line in body.splitlines())
    context = context_of(tmp_path, {"a.yaml": f"services:\n  llm:\n{lines}\n"}, "a.yaml")
    for reading in readings(context, compose):
        assert reading.servers or reading.skipped


def test_hostile_variables_take_no_time(tmp_path: Path) -> None:
    text = "${A:-" * 40_000
    context = context_of(
        tmp_path,
        {"a.yaml": f"services:\n  llm:\n    image: vllm/vllm-openai\n    command: '{text}'\n"},
        "a.yaml",
    )
    assert readings(context, compose)[0].servers is not None
