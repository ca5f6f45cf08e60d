"""Which files are looked at, in what order, and which are worth parsing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moesize.check.discovery import (
    Candidate,
    Unread,
    discover,
    is_promising,
    names_an_engine,
    read_candidate,
    text_of,
)
from moesize.check.yaml_tree import MAX_BYTES
from moesize.core.errors import InvalidInputError


def make(root: Path, *names: str, text: str = "vllm\n") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def found(root: Path, *paths: str, **options: object) -> list[str]:
    names = paths or (str(root),)
    return [
        one.path.relative_to(root).as_posix()
        for one in discover(names, **options)  # type: ignore[arg-type]
        if isinstance(one, Candidate)
    ]


def passed_over(root: Path) -> dict[str, str]:
    return {
        one.path.relative_to(root).as_posix(): one.why
        for one in discover([str(root)])
        if isinstance(one, Unread)
    }


def test_files_by_name_in_a_fixed_order(tmp_path: Path) -> None:
    make(
        tmp_path, "b.yaml", "a.yml", "x.json", "run.sh", "Dockerfile", "Dockerfile.gpu",
        "a.dockerfile", "Modelfile", "q.Modelfile", "vllm.service", "readme.md", "main.py",
        "sub/c.yaml", "sub/kustomization.yaml", "zz/Containerfile", "other/Kustomization",
    )  # fmt: skip
    assert found(tmp_path) == [
        "Dockerfile", "Dockerfile.gpu", "Modelfile", "a.dockerfile", "a.yml", "b.yaml",
        "q.Modelfile", "run.sh", "vllm.service", "x.json", "other/Kustomization", "sub/c.yaml",
        "sub/kustomization.yaml", "zz/Containerfile",
    ]  # fmt: skip


def test_a_script_without_a_suffix_is_known_by_its_first_line(tmp_path: Path) -> None:
    make(tmp_path, "serve", text="#!/usr/bin/env bash\nvllm serve x\n")
    make(tmp_path, "tool", text="#!/usr/bin/env python\n")
    make(tmp_path, "LICENSE", text="bash\n")
    assert found(tmp_path) == ["serve"]


def test_folders_of_others_are_passed_over_unless_named(tmp_path: Path) -> None:
    make(tmp_path, "node_modules/a.yaml", ".venv/b.yaml", "vendor/c.yaml", ".github/d.yaml")
    assert found(tmp_path) == [".github/d.yaml"]
    assert found(tmp_path, str(tmp_path / "vendor")) == ["vendor/c.yaml"]
    assert passed_over(tmp_path)["vendor"] == "code of others"


def test_ignore_files_of_every_level(tmp_path: Path) -> None:
    make(tmp_path, "a/x.yaml", "a/y.yaml", "a/b/x.yaml", "a/b/keep.yaml", "out/z.yaml")
    (tmp_path / ".gitignore").write_text("x.yaml\n/out/\n", encoding="utf-8")
    (tmp_path / "a/b/.gitignore").write_text("!x.yaml\nkeep.yaml\n", encoding="utf-8")
    assert found(tmp_path) == ["a/y.yaml", "a/b/x.yaml"]
    assert found(tmp_path, gitignore=False) == [
        "a/x.yaml", "a/y.yaml", "a/b/keep.yaml", "a/b/x.yaml", "out/z.yaml",
    ]  # fmt: skip


def test_ignore_files_above_the_walked_folder_count_up_to_the_repository(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    make(repository, "deploy/x.yaml", "deploy/y.yaml", "deploy/z.yaml")
    (repository / ".git/info").mkdir(parents=True)
    (repository / ".git/info/exclude").write_text("z.yaml\n", encoding="utf-8")
    (repository / ".gitignore").write_text("deploy/x.yaml\n", encoding="utf-8")
    (tmp_path / ".gitignore").write_text("*\n", encoding="utf-8")  # of another repository
    assert found(repository, str(repository / "deploy")) == ["deploy/y.yaml"]


def test_our_own_ignore_file_counts_without_git_too(tmp_path: Path) -> None:
    make(tmp_path, "a.yaml", "b.yaml")
    (tmp_path / ".moesizeignore").write_text("a.yaml\n", encoding="utf-8")
    assert found(tmp_path, gitignore=False) == ["b.yaml"]


def test_a_file_that_is_named_is_read_even_if_ignored_but_not_if_excluded(tmp_path: Path) -> None:
    make(tmp_path, "a.yaml", "notes.txt")
    (tmp_path / ".gitignore").write_text("*\n", encoding="utf-8")
    named = [str(tmp_path / "a.yaml"), str(tmp_path / "notes.txt")]
    assert found(tmp_path, *named) == ["a.yaml", "notes.txt"]
    assert found(tmp_path, *named, exclude=[(tmp_path, "*.txt")]) == ["a.yaml"]


def test_excluded_and_included(tmp_path: Path) -> None:
    make(tmp_path, "a.yaml", "old/b.yaml", "c.tmpl", "old/d.tmpl")
    assert found(
        tmp_path, exclude=[(tmp_path, "old/")], include=[(tmp_path, "*.tmpl")]
    ) == ["a.yaml", "c.tmpl"]  # fmt: skip


def test_no_file_twice(tmp_path: Path) -> None:
    make(tmp_path, "a/x.yaml")
    paths = (str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a/../a/x.yaml"))
    assert found(tmp_path, *paths) == ["a/x.yaml"]


def test_links_are_never_followed_in_a_walk(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    make(outside, "secret.yaml")
    make(root, "a.yaml")
    (root / "loop").symlink_to(root)
    (root / "out").symlink_to(outside)
    (root / "secret.yaml").symlink_to(outside / "secret.yaml")
    assert found(root) == ["a.yaml"]
    assert passed_over(root)["secret.yaml"] == "a link"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no such file or folder"):
        list(discover([str(tmp_path / "nowhere")]))
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(InvalidInputError, match="not a regular file"):
        list(discover([str(tmp_path / "pipe.yaml")]))
    assert found(tmp_path) == []
    with pytest.raises(InvalidInputError):
        list(discover(["a\0b"]))


def test_a_folder_that_cannot_be_listed_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "closed/a.yaml", "b.yaml")
    scandir = os.scandir

    def closed(path: Path) -> object:  # root, as which tests may run, may list anything
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert found(tmp_path) == ["b.yaml"]
    assert passed_over(tmp_path)["closed"] == "cannot be listed (Permission denied)"


def test_a_deep_tree_is_walked_to_a_bound(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(300):
        folder /= "d"
    folder.mkdir(parents=True)
    make(tmp_path, "a.yaml")
    assert found(tmp_path) == ["a.yaml"]
    assert "nested too deeply" in passed_over(tmp_path).values()


@pytest.mark.parametrize(
    ("raw", "name", "expected"),
    [
        (b"image: vLLM/vllm-openai", "a.yaml", True),
        (b"nginx", "a.yaml", False),
        (b"resources:\n- ../base\n", "kustomization.yaml", True),
        (b'{"model_type": "llama"}', "config.json", False),
        (b'{"apiVersion": "v1", "image": "vllm"}', "pod.json", True),
    ],
)
def test_a_few_words_decide_what_is_parsed(raw: bytes, name: str, expected: bool) -> None:
    assert is_promising(raw, name) is expected


def test_files_that_are_no_text_of_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    large = text_of(b"vllm" * MAX_BYTES, path, given=False)
    assert isinstance(large, Unread)
    assert "larger than" in large.why
    binary = text_of(b"vllm\0", path, given=True)
    assert isinstance(binary, Unread)
    assert binary.why == "binary"
    with pytest.raises(UnicodeDecodeError):
        text_of(b"vllm \xff", path, given=False)
    assert text_of(b"\xef\xbb\xbfvllm\r\n", path, given=False) == "vllm\r\n"
    path.write_bytes(b"nginx")
    assert read_candidate(Candidate(path, tmp_path, given=True)) == "nginx"
    assert isinstance(read_candidate(Candidate(path, tmp_path)), Unread)


def test_which_texts_are_about_a_model_server() -> None:
    assert names_an_engine("image: vllm/vllm-openai")
    assert not names_an_engine("model: car")
