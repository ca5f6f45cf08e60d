"""Shell texts and argument lists: what they start, and where each word stands."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesize.check.shell import (
    Launch,
    launches_in,
    launches_of,
    words_and_texts,
    words_in,
)
from moesize.check.shell_sums import evaluate
from moesize.check.source import SourceFile, SourceText, Word
from moesize.check.yaml_tree import parse_stream


def script(text: str) -> SourceText:
    return SourceText.of_file(SourceFile("run.sh", text))


def started(text: str, arguments: tuple[str, ...] = (), **environment: str) -> list[Launch]:
    variables = {name: Word(value) for name, value in environment.items()}
    return launches_in(script(text), variables, [Word(word) for word in arguments])


def one(text: str, arguments: tuple[str, ...] = (), **environment: str) -> Launch:
    found = started(text, arguments, **environment)
    assert len(found) == 1, found
    return found[0]


def words(text: str, arguments: tuple[str, ...] = (), **environment: str) -> list[str]:
    return [str(word) for word in one(text, arguments, **environment).words]


def at(text: str, word: Word) -> str:
    """The characters of a text at the place of a word."""
    span = word.span
    assert span is not None
    lines = text.split("\n")
    if span.line == span.end_line:
        return lines[span.line - 1][span.column - 1 : span.end_column - 1]
    first = lines[span.line - 1][span.column - 1 :]
    last = lines[span.end_line - 1][: span.end_column - 1]
    return "\n".join([first, *lines[span.line : span.end_line - 1], last])


def exec_form(*command: str, image: str | None = None, **environment: str) -> list[Launch]:
    return launches_of(
        [Word(word) for word in command],
        {name: Word(value) for name, value in environment.items()},
        image=Word(image) if image else None,
    )


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("'a b'", "a b"),
        ('"a b"', "a b"),
        (r"a\ b", "a b"),
        (r'"a\"b\\c\d"', r'a"b\c\d'),
        ("a'b'\"c\"d", "abcd"),
        ("$'a\\tb'", "a\tb"),
        ("'{\"x\": [1, 2]}'", '{"x": [1, 2]}'),
        ("x#y", "x#y"),
        ("''", ""),
        ("{{ .Values.model }}", "{{ .Values.model }}"),
        ("<model>", "<model>"),
        ("top_k\\;top_p", "top_k;top_p"),
        ("a=b", "a=b"),
    ],
)
def test_quotes(written: str, read: str) -> None:
    assert words(f"vllm serve m --x {written} --end") == ["m", "--x", read, "--end"]


def test_continued_lines_comments_and_what_ends_a_command() -> None:
    text = "vllm serve m \\\n  --a 1 \\   \n  --b 2 # --c 3\necho --d 4; : && true || false\n"
    assert words(text) == ["m", "--a", "1", "--b", "2"]
    assert words("vllm serve m --a 1 2>&1 | tee log") == ["m", "--a", "1"]
    assert words("vllm serve m > out.log 2> /dev/null < in --a 1 &> all &") == ["m", "--a", "1"]
    assert words('vllm serve m --json \'{"a": 1,\n  "b": 2}\' --end')[-1] == "--end"
    assert words("vllm serve m --a 1\r\n") == ["m", "--a", "1"]


def test_a_line_that_begins_with_a_flag_belongs_to_the_command_before() -> None:
    text = "vllm serve m \\\n --a 1 \\\n # --off 2\n --b 3\n\necho done\n"
    assert words(text) == ["m", "--a", "1", "--b", "3"]
    assert words("vllm serve m; --a 1") == ["m"]


def test_places() -> None:
    text = 'MODEL="a/b"\nvllm serve "$MODEL" --max-model-len 32768 \\\n  -q "awq" --x=5\n'
    launch = one(text)
    assert [at(text, word) for word in launch.words if word.exact] == [
        "a/b", "--max-model-len", "32768", "-q", "awq", "--x=5",
    ]  # fmt: skip
    assert at(text, launch.place) == "vllm"


def test_the_value_of_a_flag_keeps_its_own_place_behind_an_equals_sign() -> None:
    text = 'LEN=4096\nvllm serve m --max-model-len=$LEN --seed="7" --dtype=half\n'
    length, seed, dtype = one(text).words[1:]
    value = length.cut(length.index("=") + 1)
    assert (value, value.exact, value.span and value.span.line) == ("4096", True, 1)
    assert at(text, seed.cut(7)) == "7"
    assert seed.cut(7).exact
    assert at(text, dtype.cut(8)) == "half"
    assert not length.exact
    assert at(text, length) == "--max-model-len=$LEN"


def test_words_that_are_changed_point_at_where_they_are_used() -> None:
    text = "N=2\nvllm serve m --tp $((N * 2)) --x a${N}b\n"
    total, mixed = one(text).words[2], one(text).words[4]
    assert (total, total.exact, at(text, total)) == ("4", False, "$((N * 2))")
    assert (mixed, mixed.exact, at(text, mixed)) == ("a2b", False, "a${N}b")


# --- variables ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${NO:-5}", "5"),
        ("${NO-5}", "5"),
        ("${NO:=5}", "5"),
        ("${A:-${NO:-c}}", "1"),
        ("${NO:-${NO2:-c}}", "c"),
        ("${EMPTY:-5}", "5"),
        ("${EMPTY-5}", ""),
        ("${A:+set}", "set"),
        ("${NO:+set}x", "x"),
        ("${A:?must be given}", "1"),
        ("${UP,,}", "abc"),
        ("${A}${A}", "11"),
        ("${P##*/}", "q-7b"),
        ("${P%/*}", "o"),
        ("${F%.gguf}", "m"),
        ("$(K8S)", "kubernetes"),
        ("$((A + 2 * (3 - 1) / 2 % 5))", "3"),
        ("$((${NO:-3} * $A))", "3"),
        ("${NO:-'a b'}", "a b"),
    ],
)
def test_expansion(written: str, value: str) -> None:
    text = f'A=1; EMPTY=; UP=ABC; P=o/q-7b; F=m.gguf; vllm serve m --x "{written}" --end'
    if "'" in written:
        text = text.replace('"', "")
    assert words(text, K8S="kubernetes") == ["m", "--x", value, "--end"]


def test_what_nothing_defines_stays_open_and_is_named() -> None:
    text = (
        "X=$(nproc)\nY=$1\nvllm serve $MODEL --a $X --b $(hostname) --c `date` --d $((Z*2)) --e $Y"
    )
    launch = one(text)
    names = [each.name for each in launch.unresolved]
    assert names == ["MODEL", "X", "$(hostname)", "`date`", "Z", "Y"]
    assert str(launch.words[0]) == "$MODEL"
    assert launch.unresolved[0].at is launch.words[0]
    assert one("vllm serve {{ .Values.model }}").unresolved[0].name == ".Values.model"


def test_unquoted_variables_split_and_quoted_ones_do_not() -> None:
    text = 'ARGS="--a 1\n  --b 2"\nvllm serve m $ARGS --c "$ARGS"'
    launch = one(text)
    assert [str(word) for word in launch.words] == [
        "m", "--a", "1", "--b", "2", "--c", "--a 1\n  --b 2",
    ]  # fmt: skip
    assert [at(text, word) for word in launch.words[1:5]] == ["--a", "1", "--b", "2"]
    assert all(word.exact for word in launch.words)
    assert words("vllm serve m $NOTHING_HERE") == ["m", "$NOTHING_HERE"]
    assert words("E=; vllm serve m $E $E'' x") == ["m", "", "x"]


def test_arrays() -> None:
    text = (
        "ARGS=(\n  --a 1 # first\n  --b 'x y'\n)\nARGS+=(--c)\n"
        'if [ "$1" ]; then ARGS+=(--not); fi\nvllm serve m "${ARGS[@]}" ${NONE[@]} "${ARGS[1]}"\n'
    )
    assert words(text) == ["m", "--a", "1", "--b", "x y", "--c", "1"]
    unsure = one(text.replace('[ "$1" ]', "is_new"))
    assert [str(word) for word in unsure.words[:-1]] == [
        "m", "--a", "1", "--b", "x y", "--c", "${ARGS[@]}",
    ]  # fmt: skip
    assert [each.name for each in unsure.unresolved] == ["ARGS"]
    assert at(text.replace('[ "$1" ]', "is_new"), unsure.unresolved[0].at) == "--not"
    assert words('CMD=(vllm serve m); CMD+=(-tp 2); "${CMD[@]}"') == ["m", "-tp", "2"]


def test_what_a_program_sees() -> None:
    text = "A=1\nexport B=2\nexport C\nC=3\nD=4 E=$A vllm serve m\nF=5\n"
    seen = one(text, GIVEN="x").environment
    assert {name: str(value) for name, value in seen.items()} == {
        "GIVEN": "x", "B": "2", "C": "3", "D": "4", "E": "1",
    }  # fmt: skip
    assert "A" in one("set -a\nA=1\nvllm serve m").environment
    assert one("env A=1 B=2 vllm serve m").environment["B"] == "2"
    assert "A" not in one("export A=1; unset A; vllm serve m").environment


def test_kubernetes_fills_in_variables_of_variables() -> None:
    launch = one("vllm serve $(MODEL)", MODEL="$(OWNER)/m-$(SIZE)", OWNER="o", SIZE="7b")
    assert str(launch.words[0]) == "o/m-7b"
    assert not launch.unresolved
    assert one("vllm serve $(A)", A="$(B)", B="$(A)").words[0].startswith("$(")


def test_what_the_user_gives_wins() -> None:
    found = launches_in(script("M=a\nvllm serve $M"), {"M": Word("b")}, fixed=("M",))
    assert str(found[0].words[0]) == "b"
    assert str(launches_in(script("M=a\nvllm serve $M"), {"M": Word("b")})[0].words[0]) == "a"


# --- branches -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "value"),
    [
        ("if x; then A=2; fi", None),
        ("A=1; if x; then A=2; fi", None),
        ("A=1; if x; then A=1; fi", "1"),
        ("if x; then A=2; else A=2; fi", "2"),
        ("if x; then A=2; elif y; then A=3; else A=2; fi", None),
        ('if [ -z "$A" ]; then A=2; fi', "2"),
        ('if [[ -z "${A:-}" ]]; then A=2; fi', "2"),
        ('A=1; if [ -z "$A" ]; then A=2; fi', "1"),
        ('[ -z "$A" ] && A=2', "2"),
        ('[ -n "$A" ] || A=2', "2"),
        ('[ "$A" = "" ] && A=2', "2"),
        ("[ x = y ] && A=2", None),
        ('A=1; [ "$X" = y ] && A=2', "1"),
        ('X=y; A=1; [ "$X" = y ] && A=2', "2"),
        ('X=$(x); A=1; [ "$X" = y ] && A=2', None),
        ('A=1; [ "$X" = y ] || A=2', "2"),
        ('if [ "$1" = big ]; then A=8; else A=4; fi', "4"),
        ("N=3; if [ $N -gt 2 ] && [ $N -le 3 ]; then A=8; else A=4; fi", "8"),
        ("N=3; if [[ $N == 3 || $N == 4 ]]; then A=8; else A=4; fi", "8"),
        ("if ! true; then A=8; else A=4; fi", "4"),
        ("if [ ! -f x ]; then A=8; else A=4; fi", None),
        ("if is_new; then A=8; else A=4; fi", None),
        ("A=1; if [ $# -ge 1 ]; then A=$1; fi", "1"),
        ("A=1; until true; do A=2; done", "1"),
        ("A=1; until false; do A=2; done", None),
        ("A=1; while false; do A=2; done", "1"),
        ("B=$1; A=${B:-2}", "2"),
        ("A=1; for x in a b; do A=2; done", "2"),
        ('A=1; for x in "$@"; do A=2; done', None),
        ("M=b; case $M in a) A=2;; b|c) A=3;; *) A=4;; esac", "3"),
        ("M=$1; case ${M:-q7} in q*) A=2;; *) A=4;; esac", "2"),
        ("M=$(x); case $M in a) A=2;; *) A=4;; esac", None),
        ("unset A; A=1; if is_new; then unset A; fi", None),
        ("cd /x && A=2", "2"),
        (': "${A:=2}"', "2"),
        ("A=${A:-2}", "2"),
        ("for A in 2; do :; done", "2"),
        ("A=1; while x; do A=$((A+1)); done", None),
        ("case $x in a) A=2;; *) A=2;; esac", "2"),
        ("case $x in a) A=2;; b) A=3;; esac", None),
        ("A=1; (A=2)", "1"),
        ("A=1; set_it() { A=2; }", "1"),
        ("set_it() { A=2; }; set_it", "2"),
        ("A=1; while [ $# -gt 0 ]; do case $1 in -a) A=$2; shift;; esac; shift; done", "1"),
        ("A=1; while getopts a: o; do case $o in a) A=$OPTARG;; esac; done", "1"),
        ('A=1; for a in "$@"; do case $a in -a=*) A="${a#*=}";; esac; done', "1"),
        ("A=1; for a in 2 3; do A=$a; done", "3"),
        ("A=1; for a in 2 $(x); do A=$a; done", None),
        ("A=1; for a in 2 3; do A=$((A * a)); done", "6"),
        ("A=1; for a in {1..3}; do A=$((A * 2)); done", "8"),
        ("A=1; N=3; for a in $(seq 1 $N); do A=$((A * 2)); done", "8"),
        ("A=1; for a in $(seq 2); do A=$((A * 2)); done", "4"),
        ("A=1; for ((i=0; i<3; i++)); do A=$((A * 2)); done", "8"),
        ("A=1; N=2; for (( i = 1; i <= N; i++ )); do A=$((A + i)); done", "4"),
        ("A=1; for ((;;)); do A=2; done", None),
        ("A=1; for a in {1..900}; do A=$a; done", None),
        ("A=1; if x; then A=$(nvidia-smi -L | wc -l); fi", None),
        ("A=1; read A", None),
        ("A=1; A+=2", "12"),
        ("local A=3", "3"),
        ("declare -i A=3", "3"),
    ],
)
def test_what_a_variable_holds_after_a_branch(before: str, value: str | None) -> None:
    launch = one(f"{before}\nvllm serve m --x $A")
    if value is not None:
        assert str(launch.words[-1]) == value
    assert bool(launch.unresolved) == (value is None)


def test_a_branch_sees_what_it_sets() -> None:
    text = """
    if [ "$1" = big ]; then
      TP=8
      vllm serve big --tensor-parallel-size $TP
    else
      TP=1
      vllm serve small --tensor-parallel-size $TP
    fi
    vllm serve after --tensor-parallel-size $TP
    """
    # The last one is what it is without an argument.
    found = started(text)
    assert [str(launch.words[-1]) for launch in found] == ["8", "1", "1"]
    assert [launch.alternative for launch in found] == [True, True, False]


def test_loops_over_what_is_known() -> None:
    text = """
    MODELS=(a/a b/b)
    gpu=0
    for model in "${MODELS[@]}"; do
      for size in 8; do
        CUDA_VISIBLE_DEVICES=$gpu vllm serve "$model" --max-model-len ${size}k &
      done
      gpu=$((gpu + 1))
    done
    """
    found = started(text)
    assert [[str(word) for word in launch.words] for launch in found] == [
        ["a/a", "--max-model-len", "8k"],
        ["b/b", "--max-model-len", "8k"],
    ]
    assert [launch.devices for launch in found] == [("0",), ("1",)]
    assert [launch.background for launch in found] == [True, True]
    assert at(text, found[1].words[0]) == "b/b"
    assert len(started("for i in {0..7}; do CUDA_VISIBLE_DEVICES=$i vllm serve m & done")) == 8


@pytest.mark.parametrize(
    ("text", "rounds"),
    [
        ("vllm serve a & vllm serve b &", [0, 0]),
        ("vllm serve a & kill $!; vllm serve b", [0, 1]),
        ("vllm serve a & kill -0 $!; vllm serve b", [0, 0]),
        ("docker run -d vllm/vllm-openai --model a; docker stop x; vllm serve b", [0, 1]),
        ("stop() { pkill -f vllm; }; vllm serve a & stop; vllm serve b", [0, 1]),
        ("stop() { pkill -f vllm; }; trap stop EXIT; vllm serve a & vllm serve b", [0, 0]),
        # The same one again.
        ("while true; do vllm serve a; sleep 1; done", [0]),
        ("for i in 1 2 3; do vllm serve a; done", [0]),
        ("for i in 1 2 3; do vllm serve a & sleep 9; kill $!; done", [0]),
        ("for i in 1 2; do vllm serve a --port $i; done", [0, 0]),
        ("for i in 1 2; do vllm serve a & done", [0, 0]),
        ("for i in 1 2; do CUDA_VISIBLE_DEVICES=$i vllm serve a; done", [0, 0]),
    ],
)
def test_what_was_ended_before(text: str, rounds: list[int]) -> None:
    assert [launch.round for launch in started(text)] == rounds


def test_functions_and_arguments() -> None:
    text = 'serve() {\n local m=$1\n shift\n vllm serve "$m" --tp ${2:-2} "$@"\n}\n'
    found = started(text + "serve a/b --x\nserve c/d --y 4 &\n")
    assert [[str(word) for word in launch.words] for launch in found] == [
        ["a/b", "--tp", "2", "--x"],
        ["c/d", "--tp", "4", "--y", "4"],
    ]
    assert [launch.background for launch in found] == [False, True]
    assert words("function run { vllm serve m; }") == ["m"]  # defined, and called by nobody here
    assert words('vllm serve "$@"', ("m", "--x")) == ["m", "--x"]
    assert words('vllm serve m "${@:2}" $2', ("a", "b", "c")) == ["m", "b", "c", "b"]
    assert words('vllm serve m "$@"') == ["m"]


def test_functions_that_call_themselves_end() -> None:
    assert 1 <= len(started("f() { vllm serve m; f; f; }\nf\n")) < 100


def test_several_servers_and_how_they_stand() -> None:
    text = """
    CUDA_VISIBLE_DEVICES=0,1 vllm serve a &
    (cd x; vllm serve b) &
    if true; then vllm serve c; fi &
    vllm serve d
    """
    found = started(text)
    assert [str(launch.words[0]) for launch in found] == ["a", "b", "c", "d"]
    assert [launch.background for launch in found] == [True, True, True, False]
    assert (found[0].visible, found[0].devices) == (2, ("0", "1"))
    assert found[1].visible is None


# --- programs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "engine"),
    [
        ("vllm serve m", "vllm"),
        ("exec /opt/venv/bin/vllm serve m", "vllm"),
        ("python3 -u -m vllm.entrypoints.openai.api_server --model m", "vllm"),
        ("python -m vllm.entrypoints.cli.main serve m", "vllm"),
        ("$PYTHON -m vllm.entrypoints.openai.api_server --model m", "vllm"),
        ("python /src/vllm/entrypoints/openai/api_server.py --model m", "vllm"),
        ("sglang serve --model-path m", "sglang"),
        ("python3.12 -m sglang.launch_server --model-path m", "sglang"),
        ("torchrun --nproc-per-node 8 -m sglang.launch_server --model-path m", "sglang"),
        ("trtllm-serve serve m", "tensorrt-llm"),
        ("mpirun -n 8 --allow-run-as-root trtllm-llmapi-launch trtllm-serve m", "tensorrt-llm"),
        ("text-generation-launcher --model-id m", "tgi"),
        ("./build/bin/llama-server -m m.gguf", "llama.cpp"),
        ('"$LLAMA_DIR/bin/llama-server" -m m.gguf', "llama.cpp"),
        ("llama-server-cuda -m m.gguf", "llama.cpp"),
        ("./llama.cpp/server -m m.gguf", "llama.cpp"),
        ("python3 -m dynamo.vllm --model m", "vllm"),
        ("python3 -m dynamo.sglang --model-path m", "sglang"),
        ("python3 -m dynamo.trtllm --model-path m", "tensorrt-llm"),
        ("ollama serve", "ollama"),
        ("lmdeploy serve api_server m", "lmdeploy"),
        ("mlc_llm serve m", "mlc-llm"),
        ("aphrodite run m", "aphrodite"),
        ("sudo -E nohup nice -n 5 numactl -N 0 llama-server -m m.gguf", "llama.cpp"),
        ("uv run vllm serve m", "vllm"),
        ("conda run -n env --no-capture-output vllm serve m", "vllm"),
        ("srun -N 2 --container-image=i bash -c 'vllm serve m'", "vllm"),
        ("ssh node1 'cd /x && vllm serve m'", "vllm"),
        ("tmux new -d -s v 'vllm serve m'", "vllm"),
        ("apptainer exec --nv i.sif vllm serve m", "vllm"),
        ("bash -euxo pipefail -c 'vllm serve m'", "vllm"),
        ('sh -lc "vllm serve m"', "vllm"),
        ('eval "vllm serve m"', "vllm"),
        ("$VLLM_BIN serve m", "vllm"),
        ('"${LLAMA_SERVER}" -m m.gguf', "llama.cpp"),
        ("docker exec -it c vllm serve m", "vllm"),
        ("docker run $OPTIONS ${GPUS} vllm/vllm-openai --model m", "vllm"),
        ("docker run $VLLM_IMAGE --model m", "vllm"),
        ("docker run $IMAGE vllm serve m", "vllm"),
        ("sbatch -N 1 --wrap='vllm serve m'", "vllm"),
        ("/entrypoint.sh vllm serve m", "vllm"),
        ("bash <<'EOF'\nvllm serve m\nEOF", "vllm"),
        ("if vllm serve m; then :; fi", "vllm"),
        ("time { vllm serve m; }", "vllm"),
        ("! vllm serve m", "vllm"),
        ('CMD="vllm serve m"; CMD="$CMD --tp 2"; $CMD', "vllm"),
    ],
)
def test_programs(command: str, engine: str) -> None:
    assert one(command).engine == engine


@pytest.mark.parametrize(
    "command",
    [
        "pip install vllm",
        "echo vllm serve m",
        "echo 'vllm serve m' > run.sh",
        "git clone https://github.com/vllm-project/vllm",
        "pkill -f 'vllm serve'",
        "vllm bench serve --model m",
        "vllm serve --help",
        "llama-server --version",
        "cat > run.sh <<EOF\nvllm serve m\nEOF",
        "# vllm serve m",
        "systemctl restart llama-server",
        "sudo systemctl restart llama-server",
        "cmake --build build --target llama-server",
        "make llama-server",
        "docker logs llama-server",
        "docker build -t vllm-openai .",
        "docker run --name vllm redis",
        "docker run -e ENGINE=vllm busybox echo vllm serve m",
        "case $x in vllm) ;; llama-server) ;; esac",
        "python -c 'import vllm'",
        "python -m vllm.entrypoints.openai.run_batch -i x",
        "trtllm-serve disaggregated -c x.yaml",
        "ollama list",
        "which vllm && type llama-server",
        "alias v='vllm serve m'",
        "trap 'vllm serve m' EXIT",
        "VLLM=1",
    ],
)
def test_no_programs(command: str) -> None:
    assert started(command) == []


def test_containers_of_docker() -> None:
    text = (
        "M=a/b\nsudo docker run -d --rm -it --gpus '\"device=0,2\"' -p8000:8000 -e HF_TOKEN "
        "--env X=1 -eY=$M --shm-size=16g --memory 64g --name srv \\\n"
        "  vllm/vllm-openai:v0.10.2 --model $M --max-model-len 4096 > log"
    )
    launch = one(text)
    assert [str(word) for word in launch.words] == ["--model", "a/b", "--max-model-len", "4096"]
    assert launch.engine == "vllm"
    assert launch.image == "vllm/vllm-openai:v0.10.2"
    assert at(text, launch.image) == launch.image
    assert (launch.visible, launch.devices, launch.background) == (2, ("0", "2"), True)
    assert {name: str(word) for name, word in launch.environment.items()} == {
        "HF_TOKEN": "$HF_TOKEN", "X": "1", "Y": "a/b",
    }  # fmt: skip
    assert launch.container is not None
    assert (launch.container.shm, launch.container.memory, launch.container.name) == (
        "16g", "64g", "srv",
    )  # fmt: skip
    assert one("docker run --gpus 2 --ipc=host ghcr.io/ggml-org/llama.cpp:server -m m").visible == 2
    assert words("podman run --entrypoint vllm img serve m --x") == ["m", "--x"]
    in_image = "docker run --gpus all lmsysorg/sglang python3 -m sglang.launch_server --tp 2"
    assert words(in_image) == ["--tp", "2"]


def test_variables_of_files() -> None:
    files = {
        "vars.sh": "MODEL=a/b\nexport LEN=5\nvllm serve not-this\n",
        ".env": "LLAMA_ARG_CTX_SIZE=4096\n",
    }
    text = "source vars.sh\nvllm serve $MODEL --max-model-len $LEN\n"
    text += "docker run --env-file .env ghcr.io/ggml-org/llama.cpp:server -m m.gguf\n"

    def read(name: str) -> SourceText | None:
        return SourceText.of_file(SourceFile(name, files[name])) if name in files else None

    first, second = launches_in(script(text), {}, read_file=read)
    assert [str(word) for word in first.words] == ["a/b", "--max-model-len", "5"]
    assert first.words[0].span is not None
    assert first.words[0].span.path == "vars.sh"
    assert second.environment["LLAMA_ARG_CTX_SIZE"] == "4096"
    assert [each.name for each in launches_in(script(text), {})[0].unresolved] == ["MODEL", "LEN"]


def test_ollama_serves_what_is_pulled() -> None:
    text = "OLLAMA_CONTEXT_LENGTH=8192 ollama serve &\nsleep 5\nollama pull qwen3:8b\n"
    launch = one(text)
    assert (launch.engine, [str(word) for word in launch.words]) == ("ollama", ["qwen3:8b"])
    assert launch.environment["OLLAMA_CONTEXT_LENGTH"] == "8192"
    assert words("ollama run llama3:8b --verbose") == ["llama3:8b"]
    both = started("ollama serve & ollama pull a; ollama run b")
    assert [str(launch.words[0]) for launch in both] == ["a", "b"]
    assert words("ollama create mine -f Modelfile") == ["mine", "-f", "Modelfile"]


# --- exec form ------------------------------------------------------------------------------------


def test_exec_form() -> None:
    (launch,) = exec_form("vllm", "serve", "$(MODEL)", "--tp=$(TP)", MODEL="a/b", TP="2")
    assert [str(word) for word in launch.words] == ["a/b", "--tp=2"]
    (launch,) = exec_form("sh", "-c", 'exec vllm serve "$@" --x', "--", "m", "--tp=$(TP)", TP="4")
    assert [str(word) for word in launch.words] == ["m", "--tp=4", "--x"]
    (launch,) = exec_form("/bin/sh", "-c", 'exec "$@"', "sh", "vllm", "serve", "m")
    assert [str(word) for word in launch.words] == ["m"]
    (launch,) = exec_form("env", "A=1", "vllm", "serve", "$(NO)")
    assert launch.environment["A"] == "1"
    assert [each.name for each in launch.unresolved] == ["NO"]
    assert exec_form("sleep", "infinity", image="vllm/vllm-openai") == []
    assert exec_form() == []


@pytest.mark.parametrize(
    ("image", "command", "engine"),
    [
        ("vllm/vllm-openai:v0.10.2", ["--model", "m"], "vllm"),
        ("vllm/vllm-openai:latest", ["Qwen/Qwen3-8B", "--x"], "vllm"),
        ("vllm/vllm-openai:latest", ["serve", "m"], "vllm"),
        ("vllm/vllm-openai", [], "vllm"),
        ("vllm/vllm-openai", ["python3", "app.py"], None),
        ("rocm/vllm:latest", [], None),
        ("lmsysorg/sglang:v0.5.3", [], None),
        ("lmsysorg/sglang:v0.5.3", ["--model-path", "m"], "sglang"),
        ("ghcr.io/huggingface/text-generation-inference:3.3", ["--model-id", "m"], "tgi"),
        ("ghcr.io/huggingface/text-generation-inference:3.3", [], "tgi"),
        ("ghcr.io/ggml-org/llama.cpp:server-cuda", ["-m", "m.gguf"], "llama.cpp"),
        ("ghcr.io/ggml-org/llama.cpp:server-cuda", [], "llama.cpp"),
        ("ghcr.io/ggml-org/llama.cpp:full-cuda", ["--server", "-m", "m.gguf"], "llama.cpp"),
        ("ghcr.io/ggml-org/llama.cpp:full-cuda", ["--run", "-m", "m.gguf"], None),
        ("nvcr.io/nim/meta/llama-3.1-8b-instruct:1.8", [], "nim"),
        ("ollama/ollama:0.12", [], "ollama"),
        ("ollama/ollama:0.12", ["serve"], "ollama"),
        ("redis:7", ["--save", "60"], None),
        ("ghcr.io/vllm-project/vllm-router:latest", ["--port", "80"], None),
        ("kserve/huggingfaceserver:v0.15", ["--model_id", "m"], "vllm"),
    ],
)
def test_what_an_image_starts(image: str, command: list[str], engine: str | None) -> None:
    found = exec_form(*command, image=image)
    assert [launch.engine for launch in found] == ([engine] if engine else [])
    assert all(launch.image == image for launch in found)


def test_kserve_speaks_vllm() -> None:
    (launch,) = exec_form(
        "--model_name=mine", "--model_id=o/m", "--predictor_protocol", "v2", "--enable_grpc",
        "false", "--max_length", "512", "--tensor-parallel-size=2", "--disable_lower_case",
        image="kserve/huggingfaceserver:v0.14.0-gpu",
    )  # fmt: skip
    assert [str(word) for word in launch.words] == [
        "--model", "o/m", "--max-model-len", "512", "--tensor-parallel-size=2",
    ]  # fmt: skip


def test_a_script_in_yaml_keeps_the_place_of_its_words() -> None:
    text = (
        "command: [/bin/sh, -c]\nargs:\n  - |\n    export TP=4\n"
        "    vllm serve m \\\n      --tensor-parallel-size $TP --x 7\n"
    )
    document = parse_stream(SourceText.of_file(SourceFile("a.yaml", text))).documents[0]
    nodes = [*document.get("command").elements(), *document.get("args").elements()]
    listed, texts = words_and_texts(nodes)
    (launch,) = launches_of(listed, {}, texts=texts)
    assert [str(word) for word in launch.words] == ["m", "--tensor-parallel-size", "4", "--x", "7"]
    assert [(at(text, word), word.exact) for word in launch.words] == [
        (str(word), True) for word in launch.words
    ]
    # Without the text of the scalar, places are those of the whole.
    (launch,) = launches_of(listed, {})
    assert [str(word) for word in launch.words] == ["m", "--tensor-parallel-size", "4", "--x", "7"]
    assert not any(word.exact for word in launch.words)


def test_texts_inside_texts_keep_places() -> None:
    text = 'M=a/b\nbash -c "exec vllm serve $M --dtype \\"half\\" --tp 2"\n'
    launch = one(text)
    assert [str(word) for word in launch.words] == ["a/b", "--dtype", "half", "--tp", "2"]
    assert [at(text, word) for word in launch.words] == ["a/b", "--dtype", "half", "--tp", "2"]
    assert all(word.exact for word in launch.words)


def test_texts_that_are_only_split() -> None:
    text = "--a 'b c' --samplers top_k;top_p|x # no\n  --d \"e\" \\\n --f (g)"
    found = words_in(script(text))
    assert [str(word) for word in found] == [
        "--a", "b c", "--samplers", "top_k;top_p|x", "#", "no", "--d", "e", "--f", "(g)",
    ]  # fmt: skip
    assert at(text, found[1]) == "b c"
    assert [str(word) for word in words_in(script("$A ${B:-x y}"), {"A": Word("1 2")})] == [
        "1", "2", "x", "y",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("-7 / 2", -3),
        ("-7 % 2", -1),
        ("- (A - 5)", 3),
        ("1 / 0", None),
        ("1 +", None),
        ("1 2", None),
        ("(1", None),
        ("1)", None),
        ("", None),
        ("B", None),
        ("2 ** 8", None),
        ("010", None),
        ("99999999999999999 * 99999999999999999", None),
        ("1; echo", None),
    ],
)
def test_sums(text: str, value: int | None) -> None:
    assert evaluate(text, {"A": 2}.get) == value


# --- hostile texts --------------------------------------------------------------------------------

_SAMPLE = r"""#!/bin/bash
set -euo pipefail
MODEL="${1:-meta-llama/Llama-3.1-8B}"   # comment
: "${TP:=4}"
ARGS=(--a 1 --b "x y")
if [ -z "$LEN" ]; then LEN=4096; else ARGS+=(--c); fi
for gpu in 0 1; do CUDA_VISIBLE_DEVICES=$gpu vllm serve "$MODEL" --port $((8000 + gpu)) & done
case "$2" in a|b) X=1 ;; *) X=2 ;; esac
serve() { local m=$1; vllm serve "$m" --max-model-len=$LEN "${ARGS[@]}" "$@"; }
serve 'a/b' --json '{"a": [1, 2]}' > log 2>&1
cat > file <<EOF
vllm serve no $(date)
EOF
bash -c "exec vllm serve ${MODEL##*/} --tp \"$TP\" \
  --x \`hostname\` {{ .Values.y }}"
