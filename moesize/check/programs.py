"""The programs that start engines, in the words of a command or of a container."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from moesize.check.server import Unresolved
from moesize.check.shell_values import (
    Field,
    Piece,
    PiecesText,
    WordOrigin,
    open_name,
    plain_field,
)
from moesize.check.source import SourceText, Word
from moesize.engine_args.words import (
    CONTAINER_SWITCHES,
    MODULES,
    OF_MANY_USES,
    PROGRAMS,
    RUNNERS,
    VERBS,
    base_name,
    engine_of_image,
    gpus_of,
    is_open,
    visible_gpus,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from moesize.check.shell_values import Budget, Text

    Opener = Callable[[str], SourceText | None]


class Container(NamedTuple):
    """What `docker run` says around an image.

    gpus        the value of --gpus or of a CDI --device
    devices     GPUs that it names one by one
    shm, memory values of --shm-size and --memory
    host_ipc    /dev/shm is the host's
    name        of --name
    detached    it runs on beside what follows
    """

    gpus: Word | None = None
    devices: tuple[str, ...] = ()
    shm: Word | None = None
    memory: Word | None = None
    host_ipc: bool = False
    name: Word | None = None
    detached: bool = False


class Launch(NamedTuple):
    """An engine that a text starts.

    words         what follows the program, its verb (`serve`) left out; variables filled in
    environment   variables that the program sees
    place         the word that names the program
    image         of `docker run IMAGE`
    visible       GPUs that CUDA_VISIBLE_DEVICES or `docker run --gpus` lets it see
    unresolved    variables in `words` that nothing defines
    devices       which GPUs those are, where they are named
    container     what `docker run` says beside the image
    background    the text goes on while it runs (`&`, `docker run -d`)
    alternative   it stands in one branch of an `if` or `case`
    round         how often the text has ended something before (`kill`, `docker stop`, `wait`)
    """

    engine: str
    words: tuple[Word, ...]
    environment: dict[str, Word]
    place: Word
    image: Word | None = None
    visible: int | None = None
    unresolved: tuple[Unresolved, ...] = ()
    devices: tuple[str, ...] = ()
    container: Container | None = None
    background: bool = False
    alternative: bool = False
    round: int = 0


# --- tables ---------------------------------------------------------------------------------------

# Without any of these in it, a text starts nothing.
_ENGINE_WORDS = (
    "vllm", "sglang", "trtllm", "tensorrt", "text-generation", "llama", "gguf", "lmdeploy",
    "mlc_llm", "aphrodite", "dynamo", "huggingfaceserver", "launch_server", "api_server",
    "nvcr.io/nim",
)  # fmt: skip
SHELL_NAMES = frozenset(("bash", "sh", "zsh", "dash", "ash"))
# Programs that start another one: what follows them, after options, is looked at as a program.
_WRAPPER_NAMES = """
    sudo doas exec nohup time env command builtin setsid stdbuf nice ionice chrt taskset numactl
    timeout tini dumb-init gosu su-exec su runuser chroot unshare catchsegv mpirun mpiexec orterun
    srun prun torchrun accelerate deepspeed horovodrun trtllm-llmapi-launch uv uvx poetry pipenv
    pdm hatch rye conda mamba micromamba pixi screen tmux nsys ncu rocprof rocprofv3 perf strace
    ltrace gdb valgrind xvfb-run systemd-run systemd-cat supervise chpst setpriv s6-setuidgid
    with-contenv apptainer singularity enroot nvidia_entrypoint.sh entrypoint.sh
    opentelemetry-instrument ddtrace-run memray scalene py-spy flock parallel xargs watch ssh
    doppler infisical op aws-vault dotenv direnv cuda-checkpoint
