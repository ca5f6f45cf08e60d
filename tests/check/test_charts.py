"""Templates of charts: rendered once, findings led back; without helm that is said."""

from __future__ import annotations

from pathlib import Path

import pytest

import moesize
from moesize.check import helm
from moesize.check.charts import RenderedChart, line_in
from moesize.check.helm import Rendered, sources_of
from moesize.check.source import SourceFile, Span

TEMPLATE = """\
{{- if .Values.on }}
server: {{ .Values.name }}
flags:
- --ctx={{ .Values.ctx }}
- --vllm
{{- end }}
"""
RENDERED = """\
---
# Source: mine/templates/other.yaml
a: 1
---
# Source: mine/templates/server.yaml
server: web
flags:
- --ctx=9
- --vllm
"""


@pytest.fixture
def chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stubs: None) -> Path:
    """A chart of two templates in a repository, with the stub format."""
    (tmp_path / ".git").mkdir()
    folder = tmp_path / "mine"
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text("name: mine\n", encoding="utf-8")
    (folder / "templates/server.yaml").write_text(TEMPLATE, encoding="utf-8")
    (folder / "templates/other.yaml").write_text("model: {{ .Values.x }}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return folder


def render(monkeypatch: pytest.MonkeyPatch, text: str | None, reason: str = "") -> list[Path]:
    """Let helm write this; returns the charts that it was asked for."""
    asked: list[Path] = []

    def made(folder: Path) -> Rendered:
        asked.append(folder)
        return Rendered(text, reason)

    monkeypatch.setattr(helm, "render_chart", made)
    return asked


def test_findings_are_led_back_to_the_template(
    chart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = render(monkeypatch, RENDERED)
    report = moesize.check_files(".", gpu="h100")
    assert asked == [chart]
    (file,) = report.files
    assert (file.path, file.kind) == ("mine/Chart.yaml", "stub")
    (finding,) = file.findings
    path = "mine/templates/server.yaml"
    assert finding.rule == "MS102"
    assert finding.span == Span(path, 4, 1, 4, 26)
    assert finding.label == "rendered: - --ctx=9"
    assert report.texts[path] == TEMPLATE
    assert (file.servers[0].name, file.servers[0].span.line) == ("web", 2)
    # What helm wrote is in no file that could be edited.
    assert finding.fix is not None
    assert (finding.fix.edits, finding.fix.safe, finding.fix.text) == ((), False, "4 fits")


def test_comments_of_templates_count(chart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render(monkeypatch, RENDERED.replace("=9", "=9  # moesize: ignore[MS102] known"))
    report = moesize.check_files(".", gpu="h100")
    assert [one.suppressed for one in report.files[0].findings] == ["known"]
    render(monkeypatch, RENDERED.replace("=9", "=4  # moesize: ignore[MS102] old"))
    (finding,) = moesize.check_files(".", gpu="h100").findings
    assert (finding.rule, finding.span.path) == ("MS004", "mine/templates/server.yaml")


def test_without_helm_templates_are_named_once(
    chart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = render(monkeypatch, None, "the `helm` program is not installed")
    report = moesize.check_files(".")
    assert len(asked) == 1
    (finding,) = report.findings
    assert (finding.rule, finding.span.path, finding.severity) == (
        "MS002", "mine/templates/server.yaml", "info",
    )  # fmt: skip
    assert "not installed" in finding.message
    assert not report.fails
    assert "mine/templates/other.yaml" in dict(report.ignored)


def test_a_template_whose_engine_stands_in_the_values(
    chart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (chart / "templates/server.yaml").unlink()
    (chart / "templates/other.yaml").write_text(
        "containers:\n- image: {{ .Values.image }}  # model\n", encoding="utf-8"
    )
    render(monkeypatch, None, "no helm")
    assert moesize.check_files(".").files == []
    (chart / "values.yaml").write_text("image: vllm/vllm-openai\n", encoding="utf-8")
    (finding,) = moesize.check_files(".").findings
    assert (finding.rule, finding.span.line) == ("MS002", 2)


def test_a_template_that_is_none_is_read_as_it_is(
    chart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (chart / "templates/plain.yaml").write_text("server: vllm\n", encoding="utf-8")
    render(monkeypatch, None, "no helm")
    report = moesize.check_files("mine/templates/plain.yaml")
    assert [file.kind for file in report.files] == ["stub"]


def test_values_that_say_it_all_go_first(chart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (chart / "values.yaml").write_text("server: vllm\nflags: [--huge]\n", encoding="utf-8")
    asked = render(monkeypatch, RENDERED)
    report = moesize.check_files(".", gpu="h100")
    assert asked == []
    assert [file.path for file in report.files] == ["mine/values.yaml"]


@pytest.mark.parametrize(
    ("rendered", "line"),
    [
        ("- --vllm", 5),
        ("      - --vllm", 5),
        ("- --ctx=4096", 4),
        ('- "--ctx=4096"', 4),
        ("server: web", 2),
        ("nothing: like it", 1),
        ("", 1),
        ("a: 1", 1),
    ],
)
def test_lines_are_found_again(rendered: str, line: int) -> None:
    assert line_in(SourceFile("t.yaml", TEMPLATE), rendered) == line


def test_sources_that_lead_elsewhere(chart: Path) -> None:
    text = (
        "---\n# Source: mine/../../secret.yaml\nserver: x\n---\n# Source: mine/nowhere.yaml\na: 1\n"
    )
    made = RenderedChart(chart, lambda path: path.name, text, sources_of(text))
    for line in (1, 3, 6):
        place = made.place(Span("Chart.yaml", line, 1, line, 2))
        assert place == Span("Chart.yaml", 1, 1, 1, 1)
    assert made.place(Span("other.yaml", 3, 1, 3, 2)) == Span("other.yaml", 3, 1, 3, 2)