docker run --gpus '"device=0,1"' -e A=$B vllm/vllm-openai:v0.10.2 --model $MODEL
python3 -m sglang.launch_server --model-path "$MODEL" --tp $TP \
  # --off
  --mem-fraction-static 0.8
"""
_PIECES = st.sampled_from(
    [
        "$", "${", "}", "$((", "))", "$(", ")", "(", "`", "'", '"', "\\", "\\\n", "\n", " ", ";",
        "&", "|", "<<EOF\n", "<<<", "<(", ">", "if ", "then ", "else ", "fi\n", "for x in ", "do ",
        "done\n", "case $x in ", ";;", "esac\n", "{ ", "}\n", "f() {", "A=", "A+=(", "A=(", "$A",
        "${A:-", "${A[@]}", '"$@"', "vllm serve ", "bash -c ", "docker run ", "eval ", "--x ", "=",
        "export ", "[ -z $A ] && ", "{{", "}}", "#", "\u00e9", "\x00", "\r\n", "m", "1", "EOF\n",
        "ollama run ", "llama-server ", "source x\n", "\u2028", "\x85",
    ]
)  # fmt: skip


def check_places(text: str, found: list[Launch]) -> None:
    """Every word that says it stands in the file stands there."""
    file = SourceFile("run.sh", text)
    for launch in found:
        named = [each.at for each in launch.unresolved]
        for word in [*launch.words, launch.place, *launch.environment.values(), *named]:
            span = word.span
            if span is None:
                assert not word.exact
                continue
            start = file.starts[span.line - 1] + span.column - 1
            end = file.starts[span.end_line - 1] + span.end_column - 1
            assert 0 <= start <= end <= len(text)
            if word.exact:
                assert text[start:end] == word


@settings(max_examples=400, deadline=None)
@given(st.lists(_PIECES, max_size=60).map("".join))
def test_no_text_raises(text: str) -> None:
    check_places(text, launches_in(script(text), {"A": Word("1 $(B)"), "B": Word("x")}))
    text = "vllm serve m " + text
    check_places(text, launches_in(script(text), {}))
    words_in(script(text), {"A": Word("1 2")})


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(_SAMPLE)), st.integers(0, 40), _PIECES), min_size=1, max_size=5
    )
)
def test_no_changed_script_raises(changes: list[tuple[int, int, str]]) -> None:
    text = _SAMPLE
    for start, length, piece in changes:
        text = text[:start] + piece + text[start + length :]
    check_places(text, launches_in(script(text), {"LEN": Word("8")}))


def test_the_sample_is_read() -> None:
    found = started(_SAMPLE)
    check_places(_SAMPLE, found)
    assert [launch.engine for launch in found] == ["vllm"] * 5 + ["sglang"]
    assert [str(word) for word in found[-1].words][-2:] == ["--mem-fraction-static", "0.8"]


_LONG = 300_000
_UNITS = [
    "$", "${", "'", '"', "\\\n", "$((", "$(", "`", "(", ")", "<<A ", "a ", "-a\n", ";", "\\x",
    "if x;then ", "case x in ", "while x;do ", "f(){ ", "{{", "${a:-", '"$(', "A=b$A$A\n",
    "A=(${A[@]} ${A[@]} b)\n", "{ ", "f(){ vllm serve m; f; f; }\nf\n", "a=(", "vllm serve X $A;",
    "[ -z $X ] && X=5\n", "bash -c '", "${x##*/}", "export A\n",
    "case $1 in a) X=1;; *) X=2;; esac\n", "for i in {1..30}; do ",
    "for i in {1..30}; do :; done\n",
]  # fmt: skip


@pytest.mark.parametrize("unit", _UNITS)
def test_hostile_texts_take_no_longer_than_others(unit: str) -> None:
    text = "vllm serve m\n" + unit * (_LONG // len(unit))
    begin = time.process_time()
    found = started(text)
    assert found
    # A hundredth of it on an idle machine; what reads a text again and again takes minutes.
    assert time.process_time() - begin < 20


def test_long_scripts_are_read_to_the_end() -> None:
    line = 'vllm serve "$MODEL" --tensor-parallel-size $TP --max-model-len ${LEN:-4096} --pad '
    text = "MODEL=a/b\nTP=4\n" + (line + "a" * (498 - len(line)) + "\n") * 2_000
    begin = time.process_time()
    found = started(text)
    assert len(found) == 2_000
    assert [str(word) for word in found[-1].words[:5:2]] == ["a/b", "4", "4096"]
    assert time.process_time() - begin < 40


def test_texts_without_an_engine_cost_nothing() -> None:
    text = "if x; then y; fi\n" * 250_000
    begin = time.process_time()
    assert started(text) == []
    assert time.process_time() - begin < 5


def test_nothing_swells() -> None:
    doubled = "A=xxxxxxxxxxxxxxxx\n" + "A=$A$A\n" * 40 + "vllm serve m --x $A\n"
    assert len(one(doubled).words[-1]) < 1 << 20
    nested = {f"V{n}": f"$(V{n + 1})$(V{n + 1})" for n in range(60)}
    assert len(one("vllm serve $(V0)", **nested).words[0]) < 1 << 20
    array = "A=(a b c d)\n" + 'A+=("${A[@]}")\n' * 30 + 'vllm serve m "${A[@]}"\n'
    assert len(one(array).words) < 20_000
