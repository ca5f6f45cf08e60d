"""Shards of a hub repository, against a hub that is a folder: no network is asked here."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from moesize.core.errors import EnvironmentProblem, InvalidInputError, MoesizeError
from moesize.verify import hub_files
from moesize.verify.hub_files import download
from moesize.verify.safetensors_files import INDEX_NAME
from verify.small import entry, write_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A repository in a folder, a cache beside it, and what was fetched."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "remote"
        self.folder.mkdir()
        self.cache = tmp_path / "cache"
        self.fetched: list[str] = []
        self.revisions: set[str | None] = set()
        self.trouble: Exception | None = None
        self.short = False
        self.changed = False
        self.commit = COMMIT
        self.sizes: dict[str, int] = {}

    def shard(self, name: str, tensor: str) -> None:
        """One file with one tensor."""
        write_file(self.folder / name, {tensor: entry("F32", [2], 0, 8)}, bytes(8))

    def index(self, weight_map: dict[str, str]) -> None:
        """The index of the shards."""
        (self.folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))

    def model_info(
        self, repo: str, *, revision: str | None, files_metadata: bool, timeout: float
    ) -> Any:
        """HfApi.model_info."""
        if self.trouble:
            raise self.trouble
        self.revisions.add(revision)
        assert files_metadata
        # The client's own default is to wait for ever.
        assert 0 < timeout < 600
        files = [
            SimpleNamespace(
                rfilename=path.name,
                size=self.sizes.get(path.name, path.stat().st_size),
                # Files outside of LFS have no checksum of their content.
                lfs=SimpleNamespace(sha256=hashlib.sha256(path.read_bytes()).hexdigest())
                if path.suffix == ".safetensors"
                else None,
            )
            for path in sorted(self.folder.iterdir())
        ]
        return SimpleNamespace(sha=self.commit, siblings=files)

    def hf_hub_download(self, repo: str, name: str, *, revision: str, cache_dir: Any) -> str:
        """As the library: a blob, and a link to it in the snapshot."""
        assert revision == COMMIT
        self.fetched.append(name)
        if self.trouble:
            raise self.trouble
        snapshot = self.cache / "models--o--n" / "snapshots" / revision
        blobs = self.cache / "models--o--n" / "blobs"
        for folder in (snapshot, blobs):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.folder / name, blobs / f"hash-{name}")
        if self.short:
            (blobs / f"hash-{name}").write_bytes(b"x")
        if self.changed and name != INDEX_NAME:
            content = bytearray((blobs / f"hash-{name}").read_bytes())
            content[-1] ^= 1
            (blobs / f"hash-{name}").write_bytes(content)
        if not (snapshot / name).is_symlink():
            (snapshot / name).symlink_to(Path("../../blobs") / f"hash-{name}")
        return str(snapshot / name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A repository of three shards."""
    fake = Hub(tmp_path)
    for number in (1, 2, 3):
        fake.shard(f"model-{number}.safetensors", f"layers.{number}.w")
    fake.index({f"layers.{n}.w": f"model-{n}.safetensors" for n in (1, 2, 3)})
    for name in ("modeling_evil.py", "pytorch_model.bin"):
        (fake.folder / name).write_text("import os")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.hf_hub_download)
    return fake


def failure(hub: Hub, *needed: str) -> MoesizeError:
    """What a download raises."""
    with pytest.raises(MoesizeError) as caught:
        download("o/n", needed or ["layers.1.w"], cache_dir=hub.cache)
    return caught.value


def test_only_the_shards_that_are_needed(hub: Hub) -> None:
    arrived: list[tuple[str, int]] = []
    found = download(
        "o/n",
        ["layers.1.w", "layers.3.w"],
        revision="main",
        cache_dir=hub.cache,
        progress=lambda name, size: arrived.append((name, size)),
    )
    assert hub.fetched == [INDEX_NAME, "model-1.safetensors", "model-3.safetensors"]
    assert [name for name, _ in arrived] == hub.fetched[1:]
    assert hub.revisions == {"main"}
    assert found.commit == COMMIT
    assert found.files.size_bytes == 16
    assert found.size_bytes == sum(size for _, size in arrived)
    assert not list(hub.cache.rglob("*.py"))


