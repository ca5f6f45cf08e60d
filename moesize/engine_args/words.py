"""Text of a shell into words: segments of commands, variables, containers, the program started.

Nothing is run. What a shell would need to know and this text does not say (`$TP`, `$(nproc)`,
`{{ .Values.tp }}`) stays in the word; `is_open` tells such words.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, NamedTuple

from moesize.core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

# The longest single argument that Linux hands to a program (MAX_ARG_STRLEN, 32 pages).
MOST_CHARACTERS = 1 << 17
_MOST_WORDS = 1 << 13
_MOST_FILLED = 1 << 12
_OPERATORS = ";&|<>\n"
_CONTINUATION = re.compile(r"\\[ \t]*\r?\n")
# `vllm serve <model>`: a place to fill in, no redirection.
_PLACEHOLDER = re.compile(r"(?<=[\s=])<([\w.-]{1,60})>(?=\s|$)")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
# $NAME, ${NAME:-default}, and $(NAME) of Kubernetes.
_VARIABLE = re.compile(
    r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?::?-([^{}$]*))?\}|\(([A-Za-z_]\w*)\))"
)


class Program(NamedTuple):
    """A program that was started: its engine, its own words, and what surrounds it.

    engine     None when the text holds flags alone
    words      what follows the program's name
    visible    GPUs that a variable or the container lets it see
    opened     files and programs that may hold further settings
    """

    engine: str | None
    words: tuple[str, ...]
    environment: dict[str, str]
    image: str | None = None
    visible: int | None = None
    opened: tuple[str, ...] = ()


def split_text(text: str) -> list[list[str]]:
    """The commands of a text, each as its words. Raises InvalidInputError."""
    if len(text) > MOST_CHARACTERS:
        raise InvalidInputError(
            f"--engine-args: {len(text):,} characters are too many",
            f"a shell takes at most {MOST_CHARACTERS:,} in one argument",
        )
    for char in text:
        if char < " " and char not in "\t\n\r":
            raise InvalidInputError(
                f"--engine-args: control character {ord(char):#04x} in the text",
                "paste the command as plain text",
            )
    if "#" in text:
        text = _without_comments(text)
    text = _CONTINUATION.sub(" ", text).replace("\r", " ")
    text = _PLACEHOLDER.sub(r"\\<\1\\>", text)
    lexer = shlex.shlex(text, posix=True, punctuation_chars=_OPERATORS)
    lexer.whitespace = " \t"
    lexer.whitespace_split = True
    lexer.commenters = ""
    segments: list[list[str]] = [[]]
    skip = False
    count = 0
    try:
        while (word := lexer.get_token()) is not None:
            count += 1
            if count > _MOST_WORDS:
                raise InvalidInputError(f"--engine-args: more than {_MOST_WORDS:,} words")
            if word and all(char in _OPERATORS for char in word):
                skip = ">" in word or "<" in word
                if not skip:
                    segments.append([])
                elif segments[-1] and segments[-1][-1] in ("1", "2"):
                    segments[-1].pop()  # of 2>&1
            elif skip:
                skip = False
            else:
                segments[-1].append(word)
    except ValueError as error:
        raise InvalidInputError(f"--engine-args: {error}".lower(), "check the quotes") from error
    found = [segment for segment in segments if segment]
    joined: list[list[str]] = []
    for segment in found:
        # A line that starts with a flag goes on the line before, backslash or not.
        if joined and segment[0].startswith("-"):
            joined[-1].extend(segment)
        else:
            joined.append(segment)
    return joined


def _without_comments(text: str) -> str:
    """Text without `# ...` at the start of a word, outside quotes."""
    kept: list[str] = []
    quote = ""
    escaped = inside = False
    before = " "
    for char in text:
        if inside:
            inside = char != "\n"
        elif escaped:
            escaped = False
        elif quote:
            escaped = char == "\\" and quote == '"'
            quote = "" if char == quote else quote
        elif char == "\\":
            escaped = True
        elif char in "'\"":
            quote = char
        elif char == "#" and before in " \t\n;&|":
            inside = True
        if not inside:
            kept.append(char)
        before = char
    return "".join(kept)


def is_open(word: str) -> bool:
    """Whether a word needs something that only the shell or template engine knows."""
    return "$" in word or "`" in word or "{{" in word or (word[:1] == "<" and word[-1:] == ">")


def fill_in(word: str, environment: dict[str, str]) -> str:
    """Variables of the text, and `${NAME:-default}`, put into a word."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2] or match[4]
        found: str | None = environment.get(name, match[3])
        return match[0] if found is None else found

    if "$" not in word:
        return word
    filled = _VARIABLE.sub(value, word)
    # Variables of variables double in each line: a word that swells is left as it was typed.
    return filled if len(filled) <= len(word) + _MOST_FILLED else word


