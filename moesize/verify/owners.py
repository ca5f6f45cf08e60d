"""Whose bytes a peak is made of: every allocation belongs to the part of the pass that made it.

The part is told by the innermost frame of the call that lies in a module of the pass. A dry run and
the counters of the CPU ask the running interpreter; on CUDA the allocator's own history is replayed
(torch.cuda.memory: the events of `_snapshot()`, with the frames that `_record_memory_history`
keeps), so that scratch inside of an operation is seen as well.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_HERE = Path(__file__).resolve().parent
# Owner by module, and by function where a module does several things.
_MODULES = {
    "loading": "weights",
    "predict": "weights",
    "passes": "inputs",
    "forward/caches": "kv_cache",
    "forward/attention": "attention",
    "forward/latent": "attention",
    "forward/compressed": "attention",
    "forward/rotary": "attention",
    "forward/delta": "linear_attention",
    "forward/lightning": "linear_attention",
    "forward/mamba": "state_space",
    "forward/convolution": "convolution",
    "forward/short_conv": "convolution",
    "forward/feed_forward": "feed_forward",
    "forward/activations": "feed_forward",
    "forward/routing": "router",
    "forward/dequantize": "unpacked_weights",
    "forward/weights": "unpacked_weights",
    "forward/norms": "norms",
    "forward/per_layer": "per_layer_inputs",
    "forward/model": "hidden_states",
    "forward/hyper": "hidden_states",
    "forward/altup": "hidden_states",
    "forward/step": "inputs",
}
_FUNCTIONS = {
    ("passes", "_sampled"): "logits",
    ("passes", "sample_tokens"): "sampling",
    ("forward/model", "logits"): "logits",
    ("forward/feed_forward", "route"): "router",
}
_BY_FILE = {str(_HERE / f"{module}.py"): module for module in _MODULES}
OTHER = "other"


def owner_of(calls: Iterable[tuple[str, str]]) -> str:
    """The owner of an allocation; calls: (file, function), innermost first."""
    for file, function in calls:
        module = _BY_FILE.get(file)
        if module is not None:
            return _FUNCTIONS.get((module, function), _MODULES[module])
    return OTHER


def _running() -> Iterable[tuple[str, str]]:
    frame = sys._getframe(2)
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_code.co_name
        frame = frame.f_back  # type: ignore[assignment]


class Owners:
    """Live bytes by owner, and what they were when most was live since `reset_peak`."""

    def __init__(self) -> None:
        self.live: dict[str, int] = {}
        self.total = self._most = 0
        self.peak: dict[str, int] = {}
        self._held: dict[int, tuple[str, int]] = {}

    def allocate(self, size: int, key: int, owner: str) -> None:
        """`size` bytes under a key; a key that is held already is let go first."""
        if key in self._held:
            self.release(key)
        self._held[key] = (owner, size)
        self.live[owner] = self.live.get(owner, 0) + size
        self.total += size
        if self.total > self._most:
            self._most = self.total
            self.peak = dict(self.live)

    def release(self, key: int) -> None:
        """What stands under a key; nothing when it is not known."""
        owner, size = self._held.pop(key, ("", 0))
        if size:
            self.live[owner] -= size
            self.total -= size

    def reset_peak(self) -> None:
        """The peak is looked for from here on."""
        self._most, self.peak = self.total, dict(self.live)


class Listener:
    """A listener of `LiveBytes` that asks the running interpreter who allocates."""

    def __init__(self, then: Callable[[int, int], None] | None = None) -> None:
        self.owners = Owners()
        self.then = then

    def __call__(self, size: int, key: int) -> None:
        """An event: above zero an allocation, below zero a release."""
        if size > 0:
            self.owners.allocate(size, key, owner_of(_running()))
        else:
            self.owners.release(key)
        if self.then is not None:
            self.then(size, key)


# An event takes some hundred bytes of the host's memory; a pass of more is not attributed.
_MOST_EVENTS = 400_000


class History:
    """Owners out of the history of CUDA's caching allocator.

    memory  `torch.cuda.memory`; tests give a double. None is said from the first event on that was
            lost, or where this torch keeps no history: a measurement does not depend on it
    """

    def __init__(self, memory: Any, index: int, *, most_events: int = _MOST_EVENTS) -> None:
        self._memory = memory
        self._index = index
        self._most_events = most_events
        self._owners: Owners | None = None

    def start(self) -> None:
        """Record from here on."""
        self._owners = Owners()
        self._record()

    def stop(self) -> None:
        """Record no longer."""
        if self._owners is not None:
            self._owners = None
            self._quietly(lambda: self._memory._record_memory_history(None))

    def reset_peak(self) -> None:
        """The peak is looked for from here on."""
        self._drain()
        if self._owners is not None:
            self._owners.reset_peak()

    def peak(self) -> dict[str, int] | None:
        """Bytes by owner when most was live; None when that is not known."""
        self._drain()
        return None if self._owners is None else self._owners.peak

    def _record(self) -> None:
        self._quietly(
            lambda: self._memory._record_memory_history(
                "all", context="alloc", stacks="python", max_entries=self._most_events
            )
        )

    def _drain(self) -> None:
        """Replay what has happened, and forget it there: switching off clears it."""
        if self._owners is None:
            return
        events = self._quietly(lambda: self._memory._snapshot()["device_traces"][self._index])
        if events is None:
            return
        if len(events) >= self._most_events:
            self.stop()
            return
        self._quietly(lambda: self._memory._record_memory_history(None))
        self._record()
        for event in events:
            if self._owners is not None:
                self._quietly(lambda event=event: self._replay(event))  # type: ignore[misc]

    def _replay(self, event: Mapping[str, Any]) -> None:
        assert self._owners is not None
        action = event["action"]
        if action == "alloc":
            calls = ((str(f["filename"]), str(f["name"])) for f in event.get("frames", ()))
            self._owners.allocate(int(event["size"]), int(event["addr"]), owner_of(calls))
        elif action == "free_requested":
            self._owners.release(int(event["addr"]))

    def _quietly(self, run: Callable[[], Any]) -> Any:
        """A history in another form than this one knows ends the attribution, nothing else."""
        try:
            return run()
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError):
            self._owners = None
            return None
