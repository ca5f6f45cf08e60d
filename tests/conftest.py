"""No test reads or writes the calibration records of whoever runs it."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def calibration_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own calibration file, which does not exist yet."""
    path = tmp_path / "calibration.jsonl"
    monkeypatch.setenv("MOESIZE_CALIBRATION", str(path))
    return path
