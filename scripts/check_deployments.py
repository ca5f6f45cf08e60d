"""What `moesize check` reads from a folder of deployment files, against an index of what they say.

    python scripts/check_deployments.py --deployments DIR [--wrong]

DIR/INDEX.csv has a row for each file: path, kind, engine, model, gpu, gpu_count_per_replica, tp,
pp, dp, quantization, max_model_len, gpu_memory_utilization, must_conclude, why. Each stated value
is compared with what was read; several values are separated by ` ; `. Values that the index states
in words ("directory name", "comment") are not in the file and not compared.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesize.check.naming import plain_name
from moesize.core.errors import MoesizeError
from moesize.gpus import find_gpu

if TYPE_CHECKING:
    from moesize.check.findings import CheckReport, FileResult

FIELDS = ("engine", "model", "gpu", "gpu_count", "tp", "pp", "dp", "quantization", "max_model_len",
          "gpu_memory_utilization")  # fmt: skip
# Words of the index that say: nobody can read this from the file.
NOT_IN_FILE = ("directory name", "repo name", "comment", "not in file", "not stated", "chosen by",
               "default ", "placeholder")  # fmt: skip


def main() -> int:
    """Print a table by kind, and what was read wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deployments", type=Path, required=True)
    parser.add_argument("--wrong", action="store_true", help="list what was read wrong")
    options = parser.parse_args()
    with (options.deployments / "INDEX.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    report = check_all(options.deployments)
    files = {Path(file.path).as_posix(): file for file in report.files}
    files |= check_reported(rows, options.deployments)
    totals: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    wrong: list[str] = []
    for row in rows:
        file = files.get(row["path"])
        for field, good, expected, found in compare(row, file, options.deployments):
            cell = totals[row["kind"]][field]
            cell[0] += good
            cell[1] += 1
            if not good:
                wrong.append(f"{row['path']}: {field}: {expected!r} read as {found!r}")
    print_table(totals)
    if options.wrong:
        print("\n" + "\n".join(wrong))
    return 0


def check_all(folder: Path) -> CheckReport:
    """One run over the folder, paths relative to it."""
    from moesize.check.run import check_files

    before = Path.cwd()
    os.chdir(folder)
    try:
        return check_files(use_config=False, gitignore=False, allow_empty=True)
    finally:
        os.chdir(before)


# GPUs as the index describes them, where it does not name them.
DESCRIBED = (("39.39 GiB", "a100-40gb"), ("H200 ~140", "h200"), ("80GB (0.3", "a100-80gb"))


def check_reported(rows: list[dict[str, str]], folder: Path) -> dict[str, FileResult]:
    """Commands of threads, which name no GPU: each with the GPU and release of its report."""
    from moesize.check.run import check_files

    found = {}
    for row in rows:
        if row["kind"] != "known_bad" or not row["path"].endswith(".sh"):
            continue
        words = row["gpu"]
        gpu = next((name for part, name in DESCRIBED if part in words), "")
        for end in range(len(words.split()), 0, -1):
            name = " ".join(words.split()[:end])
            if not gpu and gpu_ids(name):
                gpu = name
        if not gpu:
            continue
        version = row["engine"].split()[-1]
        given = [version] if version[:1].isdigit() and not version.startswith("0.5") else []
        report = check_files(
            folder / row["path"],
            gpu=gpu,
            gpus=int(row["gpu_count_per_replica"].split()[0]),
            engine_version=given,
            use_config=False,
        )
        found[row["path"]] = report.files[0]
    return found


def compare(
    row: dict[str, str], file: FileResult | None, folder: Path
) -> list[tuple[str, bool, Any, Any]]:
    """(field, read right, expected, found) for everything that a row states."""
    found: list[tuple[str, bool, Any, Any]] = []
    found.append(("recognised", file is not None and file.kind is not None, row["kind"], None))
    if file is None:
        return found
    text = (folder / row["path"]).read_text(errors="replace")
    servers = [server.to_dict() for server in file.servers]
    for field in FIELDS:
        column = "gpu_count_per_replica" if field == "gpu_count" else field
        stated = row[column].strip()
        if not stated or any(word in stated for word in NOT_IN_FILE):
            continue
        expected = expected_values(field, stated, text)
        if not expected:
            continue
        read = [value for server in servers for value in read_values(field, server)]
        good = all(any(same(field, want, have) for have in read) for want in expected)
        found.append((field, good, expected, read))
    conclusion = row["must_conclude"].strip()
    if conclusion:
        said = conclude(file, servers)
        if conclusion.startswith("does_not_start"):
            conclusion = "does_not_fit"
        found.append(("conclusion", conclusion in said, conclusion, said))
    return found


def expected_values(field: str, stated: str, text: str) -> list[str]:
    """The values that a cell of the index states."""
    values = []
    for part in stated.split(" ; "):
        part = part.strip()
        default = re.search(r"\$\{\w+:-([^}]+)\}", part)
        if default:
            part = default[1]
        if field in ("tp", "pp", "dp", "gpu_count"):
            if field == "gpu_count" and not part[:1].isdigit():
                match = re.search(r"count=(\d+)", part)
                part = match[1] if match else ""
            numbers = re.findall(r"\d+", part.rpartition("=")[2] if "=" in part else part)
            if "$" in part and "=" not in part:
                continue
            values += numbers[:1] if part else []
            continue
        part = re.sub(r"\s*\(.*?\)\s*$", "", part).strip()
        if field == "engine":
            part = part.split()[0]
        if field == "model" and (
            part not in text and plain_name(part).partition(":")[0] not in text
        ):
            continue
        if part and "$" not in part and not part.startswith("<"):
            values.append(part)
    return values


def read_values(field: str, server: dict[str, Any]) -> list[Any]:
    """What was read for a field; several where the file names alternatives."""
    names = {
        "tp": "tensor_parallel_size",
        "pp": "pipeline_parallel_size",
        "dp": "data_parallel_size",
    }
    value = server.get(names.get(field, field))
    if field == "gpu":
        return [server["gpu"], server["gpu_as_written"], server["vendor"]]
    if field == "gpu_count":
        return [value, server["gpus_per_node"]]
    return [] if value is None else [value]


def same(field: str, want: str, have: Any) -> bool:
    """Whether two spellings say the same."""
    if have is None:
        return False
    if field == "gpu":
        wanted = gpu_ids(want)
        return str(have) in want or bool(wanted & gpu_ids(str(have)))
    if field == "model":
        return plain_name(want).lower() == plain_name(str(have)).lower()
    if field in ("engine", "quantization"):
        return str(want).lower() in str(have).lower()
    try:
        return float(want) == float(have)
    except ValueError:
        return str(want) == str(have)


def gpu_ids(text: str) -> set[str]:
    """Catalogue ids that a cell may mean."""
    found = set()
    parts = re.split(r" \| | ; |[{},] ?|\bany of\b", text)
    for part in parts:
        name = re.sub(r"\(.*?\)", "", part).strip()
        name = re.sub(r":\d+$|\.\.\d+", "", name).removeprefix("DRA: type ").split(", memory")[0]
        for spelling in (name, name.removeprefix("nvidia-gpu-").removeprefix("amd-gpu-")):
            try:
                match = find_gpu(spelling)
            except MoesizeError:
                continue
            found |= {match.spec.id, *match.candidates}
    return found


def conclude(file: FileResult, servers: list[dict[str, Any]]) -> set[str]:
    """The words of the index that describe what the check concluded."""
    rules = {finding.rule for finding in file.findings}
    judged = [server for server in servers if not server["skipped"]]
    said: set[str] = set()
    if not judged:
        said |= {"no_model_server", "model_unknown"}
    if "MS301" in rules:
        said.add("model_unknown")
    if "MS003" in rules:
        said |= {"unresolved_variables", "model_unknown"}
    if rules & {"MS501", "MS502"}:
        said.add("gpu_unknown")
    if any(server["fits"] is False for server in judged):
        said.add("does_not_fit")
    if judged and all(server["fits"] is True for server in judged):
        said.add("fits")
    if any(f.severity == "error" and f.rule[:3] in ("MS2", "MS3", "MS4") for f in file.findings):
        said.add("config_error")
    if "MS108" in rules:
        said.add("fits_only_with_cpu_offload")
    for server in judged:
        ways = {item["gpu"]: item["fits"] for item in server["alternatives"]}
        h100 = [fits for gpu, fits in ways.items() if gpu.startswith("h100")]
        h200 = [fits for gpu, fits in ways.items() if gpu.startswith("h200")]
        if h100 == [False] and h200 == [True]:
            said.add("fits_on_H200_not_on_H100")
    return said


def print_table(totals: dict[str, dict[str, list[int]]]) -> None:
    """Right of stated, by kind and field."""
    fields = ("recognised", *FIELDS, "conclusion")
    print("| kind | " + " | ".join(fields) + " |")
    print("|---" * (len(fields) + 1) + "|")
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for kind in sorted(totals):
        cells = []
        for field in fields:
            good, count = totals[kind].get(field, (0, 0))
            sums[field][0] += good
            sums[field][1] += count
            cells.append(f"{good}/{count}" if count else "")
        print(f"| {kind} | " + " | ".join(cells) + " |")
    print("| all | " + " | ".join(f"{g}/{n}" if n else "" for g, n in sums.values()) + " |")
    values = [cell for field, cell in sums.items() if field not in ("recognised", "conclusion")]
    good, count = sum(cell[0] for cell in values), sum(cell[1] for cell in values)
    print(f"\nstated values read right: {good} of {count} ({good / max(1, count):.1%})")


if __name__ == "__main__":
    sys.exit(main())