def test_names_under_another_wrapper(hub: Hub) -> None:
    found = download("o/n", ["model.layers.2.w"], cache_dir=hub.cache)
    assert hub.fetched == [INDEX_NAME, "model-2.safetensors"]
    assert found.files.aligned(["model.layers.2.w"]) == {"model.layers.2.w": "layers.2.w"}


def test_a_repository_of_one_file(hub: Hub) -> None:
    for path in hub.folder.glob("*.safetensors*"):
        path.unlink()
    hub.shard("model.safetensors", "w")
    hub.shard("consolidated.safetensors", "w")
    assert download("o/n", ["w"], cache_dir=hub.cache).files.size_bytes == 8
    assert hub.fetched == ["model.safetensors"]


def test_a_repository_of_pickles(hub: Hub) -> None:
    for path in hub.folder.glob("*.safetensors*"):
        path.unlink()
    error = failure(hub)
    assert "pytorch_model.bin: pickled weights are never read" in error.message
    (hub.folder / "pytorch_model.bin").unlink()
    assert "neither" in failure(hub).message
    assert not hub.fetched


def test_an_index_that_does_not_fit(hub: Hub) -> None:
    assert "lacks layers.9.w" in failure(hub, "layers.9.w").message
    hub.index({"layers.1.w": "model-7.safetensors"})
    assert "does not have: model-7.safetensors" in failure(hub).message
    hub.index({"layers.1.w": "../model-1.safetensors"})
    assert "no file's name" in failure(hub).message
    hub.index({"layers.1.w": "pytorch_model.bin"})
    assert "never read" in failure(hub).message
    hub.index({"layers.1.w": "model-2.safetensors"})
    assert "says that 'layers.1.w' is in model-2" in failure(hub).message


def test_a_file_that_is_shorter_than_the_hub_says(hub: Hub) -> None:
    hub.short = True
    assert "has 1 bytes here" in failure(hub).message


def test_a_file_of_other_bytes_is_removed(hub: Hub) -> None:
    """A bit of a weight: size and header are right."""
    hub.changed = True
    assert "model-1.safetensors arrived with other bytes" in failure(hub).message
    hub.changed = False
    assert not list(hub.cache.rglob("blobs/hash-model-1*"))
    assert download("o/n", ["layers.1.w"], cache_dir=hub.cache).files.size_bytes == 8


def test_what_the_hub_says_is_bounded(hub: Hub) -> None:
    hub.sizes[INDEX_NAME] = 10**12
    assert "is no index" in failure(hub).message
    assert not hub.fetched
    for commit in ("../../elsewhere", "", None, COMMIT[:-1]):
        hub.commit = commit  # type: ignore[assignment]
        assert "names no commit" in failure(hub).message
    assert not hub.fetched


_Usage = namedtuple("_Usage", "total used free")


def test_a_full_disk_is_noticed_before(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_files.shutil, "disk_usage", lambda _: _Usage(10, 5, 5))
    assert "are free" in failure(hub).message
    assert hub.fetched == [INDEX_NAME]


@pytest.mark.parametrize(
    ("trouble", "kind", "words"),
    [
        (errors.GatedRepoError, EnvironmentProblem, "gated"),
        (errors.RepositoryNotFoundError, EnvironmentProblem, "private"),
        (errors.RevisionNotFoundError, InvalidInputError, "no revision"),
        (errors.LocalEntryNotFoundError, EnvironmentProblem, "neither be found nor fetched"),
        (errors.HFValidationError, InvalidInputError, "no name of a repository"),
        (ConnectionError, EnvironmentProblem, "could not be fetched (ConnectionError)"),
        (OSError, EnvironmentProblem, "disk is full"),
    ],
)
def test_trouble_in_words(
    trouble: type[Exception], kind: type[MoesizeError], words: str, hub: Hub
) -> None:
    # Made without their constructors, which want a response of the server.
    error = trouble.__new__(trouble)
    if trouble is OSError:
        error = OSError(28, "No space left on device")
    hub.trouble = error
    caught = failure(hub)
    assert isinstance(caught, kind)
    assert words in caught.message


def test_a_server_that_refuses_is_named_by_its_status(hub: Hub) -> None:
    error = errors.HfHubHTTPError.__new__(errors.HfHubHTTPError)
    error.response = SimpleNamespace(status_code=429)  # type: ignore[assignment]
    hub.trouble = error
    assert "(HTTP 429)" in failure(hub).message
