"""`moesize.check_files`: from paths to a report. One file's trouble never stops the others."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from moesize._version import __version__
from moesize.check.configuration import (
    Configuration,
    FailOn,
    Settings,
    active_rules,
    find_configuration,
    parse_engine_versions,
    parse_variables,
    read_configuration,
    read_env_file,
)
from moesize.check.discovery import (
    KUSTOMIZATIONS,
    Candidate,
    Unread,
    discover,
    find_repository,
    names_an_engine,
    read_candidate,
    text_of,
)
from moesize.check.findings import CheckReport, FileResult, Finding, ServerResult
from moesize.check.folder import Folder, Library
from moesize.check.formats import Context, FileReading, internal_error, read_file
from moesize.check.helm import chart_of, is_template_text
from moesize.check.rules import find_rule
from moesize.check.server import GpuClaim, Problem
from moesize.check.source import SourceFile, SourceText, Span
from moesize.check.suppressions import FileNotes, ServerPlace
from moesize.core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from moesize.check.charts import RenderedChart
    from moesize.check.server import Reading, Server
    from moesize.check.yaml_tree import Node

STDIN = "-"
_SHOWN_STDIN = "<stdin>"
# Each is planned, some many times over; whole clusters in one file have dozens.
_MOST_SERVERS = 500
# Kinds that deploy anything; the others are made for models.
_ANY_PROGRAM = (
    "k8s_", "knative", "kustom", "docker_compose", "shell", "dockerfile", "systemd", "lws",
    "rayservice", "raycluster", "rayjob",
)  # fmt: skip


def check_files(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = ".",
    *,
    gpu: str | None = None,
    gpus: int | None = None,
    engine_version: str | Iterable[str] = (),
    set: Mapping[str, str] | Iterable[str] | None = None,
    env_file: str | os.PathLike[str] | None = None,
    select: Iterable[str] | None = None,
    ignore: Iterable[str] = (),
    fail_on: FailOn | None = None,
    strict: bool = False,
    allow_empty: bool = False,
    config: str | os.PathLike[str] | None = None,
    use_config: bool = True,
    baseline: str | os.PathLike[str] | None = None,
    use_baseline: bool = True,
    exclude: Iterable[str] = (),
    gitignore: bool = True,
    online: bool = False,
    stdin: bytes | None = None,
    stdin_filename: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Check the deployment files below `paths`; `CheckReport.fails` is the answer.

    Names are those of the options of `moesize check`. `set` is a mapping or NAME=VALUE texts;
    `engine_version` holds where no image names a release: "0.10.2" of vLLM, "sglang=0.5.10";
    `config` a configuration instead of the one that is found, `use_config=False` none at all.
    `stdin` is what the path `-` stands for. `progress` is called with the number of files done
    and their total. Raises MoesizeError for paths, options and configurations that are wrong;
    what is wrong with a file is a finding.
    """
    names = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    here = Path.cwd()
    configuration = _configuration(names, config, stdin_filename, use_config=use_config)
    variables = dict(configuration.variables)
    if env_file is not None:
        variables.update(read_env_file(Path(env_file)))
    if set is not None:
        variables.update(
            {str(name): str(value) for name, value in set.items()}
            if hasattr(set, "items")
            else parse_variables(set)
        )
    chosen = list(select) if select is not None else configuration.select
    ignored = [*configuration.ignore, *ignore]
    reach: FailOn = fail_on or configuration.fail_on or "error"
    if fail_on is None and (strict or configuration.strict):
        reach = "warning"
    settings = _settings(
        configuration, gpu, gpus, online=online, rules=active_rules(chosen, ignored)
    )
    versions = [engine_version] if isinstance(engine_version, str) else engine_version
    own_versions = {**configuration.engine_versions, **parse_engine_versions(versions)}
    check = _Check(
        settings=replace(settings, engine_versions=own_versions),
        configuration=configuration,
        variables=variables,
        here=here,
        report=CheckReport(
            fail_on=reach,
            version=__version__,
            allow_empty=allow_empty or configuration.allow_empty,
        ),
    )
    if STDIN in names:
        if len(names) > 1:
            raise InvalidInputError("- (stdin) cannot be checked together with other paths")
        check.stdin(stdin or b"", stdin_filename)
    else:
        check.paths(names, [*exclude], gitignore=gitignore, progress=progress)
    known = baseline if baseline is not None else configuration.baseline
    check.finish(Path(known) if known is not None and use_baseline else None)
    return check.report


