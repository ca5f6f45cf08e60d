"""Rules as people read them: `--list-rules`, `--explain`, the pages of docs/rules, SARIF's help."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from moesize.renderers.check.excerpt import wrap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moesize.check.rules import Rule


class Family(NamedTuple):
    """Rules whose ids begin alike: the tag that SARIF carries, and a title."""

    prefix: str
    tag: str
    title: str


FAMILIES = (
    Family("MS0", "file", "The file"),
    Family("MS1", "memory", "Memory"),
    Family("MS2", "gpu-layout", "Layout of GPUs"),
    Family("MS3", "model", "Model, quantization and number formats"),
    Family("MS4", "engine-flags", "Engine flags"),
    Family("MS5", "gpu", "The GPU"),
    Family("MS6", "pod", "The pod"),
)


def family_of(rule: Rule) -> Family:
    """The family of a rule. Raises StopIteration for one that has none: a test asks for all."""
    return next(family for family in FAMILIES if rule.id.startswith(family.prefix))


def rule_text(rule: Rule, *, width: int = 80) -> str:
    """Everything about a rule, for a terminal."""
    fixable = ", --fix makes the change" if rule.fixable else ""
    parts = [f"{rule.id} {rule.name} ({rule.severity}{fixable})"]
    parts += ["\n".join(wrap(text, width)) for text in (as_sentence(rule.summary), rule.why)]
    parts += [f"{title}:\n\n{_indented(text)}" for title, text in _examples(rule)]
    parts.append(f"To ignore it:\n\n{_indented(ignore_comment(rule))}")
    return "\n\n".join(parts)


def rule_markdown(rule: Rule) -> str:
    """Everything about a rule, without a title."""
    parts = [as_sentence(rule.summary), rule.why]
    parts += [f"{title}:\n\n{fenced(text)}" for title, text in _examples(rule)]
    return "\n\n".join(parts) + "\n"


def rule_page(rule: Rule) -> str:
    """The page docs/rules/ID.md."""
    fix = "`moesize check --fix` makes the change" if rule.fixable else "by hand"
    return "\n".join(
        [
            f"# {rule.id}: {rule.name}",
            "",
            f"Severity: {rule.severity}. Fix: {fix}.",
            "",
            rule_markdown(rule),
            "Ignore it where it does not apply, with the reason, on the line or the line above:",
            "",
            fenced(ignore_comment(rule), "yaml"),
            "",
            "or everywhere: `moesize check --ignore "
            f'{rule.id}`, or `ignore = ["{rule.id}"]` in the configuration '
            "([how to](../check.md#ignoring)).",
            "",
            "[All rules](README.md)",
            "",
        ]
    )


def rules_index(rules: Sequence[Rule]) -> str:
    """The page docs/rules/README.md."""
    lines = [
        "# Rules of `moesize check`",
        "",
        "One page each, made from `moesize/check/rules.py`. `moesize check --list-rules` lists "
        "them, `moesize check --explain MS102` prints one. An id is never given to another rule; "
        "`--select`, `--ignore` and ignore comments take ids, names, and beginnings such as "
        "`MS1`.",
        "",
    ]
    for family in FAMILIES:
        own = [rule for rule in rules if rule.id.startswith(family.prefix)]
        if own:
            lines += [f"## {family.prefix}xx: {family.title}", "", *_table(own), ""]
    return "\n".join(lines)


def _table(rules: Sequence[Rule]) -> list[str]:
    lines = ["| rule | name | severity | fixable | finds |", "|---|---|---|---|---|"]
    for rule in rules:
        finds = rule.summary.replace("|", "\\|")
        fixable = "yes" if rule.fixable else ""
        lines.append(
            f"| [{rule.id}]({rule.id}.md) | `{rule.name}` | {rule.severity} | {fixable} | {finds} |"
        )
    return lines


def rules_list(rules: Sequence[Rule]) -> str:
    """What `--list-rules` prints: id, severity, name, whether it can be fixed, what it finds."""
    widest = max(len(rule.name) for rule in rules)
    return "\n".join(
        f"{rule.id}  {rule.severity:<7}  {rule.name:<{widest}}  "
        f"{'[--fix]' if rule.fixable else '':<7}  {rule.summary}"
        for rule in rules
    )


def fenced(text: str, language: str = "text") -> str:
    """A code block that the text cannot close."""
    fence = "`" * 3
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.split("\n"))


def as_sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def ignore_comment(rule: Rule) -> str:
    """The comment that silences a rule where it stands."""
    return f"# moesize: ignore[{rule.id}] the reason"


def _examples(rule: Rule) -> list[tuple[str, str]]:
    both = (("Instead of", rule.bad), ("Write", rule.good))
    return [(title, text) for title, text in both if text]
