"""Rendering charts with `helm`: a small program of the test stands in for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from moesize.check import helm
from moesize.check.helm import (
    chart_of,
    is_chart_template,
    is_template_text,
    render_chart,
    source_of,
    sources_of,
)

RENDERED = """\
---
# Source: demo/templates/one.yaml
kind: Service
---
# Source: demo/templates/two.yaml
kind: Deployment
"""


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    (folder / "templates" / "sub").mkdir(parents=True)
    (folder / "Chart.yaml").write_text("name: demo\n")
    (folder / "templates" / "two.yaml").write_text("kind: {{ .Values.kind }}\n")
    return folder


def fake_helm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A `helm` on PATH that runs these lines of Python."""
    program = tmp_path / "bin" / "helm"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport os, sys, time\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))


def test_a_chart_is_rendered(tmp_path: Path, chart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = tmp_path / "my values.yaml"
    values.write_text("{}")
    fake_helm(tmp_path, monkeypatch, f"print(repr(sys.argv[1:])); print({RENDERED!r})")
    rendered = render_chart(chart, values=[values])
    assert rendered.reason == ""
    assert rendered.text is not None
    first, _, rest = rendered.text.partition("\n")
    assert first == repr(["template", "moesize", str(chart), "--values", str(values)])
    assert rest.strip() == RENDERED.strip()


def test_nothing_of_the_users_cluster_is_handed_on(
    tmp_path: Path, chart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/home/someone/.kube/config")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    fake_helm(tmp_path, monkeypatch, "print(sorted(os.environ.items()))")
    text = render_chart(chart).text or ""
    assert "secret" not in text
    assert "/home/someone" not in text
    assert "HELM_DATA_HOME" in text


def test_without_helm_it_is_said(chart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert render_chart(chart) == (None, "the `helm` program is not installed")


def test_a_folder_without_a_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_helm(tmp_path, monkeypatch, "print('kind: Pod')")
    assert render_chart(tmp_path).text is None


def test_what_helm_complains_of(
    tmp_path: Path, chart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_helm(
        tmp_path,
        monkeypatch,
        "sys.stderr.write('WARNING: old\\nError: missing in charts/ directory: \\x1b[31mcommon')\n"
        "sys.exit(1)",
    )
    rendered = render_chart(chart)
    assert rendered.text is None
    assert rendered.reason.startswith("helm template failed: missing in charts/ directory")
    assert "\x1b" not in rendered.reason


def test_a_helm_that_never_ends(
    tmp_path: Path, chart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_helm(tmp_path, monkeypatch, "time.sleep(60)")
    rendered = render_chart(chart, timeout=0.3)
    assert rendered == (None, "helm template took longer than 0.3 s")


def test_a_helm_that_writes_without_end(
    tmp_path: Path, chart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helm, "MOST_BYTES", 1 << 20)
    fake_helm(tmp_path, monkeypatch, "while True: print('a: b')")
    rendered = render_chart(chart, timeout=30)
    assert rendered.text is None
    assert "more than 1 MiB" in rendered.reason


def test_templates_of_charts(tmp_path: Path, chart: Path) -> None:
    template = chart / "templates" / "two.yaml"
    assert is_chart_template(template, tmp_path)
    assert chart_of(chart / "templates" / "sub" / "x.yaml", tmp_path) == chart
    assert not is_chart_template(chart / "values.yaml", tmp_path)
    assert not is_chart_template(tmp_path / "templates" / "x.yaml", tmp_path)
    # A file that was given alone: the root of the check is its folder.
    assert is_chart_template(template, chart / "templates")
    deep = chart / "templates" / "a" / "b" / "x.yaml"
    assert chart_of(deep, deep.parent) is None
    assert is_template_text("a: {{ .Values.b }}")
    assert not is_template_text("a: {b: {c: d}}")


def test_sources_of_a_rendered_text() -> None:
    sources = sources_of(RENDERED)
    assert [source.path for source in sources] == [
        "demo/templates/one.yaml",
        "demo/templates/two.yaml",
    ]
    two = source_of(sources, RENDERED.index("Deployment"))
    assert two is not None
    assert two.path == "demo/templates/two.yaml"
    assert RENDERED[two.start : two.end].startswith("# Source: demo/templates/two.yaml\n")
    assert source_of(sources, 0) is None
