"""What the user says beside the files: options, and moesize.toml or pyproject.toml.

A configuration is found upwards from the first path that is checked, up to the root of the
repository. Its globs and paths are relative to the folder it stands in. An option of the command
line wins over it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from moesize.check.findings import SEVERITIES
from moesize.check.paths import path_matches
from moesize.check.rules import RULES, expand_rules, find_rule
from moesize.core.errors import CannotAnswerError, InvalidInputError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from moesize.check.findings import Severity

FailOn = Literal["error", "warning", "info", "never"]
FAIL_ON: tuple[FailOn, ...] = (*SEVERITIES, "never")
FILE_NAMES = ("moesize.toml", ".moesize.toml", "pyproject.toml")
DEFAULT_HEADROOM = 0.05
_MAX_BYTES = 1 << 20
_ALL_RULES = frozenset(rule.id for rule in RULES)
_TABLE = re.compile(r"\s*\[\[?\s*([^\]#]+?)\s*\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the judge is told.

    gpu, gpus     the GPU, and how many of it, for files that name none
    gpu_names     what names and labels in files stand for: claim -> GPU
    gpu_by_path   (glob, GPU): the first that matches a file's path goes before `gpu`
    gpu_labels    `key=value` of node selectors -> GPU
    models        what names in files stand for: catalogue name, hub id or path
    headroom      share of a GPU that is to be left over, below which MS104 warns
    concurrency   requests at once that every server is to hold
    online        ask the hub for models that the catalogue does not know
    engine_versions   engine -> release, where the file's image names none
    rules         ids of the rules that are reported
    severities    rules with another severity than their own
    """

    gpu: str | None = None
    gpus: int | None = None
    gpu_names: Mapping[str, str] = field(default_factory=dict)
    gpu_by_path: tuple[tuple[str, str], ...] = ()
    gpu_labels: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    headroom: float = DEFAULT_HEADROOM
    concurrency: int | None = None
    online: bool = False
    engine_versions: Mapping[str, str] = field(default_factory=dict)
    rules: frozenset[str] = _ALL_RULES
    severities: Mapping[str, Severity] = field(default_factory=dict)

    def gpu_for(self, path: str) -> str | None:
        """The GPU for a file that names none; `path` is relative to the configuration's folder."""
        for glob, gpu in self.gpu_by_path:
            if path_matches(glob, path):
                return gpu
        return self.gpu

    def for_file(self, path: str) -> Settings:
        """The settings as they are for one file."""
        return replace(self, gpu=self.gpu_for(path), gpu_by_path=())


@dataclass(slots=True, kw_only=True)
class Configuration:
    """A configuration file as read; without one, the defaults. `folder` is where its globs begin.

    None means that the file does not say.
    """

    file: str = ""
    folder: Path = field(default_factory=Path)
    select: list[str] | None = None
    ignore: list[str] = field(default_factory=list)
    fail_on: FailOn | None = None
    strict: bool = False
    allow_empty: bool = False
    exclude: list[str] = field(default_factory=list)
    include: list[str] = field(default_factory=list)
    headroom: float = DEFAULT_HEADROOM
    concurrency: int | None = None
    per_file_ignores: dict[str, list[str]] = field(default_factory=dict)
    severities: dict[str, Severity] = field(default_factory=dict)
    baseline: Path | None = None
    online: bool = False
    gpu: str | None = None
    gpus: int | None = None
    gpu_names: dict[str, str] = field(default_factory=dict)
    gpu_by_path: dict[str, str] = field(default_factory=dict)
    gpu_labels: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    engine_versions: dict[str, str] = field(default_factory=dict)

    def relative(self, path: Path) -> str:
        """An absolute path as the globs see it."""
        try:
            return Path(os.path.relpath(path, self.folder)).as_posix()
        except ValueError:  # another drive
            return path.as_posix()

    def ignored_rules(self, path: str) -> set[str]:
        """Rules that `per-file-ignores` switches off for a path relative to `folder`."""
        return {
            rule
            for glob, rules in self.per_file_ignores.items()
            if path_matches(glob, path)
            for rule in rules
        }


def active_rules(select: Iterable[str] | None, ignore: Iterable[str]) -> frozenset[str]:
    """Ids of the rules that are reported. Raises UnknownNameError.

    A file that could not be read is said whatever is selected: nothing was checked in it.
    """
    chosen = _ALL_RULES if select is None else frozenset(expand_rules(select)) | {"MS001"}
    return chosen - expand_rules(ignore)


def find_configuration(start: Path) -> Configuration:
    """The configuration of the repository that a path is in; the defaults where there is none."""
    folder = start if start.is_dir() else start.parent
    for here in (folder, *folder.parents):
        for name in FILE_NAMES:
            path = here / name
            if path.is_file() and (name != "pyproject.toml" or _has_our_table(path)):
                return read_configuration(path)
        if (here / ".git").exists():
            break
    return Configuration(folder=folder)


