"""What `moesize check` prints, by format: each renderer turns a CheckReport into a string.

Nothing is computed here. Every text of a report may come from a stranger's file: each renderer
makes it harmless for where it goes (a terminal, a CI log, XML, a comment on a pull request).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moesize.check.findings import CheckReport

FORMATS = ("human", "concise", "json", "sarif", "junit", "github", "gitlab", "markdown")


def render(
    report: CheckReport,
    name: str,
    *,
    color: bool = False,
    width: int | None = None,
    verbose: bool = False,
    quiet: bool = False,
) -> str:
    """The report in the format of that name (one of FORMATS), without a final line end.

    color, width  of a terminal; without a width nothing is wrapped
    verbose       what does not count is listed too: information, suppressed findings, files
                  that were passed over
    quiet         the summary line only, in the formats for people
    """
    if name == "human":
        from moesize.renderers.check.text import render_text

        return render_text(report, color=color, width=width, verbose=verbose, quiet=quiet)
    if name == "concise":
        from moesize.renderers.check.concise import render_concise

        return render_concise(report, verbose=verbose, quiet=quiet)
    if name == "json":
        import json

        return json.dumps(report.to_dict(), indent=2)
    if name == "sarif":
        from moesize.renderers.check.sarif import render_sarif

        return render_sarif(report, verbose=verbose)
    if name == "junit":
        from moesize.renderers.check.junit import render_junit

        return render_junit(report)
    if name == "github":
        from moesize.renderers.check.github import render_github

        return render_github(report, verbose=verbose)
    if name == "gitlab":
        from moesize.renderers.check.gitlab import render_gitlab

        return render_gitlab(report)
    if name == "markdown":
        from moesize.renderers.check.markdown import render_markdown

        return render_markdown(report, verbose=verbose)
    raise ValueError(f"no format {name!r}")