def _configuration(
    names: Sequence[str | os.PathLike[str]],
    config: str | os.PathLike[str] | None,
    stdin_filename: str | None,
    *,
    use_config: bool,
) -> Configuration:
    if not use_config:
        return Configuration(folder=Path.cwd())
    if config is not None:
        return read_configuration(Path(config))
    first = names[0] if names else "."
    if first == STDIN:
        first = stdin_filename or "."
    try:
        return find_configuration(Path(os.path.abspath(first)))  # noqa: PTH100
    except (OSError, ValueError):  # a path that cannot be one: said where it is looked for
        return Configuration(folder=Path.cwd())


def _settings(
    configuration: Configuration,
    gpu: str | None,
    gpus: int | None,
    *,
    online: bool,
    rules: frozenset[str],
) -> Settings:
    """Options and configuration in one; raises UnknownNameError for a GPU that is none."""
    from moesize.check.configuration import require_gpu

    if gpu is not None and gpu.strip().lower() == "local":
        from moesize.local_gpus import local_gpu

        gpu, count = local_gpu()
        gpus = gpus or count
    if gpu is not None:
        require_gpu(gpu)
    return Settings(
        gpu=gpu or configuration.gpu,
        gpus=gpus or configuration.gpus,
        gpu_names=configuration.gpu_names,
        gpu_by_path=() if gpu is not None else tuple(configuration.gpu_by_path.items()),
        gpu_labels=configuration.gpu_labels,
        models=configuration.models,
        headroom=configuration.headroom,
        concurrency=configuration.concurrency,
        online=online or configuration.online,
        rules=rules,
        severities=configuration.severities,
    )


class _Text(NamedTuple):
    """A file that was read: its path, what is below which nothing is opened, its text."""

    path: Path
    root: Path
    file: SourceFile


