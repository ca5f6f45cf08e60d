"""Bytes of all tensors alive, counted op by op: what the CPU has no statistics for.

Every operation that torch dispatches is watched. The storage behind each result is counted once,
when it is first seen, and taken off when it dies; views share a storage and count nothing. What
kernels take inside of an operation, and free again before it returns, is not seen.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts storages of one type of device while it is active.

    live_bytes, peak_bytes   now, and the most since `reset_peak`
    listener                 called with (bytes, key) of each allocation, (-bytes, key) of a release
    """

    def __init__(
        self, device_type: str = "cpu", listener: Callable[[int, int], None] | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device_type = device_type
        self.listener = listener
        self.live_bytes = 0
        self.peak_bytes = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here. torch would wrap every operation for it, and import its
        compiler at the first one (torch/utils/_python_dispatch.py): seconds that a load's pace
        would count, and a folder of its own beside the shards."""
        return False

    def reset_peak(self) -> None:
        """The peak is counted from here on."""
        self.peak_bytes = self.live_bytes

    def adopt(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were made elsewhere: by another thread, or before this was active."""
        for tensor in tensors:
            self.see(tensor)

    def see(self, tensor: Tensor) -> None:
        """Count the storage behind a tensor, if it is new."""
        if tensor.device.type != self.device_type:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()

        def died(_: object) -> None:
            del self._seen[key]
            self._count(-size, key)

        self._seen[key] = weakref.ref(storage, died)
        self._count(size, key)

    def _count(self, size: int, key: int) -> None:
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        if self.listener is not None:
            self.listener(size, key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        out = self.run(func, args, kwargs or {})
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.see(leaf)
        return out

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operation gives."""
        return func(*args, **kwargs)
