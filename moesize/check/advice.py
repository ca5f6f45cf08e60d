"""Fixes: what to write instead, as edits of the file where the place allows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.check.findings import Edit, Fix

if TYPE_CHECKING:
    from moesize.check.planning import Case
    from moesize.check.source import SourceFile, Word
    from moesize.core.plan import Suggestion


def replace_value(word: Word, text: str, words: str, *, safe: bool) -> Fix:
    """Write `text` where `word` stands; in words only where the file has no such characters."""
    if word.exact and word.span is not None:
        return Fix(text=words, edits=(Edit(word.span, text),), safe=safe)
    return Fix(text=words)


def set_flag(
    case: Case, target: str, value: str, file: SourceFile, *, safe: bool, why: str = ""
) -> Fix:
    """Give a flag of the engine a value: change it where it stands, else add it."""
    name = case.flags.name(target)
    words = f"{name} {value}" + (f" ({why})" if why else "")
    found = case.flags.value(target)
    if found is not None and found.exact:
        return replace_value(found, value, words, safe=safe)
    if found is not None or not name.startswith("-"):
        return Fix(text=words)
    edit = add_flag(case, f"{name}", value, file)
    return Fix(text=f"add {words}", edits=(edit,) if edit else (), safe=safe and edit is not None)


def add_flag(case: Case, name: str, value: str, file: SourceFile) -> Edit | None:
    """An edit that adds a flag after the model's name; None where the file's form is another."""
    after = case.flags.model_place()
    span = after.span
    if span is None or not after.exact or span.path != file.path or span.line != span.end_line:
        return None
    if not any(word is after or str(word).endswith(str(after)) for word in case.server.words):
        return None
    line = file.line(span.line)
    before, behind = line[: span.column - 1], line[span.end_column - 1 :]
    end = span._replace(column=span.end_column)
    quote = behind[:1] if behind[:1] in ("'", '"') else ""
    lead = before.strip().rstrip("'\"")
    item = before[: len(before) - len(before.lstrip())] + "- "
    if lead in ("-", "- --model=", "- --model ", "---model=") or (
        lead.startswith("- --model") and lead.endswith("=")
    ):
        if behind.strip() not in ("", quote):
            return None
        close = span._replace(
            line=span.line,
            column=len(line) + 1,
            end_line=span.line,
            end_column=len(line) + 1,
        )
        return Edit(close, f"\n{item}{name}={value}")
    if quote and before.rstrip().endswith(quote) and "[" in before:
        close = end._replace(column=span.end_column + 1, end_column=span.end_column + 1)
        return Edit(close, f", {quote}{name}={value}{quote}")
    if not quote and before[-1:] in (" ", "=") and behind[:1] in ("", " ", "\\"):
        # Words of a command line.
        return Edit(end, f" {name} {value}")
    return None


def of_suggestion(case: Case, suggestion: Suggestion, file: SourceFile) -> Fix:
    """A change that the planner made and that fits, in the words of the file."""
    options = dict(zip(suggestion.options[::2], suggestion.options[1::2], strict=False))
    words = []
    for name, target in (
        ("--context", case.flags.context),
        ("--max-num-seqs", "request:max_num_seqs"),
    ):
        value = options.pop(name, None)
        if value is not None:
            fix = set_flag(case, target, value, file, safe=True)
            if not options:
                return fix
            words.append(fix.text)
    tensor = options.pop("--tp", None)
    pipeline = options.pop("--pp", None)
    gpus = options.pop("--gpus", None)
    gpu = options.pop("--gpu", None)
    if gpu is not None:
        words.append(suggestion.what)
    elif gpus is not None:
        words.append(f"{gpus} GPUs")
    alone = tensor == "1" and pipeline in (None, "1")
    if alone and case.flags.find("request:tensor_parallel_size") is None:
        tensor = None  # the engine's default, and the file does not say otherwise
    if tensor is not None and case.flags.name("request:tensor_parallel_size"):
        words.append(f"{case.flags.name('request:tensor_parallel_size')} {tensor}")
    if pipeline is not None and pipeline != "1":
        words.append(f"--pipeline-parallel-size {pipeline}")
    share = options.pop("--gpu-memory-utilization", None)
    if share is not None:
        words.append(f"{case.flags.name('request:gpu_memory_utilization')} {share}")
    quant = options.pop("--quant", None)
    if quant is not None:
        words.append(f"weights in {quant}")
    words += [f"{name} {value}" for name, value in options.items()]
    return Fix(text=", ".join(dict.fromkeys(words)) or suggestion.what)
