"""JSON Schemas: real output is valid against them, and none says less than the program does."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pydantic
import pytest
from running import ROOT, call

from moesize.catalog import spec_folder
from moesize.core.errors import UnknownNameError
from moesize.core.model_spec import ModelSpec
from moesize.core.tensors import GROUPS
from moesize.files import read_yaml
from moesize.schemas import document_names, find_schema, spec_model
from moesize.structure import StructureError, build

LOGS = ROOT / "tests" / "fixtures" / "logs"
DEPLOYMENTS = ROOT / "tests" / "fixtures" / "check"
OUTPUTS: dict[str, list[tuple[str, ...]]] = {
    "plan": [
        ("plan", "mixtral-8x7b", "--gpu", "a10g", "--quant", "4bit"),
        ("plan", "deepseek-v3", "--gpu", "h200", "--gpus", "16", "--pp", "2"),
        ("plan", "gpt-oss-120b", "--gpu", "h100", "--kv-cache-memory", "8GiB"),
        ("plan", "llama-3.1-8b", "--gpu", "24GiB"),
        ("plan", "deepseek-v3", "--gpu", "h200", "--gpus", "8", "--engine", "sglang"),
        ("plan", "qwen3-next-80b-a3b", "--gpu", "h100", "--gpus", "4", "--engine", "sglang"),
        ("plan", "qwen3-8b", "--gpu", "l4", "--engine", "sglang"),
        ("plan", "mixtral-8x7b", "--gpu", "rtx-4090", "--gpus", "2", "--engine", "transformers"),
        ("plan", "mixtral-8x7b", "--gpu", "h100", "--gpus", "2", "--engine", "tensorrt-llm"),
    ],
    "check": [
        ("check", str(DEPLOYMENTS)),
        ("check", str(DEPLOYMENTS / "compose.yaml"), "--gpu", "h100"),
        ("check", str(DEPLOYMENTS / "gpt-oss.yaml"), "--ignore", "MS1"),
    ],
    "rules": [("check", "--list-rules")],
    "model": [("show", "deepseek-v3", "--tensors"), ("show", "qwen3-0.6b")],
    "models": [("models",)],
    "gpus": [("gpus",)],
    "quants": [("quants",)],
    "engines": [("engines",)],
    "audit": [
        (
            "audit",
            str(LOGS / "vllm-qwen3-30b-fp8-h100.log"),
            "--engine-version",
            "0.30.0",
            "--save",
        ),
        ("audit", str(LOGS / "vllm-minimax-too-long.log"), "--gpu", "gb10"),
        ("audit", str(LOGS / "sglang-qwen3.5-9b-tp2.log")),
        ("audit", str(LOGS / "llama-server-gpt-oss-20b.log")),
    ],
    "accuracy": [("accuracy", "--engine", "vllm")],
    "verify": [
        ("verify", str(ROOT / "tests/fixtures/tiny-model"), "--device", "cpu", "--tokens", "8"),
    ],
    "error": [
        ("plan", "no such model", "--gpu", "a10g"),
        ("plan", "gpt-4", "--gpu", "h100"),
        ("plan", "mixtral-8x7b"),
        ("plan", "mixtral-8x7b", "--gpu", "a10g", "--gpus", "4", "--tp", "3"),
    ],
}


def closed(schema: Any) -> Any:
    """The same schema without room for fields that it does not name."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: closed(value) for key, value in schema.items()}
    if "properties" in out:
        out["additionalProperties"] = False
    return out


def test_every_document_has_an_example_here() -> None:
    # Files that are read: tests/readers and tests/accuracy hold their examples.
    assert set(document_names()) == {*OUTPUTS, "spec", "report"}


@pytest.mark.parametrize("name", OUTPUTS)
def test_output_is_valid_and_has_no_field_that_the_schema_lacks(name: str) -> None:
    validator = jsonschema.Draft202012Validator(closed(find_schema(name)))
    for arguments in OUTPUTS[name]:
        validator.validate(call(*arguments, "--format", "json").json())


