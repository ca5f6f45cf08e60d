"""Regenerate moesize/data/flags/<engine>.json from the engines' released source trees.

    python scripts/engine_flags.py vllm 0.32.0=SRC 0.33.0=SRC ...     (oldest first)

Only names, kinds, variables and versions are read (by parsing, nothing is executed). What a flag
`sets` and its `effect` are judged by a person: they are kept for flags that the file has, and a new
flag starts as `memory`, so that it is named in a warning until somebody has looked at it.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).parent.parent / "moesize" / "data" / "flags"
Row = dict[str, Any]
# What a person judged.
JUDGED = ("sets", "read", "effect", "harmless")
# Where the code that takes a flag differs from its declaration.
KINDS = {
    # A switch in older builds (about b6300, remembered), on|off|auto since.
    "--flash-attn": "optional",
    # vLLM entrypoints/openai/cli_args.py:_customize_cli_kwargs
    "--allowed-origins": "json",
    "--allowed-methods": "json",
    "--allowed-headers": "json",
    "--middleware": "value",
}


def main(engine: str, *trees: str) -> None:
    """Read every tree and write the data file of the engine."""
    readers = {"vllm": read_vllm, "sglang": read_sglang, "llama.cpp": read_llama_cpp}
    path = FOLDER / f"{engine}.json"
    known: Row = json.loads(path.read_text("utf-8")) if path.exists() else {}
    versions = [tree.partition("=")[0] for tree in trees]
    # A flag is known by any of its names: releases change which one comes first.
    merged: list[Row] = []
    owner: dict[str, Row] = {}
    variables: set[str] = set()
    for index, tree in enumerate(trees):
        source = Path(tree.partition("=")[2])
        for row in readers[engine](source):
            same = [owner[name] for name in row["names"] if name in owner]
            if not same:
                merged.append({"seen": []})
            target = same[0] if same else merged[-1]
            names = row["names"] + [n for n in target.get("names", ()) if n not in row["names"]]
            target.update({**row, "names": [n for n in names if owner.get(n, target) is target]})
            target["seen"].append(index)
            owner.update(dict.fromkeys(target["names"], target))
        variables |= read_variables(engine, source)
    judged = {name: row for row in known.get("flags", []) for name in row["names"]}
    used: set[int] = set()
    rows = []
    for row in merged:
        seen = row.pop("seen")
        row["kind"] = KINDS.get(row["names"][0], row["kind"])
        if seen[0] > 0:
            row["from"] = versions[seen[0]]
        if seen[-1] + 1 < len(versions):
            row["before"] = versions[seen[-1] + 1]
        old = next((judged[name] for name in row["names"] if name in judged), {"effect": "memory"})
        used.add(id(old))
        rows.append(row | {name: old[name] for name in JUDGED if name in old})
    # Written by hand: flags that no release read has, each with its source.
    rows += [row for row in known.get("flags", []) if "source" in row and id(row) not in used]
    silent = sorted(set(known.get("environment_without_effect", [])) & variables)
    listed = {row["name"] for row in known.get("environment", [])} | set(silent)
    new = [{"name": name, "effect": "memory"} for name in sorted(variables - listed)]
    known["versions_read"] = versions
    known["flags"] = sorted(rows, key=lambda row: str(row["names"][0]))
    known["environment"] = sorted([*known.get("environment", []), *new], key=lambda r: r["name"])
    known["environment_without_effect"] = silent
    path.write_text(dump(known), encoding="utf-8")
    print(f"{path.name}: {len(rows)} flags, {len(variables)} variables, {len(new)} new variables")


def dump(document: Row) -> str:
    """JSON with one row a line, and long lists of names many on a line."""
    parts = []
    for name, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            inner = ",\n".join(f"    {json.dumps(row)}" for row in value)
            text = f"[\n{inner}\n  ]"
        elif isinstance(value, list) and len(value) > 4:
            lines, line = [], ""
            for item in value:
                word = json.dumps(item)
                if len(line) + len(word) > 92:
                    lines.append(line.rstrip())
                    line = ""
                line += word + ", "
            lines.append(line.rstrip(", "))
            text = "[\n    " + "\n    ".join(lines) + "\n  ]"
        else:
            text = json.dumps(value, ensure_ascii=False)
        parts.append(f"  {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _dashed(name: str) -> str:
    return "--" + name.lstrip("-").replace("_", "-") if name.startswith("--") else name


def read_vllm(source: Path) -> Iterator[Row]:
    """Flags of `vllm serve`: EngineArgs, the front end and the serve command."""
    base = source / "vllm"
    classes: dict[str, dict[str, str]] = {}
    places = [base / "config", base / "engine", base / "entrypoints"]
    files = [file for place in places for file in sorted(place.rglob("*.py"))]
    if (base / "config.py").exists():
        files.append(base / "config.py")
    parsed = {file: _tree(file) for file in files}
    for tree in parsed.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                fields = classes.setdefault(node.name, {})
                for item in node.body:
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                        fields.setdefault(item.target.id, ast.unparse(item.annotation))
    wanted = [base / "engine" / "arg_utils.py", base / "entrypoints" / "cli" / "serve.py"]
    wanted += [file for file in files if file.name == "cli_args.py"]
    wanted += [file for file in files if file.name == "serve.py" and file.parent.name != "cli"]
    for file in wanted:
        if file in parsed:
            yield from _argparse_rows(parsed[file], classes)
    for name in ("BaseFrontendArgs", "FrontendArgs"):
        for field, annotation in classes.get(name, {}).items():
            yield _field_row("--" + field.replace("_", "-"), annotation)


def _field_row(flag: str, annotation: str) -> Row:
    kind = _kind_of(annotation)
    row: Row = {"names": [flag], "kind": kind}
    if kind == "switch":
        row["no"] = True
    return row


def _kind_of(annotation: str) -> str:
    words = set(re.findall(r"[A-Za-z_]+", annotation))
    plain = annotation.replace(" ", "").strip("\"'")
    if "bool" in words:
        return "optional" if "str" in words and "dict" not in words else "switch"
    if "Literal" in words or plain.startswith(("int", "float", "str|None", "Optional[int")):
        return "value" if "list" not in words or plain.startswith("Literal") else "list"
    if words & {"list", "List", "tuple", "set"} and not words & {"dict", "Dict"}:
        return "list"
    if words & {"dict", "Dict", "HfOverrides"} or any(word.endswith("Config") for word in words):
        return "json"
    return "value"


def _argparse_rows(tree: ast.Module, classes: dict[str, dict[str, str]]) -> Iterator[Row]:
    """Rows of every add_argument call; `**cache_kwargs["x"]` is looked up in its config class."""
    groups = {}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Call)
            and ast.unparse(node.value.func) == "get_kwargs"
        ):
            groups[node.targets[0].id] = ast.unparse(node.value.args[0])
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr != "add_argument":
            continue
        names = [
            arg.value
            for arg in node.args
            if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
        ]
        if not names or not names[0].startswith("-"):
            continue
        row = _call_row(node, names, groups, classes)
        yield row


def _call_row(
    node: ast.Call, names: list[str], groups: dict[str, str], classes: dict[str, dict[str, str]]
) -> Row:
    names = sorted({_dashed(name): None for name in names}, key=lambda n: not n.startswith("--"))
    row: Row = {"names": names, "kind": "value"}
    words: dict[str, str] = {}
    for keyword in node.keywords:
        text = ast.unparse(keyword.value)
        if keyword.arg is not None:
            words[keyword.arg] = text
            continue
        for group, field in re.findall(r"(\w+_kwargs)\['(\w+)'\]", text):
            annotation = classes.get(groups.get(group, ""), {}).get(field)
            if annotation is not None:
                row = {**_field_row(names[0], annotation), "names": names}
    action, nargs = words.get("action", ""), words.get("nargs", "")
    if re.search("'store_(true|false)'|Deprecated(Store|Action)", action):
        row["kind"] = "switch"
        if "AliasStore" in action or nargs == "None":
            row["kind"] = "value"
    elif "BooleanOptionalAction" in action:
        row.update(kind="switch", no=True)
    elif "StoreBoolean" in action or nargs == "'?'":
        row["kind"] = "optional"
    elif nargs in ("'*'", "'+'"):
        row["kind"] = "list"
    elif "json.loads" in words.get("type", ""):
        row["kind"] = "json"
    return row


def read_sglang(source: Path) -> Iterator[Row]:
    """Flags of ServerArgs: add_argument calls of old releases, annotated fields of new ones."""
    base = source / "sglang" / "srt"
    files = [base / "server_args.py", *sorted((base / "arg_groups" / "fields").glob("*.py"))]
    for file in files:
        tree = _tree(file)
        yield from _argparse_rows(tree, {})
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                row = _annotated_row(node.target.id, node.annotation)
                if row is not None:
                    yield row


def _annotated_row(field: str, annotation: ast.expr) -> Row | None:
    """The row of `field: A[type, Arg(...)]`; None for other fields."""
    if not (isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "A"):
        return None
    if not isinstance(annotation.slice, ast.Tuple):
        return None
    python_type, *rest = annotation.slice.elts
    words: dict[str, Any] = {}
    for item in rest:
        if isinstance(item, ast.Call) and ast.unparse(item.func) == "Arg":
            words = {word.arg: word.value for word in item.keywords if word.arg}
    if "no_cli" in words and ast.unparse(words["no_cli"]) == "True":
        return None
    names = [ast.literal_eval(words["cli_name"]) if "cli_name" in words else "--" + field]
    names += ast.literal_eval(words["aliases"]) if "aliases" in words else []
    text = ast.unparse(python_type).removeprefix("Optional[").removesuffix(" | None")
    if text.count("]") > text.count("["):
        text = text.removesuffix("]")
    action = ast.unparse(words["action"]) if "action" in words else ""
    nargs = ast.unparse(words["nargs"]) if "nargs" in words else ""
    parser = ast.unparse(words["type_parser"]) if "type_parser" in words else ""
    row: Row = {"names": list(dict.fromkeys(map(_dashed, names))), "kind": "value"}
    if "BooleanOptional" in action:
        row.update(kind="switch", no=True)
    elif "store_true" in action or (text == "bool" and not action):
        row["kind"] = "switch"
    elif "Deprecated" in action:
        row["kind"] = "value" if "Alias" in action else "switch"
    elif nargs == "'?'":
        row["kind"] = "optional"
    elif nargs or "LoRAPathAction" in action or ("List[" in text and not parser):
        row["kind"] = "list"
    elif "json" in parser:
        row["kind"] = "json"
    return row


_STRINGS = re.compile(r'"((?:--?)[A-Za-z][\w-]*)"')


def read_llama_cpp(source: Path) -> Iterator[Row]:
    """Flags of llama-server: every common_arg of common/arg.cpp that it takes."""
    for file in ("common/arg.cpp", "vendor/llama.cpp/common/arg.cpp"):
        if (source / file).exists():
            text = (source / file).read_text(encoding="utf-8")
            break
    else:
        raise SystemExit(f"{source}: no common/arg.cpp")
    for part in text.split("add_opt(common_arg(")[1:]:
        head, _, body = part.partition("[](common_params")
        brace = head.find("{")
        names = _STRINGS.findall(head[brace : head.find("}", brace)])
        rest = head[head.find("}", brace) + 1 :].lstrip(", \n")
        negative = []
        if rest.startswith("{"):
            negative = _STRINGS.findall(rest[: rest.find("}")])
            rest = rest[rest.find("}") + 1 :].lstrip(", \n")
        examples = re.findall(r"set_examples\(([^)]*)\)", body)
        if "set_excludes" in body and "LLAMA_EXAMPLE_SERVER" in body.partition("set_excludes")[2]:
            continue
        if examples and not re.search("SERVER|COMMON|CLI|mmproj_examples", examples[0]):
            continue
        if not names:
            continue
        signature = body.partition("{")[0]
        kind = "value" if signature.count(",") else "switch"
        if "bool" in signature:
            kind = "switch"
        names.sort(key=lambda name: (not name.startswith("--"), -len(name)))
        row: Row = {"names": names, "kind": kind}
        if signature.count("std::string &") == 2:
            row["kind"] = "two values"
        if negative:
            row["negative"] = negative
        variable = re.search(r'set_env\("([A-Z_]+)"\)', body)
        if variable:
            row["env"] = variable[1]
        yield row


def read_variables(engine: str, source: Path) -> set[str]:
    """Environment variables that the release declares."""
    place, pattern = {
        "vllm": (source / "vllm" / "envs.py", r'^    "(VLLM_[A-Z_0-9]+)"'),
        "sglang": (source / "sglang" / "srt" / "environ.py", r"^    (SGLANG_[A-Z_0-9]+) *="),
        "llama.cpp": (source / "none", ""),
    }[engine]
    if not place.exists():
        return set()
    return set(re.findall(pattern, place.read_text(encoding="utf-8"), re.MULTILINE))


if __name__ == "__main__":
    main(*sys.argv[1:])
