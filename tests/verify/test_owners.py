"""Whose bytes a peak is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moesize.verify import owners as module
from moesize.verify.owners import History, Owners, owner_of

HERE = Path(module.__file__).parent


def test_owners_at_the_peak() -> None:
    owners = Owners()
    owners.allocate(100, 1, "weights")
    owners.allocate(50, 2, "attention")
    owners.release(2)
    owners.allocate(30, 3, "norms")
    assert owners.peak == {"weights": 100, "attention": 50}
    owners.reset_peak()
    owners.allocate(5, 4, "norms")
    assert owners.peak == {"weights": 100, "attention": 0, "norms": 35}
    owners.release(99)
    assert owners.total == 135


def test_the_innermost_frame_of_the_pass_decides() -> None:
    torch_frame = ("/lib/torch/nn/functional.py", "softmax")
    attention = (str(HERE / "forward/attention.py"), "attend")
    model = (str(HERE / "forward/model.py"), "_run")
    assert owner_of([torch_frame, attention, model]) == "attention"
    assert owner_of([torch_frame, model]) == "hidden_states"
    assert owner_of([(str(HERE / "forward/model.py"), "logits"), model]) == "logits"
    assert owner_of([torch_frame]) == "other"


def test_every_module_of_the_pass_has_an_owner() -> None:
    """A new module would be hidden in the one that calls it."""
    without = {"__init__", "families", "flops", "numerics"}  # no tensors of a pass
    own = {path.stem for path in (HERE / "forward").glob("*.py")} - without
    named = {name.removeprefix("forward/") for name in module._MODULES if "/" in name}
    assert own == named


class Broken:
    """A torch whose history is another."""

    def __init__(self, snapshot: Any) -> None:
        self.snapshot = snapshot
        self.calls: list[str | None] = []

    def _record_memory_history(self, enabled: str | None, **options: Any) -> None:
        self.calls.append(enabled)

    def _snapshot(self) -> Any:
        return self.snapshot


EVENT = {"action": "alloc", "addr": 1, "size": 8, "frames": []}


@pytest.mark.parametrize(
    "snapshot",
    [
        None,
        {},
        {"device_traces": []},
        {"device_traces": [[{"action": "alloc"}]]},
        {"device_traces": [[{"action": "alloc", "addr": "x", "size": 1, "frames": [{}]}]]},
        {"device_traces": [[EVENT] * 10]},  # as many as are kept: some may be lost
    ],
)
def test_another_history_ends_the_attribution_and_nothing_else(snapshot: Any) -> None:
    history = History(Broken(snapshot), 0, most_events=10)
    history.start()
    assert history.peak() is None
    history.reset_peak()
    assert history.peak() is None
    history.stop()


def test_a_history_is_replayed_and_forgotten() -> None:
    memory = Broken({"device_traces": [[], [EVENT, {**EVENT, "addr": 2}, {"action": "oom"}]]})
    history = History(memory, 1)
    history.start()
    assert history.peak() == {"other": 16}
    assert memory.calls == ["all", None, "all"]
    memory.snapshot = {"device_traces": [[], [{"action": "free_requested", "addr": 2}]]}
    history.reset_peak()
    memory.snapshot = {"device_traces": [[], []]}
    assert history.peak() == {"other": 8}
    history.stop()
    assert memory.calls[-1] is None
    assert History(None, 0).peak() is None
