"""MODEL as people type it -> ModelSpec: a name, a hub id, a folder, a config.json, a GGUF file or a
spec."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesize.core.errors import (
    InvalidInputError,
    InvalidSpecError,
    UnknownNameError,
    UnsupportedError,
)
from moesize.core.model_spec import ModelSpec

if TYPE_CHECKING:
    from moesize.files import YamlDocument

_PACKAGE = Path(__file__).parent
# Names that people ask for whose sizes were never published: a refusal says so.
_UNPUBLISHED = {
    "gpt-4": "GPT-4",
    "gpt4": "GPT-4",
    "gpt-4o": "GPT-4o",
    "gpt-4-turbo": "GPT-4 Turbo",
    "gpt-4.1": "GPT-4.1",
    "gpt-5": "GPT-5",
    "o1": "o1",
    "o3": "o3",
    "claude": "Claude",
    "gemini": "Gemini",
}


def spec_folder() -> Path:
    """Where the shipped specs are: inside an installed package, beside it in a checkout."""
    inside = _PACKAGE / "model_specs"
    return inside if inside.is_dir() else _PACKAGE.parent / "model_specs"


@cache
def index() -> dict[str, Any]:
    """The generated index: summaries by id, and every alias and hub id in normal form."""
    with (_PACKAGE / "data" / "models.json").open(encoding="utf-8") as stream:
        loaded: dict[str, Any] = json.load(stream)
    return loaded


def normal_form(name: str) -> str:
    """Spelling that look-ups ignore: case, spaces, underscores."""
    return name.strip().lower().replace("_", "-").replace(" ", "-")


def resolve_model(name: str, *, online: bool = False) -> tuple[ModelSpec, str]:
    """The spec that MODEL names, and where it came from (interface: model.source).

    The catalogue is asked first; a path is read; a hub id that the catalogue does not know is
    fetched (only its config.json). Raises MoesizeError.
    """
    if not name.strip() or any(ord(char) < 32 for char in name):
        raise UnknownNameError("model", name, (), "moesize models")
    known = catalogue_id(name)
    if online and known is not None:
        from moesize.readers.hub import spec_from_hub

        return spec_from_hub(load_spec(spec_folder() / f"{known}.yaml").hub_id), "hub"
    if not online:
        if known is not None:
            return load_spec(spec_folder() / f"{known}.yaml"), "catalogue"
        key = normal_form(name.rpartition("/")[2])
        if key in _UNPUBLISHED:
            raise UnsupportedError(
                f"the sizes of {_UNPUBLISHED[key]} were never published: nothing can be computed",
                "figures that circulate are rumours; moesize only counts what is documented",
            )
    path = _as_path(name)
    if path is not None:
        return _from_path(path)
    if _looks_like_hub_id(name):
        from moesize.readers.hub import spec_from_hub

        return spec_from_hub(name), "hub"
    raise UnknownNameError("model", name, nearest_names(name), "moesize models")


def catalogue_id(name: str) -> str | None:
    key = normal_form(name)
    # The common case costs no index: the file is named as the model is called.
    if _is_plain(key) and (spec_folder() / f"{key}.yaml").is_file():
        return key
    names: dict[str, str] = index()["names"]
    found = names.get(key) or names.get(key.removesuffix("-hf"))
    if found is None and len(key) < 100:
        # llama-3-1-8b for llama-3.1-8b: the same letters and figures in the same order.
        squashed = _squashed(key)
        found = next(
            (owner for other, owner in names.items() if _squashed(other) == squashed), None
        )
    return found


def _squashed(name: str) -> str:
    return "".join(char for char in name if char.isalnum())


def _is_plain(key: str) -> bool:
    return bool(key) and len(key) < 100 and all(c.isalnum() or c in "-." for c in key)


def _as_path(name: str) -> Path | None:
    if len(name) > 4096:
        return None
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # ~nobody
        path = Path(name)
    suffix = path.suffix.lower()
    if suffix in (".json", ".yaml", ".yml", ".gguf") or name.startswith((".", "/", "~")):
        return path
    try:
        return path if path.exists() else None
    except OSError:
        return None


def is_gguf_path(path: Path) -> bool:
    """Whether a path names a GGUF file, or a folder that holds one and no config.json."""
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        return True
    return path.is_dir() and not (path / "config.json").exists() and any(path.glob("*.gguf"))


def _from_path(path: Path) -> tuple[ModelSpec, str]:
    try:
        is_folder = path.is_dir()
        is_gguf = is_gguf_path(path)
    except OSError as error:
        raise InvalidInputError(f"{str(path)[:80]}: cannot be read ({error.strerror})") from error
    if is_gguf:
        from moesize.readers.gguf.read import spec_from_gguf

        return spec_from_gguf(path), "gguf"
    if is_folder:
        return read_config_file(path / "config.json"), "checkpoint"
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return load_spec(path), "spec"
    return read_config_file(path), "config"


def read_config_file(path: Path) -> ModelSpec:
    """Read a config.json (and hf_quant_config.json beside it, as ModelOpt writes it)."""
    from moesize.files import read_json
    from moesize.readers.hf.read import spec_from_config

    data = read_json(path)
    beside = path.with_name("hf_quant_config.json")
    quant = read_json(beside) if path.name == "config.json" and beside.is_file() else None
    name = path.parent.resolve().name if path.name == "config.json" else path.stem
    return spec_from_config(data, file=str(path), name=name, quant_config=quant)


def load_spec(path: Path) -> ModelSpec:
    """Read a model-spec YAML. Errors name the file, the line and the key."""
    from moesize.files import read_yaml
    from moesize.structure import StructureError, build

    document = read_yaml(path)
    try:
        spec: ModelSpec = build(ModelSpec, document.data)
    except StructureError as error:
        line = document.line(error.path)
        raise InvalidSpecError(f"{path}:{line}: {error}") from error
    if path.parent != spec_folder():
        _check_naming(spec, path, document)
    return spec


def _check_naming(spec: ModelSpec, path: Path, document: YamlDocument) -> None:
    # The table of names is large, and shipped specs are checked by the tests.
    from moesize.core.naming import NAMES

    if spec.naming.partition("@")[0] not in NAMES:
        line = document.line("naming")
        raise InvalidSpecError(f"{path}:{line}: naming: {spec.naming[:40]!r} names no family")


def _looks_like_hub_id(name: str) -> bool:
    bare = name.partition("@")[0]
    owner, slash, repo = bare.partition("/")
    return bool(
        slash
        and owner
        and repo
        and "/" not in repo
        and len(bare) <= 200
        and all(c.isascii() and (c.isalnum() or c in "-_.") for c in owner + repo)
    )


def nearest_names(name: str) -> list[str]:
    """Catalogue names that look like `name`, best first, at most three."""
    from difflib import get_close_matches

    key = normal_form(name.rpartition("/")[2])[:80]
    names = index()["names"]
    near = get_close_matches(key, names, n=6, cutoff=0.5)
    near += [other for other in names if key and len(key) > 3 and key in other][:3]
    return list(dict.fromkeys(names[other] for other in near))[:3]


def list_models(word: str | None = None) -> list[dict[str, Any]]:
    """Summaries of the catalogue, by id; `word` filters ids, titles and aliases."""
    wanted = normal_form(word or "")
    rows: list[dict[str, Any]] = []
    for row in index()["models"]:
        names = [row["id"], row["hub_id"], row["model_type"], *row["aliases"]]
        if any(wanted in normal_form(name) for name in names):
            rows.append(row)
    return rows
