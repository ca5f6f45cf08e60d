"""Make model_specs/*.yaml and moesize/data/models.json from real config.json files.

    python scripts/build_catalogue.py --configs FOLDER [--configs FOLDER ...]
        --totals CSV [--totals CSV ...]
    python scripts/build_catalogue.py --index-only

FOLDER holds `owner__name.json` files and a sources.csv (model_id, file, source). CSV holds
published element counts (model_id, params_total, exactness, source_url). Every spec is read by the
importer, checked against its published count, and left out when the two disagree. Folders given
with --reconstructed hold configs put together from other sources: they count only where a
published count vouches for them. `stated_configs/` here holds the facts of papers and of authors'
code for models that have no config.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesize.catalog import load_spec, normal_form
from moesize.core.attention import GroupedQueryAttention
from moesize.core.checkpoint import hub_elements
from moesize.core.errors import MoesizeError
from moesize.core.inventory import count_parameters, inventory
from moesize.core.model_spec import ExtraTensor, ModelSpec, Source
from moesize.importer import dump_spec, write_spec
from moesize.readers.hf.read import spec_from_config

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
SPECS = ROOT / "model_specs"
INDEX = ROOT / "moesize" / "data" / "models.json"
LIST = ROOT / "scripts" / "catalogue.csv"
STATED = ROOT / "scripts" / "stated_configs"
CHECKED = "2026-11-22"
# A difference this small cannot be a wrong dimension; the spec says what it is.
_UNEXPLAINED = 1e-7


def main() -> int:
    """Build everything, print what was left out and why."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--configs", action="append", default=[], type=Path)
    parser.add_argument("--reconstructed", action="append", default=[], type=Path)
    parser.add_argument("--totals", action="append", default=[], type=Path)
    parser.add_argument("--index-only", action="store_true")
    options = parser.parse_args()
    if not options.index_only:
        sources = _sources([STATED, *options.configs])
        rebuilt = _sources(options.reconstructed)
        totals: dict[str, tuple[int, str]] = {}
        for path in reversed(options.totals):
            totals |= _totals(path)
        for row in _rows(LIST):
            _build(row, sources, rebuilt, totals)
    write_index()
    return 0


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _sources(folders: list[Path]) -> dict[str, tuple[Path, str]]:
    found: dict[str, tuple[Path, str]] = {}
    for folder in folders:
        beside = folder.parent / f"{folder.name}_sources.csv"
        places = (folder / "sources.csv", beside, folder.parent / "sources.csv")
        rows = _rows(next(place for place in places if place.is_file()))
        for row in rows:
            path = folder / row["file"]
            if path.is_file():
                found.setdefault(row["model_id"].lower(), (path, _plain(row["source"])))
    return found


def _totals(path: Path) -> dict[str, tuple[int, str]]:
    return {
        row["model_id"].lower(): (int(row["params_total"]), _plain(row["source_url"]))
        for row in _rows(path)
        if row["exactness"] == "exact" and row["params_total"]
    }


def _plain(source: str) -> str:
    """A source as a person reads it."""
    return source.replace("pypi:", "Python package ")


def _build(
    row: dict[str, str],
    sources: dict[str, tuple[Path, str]],
    rebuilt: dict[str, tuple[Path, str]],
    totals: dict[str, tuple[int, str]],
) -> None:
    hub_id, same_as = row["hub_id"], row["config_of"]
    names = [hub_id, *(alias for alias in row["aliases"].split(";") if "/" in alias)]
    looked_up = [same_as] if same_as else names
    found = next((sources[name.lower()] for name in looked_up if name.lower() in sources), None)
    reconstructed = found is None
    if found is None:
        found = next((rebuilt[name.lower()] for name in names if name.lower() in rebuilt), None)
    if found is None:
        print(f"left out: {row['id']}: no config found")
        return
    path, source = found
    quant_path = path.parent / "hf_quant_config" / path.name
    quant = json.loads(quant_path.read_bytes()) if quant_path.is_file() and not same_as else None
    config = json.loads(path.read_bytes())
    if row["changes"]:
        config.update(json.loads(row["changes"]))
    try:
        spec = spec_from_config(config, file=path.name, hub_id=hub_id, quant_config=quant)
    except MoesizeError as error:
        print(f"left out: {row['id']}: {error}")
        return
    total = next((totals[name.lower()] for name in names if name.lower() in totals), None)
    spec, problem = _checked(spec, total)
    vouched = row["vouched_by"]
    if same_as and total is None and not vouched:
        problem = f"nothing published shows that it is built like {same_as}"
    if reconstructed and total is None:
        problem = "its config is a reconstruction and no published count vouches for it"
    if problem:
        print(f"left out: {row['id']}: {problem}")
        return
    notes = spec.notes
    if same_as:
        why = vouched if total is None else "the published element count agrees"
        notes += (f"read from the config of {same_as}; {why}",)
    if row["changes"]:
        # A count cannot vouch for every key (a context length has no weights): say what was set.
        notes += (f"set by hand, not read from a file: {row['changes']}",)
    spec = replace(
        spec,
        id=row["id"],
        title=hub_id.rpartition("/")[2],
        aliases=tuple(alias for alias in row["aliases"].split(";") if alias),
        notes=notes,
        source=replace(spec.source, config=source),
    )
    if reconstructed:
        spec = replace(
            spec, notes=(*spec.notes, "config put together from other sources; the count agrees")
        )
    target = SPECS / f"{row['id']}.yaml"
    write_spec(str(target), dump_spec(spec))
    if load_spec(target) != spec:
        raise SystemExit(f"{target} does not read back as it was written")


