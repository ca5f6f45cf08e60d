"""What a command may load: start-up is a feature, and layers are kept by a tool, not by custom."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from running import ROOT, environment, run

HEAVY = (
    "httpx",
    "httpx2",
    "huggingface_hub",
    "numpy",
    "pydantic",
    "requests",
    "safetensors",
    "torch",
    "transformers",
    "typer",
)
# Standard library that costs more than it gives at start-up.
SLOW = ("asyncio", "concurrent", "difflib", "email", "http", "multiprocessing", "ssl", "subprocess")
_PROBE = """
import json, sys
from moesize.__main__ import main
try:
    main(sys.argv[1:])
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def loaded_by(*arguments: str) -> set[str]:
    """Top-level names of all modules loaded in a fresh process."""
    result = run(*arguments, command=("-c", _PROBE))
    modules: list[str] = json.loads(result.err.splitlines()[-1])
    return {name for module in modules for name in (module, module.partition(".")[0])}


AUDIT = (
    "audit",
    "tests/fixtures/logs/vllm-qwen3-30b-fp8-h100.log",
    "--engine-version",
    "0.30.0",
)
PLAN = ("plan", "mixtral-8x7b", "--gpu", "a10g", "--quant", "4bit")


@pytest.mark.parametrize(
    ("arguments", "forbidden"),
    [
        (("--version",), (*HEAVY, *SLOW, "click", "rich", "yaml", "inspect", "moesize.cli")),
        (
            ("--help",),
            (*HEAVY, *SLOW, "rich", "yaml", "moesize.api", "moesize.catalog", "moesize.check"),
        ),
        (("check", "--help"), (*HEAVY, *SLOW, "rich", "yaml", "moesize.api", "moesize.check")),
        (("check", "--list-rules"), (*HEAVY, *SLOW, "rich", "yaml", "moesize.api")),
        (("verify", "--help"), (*HEAVY, *SLOW, "rich", "yaml", "moesize.verify")),
        (("plan", "--help"), (*HEAVY, *SLOW, "rich", "yaml", "moesize.api")),
        (
            (*PLAN, "--format", "json"),
            (
                *HEAVY,
                *SLOW,
                "rich",
                "moesize.readers",
                "moesize.schemas",
                "moesize.check",
                "moesize.cli_check",
            ),
        ),
        ((*PLAN, "--format", "csv"), (*HEAVY, *SLOW, "rich")),
        ((*PLAN, "--format", "markdown"), (*HEAVY, *SLOW, "rich")),
        (PLAN, (*HEAVY, *SLOW, "moesize.readers", "moesize.schemas")),
        (("show", "deepseek-v3"), (*HEAVY, *SLOW, "moesize.schemas")),
        (("models",), (*HEAVY, *SLOW, "yaml")),
        ((*AUDIT, "--format", "json"), (*HEAVY, *SLOW, "rich", "moesize.calibration")),
        (
            ("accuracy", "--engine", "sglang", "--format", "json"),
            # Near names are looked for where a report names no model of the catalogue.
            (*HEAVY, *(name for name in SLOW if name != "difflib"), "rich", "moesize.schemas"),
        ),
        (("gpus", "--format", "json"), (*HEAVY, *SLOW, "rich", "yaml")),
    ],
    ids=lambda value: " ".join(value) if "numpy" not in value else "",
)
def test_modules_that_a_command_does_not_load(
    arguments: tuple[str, ...], forbidden: tuple[str, ...]
) -> None:
    assert sorted(loaded_by(*arguments) & set(forbidden)) == []


def test_importing_the_package_loads_next_to_nothing() -> None:
    code = (
        "import sys, typing; before = set(sys.modules); import moesize; moesize.__version__; "
        "print(*sorted(set(sys.modules) - before))"
    )
    result = run(command=("-c", code))
    assert set(result.out.split()) == {"__future__", "moesize", "moesize._version"}


def test_every_exported_name_resolves() -> None:
    import moesize

    for name in moesize.__all__:
        assert getattr(moesize, name) is not None
    assert dir(moesize) == moesize.__all__
    with pytest.raises(AttributeError):
        moesize.no_such_name  # noqa: B018


def test_layers() -> None:
    """import-linter's contracts, which stand in pyproject.toml."""
    tool = Path(sys.executable).with_name("lint-imports")
    assert tool.is_file(), "import-linter is not installed beside this Python: see CONTRIBUTING.md"
    result = subprocess.run(
        [tool, "--no-cache"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


def test_the_contract_of_core_names_every_module_beside_it() -> None:
    """A new module is forbidden to core from its first day."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = project["tool"]["importlinter"]["contracts"][0]
    assert contract["source_modules"] == ["moesize.core"]
    there = {
        f"moesize.{path.stem}"
        for path in (ROOT / "moesize").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert set(contract["forbidden_modules"]) == there - {"moesize.core", "moesize.__init__"}


def test_no_module_outside_verify_imports_torch() -> None:
    """Importing all of them loads none of it; torch is an extra."""
    paths = sorted((ROOT / "moesize").rglob("*.py"))
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    # Importing a package to look inside it would be an import as well.
    chosen = [m for m in modules if not m.startswith(("moesize.verify", "moesize.__"))]
    code = (
        "import importlib, sys\n"
        f"for name in {chosen!r}: importlib.import_module(name.removesuffix('.__init__'))\n"
        "print(*sorted({'torch', 'safetensors', 'transformers'} & set(sys.modules)))"
    )
    assert run(command=("-c", code)).out.split() == []


def test_start_up_is_not_out_of_hand() -> None:
    """Loose, because machines differ; scripts/benchmark.py measures. Bare Python is 1."""
    bare = min(run(command=("-c", "pass")).cpu_s for _ in range(5))
    plan = min(run(*PLAN, "--format", "json").cpu_s for _ in range(5))
    assert plan < 30 * bare
