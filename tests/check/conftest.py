"""Fixtures of the tests of `moesize check`."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_stubs import stubs

__all__ = ["repository", "stubs"]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository, and the working directory."""
    root = tmp_path / "repository"
    (root / ".git").mkdir(parents=True)
    monkeypatch.chdir(root)
    return root