def _checked(spec: ModelSpec, total: tuple[int, str] | None) -> tuple[ModelSpec, str]:
    """The spec with its published count, or what is wrong with it."""
    unchecked = Source(config="", checked=CHECKED)
    if total is None:
        return replace(spec, source=unchecked), ""
    elements, url = total
    checked = replace(unchecked, total_elements=elements, total_source=url)
    for candidate, why in _candidates(spec):
        counts = count_parameters(candidate)
        packed, unpacked = hub_elements(candidate), hub_elements(candidate, scales=False)
        if elements in (counts.total, counts.stored, packed, unpacked):
            return replace(candidate, source=replace(checked, note=why)), ""
        if elements == counts.stored - _router_biases(candidate):
            why = "the published count leaves out the router's bias buffers"
            return replace(candidate, source=replace(checked, note=why)), ""
        if elements == counts.total + _head_elements(candidate):
            why = "the published count has the tied head twice and no buffers"
            return replace(candidate, source=replace(checked, note=why)), ""
    counts = count_parameters(spec)
    difference = elements - counts.stored
    if abs(difference) < elements * _UNEXPLAINED:
        why = f"the published count is {difference:+,} elements off, not explained"
        return replace(spec, source=replace(unchecked, note=why), notes=(*spec.notes, why)), ""
    return spec, (
        f"published {elements:,} elements; inventory has {counts.total:,} "
        f"(stored {counts.stored:,}, packed {hub_elements(spec):,})"
    )


def _candidates(spec: ModelSpec) -> Iterator[tuple[ModelSpec, str]]:
    """The spec, and the same with what files may hold beyond what a config can tell."""
    yield spec, ""
    if spec.embedding.tied:
        embedding = replace(spec.embedding, stored_tied_head=True)
        yield replace(spec, embedding=embedding), "the files hold the tied head a second time"
    if spec.mtp is not None and (spec.mtp.stores_embedding or spec.mtp.stores_head):
        mtp = replace(spec.mtp, stores_embedding=False, stores_head=False)
        yield replace(spec, mtp=mtp), "the files hold the MTP block without embedding and head"
    frequencies = _rotary_buffers(spec)
    if frequencies:
        extra = ExtraTensor(
            role="other.rotary_inv_freq",
            shape=(frequencies,),
            copies=spec.num_layers,
            dtype="float32",
        )
        extended = replace(spec, stored_extra=(*spec.stored_extra, extra))
        yield extended, "the files hold rotary frequencies in every layer"


def _rotary_buffers(spec: ModelSpec) -> int:
    """Frequencies per layer that old Llama files repeat: half the head size."""
    mixer = next((m for block in spec.blocks for m in block.mixers), None)
    return mixer.head_dim // 2 if isinstance(mixer, GroupedQueryAttention) else 0


def _router_biases(spec: ModelSpec) -> int:
    return sum(
        entry.elements
        for entry in inventory(spec)
        if entry.tensor.role == "router.bias" and entry.section in ("layers", "mtp")
    )


def _head_elements(spec: ModelSpec) -> int:
    """Elements of a tied head, counted again; -1 (never a match) where there is none."""
    return spec.embedding.vocab_size * spec.hidden_size if spec.embedding.tied else -1


def make_index() -> dict[str, Any]:
    """Summaries and every name, so that a look-up reads one file and never the catalogue."""
    models: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    paths = sorted(SPECS.glob("*.yaml"))
    ids = {normal_form(path.stem) for path in paths}
    for path in paths:
        spec = load_spec(path)
        if spec.id != path.stem:
            raise SystemExit(f"{path}: id {spec.id!r} is not the file name")
        counts = count_parameters(spec)
        models.append(
            {
                "id": spec.id,
                "title": spec.title,
                "hub_id": spec.hub_id,
                "model_type": spec.model_type,
                "aliases": list(spec.aliases),
                "total": counts.total,
                "active": counts.active,
                "layers": spec.num_layers or len(spec.encoder_layout),
                "context": spec.max_context,
                "quantization": spec.quantization.method if spec.quantization else "",
                "exact": spec.source.total_elements is not None,
            }
        )
        for name in (spec.id, spec.hub_id, spec.title, *spec.aliases):
            # A hub id's last part is another model's id now and then: the id wins.
            others = name == spec.title and normal_form(name) in ids - {spec.id}
            if name and not others:
                _claim(names, normal_form(name), spec.id, strict=name != spec.title)
    for model in models:
        names[normal_form(model["id"])] = model["id"]
    return {"schema": "moesize.models/1", "models": models, "names": dict(sorted(names.items()))}


def write_index() -> None:
    """Write the index."""
    document = make_index()
    write_spec(str(INDEX), json.dumps(document, indent=0, ensure_ascii=False) + "\n")
    print(f"{len(document['models'])} models, {len(document['names'])} names", file=sys.stderr)


def _claim(names: dict[str, str], key: str, owner: str, *, strict: bool) -> None:
    if key in names and names[key] != owner:
        if strict:
            raise SystemExit(f"{key!r} names both {names[key]} and {owner}")
        return
    names[key] = owner


if __name__ == "__main__":
    sys.exit(main())
