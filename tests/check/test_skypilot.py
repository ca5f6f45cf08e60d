"""SkyPilot tasks: accelerators as alternatives, variables of its nodes, SkyServe's patience."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_reading import context_of, flag, only, parse, readings, text_at

from moesize.check.readers import skypilot
from moesize.check.server import Reading, Server
from moesize.gpus import find_gpu


def task(root: Path, text: str, variables: dict[str, str] | None = None) -> Reading:
    return only_reading(
        readings(context_of(root, {"task.yaml": text}, "task.yaml", variables), skypilot)
    )


def only_reading(found: list[Reading]) -> Reading:
    assert [reading.kind for reading in found] == ["skypilot"]
    return found[0]


def servers(root: Path, accelerators: str, script: str = "vllm serve a/b") -> list[Server]:
    text = f"resources:\n  accelerators: {accelerators}\nrun: |\n  {script}\n"
    return task(root, text).servers


@pytest.mark.parametrize(
    ("accelerators", "names"),
    [
        ("A100:8", [("A100-40GB", 8)]),
        ("H100", [("H100", 1)]),
        ("A100-80GB:2", [("A100-80GB", 2)]),
        ("{H100: 4}", [("H100", 4)]),
        ("{H100:4, L40S:4}", [("H100", 4), ("L40S", 4)]),
        ("[H100:4, L40S:4]", [("H100", 4), ("L40S", 4)]),
        ("V100:4", [("V100-16GB", 4)]),
        ("80GB+:2", [("80GB", 2)]),
        ("nvidia:40GB+:2", [("40GB", 2)]),
    ],
)
def test_accelerators(tmp_path: Path, accelerators: str, names: list[tuple[str, int]]) -> None:
    server = only(servers(tmp_path, accelerators))
    assert [(claim.text, claim.num_gpus) for claim in server.gpus] == names
    assert server.gpus_per_node is not None
    assert server.gpus_per_node.value == names[0][1]
    # The name of a GPU alone cannot be replaced by a number of them.
    assert server.gpus_per_node.at.exact is (accelerators != "H100")


def test_the_a100_of_skypilot_has_40_gb(tmp_path: Path) -> None:
    # docs.skypilot.co, "GPUs and accelerators": A100 and A100-80GB are two.
    claim = only(servers(tmp_path, "A100:8")).gpus[0]
    assert find_gpu(claim.text).spec.advertised_gb == 40
    assert text_at(tmp_path, claim.text) == "A100"


def test_numbers_that_differ_are_servers_of_their_own(tmp_path: Path) -> None:
    found = servers(
        tmp_path,
        "{A100:4, A100-80GB:2, H100:4}",
        "vllm serve a/b --tensor-parallel-size $SKYPILOT_NUM_GPUS_PER_NODE",
    )
    assert [
        ([str(claim.text) for claim in server.gpus], flag(server, "--tensor-parallel-size"))
        for server in found
    ] == [(["A100-40GB", "H100"], "4"), (["A100-80GB"], "2")]
    assert [server.name for server in found] == ["vllm (4 GPUs)", "vllm (2 GPUs)"]


def test_blocks_that_are_tried_in_order(tmp_path: Path) -> None:
    reading = task(
        tmp_path,
        """\
        resources:
          accelerators: L40S:8
          ordered:
            - {infra: aws, accelerators: "H100:8"}
            - {infra: gcp, gpus: {A100-80GB: 8}}
            - {use_spot: true}
        run: vllm serve a/b
        """,
    )
    server = only(reading.servers)
    assert [str(claim.text) for claim in server.gpus] == ["H100", "A100-80GB", "L40S"]


def test_machine_types(tmp_path: Path) -> None:
    reading = task(tmp_path, "resources: {instance_type: g5.12xlarge}\nrun: vllm serve a/b\n")
    server = only(reading.servers)
    assert [(str(claim.text), claim.kind) for claim in server.gpus] == [("g5.12xlarge", "instance")]
    assert server.gpus_per_node is None


def test_several_nodes(tmp_path: Path) -> None:
    reading = task(
        tmp_path,
        """\
        name: big
        resources: {accelerators: "H100:8"}
        num_nodes: 2
        run: |
          TP=$(($SKYPILOT_NUM_GPUS_PER_NODE * $SKYPILOT_NUM_NODES))
          python -m sglang.launch_server --model-path a/b --tp $TP \\
            --nnodes $SKYPILOT_NUM_NODES --node-rank $SKYPILOT_NODE_RANK
        """,
    )
    server = only(reading.servers)
    assert server.name == "big"
    assert server.nodes is not None
    assert server.nodes.value == 2
    assert (flag(server, "--tp"), flag(server, "--nnodes")) == ("16", "2")
    assert flag(server, "--node-rank") == "0"


def test_variables_and_images(tmp_path: Path) -> None:
    text = """\
        envs:
          MODEL_NAME: a/b
          LENGTH: 4096
        secrets: {HF_TOKEN: null}
        resources: {accelerators: "H100:1", image_id: "docker:vllm/vllm-openai:v0.10.0"}
        run: |
          vllm serve $MODEL_NAME --max-model-len ${LENGTH}
        """
    server = only(task(tmp_path, text).servers)
    assert server.words[0] == "a/b"
    assert text_at(tmp_path, server.words[0]) == "a/b"
    length = flag(server, "--max-model-len")
    assert length is not None
    assert text_at(tmp_path, length) == "4096"
    assert server.image == "vllm/vllm-openai:v0.10.0"
    assert "HF_TOKEN" not in server.environment
    given = only(task(tmp_path, text, {"MODEL_NAME": "c/d"}).servers)
    assert given.words[0] == "c/d"


def test_a_variable_without_a_value(tmp_path: Path) -> None:
    reading = task(
        tmp_path,
        "envs: {MODEL: null}\nresources: {accelerators: L4}\nrun: vllm serve $MODEL\n",
    )
    server = only(reading.servers)
    assert [unresolved.name for unresolved in server.unresolved] == ["MODEL"]


@pytest.mark.parametrize(
    ("probe", "seconds", "at"),
    [
        ("{path: /health, initial_delay_seconds: 1800}", 1800, "1800"),
        ("/health", 1200, ""),
        ("{path: /health}", 1200, ""),
    ],
)
def test_skyserve_ends_replicas_that_are_late(
    tmp_path: Path, probe: str, seconds: int, at: str
) -> None:
    reading = task(
        tmp_path,
        f"""\
        resources: {{accelerators: L4}}
        service: {{readiness_probe: {probe}}}
        run: vllm serve a/b
        """,
    )
    deadline = only(reading.servers).deadlines[0]
    assert (deadline.seconds, deadline.what) == (seconds, "readiness_probe")
    assert deadline.at == at
    assert deadline.at.span is not None


def test_without_a_service_nothing_ends_it(tmp_path: Path) -> None:
    assert only(servers(tmp_path, "L4")).deadlines == ()


def test_two_servers_on_parts_of_the_machine(tmp_path: Path) -> None:
    reading = task(
        tmp_path,
        """\
        resources: {accelerators: "H100:4"}
        run: |
          CUDA_VISIBLE_DEVICES=0,1 vllm serve a/b -tp 2 --port 1 &
          CUDA_VISIBLE_DEVICES=2,3 vllm serve a/b -tp 2 --port 2
        """,
    )
    found = reading.servers
    assert [server.device_ids for server in found] == [("0", "1"), ("2", "3")]
    assert [server.gpus_per_node.value for server in found if server.gpus_per_node] == [2, 2]
    assert [claim.num_gpus for server in found for claim in server.gpus] == [None, None]
    assert found[0].shares_with == found[1].shares_with != ""


def test_tasks_of_a_pipeline(tmp_path: Path) -> None:
    context = context_of(
        tmp_path,
        {
            "a.yaml": """\
                name: pipeline
                ---
                name: train
                resources: {accelerators: "H100:8"}
                run: torchrun train.py
                ---
                name: serve
                resources: {accelerators: "L4:1"}
                run: vllm serve a/b
                """
        },
        "a.yaml",
    )
    found = readings(context, skypilot)
    assert [(len(reading.servers), bool(reading.skipped)) for reading in found] == [
        (0, True),
        (1, False),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "resources: {limits: {cpu: 1}}\nimage: nginx\n",
        "type: service\ncommands: [vllm serve a/b]\nresources: {gpu: 24GB}\n",
        "name: ci\nrun: make\n",
        "resources: {accelerators: H100}\n",
        "apiVersion: v1\nkind: Pod\nresources: {accelerators: H100}\nrun: vllm serve a/b\n",
        "run: {a: b}\nresources: {accelerators: H100}\n",
    ],
)
def test_other_files_are_left_alone(text: str) -> None:
    document = parse(text)[0]
    assert not any(one.matches(document) for one in skypilot.FORMATS)


@pytest.mark.parametrize(
    "resources",
    [
        "{accelerators: [[a], {b: c}, null]}",
        "{accelerators: {H100: [1]}, any_of: {a: b}}",
        "{accelerators: ':', ordered: [x, 5, null]}",
        "{accelerators: 'H100:99999999999999999999'}",
        "{accelerators: 'H100:'}",
        "{accelerators: 4, image_id: [a]}",
    ],
)
def test_wrong_shapes_raise_nothing(tmp_path: Path, resources: str) -> None:
    text = f"resources: {resources}\nnum_nodes: [1]\nenvs: [a]\nservice: 4\nrun: vllm serve a/b\n"
    server = only(task(tmp_path, text).servers[:1])
    assert server.engine == "vllm"