@pytest.mark.parametrize("name", [*OUTPUTS, "spec", "report"])
def test_schemas_are_valid_schemas(name: str) -> None:
    schema = find_schema(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert call("schema", name).json() == schema


def test_a_document_with_a_field_missing_is_not_valid() -> None:
    """The schema is not so wide that anything passes."""
    validator = jsonschema.Draft202012Validator(find_schema("plan"))
    document = call(*OUTPUTS["plan"][0], "--format", "json").json()
    for key in document:
        assert not validator.is_valid({k: v for k, v in document.items() if k != key})
    document["gpus"][0]["used_bytes"] += 0.5
    assert not validator.is_valid(document)


def test_parameter_groups_of_the_schema_are_those_of_the_core() -> None:
    params = find_schema("plan")["$defs"]["Params"]["properties"]
    assert list(params)[-len(GROUPS) :] == list(GROUPS)


def test_unknown_document() -> None:
    with pytest.raises(UnknownNameError) as caught:
        find_schema("plam")
    assert caught.value.suggestions == ("plan",)


# --- spec files: pydantic, JSON Schema and moesize.structure must agree --------------------------

MODELS = ("mixtral-8x7b", "deepseek-v3", "gpt-oss-20b", "falcon-mamba-7b", "qwen3-vl-2b")


def spec_data(name: str) -> Any:
    return read_yaml(spec_folder() / f"{name}.yaml").data


def mutations(data: Any) -> Iterator[tuple[str, Any]]:
    """Every key dropped, every value of another type, an unknown key in every object."""
    yield from _mutations(data, data, ())


def _mutations(root: Any, node: Any, path: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    where = ".".join(map(str, path))
    if isinstance(node, dict):
        yield f"{where}: unknown key", _changed(root, (*path, "no_such_key"), 1)
        for key in node:
            yield f"{where}.{key}: dropped", _changed(root, (*path, key), None, drop=True)
    if path:
        for value in _others(node):
            yield f"{where}: {value!r}", _changed(root, path, value)
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _mutations(root, value, (*path, key))
    elif isinstance(node, list):
        # The first items stand for the rest, which have the same type.
        for index, value in list(enumerate(node))[:2]:
            yield from _mutations(root, value, (*path, index))


def _others(value: Any) -> list[Any]:
    out: list[Any] = [None, "no such kind", [], {}, True, 0, -1, 1 << 50]
    if isinstance(value, int) and not isinstance(value, bool):
        out += [float(value), value + 0.5, str(value)]
    return out


def _changed(root: Any, path: tuple[Any, ...], value: Any, *, drop: bool = False) -> Any:
    out = copy.deepcopy(root)
    node = out
    for key in path[:-1]:
        node = node[key]
    if drop:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return out


def accepted_by_structure(data: Any) -> str:
    """Empty when it is accepted; else what is wrong."""
    try:
        build(ModelSpec, data)
    except StructureError as error:
        return str(error)
    return ""


def is_cross_field(problem: str) -> bool:
    """Rules of `__post_init__`, which hold for values that are well-formed one by one."""
    words = (
        "must divide",
        "blocks that",
        "block names",
        "layers",
        "dtype",
        "role ",
        "between 1 and",
    )
    return any(word in problem for word in words) and "unknown key" not in problem


def accepted_by_pydantic(data: Any) -> bool:
    try:
        spec_model().model_validate_json(json.dumps(data))
    except pydantic.ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", MODELS)
def test_pydantic_and_structure_accept_and_refuse_the_same(name: str) -> None:
    validator = jsonschema.Draft202012Validator(find_schema("spec"))
    data = spec_data(name)
    assert accepted_by_structure(data) == ""
    assert accepted_by_pydantic(data)
    accepted = refused = 0
    for what, mutated in mutations(data):
        problem = accepted_by_structure(mutated)
        by_pydantic = accepted_by_pydantic(mutated)
        if problem and is_cross_field(problem):
            continue
        assert by_pydantic == (not problem), f"{name}: {what}: {problem or 'accepted'}"
        # JSON Schema has no difference between 1 and 1.0; everything else it must see.
        if problem and "not an integer" not in problem and ".0" not in what:
            assert not validator.is_valid(mutated), f"{name}: {what}"
        if not problem:
            assert validator.is_valid(mutated), f"{name}: {what}"
        accepted, refused = accepted + (not problem), refused + bool(problem)
    assert accepted > 20
    assert refused > 100


@pytest.mark.parametrize("path", sorted(spec_folder().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_spec_is_valid(path: Path) -> None:
    data = read_yaml(path).data
    assert accepted_by_pydantic(data)
    jsonschema.Draft202012Validator(find_schema("spec")).validate(data)