def find_program(segments: list[list[str]], depth: int = 0) -> Program:
    """The engine that a text starts; a text of flags alone is a Program without an engine."""
    environment: dict[str, str] = {}
    for segment in segments:
        words = [fill_in(word, environment) for word in segment]
        position = 0
        while position < len(words):
            word = words[position]
            if _ASSIGNMENT.match(word):
                name, _, value = word.partition("=")
                environment[name] = value
            elif word not in ("export", "env", "set", "exec", "sudo", "nohup", "time", "command"):
                break
            position += 1
        words = words[position:]
        if not words:
            continue
        found = _started(words, environment, depth)
        if found is not None:
            return found
        if words[0].startswith("-"):
            return Program(None, tuple(words), environment, visible=visible_gpus(environment))
    if segments and environment and all(_ASSIGNMENT.match(word) for word in segments[-1]):
        return Program(None, (), environment, visible=visible_gpus(environment))
    first = segments[0][0] if segments else ""
    raise InvalidInputError(
        f"--engine-args: no engine is started by {first[:60]!r}",
        "paste flags, or a command such as `vllm serve MODEL --max-model-len 32k`",
    )


MODULES = {
    "vllm.entrypoints.openai.api_server": "vllm",
    "vllm.entrypoints.openai.rpc.server": "vllm",
    "vllm.entrypoints.api_server": "vllm",
    "vllm.entrypoints.cli.main": "vllm",
    "vllm": "vllm",
    "sglang.launch_server": "sglang",
    "sglang": "sglang",
    "dynamo.vllm": "vllm",
    "dynamo.sglang": "sglang",
    "dynamo.trtllm": "tensorrt-llm",
}
PROGRAMS = {
    "vllm": "vllm",
    "sglang": "sglang",
    "trtllm-serve": "tensorrt-llm",
    "text-generation-launcher": "tgi",
    "llama-server": "llama.cpp",
    "llama-cli": "llama.cpp",
}
# Programs of many uses: without its verb, `vllm` is a word like any other (pip install vllm).
OF_MANY_USES = ("vllm", "sglang")
# Words of a program before its flags.
VERBS = {
    "vllm": ("serve",),
    "sglang": ("serve", "launch_server"),
    "tensorrt-llm": ("serve",),
    "llama.cpp": ("--server",),
    "tgi": (),
}
RUNNERS = ("docker", "podman", "nerdctl")
SHELLS = ("bash", "sh", "zsh", "dash")


def base_name(word: str) -> str:
    name = word.replace("\\", "/").rpartition("/")[2].lower()
    return name.removesuffix(".exe")


def _started(words: list[str], environment: dict[str, str], depth: int) -> Program | None:
    for index, word in enumerate(words):
        name, rest = base_name(word), words[index + 1 :]
        if name in SHELLS and depth < 3:
            for place, option in enumerate(rest[:-1]):
                if option.startswith("-") and option.endswith("c"):
                    inner = find_program(split_text(rest[place + 1]), depth + 1)
                    merged = {**environment, **inner.environment}
                    return inner._replace(
                        environment=merged, visible=inner.visible or visible_gpus(merged)
                    )
        if name in RUNNERS and rest[:1] in (["run"], ["exec"], ["create"]):
            return _container(rest[1:], environment, depth)
        engine = PROGRAMS.get(name)
        if name in OF_MANY_USES and (not rest or rest[0] not in VERBS[name]):
            engine = None
        if word == "-m" and rest and rest[0] in MODULES:
            engine, rest = MODULES[rest[0]], rest[1:]
        elif name == "api_server.py":
            engine = "vllm"
        elif name == "launch_server.py":
            engine = "sglang"
        if engine is not None:
            if rest and rest[0] in VERBS[engine]:
                rest = rest[1:]
            visible = visible_gpus(environment)
            return Program(engine, tuple(rest), dict(environment), visible=visible)
        if word.startswith("-") and index == 0:
            return None
    return None