@dataclass(slots=True, kw_only=True)
class _Check:
    """One run of the check: what holds for all files, and the report that grows."""

    settings: Settings
    configuration: Configuration
    variables: dict[str, str]
    here: Path
    report: CheckReport
    notes: dict[str, tuple[FileNotes, FileResult]] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)
    charts: dict[Path, str] = field(default_factory=dict)
    library: Library | None = None
    library_of: Path | None = None

    # --- files ------------------------------------------------------------------------------------

    def paths(
        self,
        names: Sequence[str | os.PathLike[str]],
        exclude: list[str],
        *,
        gitignore: bool,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        """Every file below the paths."""
        own = self.configuration
        found = list(
            discover(
                names,
                exclude=[(self.here, text) for text in exclude]
                + [(own.folder, text) for text in own.exclude],
                include=[(own.folder, text) for text in own.include],
                gitignore=gitignore,
            )
        )
        candidates = []
        for one in found:
            if isinstance(one, Unread):
                self.report.ignored.append((self.shown(one.path), one.why))
            else:
                candidates.append(one)
        covered = self.covered(candidates)
        for number, candidate in enumerate(candidates, 1):
            if covered and candidate.path.resolve() in covered:
                why = "read through the kustomization that changes it"
                self.report.ignored.append((self.shown(candidate.path), why))
            else:
                self.candidate(candidate)
            if progress is not None:
                progress(number, len(candidates))

    def covered(self, candidates: Sequence[Candidate]) -> set[Path]:
        """Files that a kustomization among the candidates reads and rewrites."""
        from moesize.check.readers.kustomize import files_covered

        found: set[Path] = set()
        for candidate in candidates:
            if candidate.path.name.lower() not in KUSTOMIZATIONS:
                continue
            folder = self.folder_of(candidate.path, candidate.root)
            context = Context(
                path=self.shown(candidate.path), folder=folder, variables=self.variables
            )
            try:
                for document in folder.yaml(candidate.path.name):
                    found |= files_covered(document, context)
            except Exception:  # said when the file itself is read
                continue
        return found

    def candidate(self, candidate: Candidate) -> None:
        """One file that discovery found."""
        shown = self.shown(candidate.path)
        try:
            text = read_candidate(candidate)
        except UnicodeDecodeError as error:
            why = f"not a UTF-8 text (byte {error.start})"
            if names_an_engine(error.object.decode("latin-1")):
                self.unreadable(shown, why)
            else:
                self.report.ignored.append((shown, why))
            return
        except OSError as error:
            why = f"cannot be read ({error.strerror})"
            if candidate.given:
                self.unreadable(shown, why)
            else:
                self.report.ignored.append((shown, why))
            return
        if isinstance(text, Unread):
            self.report.ignored.append((shown, text.why))
            return
        file = SourceFile(shown, text)
        chart = chart_of(candidate.path, candidate.root)
        if chart is not None:
            self.template(_Text(candidate.path, candidate.root, file), chart)
        else:
            self.text(_Text(candidate.path, candidate.root, file))

    def stdin(self, raw: bytes, filename: str | None) -> None:
        """What came through a pipe."""
        shown = filename or _SHOWN_STDIN
        path = Path(os.path.abspath(filename)) if filename else self.here / "stdin.yaml"  # noqa: PTH100
        try:
            text = text_of(raw, path, given=True)
        except UnicodeDecodeError as error:
            self.unreadable(shown, f"not a UTF-8 text (byte {error.start})")
            return
        if isinstance(text, Unread):  # there is no other file that it could be
            self.unreadable(shown, text.why)
            return
        root = find_repository(path.parent) or path.parent
        self.text(_Text(path, root, SourceFile(shown, text)))

    def shown(self, path: Path) -> str:
        """A path as users see it."""
        return Library(self.here).shown(path)

    def unreadable(self, shown: str, why: str) -> None:
        """A file that holds no text."""
        result = FileResult(path=shown, kind=None, skipped=why)
        self.add(result, [_finding(Problem("MS001", why, Span(shown, 1, 1, 1, 1)))])
        self.keep(result)

    def folder_of(self, path: Path, root: Path) -> Folder:
        """What readers may open beside a file; what was read is kept for one folder at a time."""
        if self.library is None or self.library_of != path.parent:
            self.library, self.library_of = Library(self.here), path.parent
        return Folder(path.parent, root, self.library)

    def text(self, text: _Text) -> None:
        """Read, judge and report one text."""
        context = Context(
            path=text.file.path,
            folder=self.folder_of(text.path, text.root),
            variables=self.variables,
        )
        reading = read_file(SourceText.of_file(text.file), context)
        if not _is_ours(reading, text):
            why = reading.skipped or _skipped(reading.readings) or "no model server"
            self.report.ignored.append((text.file.path, why))
            return
        self.judge(text, reading, context)

    # --- Helm charts ------------------------------------------------------------------------------

    def template(self, text: _Text, chart: Path) -> None:
        """A template: its chart is rendered with it, once; without helm that is said."""
        if chart not in self.charts:
            self.charts[chart] = self.render(chart, text.root)
        why = self.charts[chart]
        shown = text.file.path
        if not why:
            return
        if not is_template_text(text.file.text):
            self.text(text)
        elif self.is_about_models(text, chart):
            start = max(text.file.text.find("{{"), 0)
            message = f"a template of a chart that was not rendered: {why}"
            result = FileResult(path=shown, kind="helm_template", skipped=why)
            problem = Problem("MS002", message, text.file.span(start, start + 2))
            self.add(result, [_finding(problem)])
            self.keep(result, text.file)
        else:
            self.report.ignored.append((shown, f"a template of a chart: {why}"))

    def is_about_models(self, text: _Text, chart: Path) -> bool:
        """Whether a template, or one with containers by the chart's values, serves a model."""
        if names_an_engine(text.file.text):
            return True
        values = self.folder_of(chart / "Chart.yaml", text.root).read("values.yaml")
        return (
            "containers:" in text.file.text and values is not None and names_an_engine(values.value)
        )

    def render(self, chart: Path, root: Path) -> str:
        """Check what a chart installs; returns why it could not be rendered."""
        from moesize.check.charts import RenderedChart
        from moesize.check.helm import render_chart, sources_of

        values = self.shown(chart / "values.yaml")
        if any(file.path == values and file.servers for file in self.report.files):
            return ""  # its values have said it all, and are what people edit
        rendered = render_chart(chart)
        if rendered.text is None:
            return rendered.reason
        made = RenderedChart(chart, self.shown, rendered.text, sources_of(rendered.text))
        context = Context(
            path=made.file.path,
            folder=self.folder_of(chart / "Chart.yaml", root),
            variables=self.variables,
        )
        reading = read_file(SourceText.of_file(made.file), context)
        text = _Text(chart / "Chart.yaml", root, made.file)
        if _is_ours(reading, text):
            self.judge(text, reading, context, made)
        else:
            self.report.ignored.append((made.file.path, "nothing in the chart serves a model"))
        return ""

    # --- judging ----------------------------------------------------------------------------------

    def judge(
        self,
        text: _Text,
        reading: FileReading,
        context: Context,
        chart: RenderedChart | None = None,
    ) -> None:
        """From what a file says to what is wrong with it."""
        file = text.file
        servers = [server for one in reading.readings for server in one.servers]
        for server in servers[_MOST_SERVERS:]:
            server.skipped = f"more than {_MOST_SERVERS} servers in one file"
        result = FileResult(
            path=file.path,
            kind=_kind(reading.readings),
            skipped="" if servers else _skipped(reading.readings),
        )
        self.note(file, context.documents, result)
        if not reading.readings:
            self.unread.add(file.path)
        for path, own in _by_file(servers).items():
            notes = self.notes_of(path, context, result)
            if notes is not None:
                _apply_given(notes, own)
        if self.settings.gpu_labels:
            from moesize.check.labels import claim_by_labels

            claim_by_labels(servers, context.documents, self.settings.gpu_labels)
        settings = self.settings.for_file(self.configuration.relative(text.path))
        result.servers, found, problems = _judge(reading.readings, file, settings)
        problems += reading.problems
        problems += [problem for one in reading.readings for problem in one.problems]
        found += [_finding(problem) for problem in problems]
        places = _by_file(servers)
        for path in sorted({finding.span.path for finding in found}):
            notes = self.notes_of(path, context, result)
            if notes is not None:
                notes.silence(found, _places(places.get(path, [])))
        if chart is not None:
            notes, _ = self.notes.pop(file.path, (None, None))
            found += notes.unused(self.rules_for(file.path)) if notes is not None else []
            for judged in result.servers:
                chart.lead_server_back(judged)
            for finding in found:
                chart.lead_back(finding)
            self.report.texts.update(chart.texts())
        self.add(result, found)
        self.keep(result, file, context)

    def note(self, file: SourceFile, documents: Sequence[Node], result: FileResult) -> FileNotes:
        """What a file says to moesize, once however many others are built on it."""
        if file.path not in self.notes:
            notes = FileNotes(file, documents, yaml=bool(documents))
            self.notes[file.path] = (notes, result)
        return self.notes[file.path][0]

    def notes_of(self, shown: str, context: Context, result: FileResult) -> FileNotes | None:
        """The same of a file that a reader opened: a base, a patch, a ConfigMap."""
        if shown in self.notes:
            return self.notes[shown][0]
        source = self.source_of(shown, context)
        if source is None:
            return None
        root = context.folder.root
        documents = context.folder.library.documents(self.here / shown, root)
        return self.note(source, documents, result)

    def source_of(self, shown: str, context: Context) -> SourceFile | None:
        """A file by its path as shown, if it is one that readers may open."""
        text = context.folder.library.text(self.here / shown, context.folder.root)
        return None if text is None else text.file

    def add(self, result: FileResult, found: list[Finding]) -> None:
        """Findings that are wanted, with the severity that is wanted."""
        for finding in found:
            if finding.rule not in self.rules_for(finding.span.path):
                continue
            wanted = self.settings.severities.get(finding.rule)
            if wanted is not None:
                finding.severity = wanted
            result.findings.append(finding)
        result.findings.sort(key=lambda one: (one.span.line, one.span.column, one.rule))

    def rules_for(self, shown: str) -> frozenset[str]:
        """The rules that are looked for in a file."""
        if not self.configuration.per_file_ignores:
            return self.settings.rules
        relative = self.configuration.relative(self.here / shown)
        return self.settings.rules - self.configuration.ignored_rules(relative)

    def keep(
        self,
        result: FileResult,
        own: SourceFile | None = None,
        context: Context | None = None,
    ) -> None:
        """Add a file to the report, and the texts that its findings point into."""
        self.report.files.append(result)
        for path in _paths_in(result.findings) - self.report.texts.keys():
            file = own if own is not None and own.path == path else None
            if file is None and context is not None:
                file = self.source_of(path, context)
            if file is not None:
                self.report.texts[path] = file.text

    # --- the end ----------------------------------------------------------------------------------

    def finish(self, baseline: Path | None) -> None:
        """What only the whole run shows: comments that silence nothing, the baseline."""
        for path, (notes, result) in self.notes.items():
            if path in self.unread:  # nobody knows what its comments are for
                continue
            unused = notes.unused(self.rules_for(path))
            if unused and notes.file is not None:
                self.add(result, unused)
                self.report.texts.setdefault(path, notes.file.text)
        if baseline is not None:
            from moesize.check.baseline import apply_baseline, read_baseline

            known = read_baseline(baseline)
            folder = baseline.absolute().parent
            self.report.stale = apply_baseline(known, self.report.files, folder)


def _is_ours(reading: FileReading, text: _Text) -> bool:
    """Whether a file belongs into the report: it holds servers, or was meant to."""
    if reading.problems or any(one.servers or one.problems for one in reading.readings):
        return True
    if any(not one.kind.startswith(_ANY_PROGRAM) for one in reading.readings):
        return True
    return bool(reading.readings) and names_an_engine(text.file.text)


def _judge(
    readings: list[Reading], file: SourceFile, settings: Settings
) -> tuple[list[ServerResult], list[Finding], list[Problem]]:
    """All readings together, as servers may share a GPU; one by one where that fails."""
    from moesize.check.assess import judge_file

    try:
        return *judge_file(readings, file, settings), []
    except Exception as error:
        if len(readings) == 1:
            place = Span(file.path, 1, 1, 1, 1)
            return [], [], [internal_error(f"judging {readings[0].kind}", error, place)]
    servers: list[ServerResult] = []
    findings: list[Finding] = []
    problems: list[Problem] = []
    for reading in readings:
        more, found, wrong = _judge([reading], file, settings)
        servers += more
        findings += found
        problems += wrong
    return servers, findings, problems


def _finding(problem: Problem) -> Finding:
    rule = find_rule(problem.rule)
    return Finding(
        rule=rule.id,
        severity=rule.severity,
        message=problem.message,
        span=problem.span,
        key=(problem.message,),
    )


def _kind(readings: list[Reading]) -> str | None:
    """The kind of the first document with a server, else of the first."""
    for reading in readings:
        if reading.servers:
            return reading.kind
    return readings[0].kind if readings else None


def _skipped(readings: list[Reading]) -> str:
    return next((reading.skipped for reading in readings if reading.skipped), "")


def _by_file(servers: list[Server]) -> dict[str, list[Server]]:
    """Servers by the file that they begin in: one that is patched begins in its base."""
    found: dict[str, list[Server]] = {}
    for server in servers:
        if server.place.span is not None:
            found.setdefault(server.place.span.path, []).append(server)
    return found


def _places(servers: list[Server]) -> list[ServerPlace]:
    return [
        ServerPlace(server.name, server.place.span.line)
        for server in servers
        if server.place.span is not None
    ]


def _paths_in(findings: Iterable[Finding]) -> set[str]:
    """Files that findings point into."""
    spans = [finding.span for finding in findings]
    spans += [label.span for finding in findings for label in finding.labels]
    spans += [edit.span for finding in findings if finding.fix for edit in finding.fix.edits]
    return {span.path for span in spans}


def _apply_given(notes: FileNotes, servers: list[Server]) -> None:
    """What comments say of GPU and model goes before what the file says."""
    if not notes.given:
        return
    places = _places(servers)
    for server, place in zip(servers, places, strict=True):
        gpu = notes.value_for("gpu", place.line, places)
        if gpu is not None:
            server.gpus = (GpuClaim(text=gpu, via="# moesize: gpu"),)
        model = notes.value_for("model", place.line, places)
        if model is not None:
            server.model = model
