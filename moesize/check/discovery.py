"""Which files of a repository are looked at, and which are worth reading: names first, bytes next.

Folders are walked without following links. .gitignore files count as git has it,
.moesizeignore files alike; folders of other people's code are passed over. Of a file, a few words
in its bytes decide whether it is parsed at all, so that thousands of others cost little.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from moesize.check.paths import PathPattern, decide, parse_patterns
from moesize.check.yaml_tree import MAX_BYTES
from moesize.core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_VENDORED = frozenset(
    ("node_modules", "vendor", "third_party", "venv", ".venv", "site-packages", ".terraform")
)
# Nobody wonders why these are not read.
_CACHES = frozenset(
    (
        ".git", ".hg", ".svn", "__pycache__", ".tox", ".nox", ".mypy_cache", ".ruff_cache",
        ".pytest_cache", ".eggs",
    )
)  # fmt: skip
YAML_SUFFIXES = (".yaml", ".yml", ".json")
_SUFFIXES = (
    *YAML_SUFFIXES, ".sh", ".bash", ".zsh", ".ksh", ".sbatch", ".slurm", ".dockerfile",
    ".containerfile", ".service", ".container", ".modelfile",
)  # fmt: skip
_BEGINNINGS = ("dockerfile", "containerfile", "modelfile")
_ENDINGS = ("dockerfile", "modelfile")
# Overlays hold none of the words below, but decide what is made of files that do.
KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "kustomization")
_WORDS = (
    b"vllm", b"sglang", b"trtllm", b"trt-llm", b"tensorrt", b"text-generation", b"llama",
    b"nim", b"dynamo", b"kubeai", b"kaito", b"llm", b"gpu", b"accelerat", b"model",
    b"hf://", b"huggingface", b"aphrodite", b"lmdeploy", b"parallel-size", b"parallel_size",
    b"tp-size", b"tp_size", b"trust-remote", b"trust_remote", b"kv-cache", b"kv_cache",
    b"cuda-graph", b"cuda_graph",
)  # fmt: skip
# A file without any of these that cannot be read is none of ours to complain about.
_ENGINES = (
    "vllm", "sglang", "trtllm", "trt-llm", "tensorrt-llm", "tensorrt_llm",
    "text-generation-inference", "text-generation-launcher", "llama-server", "llama.cpp",
    "llama-swap", "ollama", "nvcr.io/nim", "kubeai.org", "kaito.sh", "nvidia.com/gpu",
    "amd.com/gpu", "aphrodite", "lmdeploy",
)  # fmt: skip
_MOST_DEEP = 200
_IGNORE_FILE_BYTES = 1 << 20


class Candidate(NamedTuple):
    """A file to look at.

    path   absolute
    root   the folder that nothing outside of is opened for it: the repository, or what was walked
    given  the user named it: it is read whatever is in it
    """

    path: Path
    root: Path
    given: bool = False


class Unread(NamedTuple):
    """A file or folder that was passed over, and why."""

    path: Path
    why: str


def discover(
    paths: Iterable[str | os.PathLike[str]],
    *,
    exclude: Sequence[tuple[Path, str]] = (),
    include: Sequence[tuple[Path, str]] = (),
    gitignore: bool = True,
) -> Iterator[Candidate | Unread]:
    """Files below the paths in a fixed order, and what was passed over.

    `exclude` and `include` are (folder, pattern): files that are not looked at, and files that are
    in spite of their names. Raises InvalidInputError for a path that does not exist.
    """
    seen: set[str] = set()
    excluded = _by_folder(exclude)
    included = _by_folder(include)
    for name in paths:
        path = Path(os.path.abspath(name))  # noqa: PTH100  (resolve would follow links)
        try:
            mode = path.stat().st_mode
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not a path"
            what = "no such file or folder" if isinstance(error, FileNotFoundError) else reason
            raise InvalidInputError(f"{str(name)[:300]}: {what}") from error
        root = _root_of(path)
        if stat.S_ISDIR(mode):
            found = _Walk(path, root, excluded, included, gitignore=gitignore).files()
        elif stat.S_ISREG(mode):
            if _says(excluded, path, is_folder=False):
                found = iter((Unread(path, "excluded"),))
            else:
                found = iter((Candidate(path, root, given=True),))
        else:
            raise InvalidInputError(
                f"{str(name)[:300]}: is not a regular file", "`-` reads from a pipe"
            )
        for one in found:
            key = os.path.realpath(one.path)
            if key not in seen:
                seen.add(key)
                yield one


def find_repository(path: Path) -> Path | None:
    """The folder above a path (or itself) that holds .git."""
    return next((p for p in (path, *path.parents) if (p / ".git").exists()), None)


def read_candidate(candidate: Candidate) -> str | Unread:
    """The text of a file worth parsing, or why it is not.

    Raises UnicodeDecodeError for one that would be but is not UTF-8, and OSError.
    """
    path = candidate.path
    with path.open("rb") as stream:
        raw = stream.read(MAX_BYTES + 1)
    return text_of(raw, path, given=candidate.given)


def text_of(raw: bytes, path: Path, *, given: bool) -> str | Unread:
    """`read_candidate` of bytes."""
    if len(raw) > MAX_BYTES:
        return Unread(path, f"larger than {MAX_BYTES >> 20} MiB")
    if not given and not is_promising(raw, path.name.lower()):
        return Unread(path, "no word of a model server in it")
    if b"\0" in raw[:8192]:
        return Unread(path, "binary")
    return raw.decode("utf-8-sig")


def is_promising(raw: bytes, name: str) -> bool:
    """Whether bytes hold a word that every deployment of a model holds."""
    if name in KUSTOMIZATIONS or name.startswith("modelfile") or name.endswith("modelfile"):
        return True
    lowered = raw.lower()
    if name.endswith(".json") and b'"apiversion"' not in lowered and b'"services"' not in lowered:
        return False
    return any(word in lowered for word in _WORDS)


def names_an_engine(text: str) -> bool:
    """Whether a text is about a model server, even where it cannot be read."""
    lowered = text.lower()
    return any(word in lowered for word in _ENGINES)


def _root_of(path: Path) -> Path:
    """The repository of a path; without one, the folder it is in, or where the user is."""
    repository = find_repository(path)
    if repository is not None:
        return repository
    here = Path.cwd()
    if path.is_relative_to(here):
        return here
    return path if path.is_dir() else path.parent


def _by_folder(rules: Sequence[tuple[Path, str]]) -> list[tuple[Path, list[PathPattern]]]:
    folders: dict[Path, list[str]] = {}
    for folder, pattern in rules:
        folders.setdefault(folder, []).append(pattern)
    return [(folder, parse_patterns(lines)) for folder, lines in folders.items()]


def _says(rules: list[tuple[Path, list[PathPattern]]], path: Path, *, is_folder: bool) -> bool:
    """Whether a rule names a path or, for one that the user gave, a folder above it."""
    for folder, patterns in rules:
        try:
            parts = path.relative_to(folder).parts
        except ValueError:
            continue
        for length in range(1, len(parts) + 1):
            whole = length == len(parts)
            if decide(patterns, parts[:length], is_folder=is_folder or not whole):
                return True
    return False


class _Level(NamedTuple):
    """Ignore rules of one folder; those of deeper folders go before those of their parents."""

    depth: int
    patterns: list[PathPattern]


class _Walk:
    """One folder given by the user, walked without recursion."""

    def __init__(
        self,
        top: Path,
        root: Path,
        excluded: list[tuple[Path, list[PathPattern]]],
        included: list[tuple[Path, list[PathPattern]]],
        *,
        gitignore: bool,
    ) -> None:
        self.top = top
        self.root = root
        self.excluded = excluded
        self.included = included
        self.ignore_files = (".gitignore", ".moesizeignore") if gitignore else (".moesizeignore",)
        self.gitignore = gitignore

    def files(self) -> Iterator[Candidate | Unread]:
        # What is above the top counts from the root on, as in git; parts are those below the root.
        base = self.root if self.top.is_relative_to(self.root) else self.top
        parts = self.top.relative_to(base).parts
        levels = self.repository_level(base)
        for depth in range(len(parts)):
            levels = self.with_ignore_files(base.joinpath(*parts[:depth]), depth, levels)
        stack: list[tuple[Path, tuple[str, ...], tuple[_Level, ...]]] = [(self.top, parts, levels)]
        while stack:
            folder, parts, levels = stack.pop()
            try:
                with os.scandir(folder) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
            except OSError as error:
                yield Unread(folder, f"cannot be listed ({error.strerror})")
                continue
            levels = self.with_ignore_files(folder, len(parts), levels)
            inner: list[tuple[Path, tuple[str, ...], tuple[_Level, ...]]] = []
            for entry in entries:
                below = (*parts, entry.name)
                path = folder / entry.name
                if entry.is_dir(follow_symlinks=False):
                    if entry.name in _CACHES:
                        continue
                    why = self.why_not_entered(entry.name, path, below, levels)
                    if why:
                        yield Unread(path, why)
                    else:
                        inner.append((path, below, levels))
                    continue
                found = self.file(entry, path, below, levels)
                if found is not None:
                    yield found
            stack.extend(reversed(inner))

    def why_not_entered(
        self, name: str, path: Path, parts: tuple[str, ...], levels: tuple[_Level, ...]
    ) -> str:
        if name in _VENDORED:
            return "code of others"
        if _ignored(levels, parts, is_folder=True):
            return "ignored"
        if self.excluded and _says(self.excluded, path, is_folder=True):
            return "excluded"
        return "nested too deeply" if len(parts) > _MOST_DEEP else ""

    def file(
        self,
        entry: os.DirEntry[str],
        path: Path,
        parts: tuple[str, ...],
        levels: tuple[_Level, ...],
    ) -> Candidate | Unread | None:
        wanted = _is_named_like_one(entry.name)
        if not wanted and self.included and not entry.is_symlink():
            wanted = _says(self.included, path, is_folder=False)
        if not wanted and not _may_have_shebang(entry.name):
            return None
        if entry.is_symlink():
            return Unread(path, "a link") if wanted else None
        if not entry.is_file(follow_symlinks=False):
            return None
        if _ignored(levels, parts, is_folder=False):
            return Unread(path, "ignored") if wanted else None
        if self.excluded and _says(self.excluded, path, is_folder=False):
            return Unread(path, "excluded")
        if not wanted and not _has_shell_shebang(path):
            return None
        return Candidate(path, self.root)

    def repository_level(self, base: Path) -> tuple[_Level, ...]:
        if not self.gitignore:
            return ()
        patterns = _read_patterns(base / ".git" / "info" / "exclude")
        return (_Level(0, patterns),) if patterns else ()

    def with_ignore_files(
        self, folder: Path, depth: int, levels: tuple[_Level, ...]
    ) -> tuple[_Level, ...]:
        patterns = [
            pattern for name in self.ignore_files for pattern in _read_patterns(folder / name)
        ]
        return (*levels, _Level(depth, patterns)) if patterns else levels


def _ignored(levels: tuple[_Level, ...], parts: tuple[str, ...], *, is_folder: bool) -> bool:
    for level in reversed(levels):
        said = decide(level.patterns, parts[level.depth :], is_folder=is_folder)
        if said is not None:
            return said
    return False


def _read_patterns(path: Path) -> list[PathPattern]:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return []
        with path.open("rb") as stream:
            raw = stream.read(_IGNORE_FILE_BYTES)
    except (OSError, ValueError):
        return []
    return parse_patterns(raw.decode("utf-8-sig", errors="replace").split("\n"))


def _is_named_like_one(name: str) -> bool:
    lowered = name.lower()
    return (
        lowered.endswith(_SUFFIXES)
        or lowered.startswith(_BEGINNINGS)
        or lowered.endswith(_ENDINGS)
        or lowered == KUSTOMIZATIONS[-1]
    )


def _may_have_shebang(name: str) -> bool:
    return "." not in name


def _has_shell_shebang(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            first = stream.read(64).partition(b"\n")[0]
    except OSError:
        return False
    return first.startswith(b"#!") and b"sh" in first
