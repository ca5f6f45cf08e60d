"""The shards of a hub repository that hold the chosen tensors, and none of the others.

The hub's own client downloads and finds the token in the environment. Files that are there are not
fetched again; a file that was cut off starts anew (huggingface_hub 2.4 keeps no part of one, pull
request 4228). Only the index and *.safetensors files are asked for; no code of a repository is
fetched. The revision is pinned to a commit first, so that all files are of one state. What has been
fetched is compared with the size and the SHA-256 that the hub names for it.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from moesize.core.errors import (
    EnvironmentProblem,
    InvalidInputError,
    MoesizeError,
)
from moesize.core.units import format_bytes
from moesize.files import listed
from moesize.verify.safetensors_files import (
    INDEX_NAME,
    MAX_HEADER_BYTES,
    CheckpointFiles,
    align_names,
    open_checkpoint,
    read_index,
    refuse_pickle,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_SINGLE = "model.safetensors"
_SPARE_BYTES = 1 << 30
# For the answer of the server; the client itself would wait for ever.
_TIMEOUT_SECONDS = 30
_COMMIT = re.compile("[0-9a-f]{40}")
_LOGIN = "log in with `hf auth login` (or set HF_TOKEN), and accept the terms on the model's page"


class Downloaded(NamedTuple):
    """Shards in the hub's cache, and the commit that they are of."""

    files: CheckpointFiles
    commit: str
    folder: Path
    size_bytes: int


