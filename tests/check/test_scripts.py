"""Shell scripts, Dockerfiles and systemd units."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_reading import context_of, flag, only, text_at
from hypothesis import given, settings
from hypothesis import strategies as st

from moesize.check.folder import Folder, Library
from moesize.check.formats import Context
from moesize.check.readers import ollama, scripts
from moesize.check.readers.launched import size_in
from moesize.check.server import Reading
from moesize.check.source import SourceFile, SourceText, Word


def read(
    root: Path, files: dict[str, str], name: str, variables: dict[str, str] | None = None
) -> Reading:
    """What the format that matches a file reads."""
    context = context_of(root, files, name, variables)
    source = context.folder.library.text(root / name, root)
    assert source is not None
    matching = [
        one
        for one in (*scripts.TEXT_FORMATS, *ollama.TEXT_FORMATS)
        if one.matches(name.lower(), source.value)
    ]
    assert len(matching) == 1, [one.kind for one in matching]
    reading = matching[0].read(source, context)
    assert reading.kind == matching[0].kind
    return reading


def kind_of(name: str, text: str) -> str | None:
    formats = (*scripts.TEXT_FORMATS, *ollama.TEXT_FORMATS)
    return next((one.kind for one in formats if one.matches(name, text)), None)


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("run.sh", "vllm serve m\n", "shell"),
        ("run", "#!/usr/bin/env bash\nvllm serve m\n", "shell"),
        ("run", "#!/bin/sh -eu\nllama-server -m m.gguf\n", "shell"),
        ("run", "vllm serve m\n", None),
        ("run.py", "#!/usr/bin/env python3\n# vllm serve m\n", None),
        ("run.sh", "echo hello\n", None),
        ("notes.txt", "vllm serve m\n", None),
        ("dockerfile", "FROM vllm/vllm-openai\n", "dockerfile"),
        ("dockerfile.gpu", "ARG V=1\nFROM vllm/vllm-openai:$V\n", "dockerfile"),
        ("gpu.dockerfile", '# x\n\nfrom vllm/vllm-openai\ncmd ["--model", "m"]\n', "dockerfile"),
        ("build", "FROM vllm/vllm-openai\nRUN echo\n", "dockerfile"),
        ("dockerfile", "FROM python:3\nCMD app\n", None),
        ("query.sql", "FROM vllm SELECT x\n", None),
        ("llm.service", "[Service]\nExecStart=/usr/bin/vllm serve m\n", "systemd"),
        ("llm.container", "[Container]\nImage=vllm/vllm-openai\nExec=--model m\n", "systemd"),
        ("app.service", "[Service]\nExecStart=/usr/bin/app\n", None),
        ("modelfile", "FROM llama3.1:8b\n", "ollama_modelfile"),
        ("modelfile.long", "FROM llama3\nPARAMETER num_ctx 8192\n", "ollama_modelfile"),
        ("mine", '# x\nFROM ./llama.gguf\nSYSTEM """be kind\n"""\n', "ollama_modelfile"),
        ("mine", "FROM llama3\n", None),
        ("modelfile", "FROM vllm/vllm-openai\nRUN x\nCMD vllm serve m\n", "dockerfile"),
    ],
)
def test_files_are_known_by_what_is_in_them(name: str, text: str, kind: str | None) -> None:
    assert kind_of(name, text) == kind


# --- shell ----------------------------------------------------------------------------------------


def test_a_script(tmp_path: Path) -> None:
    text = """\
        #!/bin/bash
        source ./vars.sh
        export CUDA_VISIBLE_DEVICES=0,1
        vllm serve "$MODEL" --tensor-parallel-size 2 --max-model-len ${LEN:-8192}
        """
    reading = read(
        tmp_path, {"deploy/run.sh": text, "deploy/vars.sh": "MODEL=o/m\n"}, "deploy/run.sh"
    )
    server = only(reading.servers)
    assert (server.name, server.engine, server.words[0]) == ("run", "vllm", "o/m")
    assert text_at(tmp_path, server.words[0]) == "o/m"
    assert server.words[0].span is not None
    assert server.words[0].span.path == "deploy/vars.sh"
    assert text_at(tmp_path, server.words[-1]) == "8192"
    assert server.gpus_per_node is not None
    assert (server.gpus_per_node.value, server.device_ids) == (2, ("0", "1"))
    # `0,1` is a list; no number can be written in its place.
    assert not server.gpus_per_node.at.exact
    assert text_at(tmp_path, server.place) == "vllm"


def test_what_the_user_gives_wins_over_the_script(tmp_path: Path) -> None:
    text = "MODEL=o/m\nvllm serve $MODEL --tensor-parallel-size $TP\n"
    server = only(read(tmp_path, {"a.sh": text}, "a.sh", {"MODEL": "o/n", "TP": "4"}).servers)
    assert [str(word) for word in server.words] == ["o/n", "--tensor-parallel-size", "4"]
    assert not server.unresolved
    unresolved = only(read(tmp_path, {"a.sh": text}, "a.sh").servers).unresolved
    assert [each.name for each in unresolved] == ["TP"]


def test_servers_of_one_script(tmp_path: Path) -> None:
    text = """\
        CUDA_VISIBLE_DEVICES=0 vllm serve a/a --gpu-memory-utilization 0.5 &
        docker run -d --name second --gpus 1 vllm/vllm-openai --model b/b
        if x; then vllm serve c/c & else vllm serve d/d & fi
        vllm serve e/e
        """
    servers = read(tmp_path, {"all.sh": text}, "all.sh").servers
    assert [server.name for server in servers] == ["all #1", "second", "all #3", "all #4", "all #5"]
    assert {server.shares_with for server in servers} == {"shell:all.sh:0"}
    assert [bool(server.exclusive) for server in servers] == [False, False, True, True, False]
    ended = "vllm serve a/a & P=$!\nkill -0 $P\nvllm serve b/b &\nkill $P\nvllm serve c/c &\nwait\n"
    servers = read(tmp_path, {"c.sh": ended}, "c.sh").servers
    assert [server.shares_with for server in servers] == ["shell:c.sh:0", "shell:c.sh:0", ""]
    one_by_one = read(tmp_path, {"b.sh": "vllm serve a/a\nvllm serve b/b\n"}, "b.sh").servers
    assert [server.shares_with for server in one_by_one] == ["", ""]


def test_a_container_of_docker(tmp_path: Path) -> None:
    text = (
        "docker run --gpus 4 --shm-size 8g -m 200g --env-file my.env vllm/vllm-openai:v0.9.0 "
        "--model o/m\ndocker run --rm --ipc=host --gpus all vllm/vllm-openai --model o/n\n"
    )
    first, second = read(tmp_path, {"a.sh": text, "my.env": "VLLM_USE_V1=0\n"}, "a.sh").servers
    assert first.image == "vllm/vllm-openai:v0.9.0"
    assert first.gpus_per_node is not None
    assert (first.gpus_per_node.value, text_at(tmp_path, first.gpus_per_node.at)) == (4, "4")
    assert first.gpus_per_node.at.exact
    assert first.shm is not None
    assert first.memory_limit is not None
    assert (first.shm.value, first.memory_limit.value) == (8 << 30, 200 << 30)
    assert (first.shm_is_default, second.shm_is_default) == (False, False)
    assert first.environment["VLLM_USE_V1"] == "0"
    assert second.gpus_per_node is None
    plain = read(tmp_path, {"b.sh": "docker run vllm/vllm-openai --model m\n"}, "b.sh").servers
    assert only(plain).shm_is_default


def test_ollama(tmp_path: Path) -> None:
    text = (
        "ollama serve &\nollama pull qwen3:8b\nollama create mine -f Modelfile\nollama run mine\n"
    )
    servers = read(tmp_path, {"a.sh": text}, "a.sh").servers
    assert [(str(server.model), bool(server.skipped)) for server in servers] == [
        ("qwen3:8b", False),
        ("mine", True),
    ]
    assert servers[0].model is not None
    assert text_at(tmp_path, servers[0].model) == "qwen3:8b"
    assert servers[0].words == ()


def test_the_header_of_a_slurm_job(tmp_path: Path) -> None:
    text = """\
        #!/bin/bash
        #SBATCH --job-name=llm
        #SBATCH -N 2
        #SBATCH --gres=gpu:h100:8
        #SBATCH --mem=512G
        # a comment

        srun vllm serve o/m --tensor-parallel-size $SLURM_GPUS_ON_NODE \\
          --pipeline-parallel-size $SLURM_NNODES
        #SBATCH --nodes=9
        """
    server = only(read(tmp_path, {"job.sbatch": text}, "job.sbatch").servers)
    assert server.gpus_per_node is not None
    assert server.nodes is not None
    assert server.memory_limit is not None
    assert (server.gpus_per_node.value, server.nodes.value) == (8, 2)
    assert text_at(tmp_path, server.gpus_per_node.at) == "8"
    assert server.memory_limit.value == 512 << 30
    assert [(str(claim.text), claim.via) for claim in server.gpus] == [("h100", "--gres")]
    assert text_at(tmp_path, server.gpus[0].text) == "h100"
    assert flag(server, "--tensor-parallel-size") == "8"
    assert flag(server, "--pipeline-parallel-size") == "2"


@pytest.mark.parametrize(
    ("lines", "per_node", "gpu"),
    [
        ("#SBATCH --gpus-per-node=4", 4, None),
        ("#SBATCH --gpus-per-node a100:4", 4, "a100"),
        ("#SBATCH --gres=gpu:2", 2, None),
        ("#SBATCH --gres=gpu", None, None),
        ("#SBATCH --gres=shard:2,gpu:h100:4", 4, "h100"),
        ("#SBATCH -G 8\n#SBATCH -N 2", 4, None),
        ("#SBATCH --gpus=h200:8", 8, "h200"),
        ('#SBATCH --gres="gpu:4"', 4, None),
        ("#SBATCH --gres=", None, None),
        ("##SBATCH --gres=gpu:4", None, None),
    ],
)
def test_how_slurm_counts_gpus(
    tmp_path: Path, lines: str, per_node: int | None, gpu: str | None
) -> None:
    server = only(read(tmp_path, {"a.sh": f"#!/bin/sh\n{lines}\nvllm serve m\n"}, "a.sh").servers)
    assert (server.gpus_per_node.value if server.gpus_per_node else None) == per_node
    assert [str(claim.text) for claim in server.gpus] == ([gpu] if gpu else [])


def test_a_script_that_starts_nothing(tmp_path: Path) -> None:
    reading = read(tmp_path, {"a.sh": "pip install vllm\n"}, "a.sh")
    assert (reading.servers, reading.skipped) == ([], "starts no model server")


# --- Dockerfile -----------------------------------------------------------------------------------


def test_a_dockerfile(tmp_path: Path) -> None:
    text = """\
        # syntax=docker/dockerfile:1
        ARG VERSION=v0.10.2
        FROM python:3.12 AS build
        RUN pip install vllm && \\
            # not the end
            echo CMD vllm serve no
        COPY <<EOF /run.sh
        CMD vllm serve neither
        EOF
        FROM --platform=linux/amd64 vllm/vllm-openai:${VERSION}
        ARG SIZE=8B
        ENV MODEL=Qwen/Qwen3-$SIZE HF_HOME=/cache
        ENV CUDA_VISIBLE_DEVICES 0,1
        ENTRYPOINT ["python3", "-m", \\
            "vllm.entrypoints.openai.api_server"]
        CMD ["--model", "o/m", "--max-model-len", "4096"]
        """
    server = only(read(tmp_path, {"Dockerfile": text}, "Dockerfile").servers)
    assert server.image == "vllm/vllm-openai:v0.10.2"
    assert [str(word) for word in server.words] == ["--model", "o/m", "--max-model-len", "4096"]
    assert all(word.exact and text_at(tmp_path, word) == word for word in server.words)
    assert server.environment["MODEL"] == "Qwen/Qwen3-8B"
    assert server.device_ids == ("0", "1")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('FROM vllm/vllm-openai\nCMD ["--model", "m"]', ["--model", "m"]),
        ("FROM x\nENV M=a/b\nCMD exec vllm serve $M --tp ${TP:-2}", ["a/b", "--tp", "2"]),
        ('FROM x\nCMD ["vllm", "serve", "m"]\nCMD vllm serve n', ["n"]),
        ('FROM x\nENTRYPOINT ["vllm", "serve"]\nCMD ["m"]', ["m"]),
        ('FROM x\nENTRYPOINT vllm serve m\nCMD ["n"]', ["m"]),
        ('FROM x\nCMD ["a"]\nENTRYPOINT ["vllm", "serve", "m"]', ["m"]),
        ('FROM x AS a\nCMD ["vllm", "serve", "m"]\nFROM a\nENV X=1', ["m"]),
        ('FROM x\nCMD ["vllm", "serve", "m"]\nFROM y', None),
        ("FROM vllm/vllm-openai", None),
        ("FROM x\nRUN vllm serve m", None),
        ("FROM x\nCMD vllm serve \\\n # no\n\n  m \\\n  --x", ["m", "--x"]),
        ("# escape=`\nFROM x\nCMD vllm serve m `\n  --x", ["m", "--x"]),
        ("FROM x\nCMD ['vllm', 'serve', 'm']", None),  # no JSON: a shell would look for `['vllm',`
        ('FROM x\nENTRYPOINT ["/bin/sh", "-c", "vllm serve \\"m\\" --x"]', ["m", "--x"]),
        ('FROM vllm/vllm-openai\nARG M=m\nCMD ["--model", "$M"]', ["--model", "$M"]),
    ],
)
def test_what_an_image_starts(tmp_path: Path, lines: str, words: list[str] | None) -> None:
    (tmp_path / "Dockerfile").write_text(lines + "\n# vllm\n", encoding="utf-8")
    reading = read(tmp_path, {}, "Dockerfile")
    found = [[str(word) for word in server.words] for server in reading.servers]
    assert found == ([] if words is None else [words])
    assert bool(reading.skipped) == (words is None)


def test_build_arguments_of_the_user(tmp_path: Path) -> None:
    text = 'ARG V=v0.9.0\nFROM vllm/vllm-openai:$V\nCMD ["--model", "m"]\n'
    assert only(read(tmp_path, {"Dockerfile": text}, "Dockerfile").servers).image == (
        "vllm/vllm-openai:v0.9.0"
    )
    given_ = read(tmp_path, {"Dockerfile": text}, "Dockerfile", {"V": "v0.8.0"})
    assert only(given_.servers).image == "vllm/vllm-openai:v0.8.0"


# --- systemd --------------------------------------------------------------------------------------


def test_a_unit(tmp_path: Path) -> None:
    text = """\
        [Unit]
        Description=vllm
        [Service]
        ; a comment
        Environment="MODEL=o/m" TP=2
        EnvironmentFile=-/etc/llm/llm.env
        ExecStart=/bin/false
        ExecStart=
        ExecStart=-/opt/bin/vllm serve ${MODEL} \\
          --tensor-parallel-size $TP \\
          # not this
          --max-model-len ${LEN} --served-model-name %i
        MemoryMax=64G
        [Install]
        WantedBy=multi-user.target
        """
    files = {"vllm@.service": text, "llm.env": "LEN=4096\n"}
    server = only(read(tmp_path, files, "vllm@.service").servers)
    assert [str(word) for word in server.words] == [
        "o/m", "--tensor-parallel-size", "2", "--max-model-len", "4096",
        "--served-model-name", "%i",
    ]  # fmt: skip
    assert text_at(tmp_path, server.words[0]) == "o/m"
    assert server.memory_limit is not None
    assert server.memory_limit.value == 64 << 30
    assert [each.name for each in server.unresolved] == ["%i"]
    assert server.environment["TP"] == "2"


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("/usr/bin/docker run --rm --gpus all vllm/vllm-openai --model m", ["--model", "m"]),
        ("/bin/bash -c 'exec vllm serve m --x'", ["m", "--x"]),
        ("/usr/bin/env A=1 llama-server -m %h/m.gguf", ["-m", "%h/m.gguf"]),
        ("/usr/bin/vllm bench", None),
    ],
)
def test_what_a_unit_starts(tmp_path: Path, start: str, words: list[str] | None) -> None:
    reading = read(tmp_path, {"a.service": f"[Service]\nExecStart={start}\n"}, "a.service")
    found = [[str(word) for word in server.words] for server in reading.servers]
    assert found == ([] if words is None else [words])
    assert not any(server.unresolved for server in reading.servers)


def test_a_container_unit_of_podman(tmp_path: Path) -> None:
    text = """\
        [Container]
        Image=docker.io/vllm/vllm-openai:v0.10.2
        ContainerName=llm
        AddDevice=nvidia.com/gpu=0
        AddDevice=nvidia.com/gpu=1
        Environment=VLLM_USE_V1=1
        Exec=--model o/m --tensor-parallel-size 2
        ShmSize=4g
        """
    server = only(read(tmp_path, {"llm.container": text}, "llm.container").servers)
    assert (server.name, server.engine, server.image) == (
        "llm", "vllm", "docker.io/vllm/vllm-openai:v0.10.2",
    )  # fmt: skip
    assert server.device_ids == ("0", "1")
    assert server.gpus_per_node is not None
    assert server.gpus_per_node.value == 2
    assert server.shm is not None
    assert server.shm.value == 4 << 30
    assert [str(word) for word in server.words][-1] == "2"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64G", 64 << 30),
        ("16g", 16 << 30),
        ("16gb", 16 << 30),
        ("2GiB", 2 << 30),
        ("512M", 512 << 20),
        ("1.5g", 3 << 29),
        ("1024", 1024),
        ("10b", 10),
        ("infinity", None),
        ("80%", None),
        ("", None),
        ("9" * 60, None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    found = size_in(Word(text))
    assert (found.value if found else None) == size


# --- hostile texts --------------------------------------------------------------------------------

_LINES = st.sampled_from(
    [
        "FROM vllm/vllm-openai\n",
        "FROM",
        "ARG A=$A\n",
        "ENV A=$A$A B\n",
        'CMD ["vllm", ',
        '"\\u12',
        "]\n",
        "CMD vllm serve $A\n",
        "ENTRYPOINT [",
        "\\\n",
        "# escape=`\n",
        "RUN <<EOF\n",
        "EOF\n",
        "[Service]\n",
        "[Container]\n",
        "Image=vllm/vllm-openai\n",
        "ExecStart=vllm serve ",
        "%i ",
        "=\n",
        'Environment="A=1\n',
        "EnvironmentFile=x\n",
        "#SBATCH --gres=gpu:",
        "#SBATCH -N ",
        "h100:8\n",
        "#!/bin/sh\n",
        "PARAMETER num_ctx ",
        "8192\n",
        'TEMPLATE """',
        '"""\n',
        "ADAPTER ",
        "\x00",
        "AddDevice=nvidia.com/gpu=\n",
        " ",
        "\n",
        "'",
        '"',
        "$",
        "${A:-",
        "}",
        "\r\n",
        "\u2028",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_LINES, max_size=40).map("".join), st.sampled_from(["a.sh", "dockerfile", "m"]))
def test_no_text_raises(text: str, name: str) -> None:
    source = SourceText.of_file(SourceFile(name, text))
    root = Path("/nowhere-at-all")
    context = Context(path=name, folder=Folder(root, root, Library(root)))
    for one in (*scripts.TEXT_FORMATS, *ollama.TEXT_FORMATS):
        one.matches(name, text)
        for server in one.read(source, context).servers:
            for word in server.words:
                if word.exact:
                    assert word.span is not None
                    start = source.file.starts[word.span.line - 1] + word.span.column - 1
                    assert text[start : start + len(word)] == word
