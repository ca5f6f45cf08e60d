"""llama-swap: commands with macros, and which models run beside which."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_reading import context_of, flag, only, parse, readings, text_at
from hypothesis import given, settings
from hypothesis import strategies as st

from moesize.check.readers import llama_swap
from moesize.check.server import Reading, Server
from moesize.check.yaml_tree import YamlError


def read(root: Path, text: str, variables: dict[str, str] | None = None) -> Reading:
    found = readings(context_of(root, {"c.yaml": text}, "c.yaml", variables), llama_swap)
    assert [reading.kind for reading in found] == ["llama_swap"]
    return found[0]


def by_name(reading: Reading) -> dict[str, Server]:
    return {server.name: server for server in reading.servers}


def test_commands(tmp_path: Path) -> None:
    text = """\
        healthCheckTimeout: 300
        models:
          "folded":
            env: ["CUDA_VISIBLE_DEVICES=0,1", OTHER=x y]
            cmd: >
              /app/llama-server --port ${PORT}
              -m /models/m-Q4_K_M.gguf
              --ctx-size 16000 --samplers "top_k;top_p"
          literal:
            cmd: |
              # a comment
              llama-server \\
                -hf o/m-GGUF:Q4_K_M
                # --ctx-size 1
                --ctx-size 2048
          docker:
            cmd: docker run --rm --name ${MODEL_ID} ghcr.io/ggml-org/llama.cpp:server -m '/m/x.gguf'
          vllm:
            cmd: vllm serve o/n --max-model-len 4096
        """
    reading = read(tmp_path, text)
    assert not reading.skipped
    servers = by_name(reading)
    assert list(servers) == ["folded", "literal", "docker", "vllm"]
    folded = servers["folded"]
    assert [str(word) for word in folded.words] == [
        "--port", "5800", "-m", "/models/m-Q4_K_M.gguf", "--ctx-size", "16000",
        "--samplers", "top_k;top_p",
    ]  # fmt: skip
    assert flag(folded, "--ctx-size") is not None
    assert all(text_at(tmp_path, word) == word for word in folded.words if word.exact)
    assert sum(word.exact for word in folded.words) == 7
    assert folded.gpus_per_node is not None
    assert (folded.gpus_per_node.value, folded.device_ids) == (2, ("0", "1"))
    assert folded.environment["OTHER"] == "x y"
    assert folded.deadlines[0].seconds == 300
    assert text_at(tmp_path, folded.deadlines[0].at) == "300"
    assert [str(word) for word in servers["literal"].words] == [
        "-hf", "o/m-GGUF:Q4_K_M", "--ctx-size", "2048",
    ]  # fmt: skip
    assert servers["docker"].image == "ghcr.io/ggml-org/llama.cpp:server"
    assert servers["docker"].words[-1] == "/m/x.gguf"
    assert servers["vllm"].engine == "vllm"


def test_macros(tmp_path: Path) -> None:
    text = """\
        macros:
          "srv": >
            /app/llama-server
            --port ${PORT}
          ctx: 4096
          args: "--ctx-size ${ctx} -ngl 99"
          dir: "${env.HOME}/models"
          loop: "${loop}"
        models:
          a:
            macros:
              ctx: 8192
            env: ["CUDA_VISIBLE_DEVICES=${gpu}"]
            cmd: |
              ${srv} ${args} -m ${dir}/a.gguf --alias ${MODEL_ID} --x ${loop} --y ${nothing}
          b:
            cmd: ${srv} ${args} -m b.gguf
        """
    servers = by_name(read(tmp_path, text))
    first = servers["a"]
    assert [str(word) for word in first.words] == [
        "--port", "5800", "--ctx-size", "8192", "-ngl", "99", "-m", "${env.HOME}/models/a.gguf",
        "--alias", "a", "--x", "${loop}", "--y", "${nothing}",
    ]  # fmt: skip
    context = flag(first, "--ctx-size")
    assert context is not None
    assert context.exact
    # The macro of the model, and that of the file for the other.
    assert context.span is not None
    assert context.span.line == 12
    other = flag(servers["b"], "--ctx-size")
    assert other is not None
    assert (str(other), text_at(tmp_path, other), other.exact) == ("4096", "4096", True)
    assert [each.name for each in first.unresolved] == ["env.HOME", "loop", "nothing"]
    given_ = by_name(read(tmp_path, text, {"HOME": "/root"}))["a"]
    assert flag(given_, "-m") == "/root/models/a.gguf"


def test_other_servers_are_passed_over(tmp_path: Path) -> None:
    text = """\
        models:
          whisper:
            cmd: /app/whisper-server --port ${PORT} -m w.bin
          redis:
            cmd: docker run redis
          nothing:
            cmd: ""
          llm:
            cmd: llama-server -m a.gguf
        """
    servers = by_name(read(tmp_path, text))
    assert [name for name, server in servers.items() if server.skipped] == [
        "whisper", "redis", "nothing",
    ]  # fmt: skip
    assert "whisper-server" in servers["whisper"].skipped
    assert text_at(tmp_path, servers["whisper"].place) == "/app/whisper-server"
    assert read(tmp_path, "models:\n  a:\n    cmd: sd-server\n").skipped


_MODELS = "\n".join(f"  {name}: {{cmd: llama-server -m {name}.gguf}}" for name in "abcdef")


def places(root: Path, text: str) -> dict[str, tuple[str, str]]:
    reading = read(root, f"models:\n{_MODELS}\n{text}\n")
    return {server.name: (server.shares_with, server.exclusive) for server in reading.servers}


def test_one_model_at_a_time(tmp_path: Path) -> None:
    assert set(places(tmp_path, "").values()) == {("", "llama-swap:c.yaml")}


def test_groups(tmp_path: Path) -> None:
    found = places(
        tmp_path,
        "groups:\n  g: {swap: false, exclusive: true, members: [a, b]}\n"
        "  h: {swap: true, members: [c, d]}\n",
    )
    assert found["a"] == found["b"] == ("llama-swap:c.yaml:g", "")
    assert found["c"] == found["d"] == found["e"] == ("", "llama-swap:c.yaml")


def test_groups_that_stay(tmp_path: Path) -> None:
    found = places(
        tmp_path,
        "groups:\n  always: {swap: false, exclusive: false, persistent: true, members: [a]}\n",
    )
    # `a` runs on beside whichever of the others is loaded.
    shared = "llama-swap:c.yaml:always"
    assert found["a"] == (shared, "")
    assert found["b"] == found["f"] == (shared, "llama-swap:c.yaml:(default)")


def test_a_matrix(tmp_path: Path) -> None:
    found = places(
        tmp_path,
        "matrix:\n  vars: {A: a, B: b, C: c, D: d, E: e}\n  sets:\n"
        '    pair: "(A | B) & C"\n    three: "+pair & D"\n    alone: "E"\n    either: "A | E"\n',
    )
    shared = "llama-swap:c.yaml:three"
    assert found["a"] == found["b"] == (shared, f"{shared}:0")
    assert found["c"] == found["d"] == (shared, "")
    assert found["e"] == found["f"] == ("", "llama-swap:c.yaml")


def test_profiles_of_older_versions(tmp_path: Path) -> None:
    found = places(tmp_path, "profiles:\n  coding: [a, b]\n")
    assert found["a"] == found["b"] == ("llama-swap:c.yaml:coding", "")
    assert found["c"] == ("", "llama-swap:c.yaml")
    assert places(tmp_path, "profiles:\n  p: {pins: {a: b}}\n")["a"] == ("", "llama-swap:c.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "models: [a]",
        "models: {a: {cmd: null}}",
        "models: {a: b}",
        "services: {a: {command: x}}",
        "models: {a: {image: x}}",
    ],
)
def test_other_files(text: str) -> None:
    (one,) = llama_swap.FORMATS
    assert not one.matches(parse(text)[0])


def test_a_command_as_a_list(tmp_path: Path) -> None:
    text = "models:\n  a:\n    cmd: [llama-server, -m, 'x y.gguf', '--ctx-size 5']\n"
    server = only(read(tmp_path, text).servers)
    assert flag(server, "--ctx-size") == "5"


def test_macros_that_swell(tmp_path: Path) -> None:
    macros = "\n".join(f"  m{n}: '{'x' * 50} ${{m{n + 1}}} ${{m{n + 1}}}'" for n in range(60))
    text = f"macros:\n{macros}\nmodels:\n  a:\n    cmd: llama-server {'${m0} ' * 500}\n"
    assert sum(len(word) for word in only(read(tmp_path, text).servers).words) < 1 << 19


_TEXTS = st.text(alphabet="ab${}()&|+-#\"'\\ \n:,[]", max_size=30)
_VALUES = st.recursive(
    st.one_of(_TEXTS, st.integers(), st.none(), st.sampled_from(["llama-server -m a", "${m} a"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["models", "cmd", "env", "macros", "groups", "members", "swap", "matrix", "sets",
                 "vars", "profiles", "m", "a", "healthCheckTimeout"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=15,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(_VALUES, _VALUES, _VALUES)
def test_no_document_raises(models: object, macros: object, groups: object) -> None:
    import json

    text = json.dumps(
        {"models": {"a": {"cmd": "${m}"}, "b": models}, "macros": macros, "groups": groups,
         "matrix": models, "profiles": groups}
    )  # fmt: skip
    try:
        document = parse(text)[0]
    except YamlError:
        return
    (one,) = llama_swap.FORMATS
    context = context_of(Path("/tmp"), {}, "none.yaml")
    if one.matches(document):
        one.read(document, context)