def read_configuration(path: Path) -> Configuration:
    """A configuration file. Raises InvalidInputError naming the file, the line and the key."""
    text = _text(path)
    data = _parse(path, text)
    prefix = ""
    if path.name == "pyproject.toml":
        tool = data.get("tool")
        data = tool.get("moesize", {}) if isinstance(tool, dict) else {}
        prefix = "tool.moesize."
    return _Reader(str(path), text, prefix).read(data, path.absolute().parent)


def _text(path: Path) -> str:
    from moesize.files import read_text

    try:
        return read_text(path, _MAX_BYTES)
    except InvalidInputError as error:
        if path.is_file() and path.stat().st_size < 4096 and not path.read_bytes().strip():
            return ""
        raise InvalidInputError(error.message, "--config takes a TOML file") from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise InvalidInputError(f"{path}: not valid TOML ({str(error)[:200]})") from error


def _has_our_table(path: Path) -> bool:
    """Whether a pyproject.toml is ours too. One that cannot be read is somebody else's concern."""
    try:
        text = _text(path)
        if "moesize" not in text:
            return False
        tool = _parse(path, text).get("tool")
    except InvalidInputError:
        return False
    return isinstance(tool, dict) and "moesize" in tool


class _Reader:
    """Checks every key and value of a configuration; each trouble names its place."""

    def __init__(self, file: str, text: str, prefix: str) -> None:
        self.file = file
        self.text = text
        self.prefix = prefix

    def read(self, data: Any, folder: Path) -> Configuration:
        out = Configuration(file=self.file, folder=folder)
        table = self.table("", data)
        self.known("", table, ("check", "engines", "gpu", "models", "set"))
        self.check(self.table("check", table.get("check", {})), out)
        self.gpu(self.table("gpu", table.get("gpu", {})), out)
        out.models = self.texts("models", table.get("models", {}))
        engines = self.texts("engines", table.get("engines", {}))
        for name, version in engines.items():
            try:
                out.engine_versions.update(parse_engine_versions([f"{name}={version}"]))
            except (UnknownNameError, CannotAnswerError) as error:
                self.fail(f"engines.{name}", error.message, error.hint)
        variables = self.table("set", table.get("set", {}))
        out.variables = {
            name: self.variable(f"set.{name}", value) for name, value in variables.items()
        }
        return out

    def check(self, table: dict[str, Any], out: Configuration) -> None:
        readers: dict[str, Callable[[str, Any], Any]] = {
            "select": self.rules,
            "ignore": self.rules,
            "fail-on": self.fail_on,
            "strict": self.boolean,
            "allow-empty": self.boolean,
            "exclude": self.list_of_texts,
            "include": self.list_of_texts,
            "headroom": self.share,
            "concurrency": self.count,
            "per-file-ignores": self.per_file_ignores,
            "severity": self.severities,
            "baseline": self.path(out.folder),
            "online": self.boolean,
        }
        self.known("check", table, tuple(readers))
        for key, value in table.items():
            name = "severities" if key == "severity" else key.replace("-", "_")
            setattr(out, name, readers[key](f"check.{key}", value))

    def gpu(self, table: dict[str, Any], out: Configuration) -> None:
        self.known("gpu", table, ("default", "count", "names", "paths", "labels"))
        if "default" in table:
            out.gpu = self.gpu_name("gpu.default", table["default"])
        if "count" in table:
            out.gpus = self.count("gpu.count", table["count"])
        out.gpu_names = self.gpu_names("gpu.names", table.get("names", {}))
        out.gpu_by_path = self.gpu_names("gpu.paths", table.get("paths", {}))
        out.gpu_labels = self.gpu_names("gpu.labels", table.get("labels", {}))

    # --- values -----------------------------------------------------------------------------------

    def fail(self, key: str, problem: str, hint: str = "") -> NoReturn:
        line = line_of_key(self.text, self.prefix + key)
        where = f"{self.file}:{line}" if line else self.file
        raise InvalidInputError(f"{where}: {self.prefix}{key}: {problem}", hint)

    def known(self, key: str, table: dict[str, Any], names: tuple[str, ...]) -> None:
        for name in table:
            if name not in names:
                from difflib import get_close_matches

                near = get_close_matches(name[:60].replace("_", "-"), names, n=2)
                hint = f"did you mean {' or '.join(near)}?" if near else ""
                self.fail(
                    f"{key}.{name}".lstrip("."), "no such key", hint or f"keys: {', '.join(names)}"
                )

    def table(self, key: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fail(key, "is to be a table")
        return value

    def text_of(self, key: str, value: Any) -> str:
        if not isinstance(value, str):
            self.fail(key, "is to be a text in quotes")
        return value

    def variable(self, key: str, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            self.fail(key, "is to be a text or a number")
        return str(value)

    def texts(self, key: str, value: Any) -> dict[str, str]:
        table = self.table(key, value)
        return {name: self.text_of(f"{key}.{name}", one) for name, one in table.items()}

    def list_of_texts(self, key: str, value: Any) -> list[str]:
        if isinstance(value, str):
            return [value]
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self.fail(key, "is to be a list of texts")
        return value

    def boolean(self, key: str, value: Any) -> bool:
        if not isinstance(value, bool):
            self.fail(key, "is to be true or false")
        return value

    def count(self, key: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1 << 20:
            self.fail(key, "is to be a whole number from 1 on")
        return value

    def share(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            self.fail(key, "is to be a share from 0 to below 1, such as 0.05")
        return float(value)

    def rules(self, key: str, value: Any) -> list[str]:
        names = self.list_of_texts(key, value)
        try:
            return sorted(expand_rules(names))
        except UnknownNameError as error:
            self.fail(key, error.message, error.hint)

    def fail_on(self, key: str, value: Any) -> FailOn:
        if value not in FAIL_ON:
            self.fail(key, f"is to be one of {', '.join(FAIL_ON)}")
        return FAIL_ON[FAIL_ON.index(value)]

    def per_file_ignores(self, key: str, value: Any) -> dict[str, list[str]]:
        table = self.table(key, value)
        return {glob: self.rules(f"{key}.{glob}", rules) for glob, rules in table.items()}

    def severities(self, key: str, value: Any) -> dict[str, Severity]:
        out: dict[str, Severity] = {}
        for name, wanted in self.table(key, value).items():
            try:
                rule = find_rule(name)
            except UnknownNameError as error:
                self.fail(f"{key}.{name}", error.message, error.hint)
            if wanted not in SEVERITIES:
                self.fail(
                    f"{key}.{name}",
                    f"is to be one of {', '.join(SEVERITIES)}",
                    "`ignore` switches a rule off",
                )
            out[rule.id] = wanted
        return out

    def path(self, folder: Path) -> Callable[[str, Any], Path]:
        return lambda key, value: folder / self.text_of(key, value)

    def gpu_name(self, key: str, value: Any) -> str:
        text = self.text_of(key, value)
        try:
            require_gpu(text)
        except UnknownNameError as error:
            self.fail(key, error.message, error.hint)
        return text

    def gpu_names(self, key: str, value: Any) -> dict[str, str]:
        table = self.table(key, value)
        return {name: self.gpu_name(f"{key}.{name}", gpu) for name, gpu in table.items()}


def require_gpu(name: str) -> None:
    """Raises UnknownNameError (or InvalidInputError) for a GPU that the catalogue lacks."""
    from moesize.gpus import find_gpu

    find_gpu(name)


def line_of_key(text: str, key: str) -> int:
    """The line that a dotted key of a TOML text stands on, or its table; 0 when it is not found."""
    found = 0
    table = ""
    best = -1
    for number, line in enumerate(text.splitlines(), 1):
        opened = _TABLE.match(line[:500])
        if opened is not None:
            table = _plain_key(opened[1])
            here = table
        else:
            name, equals, _ = line.partition("=")
            if not equals or name.lstrip().startswith("#"):
                continue
            here = f"{table}.{_plain_key(name)}".lstrip(".")
        if (key == here or key.startswith(here + ".")) and len(here) > best:
            found, best = number, len(here)
    return found


def _plain_key(text: str) -> str:
    """A dotted TOML key without its quotes and blanks."""
    parts = re.findall(r'"[^"]*"|\'[^\']*\'|[^.\s"\']+', text[:500])
    return ".".join(part.strip("\"'") for part in parts)


def parse_variables(pairs: Iterable[str]) -> dict[str, str]:
    """NAME=VALUE of --set. Raises InvalidInputError."""
    out: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise InvalidInputError(f"--set {pair[:60]!r}: is to be NAME=VALUE")
        out[name.strip()] = value
    return out


def parse_engine_versions(texts: Iterable[str]) -> dict[str, str]:
    """ENGINE=VERSION of --engine-version; a version alone is vLLM's.

    Raises UnknownNameError for an engine, UnsupportedError for a version that is not known.
    """
    from moesize.engines import engine_id, engine_profile

    out: dict[str, str] = {}
    for text in texts:
        name, equals, version = text.rpartition("=")
        engine = engine_id(name.strip() if equals else "vllm")
        engine_profile(engine, version.strip())
        out[engine] = version.strip()
    return out


def read_env_file(path: Path) -> dict[str, str]:
    """Variables of an .env file: NAME=VALUE lines, quotes taken off, nothing expanded."""
    from moesize.files import read_text

    out: dict[str, str] = {}
    for number, line in enumerate(read_text(path, _MAX_BYTES).splitlines(), 1):
        text = line.strip().removeprefix("export ").lstrip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name.strip()):
            raise InvalidInputError(f"{path}:{number}: is to be NAME=VALUE")
        out[name.strip()] = _unquoted(value.strip())
    return out


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value.partition(" #")[0].rstrip()
