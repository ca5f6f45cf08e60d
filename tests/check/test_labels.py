"""GPUs by labels of node pools."""

from __future__ import annotations

from moesize.check.labels import claim_by_labels
from moesize.check.server import GpuClaim, Server
from moesize.check.source import SourceFile, SourceText, Span, Word
from moesize.check.yaml_tree import parse_stream

TEXT = """\
services:
  prefill:
    containers:
    - name: a
    nodeSelector: {pool: big}
  decode:
    containers:
    - name: b
    affinity:
      nodeAffinity:
        requiredDuringSchedulingIgnoredDuringExecution:
          nodeSelectorTerms:
          - matchExpressions:
            - {key: pool, operator: In, values: [small, big]}
"""


def server(line: int, *gpus: GpuClaim) -> Server:
    return Server(name="s", place=Word("s", Span("x.yaml", line, 1, line, 2)), gpus=gpus)


def claimed(one: Server, text: str = TEXT, **labels: str) -> list[tuple[str, str, int]]:
    documents = parse_stream(SourceText.of_file(SourceFile("x.yaml", text))).documents
    known = {name.replace("_", "="): gpu for name, gpu in labels.items()}
    claim_by_labels([one], documents, known)
    return [(str(c.text), c.via, c.text.span.line) for c in one.gpus if c.text.span]


def test_each_server_has_the_selector_of_its_own_pod() -> None:
    assert claimed(server(4), pool_big="h100") == [("h100", "pool=big", 5)]
    assert claimed(server(8), pool_small="l4") == [("l4", "pool=small", 14)]
    assert claimed(server(4), pool_small="l4") == []


def test_what_the_file_says_itself_goes_first() -> None:
    one = server(4, GpuClaim(Word("h200"), "x"))
    claimed(one, pool_big="h100")
    assert [str(claim.text) for claim in one.gpus] == ["h200"]


def test_wrong_shapes_say_nothing() -> None:
    for text in ("nodeSelector: [pool]\n", "nodeSelector: {pool: [big]}\n", "affinity: 1\n"):
        assert claimed(server(1), text, pool_big="h100") == []


def test_a_document_that_holds_itself_many_times_ends() -> None:
    text = "a0: &a0 {nodeSelector: {pool: big}}\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 6)
    )
    assert claimed(server(1), text, pool_big="h100") == [("h100", "pool=big", 1)]
