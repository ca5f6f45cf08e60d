"""The wheel holds everything: built, installed elsewhere, asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from running import ROOT

from moesize.catalog import spec_folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by hatchling in this process' environment: no network, no isolation."""
    folder = tmp_path_factory.mktemp("wheel")
    code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return folder / result.stdout.split()[-1]


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it; dependencies are taken from this one."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder, with_pip=False)
    libraries = Path(
        sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
    )
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(libraries)  # what an installer does with a pure wheel
    # After the site-packages of the environment itself, which therefore win.
    dependencies = sysconfig.get_path("purelib")
    (libraries / "dependencies.pth").write_text(f"{dependencies}\n", encoding="utf-8")
    return folder / "bin" / "python"


def ask(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [python, "-m", "moesize", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_specs_data_and_typing_marker(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        scripts = next(name for name in names if name.endswith("entry_points.txt"))
        text = archive.read(metadata).decode()
        assert "moesize = moesize.__main__:main" in archive.read(scripts).decode()
    assert {f"moesize/model_specs/{path.name}" for path in spec_folder().glob("*.yaml")} <= names
    data = (ROOT / "moesize" / "data").glob("*.json")
    assert {f"moesize/data/{path.name}" for path in data} <= names
    assert "moesize/py.typed" in names
    assert not any(name.startswith(("tests/", "scripts/")) for name in names)
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Python: >=3.11" in text


def test_it_answers_away_from_the_checkout(python: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [python, "-c", "import moesize; print(moesize.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert str(ROOT) not in where
    result = ask(python, "plan", "mixtral-8x7b", "--gpu", "a10g", "-f", "json", cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert json.loads(result.stdout)["model"]["params"]["total"] == 46_702_792_704
    listed = json.loads(ask(python, "models", "-f", "json", cwd=tmp_path).stdout)["models"]
    assert len(listed) == len(list(spec_folder().glob("*.yaml")))
    for command in ("gpus", "quants", "engines"):
        assert ask(python, command, cwd=tmp_path).returncode == 0