"""
_WRAPPERS = frozenset(_WRAPPER_NAMES.split())
# Those of them that take a command as one quoted text.
_QUOTING = ("ssh", "tmux", "screen", "su", "runuser", "srun", "flock", "watch")
# Programs that only mention an engine.
_MENTION_NAMES = """
    echo printf print pip pip3 pipx git gh grep egrep fgrep rg ag pkill pgrep killall kill ps which
    whereis type test [ [[ cd pushd mkdir rm rmdir cp mv ln ls cat head tail less more curl wget
    http apt apt-get yum dnf apk brew pacman snap chmod chown chgrp make cmake ninja meson gcc g++
    tar unzip zip gzip sed awk cut sort tee sleep wait systemctl journalctl service supervisorctl
    launchctl helm kubectl oc kustomize terraform hf huggingface-cli modelscope aws gsutil gcloud az
    rclone rsync scp alias trap true false exit return jq yq nvidia-smi rocm-smi lsof netstat ss
    fuser nc find touch man help log logger info warn error die fail usage say log_info log_error
    bats pytest notify-send read cargo go npm docker-compose vi vim nano basename dirname realpath
    readlink lm_eval guidellm genai-perf
"""
_MENTIONS = frozenset(_MENTION_NAMES.split())
_MODULES_OF_OTHERS = {
    "aphrodite.endpoints.openai.api_server": "aphrodite",
    "lmdeploy": "lmdeploy",
    "mlc_llm": "mlc-llm",
    "huggingfaceserver": "huggingfaceserver",
    "sglang_router.launch_server": "sglang",
    "tensorrt_llm.commands.serve": "tensorrt-llm",
}
# Programs and modules of many uses, with the words that make them serve.
_PROGRAMS_OF_OTHERS = {
    "lmdeploy": ("lmdeploy", ("serve", "api_server")),
    "mlc_llm": ("mlc-llm", ("serve",)),
    "aphrodite": ("aphrodite", ("run",)),
}
# Programs that are given as the path of a script.
_SCRIPTS = {"api_server.py": "vllm", "launch_server.py": "sglang"}
_MODULES_WITH_VERB = ("vllm", "sglang", "vllm.entrypoints.cli.main")
# `trtllm-serve disaggregated`: a router, no engine.
_NO_SERVERS = {"tensorrt-llm": ("disaggregated", "disaggregated_mpi_worker", "mm_embedding_serve")}
_NAMING_OPTIONS = ("--name", "--job-name", "-J", "--target", "--container-name", "--unit", "-S")
_ASKING = ("--help", "-h", "--version")
_PYTHON = re.compile(r"(?:python|pypy)[\d.]{0,6}w?")
_SET = re.compile(r"([A-Za-z_][A-Za-z0-9_]{0,200})=")
_PROGRAM_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w{0,60})\}?")
_MOST_LOOKED_AT = 256
# Images that serve nothing, whatever engine they name.
_HELPERS = (
    "router",
    "gateway",
    "exporter",
    "benchmark",
    "sidecar",
    "operator",
    "controller",
    "scheduler",
    "dashboard",
    "webui",
    "syncer",
    "text-embeddings",
)
# huggingfaceserver's own flags; all others are vLLM's (python/huggingfaceserver and
# python/kserve/kserve/model_server.py of KServe).
_KSERVE_VALUES = """
    model-name model-dir model-revision tokenizer-revision backend task http-port grpc-port workers
    max-threads max-asyncio-workers enable-grpc enable-docs-url enable-latency-logging
    configure-logging log-config-file access-log-format predictor-host protocol predictor-protocol
    predictor-use-ssl predictor-request-timeout-seconds predictor-request-retries max-log-len
    tensor-input-names
"""
_KSERVE_FLAGS = frozenset(_KSERVE_VALUES.split())
_KSERVE_SWITCHES = (
    "disable-lower-case",
    "disable-special-tokens",
    "return-token-type-ids",
    "return-probabilities",
    "disable-log-requests",
)
_KSERVE_NAMES = {"model-id": "--model", "max-length": "--max-model-len"}


def program_name(word: str) -> str:
    return base_name(word[-300:])


def _names_engine(text: str) -> bool:
    lowered = text.lower()
    return any(word in lowered for word in _ENGINE_WORDS)


def may_start(value: str, environment: Mapping[str, Word], arguments: Sequence[Word]) -> bool:
    """Whether any engine is named at all; most texts end here."""
    if _names_engine(value):
        return True
    if "$" not in value:
        return False
    return any(_names_engine(word) for word in arguments) or any(
        _names_engine(word) for word in environment.values()
    )


def looks_like_start(fields: Sequence[Field]) -> bool:
    """Whether a command may start an engine; most commands of a script do not."""
    return any(
        "$" in field.word or _names_engine(field.word) or field.word.endswith("/server")
        for field in fields
    )


def started(
    fields: Sequence[Field],
    environment: Mapping[str, Word],
    image: Word | None,
    budget: Budget,
    *,
    depth: int = 0,
    fixed: frozenset[str] = frozenset(),
    read_file: Opener | None = None,
) -> list[Launch]:
    """The engines that one command starts, or a container of this image with these words."""
    programs = Programs(budget, depth, fixed, read_file)
    return programs.started(list(fields), environment, image)


class Programs:
    """Looks for the program in the words of a command."""

    def __init__(
        self,
        budget: Budget,
        depth: int,
        fixed: frozenset[str],
        read_file: Opener | None,
    ) -> None:
        self.budget = budget
        self.depth = depth
        self.fixed = fixed
        self.read_file = read_file

    def started(
        self, fields: list[Field], given: Mapping[str, Word], image: Word | None
    ) -> list[Launch]:
        """Launches of one command, or of a container with this image."""
        environment = dict(given)
        while fields and (match := _SET.match(fields[0].word)):
            environment[match[1]] = fields[0].word.cut(match.end())
            fields = fields[1:]
        found = self.by_program(fields, environment)
        if found is None and image is not None:
            found = self.by_image(fields, environment, image)
        return found or []

    def by_program(self, fields: list[Field], environment: dict[str, Word]) -> list[Launch] | None:
        """Launches by a program that the words name; None: they name none that is known."""
        is_wrapped = False  # the words before start whatever follows
        after_python = False
        for index, field in enumerate(fields[:_MOST_LOOKED_AT]):
            word = field.word
            if word.startswith("-") and word != "-m":
                if index == 0:
                    return None
                if after_python and word == "-c":
                    return []
                is_wrapped = is_wrapped or word == "--"
                continue
            name = program_name(word)
            at_program = index == 0 or is_wrapped
            if at_program and not after_python and name in _MENTIONS:
                return []
            if at_program and (match := _SET.match(word)):
                environment[match[1]] = word.cut(match.end())
                continue
            found = self.engine_at(fields, index, environment, at_program=at_program)
            if found is not None:
                return found
            if word == "-m" and after_python:
                return []
            if at_program:
                found = self.handed_on(name, fields[index + 1 :], environment)
                if found is not None:
                    return found
            after_python = bool(_PYTHON.fullmatch(name))
            is_wrapped = (
                is_wrapped
                or after_python
                or name in _WRAPPERS
                or name in SHELL_NAMES
                or (at_program and name in RUNNERS)
                or (index == 0 and bool(open_name(word)))
            )
        return None

    def engine_at(
        self, fields: list[Field], index: int, environment: dict[str, Word], *, at_program: bool
    ) -> list[Launch] | None:
        """Launches where the word itself is an engine's program; None where it is none."""
        place, rest = fields[index], fields[index + 1 :]
        word, name = place.word, program_name(place.word)
        if at_program and (called := _PROGRAM_VARIABLE.fullmatch(word)):
            # $VLLM_BIN serve, "$LLAMA_SERVER" -m: the name tells what is called.
            name = called[1].lower().replace("_", "-")
            name = "vllm" if "vllm" in name else "llama-server" if "llama-server" in name else ""
        following = rest[0].word if rest else Word("")
        if word == "-m":
            engine = MODULES.get(following) or _MODULES_OF_OTHERS.get(following)
            if engine is None:
                return None
            return self.of_module(engine, rest[0], rest[1:], environment)
        if name in OF_MANY_USES:
            if following not in VERBS[name]:
                return None
            return self.launch(PROGRAMS[name], place, rest, environment)
        if name in _PROGRAMS_OF_OTHERS:
            engine, verbs = _PROGRAMS_OF_OTHERS[name]
            if following != verbs[0]:
                return None
            return self.launch(engine, place, _without(rest, verbs), environment)
        before = fields[index - 1].word if index else ""
        if not at_program or before in _NAMING_OPTIONS:
            return None
        if name == "ollama":
            return self.ollama(place, rest, environment)
        engine = _SCRIPTS.get(name) or PROGRAMS.get(name)
        if name.startswith("llama-server") or (name == "server" and _is_llama_server(word, rest)):
            engine = "llama.cpp"
        return self.launch(engine, place, rest, environment) if engine is not None else None

    def handed_on(
        self, name: str, rest: list[Field], environment: dict[str, Word]
    ) -> list[Launch] | None:
        """Launches of a program that runs a text or a container; None: look at the next word."""
        if name in SHELL_NAMES:
            return self.shell(rest, environment)
        if name == "eval":
            return self.text(_with_blanks(rest), environment, ())
        if name == "sbatch":
            wrapped = next((f.word for f in rest[:50] if f.word.startswith("--wrap=")), None)
            if wrapped is None:
                return []
            return self.text(plain_field(wrapped.cut(len("--wrap="))), environment, ())
        if name in _QUOTING:
            return self.quoted(rest, environment) or None
        if name in RUNNERS:
            words = [str(field.word) for field in rest[:5]]
            while words and (words[0].startswith("-") or words[0] == "container"):
                words.pop(0)
                rest = rest[1:]
            if words and words[0] in ("run", "create"):
                return self.container(rest[1:], environment)
            return None if words and words[0] == "exec" else []
        return None

    def of_module(
        self, engine: str, place: Field, rest: list[Field], environment: dict[str, Word]
    ) -> list[Launch] | None:
        """`python -m MODULE ...`."""
        if engine == "huggingfaceserver":
            return self.launch("vllm", place, _of_huggingface(rest), environment)
        first = rest[0].word if rest else ""
        if place.word in _MODULES_WITH_VERB and first not in VERBS[engine]:
            return []
        if place.word in _PROGRAMS_OF_OTHERS:
            verbs = _PROGRAMS_OF_OTHERS[place.word][1]
            if first != verbs[0]:
                return []
            rest = _without(rest, verbs)
        return self.launch(engine, place, rest, environment)

    def launch(
        self,
        engine: str,
        place: Field,
        rest: Sequence[Field],
        environment: dict[str, Word],
    ) -> list[Launch]:
        """The one launch of a program and the words after it."""
        first = rest[0].word if rest else ""
        if first in _NO_SERVERS.get(engine, ()):
            return []
        if first in VERBS.get(engine, ()):
            rest = rest[1:]
        if any(field.word in _ASKING for field in rest[:1]) and len(rest) == 1:
            return []
        words = tuple(field.word for field in rest)
        return [
            Launch(
                engine,
                words,
                environment,
                place.word,
                visible=visible_gpus(environment),
                unresolved=_unresolved(rest, environment),
                devices=_devices(environment),
            )
        ]

    def ollama(self, place: Field, rest: list[Field], environment: dict[str, Word]) -> list[Launch]:
        """`ollama serve`, `ollama run MODEL`, `ollama create NAME -f FILE`, `ollama pull MODEL`."""
        verb = rest[0].word if rest else Word("")
        if verb not in ("serve", "start", "run", "pull", "create"):
            return []
        words = rest[1:]
        if verb in ("serve", "start"):
            words = []
        elif verb != "create":
            words = [field for field in words if not field.word.startswith("-")][:1]
            if not words:
                return []
        found = self.launch("ollama", place, words, environment)
        return [launch._replace(place=_verb_place(place.word, verb)) for launch in found]

    def shell(self, rest: list[Field], environment: dict[str, Word]) -> list[Launch] | None:
        """`sh -c TEXT NAME ARGUMENTS...`; None when there is no -c."""
        position, has_text = 0, False
        while position < len(rest):
            option = rest[position].word
            if option == "--":
                position += 1
                break
            if option[:1] not in ("-", "+") or len(option) < 2:
                break
            position += 1
            if not option.startswith("--"):
                has_text = has_text or ("c" in option and option[0] == "-")
                if option.endswith(("o", "O")):
                    position += 1
        if not has_text or position >= len(rest):
            return None
        text = rest[position]
        return self.text(text, environment, [field.word for field in rest[position + 2 :]])

    def quoted(self, rest: list[Field], environment: dict[str, Word]) -> list[Launch]:
        """Commands that are handed on as one quoted text: `ssh HOST "vllm serve ..."`."""
        for field in rest[:20]:
            if " " in field.word.strip() and not field.word.startswith("-"):
                found = self.text(field, environment, ())
                if found:
                    return found
        return []

    def text(
        self, field: Field, environment: dict[str, Word], arguments: Sequence[Word]
    ) -> list[Launch]:
        """A word that is a shell text of its own."""
        from moesize.check.shell_walk import run_text

        value = field.value
        whole = value[0].origin if len(value) == 1 else None
        source: Text = PiecesText(value)
        if isinstance(whole, SourceText) and whole.value == value[0].text:
            source = whole
        if not self.budget.take(len(source.value)):
            return []
        return run_text(
            source,
            environment,
            arguments,
            self.budget,
            depth=self.depth + 1,
            fixed=self.fixed,
            read_file=self.read_file,
        )

    def container(self, words: list[Field], environment: dict[str, Word]) -> list[Launch]:
        """`docker run OPTIONS IMAGE ARGUMENTS`."""
        inside: dict[str, Word] = {}
        entry: Word | None = None
        said = Container()
        position = 0
        while position < len(words) and words[position].word.startswith("-"):
            typed = words[position].word
            option, equals, _ = typed.partition("=")
            position += 1
            letters = option[1:]
            is_short = not option.startswith("--")
            if option in ("-d", "--detach") or (
                is_short and "d" in letters and set(letters) <= set("ditPq")
            ):
                said = said._replace(detached=True)
                continue
            if option in CONTAINER_SWITCHES or (
                is_short and letters and set(letters) <= set("itPq")
            ):
                continue
            value = typed.cut(len(option) + 1) if equals else Word("")
            if is_short and len(letters) > 1 and letters[0] in "evpwuhm":
                value, option = typed.cut(2), option[:2]  # -p8000:8000, -eNAME=value
            elif not equals and position < len(words):
                value = words[position].word
                position += 1
            if option in ("-e", "--env"):
                name, has, _ = value.partition("=")
                if has:
                    inside[name] = value.cut(len(name) + 1)
                elif name in environment:
                    inside[name] = environment[name]
                else:
                    inside[name] = value.becomes("$" + name)
            elif option == "--env-file":
                inside = {**self.variables_of(value), **inside}
            elif option == "--entrypoint":
                entry = value
            else:
                said = _container_option(said, option, value)
        position = _image_position(words, position)
        if position >= len(words):
            return []
        image, rest = words[position].word, words[position + 1 :]
        if entry is not None:
            rest = [plain_field(entry), *rest]
        found = self.started(rest, inside, image if entry is None else None)
        visible = gpus_of(said.gpus) if said.gpus is not None else None
        return [
            launch._replace(
                image=launch.image or image,
                visible=launch.visible or visible,
                devices=launch.devices or said.devices,
                container=said,
                background=launch.background or said.detached,
            )
            for launch in found
        ]

    def variables_of(self, name: Word) -> dict[str, Word]:
        """The variables of a file that `docker run --env-file` names."""
        from moesize.check.readers.compose_words import read_env_file

        text = self.read_file(str(name)) if self.read_file is not None else None
        return read_env_file(text) if text is not None else {}

    def by_image(
        self, fields: list[Field], environment: dict[str, Word], image: Word
    ) -> list[Launch]:
        """What an image's own entrypoint makes of the words."""
        name = image.partition("@")[0].lower()
        first = fields[0].word if fields else Word("")
        place = plain_field(image)
        if "nvcr.io/nim/" in name or name.startswith("nim/"):
            found = self.launch("nim", place, fields, environment) or []
            return [launch._replace(image=image) for launch in found]
        engine = _entry_of_image(name)
        if engine is None:
            return []
        if engine == "ollama":
            found = self.ollama(place, fields or [plain_field(Word("serve"))], environment)
            return [launch._replace(image=image, place=image) for launch in found]
        tag = name.rpartition("/")[2].partition(":")[2]
        if engine == "llama.cpp" and tag.startswith("full"):
            if first not in ("--server", "-s"):
                return []
            fields = fields[1:]
        elif not (_are_arguments(engine, first) if fields else _has_entrypoint(engine, name)):
            return []
        if engine == "huggingfaceserver":
            engine, fields = "vllm", _of_huggingface(fields)
        found = self.launch(engine, place, fields, environment)
        return [launch._replace(image=image) for launch in found]


def _image_position(words: Sequence[Field], position: int) -> int:
    """Pass over variables that hold further options: `docker run $OPTIONS IMAGE`."""
    start = position
    while position < len(words) and position < start + 10:
        match = _PROGRAM_VARIABLE.fullmatch(words[position].word)
        if match is None:
            break
        position += 1
    if position > start and position < len(words) and _entry_of_image(words[position].word.lower()):
        return position
    return start


def _without(fields: list[Field], verbs: Sequence[str]) -> list[Field]:
    """Words without the verbs that they begin with."""
    for verb in verbs:
        if fields and fields[0].word == verb:
            fields = fields[1:]
    return fields


def _with_blanks(fields: Sequence[Field]) -> Field:
    """Words as one text, as `eval` reads them."""
    value: list[Piece] = []
    for field in fields:
        if value:
            value.append(Piece(" ", WordOrigin(Word(" ", field.word.span)), 0, 1))
        value += field.value
    return Field(fields[0].word if fields else Word(""), tuple(value))


def _verb_place(program: Word, verb: Word) -> Word:
    """The program and its verb as one place, where they stand on one line."""
    first, last = program.span, verb.span
    if first is None or last is None or first.path != last.path or first.line != last.line:
        return program
    return Word(f"{program} {verb}", first._replace(end_column=last.end_column))


def _is_llama_server(word: str, rest: Sequence[Field]) -> bool:
    """llama.cpp called its server `server` until 2024."""
    if "/" not in word:
        return False
    return any(field.word.lower().endswith(".gguf") for field in rest[:64])


def _unresolved(fields: Sequence[Field], environment: Mapping[str, Word]) -> tuple[Unresolved, ...]:
    """Variables in words that nothing defines."""
    found: dict[tuple[str, int], Unresolved] = {}
    for number, field in enumerate(fields):
        names = field.open_names()
        for name in names:
            known = environment.get(name)
            if known is None or open_name(known[:1000]) or known == "":
                found[name, number] = Unresolved(name, field.word)
    return tuple(found.values())


def _devices(environment: Mapping[str, Word]) -> tuple[str, ...]:
    """GPUs that CUDA_VISIBLE_DEVICES names."""
    if visible_gpus(environment) is None:
        return ()
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        value = environment.get(name, "")
        if value and not is_open(value):
            return tuple(part.strip() for part in value[:1000].split(",") if part.strip())
    return ()


def _container_option(said: Container, option: str, value: Word) -> Container:
    if option == "--gpus":
        _, has, devices = value.partition("device=")
        named = tuple(
            part for part in devices.strip("'\"").split(",") if has and part and len(part) < 100
        )
        return said._replace(gpus=value, devices=named)
    if option == "--device" and value.startswith("nvidia.com/gpu="):
        which = value.cut(len("nvidia.com/gpu="))
        if which == "all":
            return said._replace(gpus=which)
        return said._replace(devices=(*said.devices, str(which)))
    if option == "--shm-size":
        return said._replace(shm=value)
    if option in ("--memory", "-m"):
        return said._replace(memory=value)
    if option == "--ipc" and value == "host":
        return said._replace(host_ipc=True)
    if option == "--name":
        return said._replace(name=value)
    return said


def _entry_of_image(name: str) -> str | None:
    """The engine of an image, by its lower-case name."""
    last = name.rpartition("/")[2].partition(":")[0]
    if any(part in last for part in _HELPERS):
        return None
    if "huggingfaceserver" in last:
        return "huggingfaceserver"
    if last == "ollama":
        return "ollama"
    if "aphrodite" in name:
        return "aphrodite"
    if "lmdeploy" in name:
        return "lmdeploy"
    return engine_of_image(name)


def _are_arguments(engine: str, first: Word) -> bool:
    """Whether the first word is one of the engine's own, not another program."""
    if first.startswith("-") or first in VERBS.get(engine, ()):
        return True
    if engine in ("vllm", "tensorrt-llm", "aphrodite"):
        # `vllm serve MODEL`: owner/name, or a variable.
        return bool(open_name(first)) or (
            first.count("/") == 1 and first[0] not in "./" and not first.endswith((".sh", ".py"))
        )
    return False


def _has_entrypoint(engine: str, name: str) -> bool:
    """Whether an image serves when nothing is said to it."""
    last, _, tag = name.rpartition("/")[2].partition(":")
    if engine == "vllm":
        return "vllm-openai" in last or "vllm-cpu-release" in last
    if engine == "llama.cpp":
        return "server" in last or tag.startswith("server")
    return engine in ("tgi", "aphrodite", "huggingfaceserver")


def _of_huggingface(fields: Sequence[Field]) -> list[Field]:
    """The words of KServe's huggingfaceserver as vLLM reads them."""
    found: list[Field] = []
    position = 0
    while position < len(fields):
        field = fields[position]
        position += 1
        name, equals, _ = field.word.partition("=")
        bare = name[2:].replace("_", "-") if name.startswith("--") else ""
        has_value = not equals and position < len(fields)
        if bare in _KSERVE_NAMES:
            found.append(plain_field(field.word.cut(0, len(name)).becomes(_KSERVE_NAMES[bare])))
            if equals:
                value = field.word.cut(len(name) + 1)
                found.append(plain_field(value, open_name(value)))
        elif bare in _KSERVE_FLAGS:
            position += has_value
        elif bare not in _KSERVE_SWITCHES:
            found.append(field)
    return found


def join_ollama(found: list[Launch]) -> list[Launch]:
    """What Ollama pulls or runs is what its server serves: one launch for each model."""
    ollama = [launch for launch in found if launch.engine == "ollama"]
    if not ollama:
        return found
    servers = [launch for launch in ollama if not launch.words]
    pulled = [launch for launch in ollama if launch.words and launch.place.endswith(" pull")]
    if not servers:
        gone = {id(launch) for launch in pulled} if len(pulled) < len(ollama) else set()
    else:
        gone = set()
    models: set[str] = set()
    kept: list[Launch] = []
    has_model = len(servers) < len(ollama)
    environment = dict(servers[0].environment) if servers else {}
    for launch in found:
        if launch.engine != "ollama":
            kept.append(launch)
        elif launch.words and id(launch) not in gone:
            if launch.words[0] not in models:
                models.add(str(launch.words[0]))
                kept.append(launch._replace(environment={**launch.environment, **environment}))
        elif not launch.words and not has_model:
            kept.append(launch)
    return kept