# Options of `docker run` that take no value.
CONTAINER_SWITCHES = frozenset(
    (
        "--rm",
        "--init",
        "--privileged",
        "--read-only",
        "--no-healthcheck",
        "--sig-proxy",
        "--oom-kill-disable",
        "--detach",
        "--interactive",
        "--tty",
        "--publish-all",
        "--quiet",
        "--disable-content-trust",
        "--replace",
    )
)
_IMAGES = (
    ("text-generation-inference", "tgi"),
    ("tensorrt", "tensorrt-llm"),
    ("trtllm", "tensorrt-llm"),
    ("sglang", "sglang"),
    ("llama.cpp", "llama.cpp"),
    ("llamacpp", "llama.cpp"),
    ("llama-cpp", "llama.cpp"),
    ("vllm", "vllm"),
)


def engine_of_image(image: str) -> str | None:
    """The engine that a container image serves with, by its name."""
    lowered = image.lower()
    return next((engine for part, engine in _IMAGES if part in lowered), None)


def _container(words: list[str], environment: dict[str, str], depth: int) -> Program | None:
    inside: dict[str, str] = {}
    opened: list[str] = []
    gpus: int | None = None
    entry = ""
    position = 0
    while position < len(words) and words[position].startswith("-"):
        option, equals, value = words[position].partition("=")
        position += 1
        letters = option[1:]
        short = not option.startswith("--")
        if option in CONTAINER_SWITCHES or (short and letters and set(letters) <= set("ditPq")):
            continue
        if not equals:
            if short and len(letters) > 1 and letters[0] in "evpwuh":
                option, value = option[:2], letters[1:]  # -p8000:8000
            elif position < len(words):
                value = words[position]
                position += 1
        if option in ("-e", "--env"):
            name, has, content = value.partition("=")
            inside[name] = content if has else environment.get(name, "$" + name)
        elif option == "--env-file":
            opened.append(f"--env-file {value}")
        elif option == "--gpus":
            gpus = gpus_of(value)
        elif option == "--entrypoint":
            entry = value
    if position >= len(words):
        return None
    image, rest = words[position], words[position + 1 :]
    if entry:
        rest = [*entry.split(), *rest]
    engine = engine_of_image(image)
    found = _started(rest, inside, depth) if rest and not rest[0].startswith("-") else None
    if found is None:
        if engine is None:
            return None
        if rest and rest[0] in VERBS[engine]:
            rest = rest[1:]
        found = Program(engine, tuple(rest), inside, visible=visible_gpus(inside))
    return found._replace(
        image=image, visible=found.visible or gpus, opened=(*found.opened, *opened)
    )


def gpus_of(value: str) -> int | None:
    """GPUs of `--gpus 2`, `--gpus '"device=0,1"'`; None for all."""
    value = value.strip("'\"")
    if value.isdigit():
        return int(value[:6]) or None
    _, equals, devices = value.partition("device=")
    if not equals:
        return None
    return len([part for part in devices.strip("'\"").split(",") if part]) or None


def visible_gpus(environment: Mapping[str, str]) -> int | None:
    """How many GPUs a list of visible devices names; None where it says nothing countable."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        value = environment.get(name, "")
        devices = [part.strip() for part in value.split(",") if part.strip()]
        if devices and not is_open(value) and devices[0] not in ("all", "void", "none", "-1"):
            return len(devices)
    return None


def version_of_image(engine: str, image: str) -> str | None:
    """The release that an image's tag names (`vllm/vllm-openai:v0.10.2`), where it names one."""
    tag = image.partition("@")[0].rpartition("/")[2].partition(":")[2]
    pattern = r"v?(\d+\.\d+(?:\.\d+)?(?:\.post\d+|rc\d+)?)(?![\d.])"
    match = re.match(pattern, tag)
    if match is None or engine in ("llama.cpp", "transformers") or is_open(tag):
        return None
    own = {
        "vllm": ("vllm-openai", "vllm-openai-rocm"),
        "sglang": ("sglang",),
        "tgi": ("text-generation-inference",),
        "tensorrt-llm": ("release", "tensorrt-llm-release"),
    }
    name = image.partition("@")[0].rpartition("/")[2].partition(":")[0].lower()
    return match[1] if name in own.get(engine, ()) else None
