"""A rank of `moesize verify` to which something happens: `faulty_rank.py FAULT arguments`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from moesize.__main__ import main
from moesize.verify import distributed, phases, run
from moesize.verify.forward import ForwardModel


def die(*_: Any, **__: Any) -> None:
    """What the kernel's OOM killer does."""
    os.kill(os.getpid(), signal.SIGKILL)


def slow(*_: Any, **__: Any) -> None:
    """Long enough for everything that another rank does."""
    time.sleep(600)


def at_layer(act: Callable[..., None], layer: str = "layer 1") -> None:
    """Act in the midst of a prompt."""
    own = ForwardModel.prefill

    def prefill(self: ForwardModel, tokens: Any) -> Any:
        if self.device.type != "meta":  # the dry run comes before anything is loaded
            self.on_phase = lambda name: act() if name == layer else None
        return own(self, tokens)

    ForwardModel.prefill = prefill  # type: ignore[method-assign]


def prepare(fault: str) -> None:
    """Arrange for the fault."""
    if fault == "killed in load":
        phases.load = die  # type: ignore[assignment]
    elif fault == "killed in prefill":
        at_layer(die)
    elif fault == "slow in prefill":
        at_layer(slow)
    elif fault == "killed before the communicator":
        distributed.Group.connect = die  # type: ignore[method-assign,assignment]
    elif fault == "no check before the run":
        run._Run._refuse_when_too_large = lambda *_: None  # type: ignore[method-assign,assignment]
    elif fault != "none":
        raise SystemExit(f"no fault {fault!r}")


if __name__ == "__main__":
    prepare(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