def download(
    repo: str,
    needed: Iterable[str],
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Downloaded:
    """Fetch the shards that hold the `needed` tensors, those that are not there yet.

    progress  called with the name and bytes of each file that has arrived
    Raises EnvironmentProblem without network, login or room; InvalidInputError for a repository
    that is not there or holds no safetensors files.
    """
    names = list(needed)
    commit, sizes, sums = _listing(repo, revision)
    wanted = _shards(repo, names, commit, sizes, cache_dir)
    there = _cached(repo, wanted, commit, cache_dir)
    _check_room(repo, sum(sizes[name] for name in wanted if name not in there), cache_dir)
    paths = []
    for name in wanted:
        paths.append(_fetch(repo, name, commit, cache_dir))
        _check_size(repo, paths[-1], name, sizes[name])
        if name in sums and name not in there:
            _check_sum(repo, paths[-1], name, sums[name])
        if progress is not None:
            progress(name, sizes[name])
    folder = paths[0].parent
    files = open_checkpoint(folder if INDEX_NAME in sizes else paths[0], names)
    return Downloaded(files, commit, folder, sum(sizes[name] for name in wanted))


def _listing(repo: str, revision: str | None) -> tuple[str, dict[str, int], dict[str, str]]:
    """The commit of a revision, the size of every file of it, the SHA-256 of the large ones."""
    from huggingface_hub import HfApi

    with _Explained(repo, "its list of files", revision):
        info: Any = HfApi().model_info(
            repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_SECONDS
        )
    # It becomes a folder of the cache.
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise EnvironmentProblem(f"the hub names no commit of {repo}")
    files = list(info.siblings or ())
    sizes = {item.rfilename: int(item.size or 0) for item in files}
    return info.sha, sizes, {item.rfilename: item.lfs.sha256 for item in files if item.lfs}


def _shards(
    repo: str,
    needed: list[str],
    commit: str,
    sizes: Mapping[str, int],
    cache_dir: Path | None,
) -> list[str]:
    """Files that hold the needed tensors, each of them in the repository."""
    if INDEX_NAME not in sizes:
        if _SINGLE in sizes:
            return [_SINGLE]
        for name in sizes:
            # Names the pickles that are there instead, with what to do about them.
            refuse_pickle(name)
        raise InvalidInputError(f"{repo} has neither {INDEX_NAME} nor {_SINGLE}")
    if sizes[INDEX_NAME] > MAX_HEADER_BYTES:
        raise InvalidInputError(f"{repo}: {INDEX_NAME} of {sizes[INDEX_NAME]:,} bytes is no index")
    path = _fetch(repo, INDEX_NAME, commit, cache_dir)
    _check_size(repo, path, INDEX_NAME, sizes[INDEX_NAME])
    weight_map = read_index(path)
    names = align_names(needed, weight_map)
    unknown = [name for name in needed if name not in names]
    if unknown:
        raise InvalidInputError(
            f"{repo}: its index lacks {listed(unknown)}", "is it the model that the spec describes?"
        )
    wanted = sorted({weight_map[name] for name in names.values()})
    missing = [name for name in wanted if not sizes.get(name)]
    if missing:
        raise InvalidInputError(
            f"{repo}: its index names files it does not have: {listed(missing)}"
        )
    return wanted


def _cached(repo: str, names: list[str], commit: str, cache_dir: Path | None) -> frozenset[str]:
    """Those that are in the cache already."""
    from huggingface_hub import try_to_load_from_cache

    return frozenset(
        name
        for name in names
        if isinstance(try_to_load_from_cache(repo, name, cache_dir=cache_dir, revision=commit), str)
    )


def _check_room(repo: str, needed: int, cache_dir: Path | None) -> None:
    """Enough room for what is to be fetched."""
    from huggingface_hub import constants

    folder = Path(cache_dir or constants.HF_HUB_CACHE)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed and free < needed + _SPARE_BYTES:
        raise EnvironmentProblem(
            f"{repo}: {format_bytes(needed)} are to be downloaded and {format_bytes(free)} are "
            f"free in {folder}",
            "choose fewer layers with --layers, or another cache with HF_HOME",
        )


def _fetch(repo: str, name: str, commit: str, cache_dir: Path | None) -> Path:
    from huggingface_hub import hf_hub_download

    with _Explained(repo, name, commit):
        return Path(hf_hub_download(repo, name, revision=commit, cache_dir=cache_dir))


def _check_size(repo: str, path: Path, name: str, size: int) -> None:
    found = path.stat().st_size
    if found != size:
        raise InvalidInputError(
            f"{repo}: {name} has {found:,} bytes here and {size:,} on the hub",
            f"delete {path.resolve()} and try again",
        )


def _check_sum(repo: str, path: Path, name: str, expected: str) -> None:
    """Of a file that has just been fetched: its bytes are what the repository says."""
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != expected:
            # Otherwise it would be taken for good the next time.
            path.resolve().unlink()
    except OSError as error:
        raise EnvironmentProblem(f"{path}: cannot be read ({error.strerror})") from error
    if found != expected:
        raise InvalidInputError(
            f"{repo}: {name} arrived with other bytes than the hub names (SHA-256)",
            "it has been removed; start again",
        )


class _Explained:
    """The hub client's errors in words; `what` was asked for."""

    def __init__(self, repo: str, what: str, revision: str | None) -> None:
        self.repo, self.what, self.revision = repo, what, revision

    def __enter__(self) -> None:
        """Nothing is prepared."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # Ctrl-C is no trouble of the hub's; what was fetched stays for the next time.
        if not isinstance(error, Exception) or isinstance(error, MoesizeError):
            return
        raise self._explain(error) from error

    def _explain(self, error: Exception) -> MoesizeError:
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        repo = self.repo
        match error:
            case GatedRepoError():
                return EnvironmentProblem(f"{repo} is gated: {self.what} needs a login", _LOGIN)
            case RevisionNotFoundError():
                return InvalidInputError(f"{repo} has no revision {self.revision!r} on the hub")
            case RepositoryNotFoundError():
                return EnvironmentProblem(
                    f"no repository {repo!r} on the hub, or it is private",
                    f"check the spelling; {_LOGIN}",
                )
            case EntryNotFoundError():
                return EnvironmentProblem(
                    f"{self.what} of {repo} can neither be found nor fetched",
                    "is there a network? a folder of the hub's cache can be given instead",
                )
            case HFValidationError():
                return InvalidInputError(f"{repo[:80]!r} is no name of a repository")
            case OSError() if error.errno in (28, 122):
                return EnvironmentProblem(
                    f"the disk is full while {self.what} of {repo} was fetched",
                    "files that have arrived stay; make room, or set HF_HOME, and start again",
                )
            case _:
                status = getattr(getattr(error, "response", None), "status_code", None)
                why = f"HTTP {status}" if isinstance(status, int) else type(error).__name__
                return EnvironmentProblem(
                    f"{self.what} of {repo} could not be fetched ({why})",
                    "is there a network? files that have arrived stay; a local folder needs none",
                )
