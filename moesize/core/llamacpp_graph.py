"""A model of ggml's graphs, enough of it to tell how large a compute buffer becomes.

llama.cpp sizes its compute buffers by planning one worst-case graph: the nodes are put in order by
a depth-first walk (ggml.c, ggml_build_forward_expand), cut into splits at every change of device
(ggml-backend.cpp, ggml_backend_sched_split_graph), and their tensors are placed one after another
by a best-fit allocator that reuses freed room and lets some operations overwrite their input
(ggml-alloc.c). The same three steps are done here for a list of operations, with integers only.
Written for llama.cpp commit 0c1e57098.

Weights and caches have buffers of their own: they are no nodes. An operation that writes into a
cache is a node without room of its own (`Graph.store`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.core.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Mapping

HOST = 0

# Tensors of a buffer start at multiples of these (ggml-cpu TENSOR_ALIGNMENT, ggml-cuda.cu).
HOST_ALIGNMENT = 32
DEVICE_ALIGNMENT = 128

_ELEMENT_BYTES = {"f32": 4, "f16": 2, "i32": 4, "i64": 8}


class Node:
    """A tensor of the graph.

    shape    elements, innermost first; nbytes: what it needs in a buffer, before alignment
    root     the tensor that a view looks into; None for a tensor with room of its own
    viewing  the node only reinterprets memory (view, reshape, permute, transpose)
    packed   rows follow each other without gaps
    inplace  the operation may overwrite an input of the same layout
    stored   the result lies in a cache or is a weight: no room needed
    host_weights  sizes of weights in host memory that the operation reads
    """

    __slots__ = (
        "alive",
        "device",
        "dtype",
        "host_weights",
        "inplace",
        "is_cache",
        "is_input",
        "is_leaf",
        "is_output",
        "kids",
        "nbytes",
        "offset",
        "packed",
        "root",
        "seen",
        "shape",
        "srcs",
        "stored",
        "viewing",
        "views",
    )

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: str,
        nbytes: int,
        srcs: tuple[Node, ...],
        device: int,
    ) -> None:
        while len(shape) > 1 and shape[-1] == 1:
            shape = shape[:-1]
        self.shape = shape
        self.dtype = dtype
        self.nbytes = nbytes
        self.srcs = srcs
        self.device = device
        self.root: Node | None = None
        self.viewing = False
        self.packed = True
        self.inplace = False
        self.stored = False
        self.is_cache = False
        self.is_input = False
        self.is_leaf = False
        self.is_output = False
        self.seen = False
        self.host_weights: tuple[int, ...] = ()
        self.kids = 0
        self.views = 0
        self.alive = False
        self.offset = 0


def nbytes_of(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a packed tensor."""
    size = _ELEMENT_BYTES[dtype]
    for extent in shape:
        size *= extent
    return size


class Graph:
    """Operations in the order in which llama.cpp would run them.

    device   where new operations run: HOST or 1, 2, ... for the GPUs; change it between layers
    late_device  where the first operation behind a recurrent state runs, if not on `device`
    host_tensors  of a layer whose weights lie in host memory while a GPU works on them: bytes by
                  name; the name of a matrix that is not in it costs no room. None otherwise
    fused    ik_llama.cpp: up, gate and their product are one operation, as is the experts' sum
    experts_stay  routed experts in host memory are computed there
    """

    def __init__(self, device: int) -> None:
        self.device = device
        self.late_device: int | None = None
        self.host_tensors: Mapping[str, int] | None = None
        self.fused = False
        self.experts_stay = False
        self.nodes: list[Node] = []
        self.leafs: list[Node] = []

    def input(self, *shape: int, dtype: str = "f32") -> Node:
        """A tensor that the caller fills before each run; it lies in host memory."""
        node = Node(shape, dtype, nbytes_of(shape, dtype), (), HOST)
        node.is_input = node.is_leaf = True
        return node

    def leaf(self, *shape: int, dtype: str = "f32") -> Node:
        """A tensor that an operation fills; it has its room from the beginning of the graph."""
        node = Node(shape, dtype, nbytes_of(shape, dtype), (), self.device)
        node.is_leaf = True
        return node

    def op(
        self,
        shape: tuple[int, ...],
        *srcs: Node,
        dtype: str = "f32",
        inplace: bool = False,
        extra: int = 0,
        host_weights: tuple[int, ...] = (),
    ) -> Node:
        """An operation with a result of its own; extra: room beside it that kernels use."""
        node = Node(shape, dtype, nbytes_of(shape, dtype) + extra, srcs, self.device)
        node.inplace = inplace
        node.host_weights = host_weights
        return node

    def matmul(self, name: str, shape: tuple[int, ...], *srcs: Node) -> Node:
        """A product with the weight of that name (GGUF's name, without block and ending)."""
        size = 0 if self.host_tensors is None else self.host_tensors.get(name, 0)
        return self.op(shape, *srcs, host_weights=(size,) if size else ())

    def cache(self, *shape: int, nbytes: int) -> Node:
        """What is cached of a layer, in host memory."""
        node = Node(shape, "f16", nbytes, (), HOST)
        node.stored = node.is_cache = True
        return node

    def map(self, src: Node, *others: Node, host_weights: tuple[int, ...] = ()) -> Node:
        """An elementwise operation that may overwrite an input: add, mul, rms_norm, rope, ..."""
        return self.op(src.shape, src, *others, inplace=True, host_weights=host_weights)

    def view(self, src: Node, *shape: int, packed: bool = True) -> Node:
        """A reshape (packed) or a window (not packed) of another tensor."""
        node = Node(shape, src.dtype, nbytes_of(shape, src.dtype), (src,), src.device)
        node.root = src.root or src
        node.viewing = True
        node.packed = packed
        return node

    def store(self, *srcs: Node) -> Node:
        """Writes into a cache."""
        node = Node((), "f32", 0, srcs, self.device)
        node.stored = True
        return node

    def overwrite(self, target: Node, *srcs: Node) -> Node:
        """Writes rows into a tensor: the result is a view of it."""
        node = Node(target.shape, target.dtype, 0, (*srcs, target), self.device)
        node.root = target.root or target
        return node

    def expand(self, node: Node) -> None:
        """Put the node and everything that it needs, and that is not in it yet, into the graph."""
        if node.seen:
            return
        node.seen = True
        if node.is_cache:
            return
        for src in node.srcs:
            if not src.seen:
                self.expand(src)
        (self.leafs if node.is_leaf else self.nodes).append(node)


class _Allocator:
    """Best fit over address-ordered free blocks; the last block is endless (ggml-alloc.c)."""

    __slots__ = ("alignment", "offsets", "peak", "sizes")

    def __init__(self, alignment: int) -> None:
        self.alignment = alignment
        self.offsets = [0]
        self.sizes = [1 << 62]
        self.peak = 0

    def alloc(self, nbytes: int) -> int:
        size = -(-nbytes // self.alignment) * self.alignment
        sizes = self.sizes
        last = len(sizes) - 1
        best = last
        best_size = 1 << 63
        for i in range(last):
            free = sizes[i]
            # Of equal blocks the later one wins.
            if size <= free <= best_size:
                best, best_size = i, free
        offset = self.offsets[best]
        if sizes[best] == size:
            del self.offsets[best], sizes[best]
        else:
            self.offsets[best] += size
            sizes[best] -= size
        self.peak = max(self.peak, offset + size)
        return offset

    def free(self, offset: int, nbytes: int) -> None:
        size = -(-nbytes // self.alignment) * self.alignment
        offsets, sizes = self.offsets, self.sizes
        for i, start in enumerate(offsets):
            if start + sizes[i] == offset:
                sizes[i] += size
                if i + 1 < len(offsets) and start + sizes[i] == offsets[i + 1]:
                    sizes[i] += sizes[i + 1]
                    del offsets[i + 1], sizes[i + 1]
                return
            if offset + size == start:
                offsets[i] = offset
                sizes[i] += size
                if i and offsets[i - 1] + sizes[i - 1] == offset:
                    sizes[i - 1] += sizes[i]
                    del offsets[i], sizes[i]
                return
        i = 0
        while i < len(offsets) and offsets[i] < offset:
            i += 1
        offsets.insert(i, offset)
        sizes.insert(i, size)


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferSizes:
    """Bytes of the host's compute buffer and of each GPU's, in the order of devices."""

    host: int
    devices: tuple[int, ...]


def plan_buffers(graph: Graph, num_devices: int, copies: int = 1) -> BufferSizes:
    """Peak of every compute buffer for this graph.

    copies   of every tensor that crosses devices: 4 with pipeline parallelism, else 1
    A graph can be planned once: the nodes are consumed.
    """
    order, leafs = _schedule(graph, copies)
    allocators = [_Allocator(HOST_ALIGNMENT)]
    allocators += [_Allocator(DEVICE_ALIGNMENT) for _ in range(num_devices)]
    _allocate(order, leafs, allocators)
    return BufferSizes(
        host=allocators[HOST].peak, devices=tuple(each.peak for each in allocators[1:])
    )


def _copy_of(src: Node, device: int, copies: int) -> Node:
    node = Node(src.shape, src.dtype, src.nbytes, (), device)
    node.packed = src.packed
    if copies > 1:
        node.is_input = node.is_output = True
    return node


def _home(node: Node) -> int:
    return node.root.device if node.root is not None else node.device


def _schedule(graph: Graph, copies: int) -> tuple[list[Node], list[Node]]:
    """Nodes with the copies between devices put in, and the tensors to place before all others.

    A split ends where the device changes, or where an operation reads a weight in host memory and
    the split has inputs already: the room of a weight is free again when its split is over.
    The inputs of a split are placed at its beginning.
    """
    splits: list[tuple[list[Node], list[Node]]] = []
    inputs: list[Node] = []
    nodes: list[Node] = []
    current = -1
    made: dict[tuple[int, int], Node] = {}
    crossing: list[Node] = []
    for node in graph.nodes:
        if node.viewing:
            nodes.append(node)
            continue
        device = node.device
        if device != current or (node.host_weights and device != HOST and inputs):
            if current != -1:
                splits.append((inputs, nodes))
                inputs, nodes = [], []
            current = device
        srcs = []
        for src in node.srcs:
            home = _home(src)
            at_hand = src.stored or (src.root is not None and src.root.stored)
            if home == device or (at_hand and not src.is_cache):
                srcs.append(src)
                continue
            key = (id(src), device)
            copy = made.get(key)
            if copy is None:
                copy = made[key] = _copy_of(src, device, copies)
                # Keeps the source until the copy is made.
                keep = Node((), "f32", 0, (src,), home)
                keep.stored = True
                inputs += (keep, copy)
                crossing.append(copy)
            srcs.append(copy)
        if device != HOST:
            for nbytes in node.host_weights:
                weight = Node((), "f32", nbytes, (), device)
                inputs.append(weight)
                srcs.append(weight)
        node.srcs = tuple(srcs)
        nodes.append(node)
    splits.append((inputs, nodes))
    order = [node for inputs, nodes in splits for node in (*inputs, *nodes)]
    if copies == 1:
        return order, graph.leafs
    leafs = []
    for leaf in graph.leafs:
        if leaf.is_input:
            leaf.is_output = True
            leafs.append(leaf)
            leafs += [_copy_of(leaf, leaf.device, copies) for _ in range(copies - 1)]
    for copy in crossing:
        leafs.append(copy)
        leafs += [_copy_of(copy, copy.device, copies) for _ in range(copies - 1)]
    return order, leafs + [leaf for leaf in graph.leafs if not leaf.is_input]


def _place(node: Node, allocators: list[_Allocator]) -> None:
    if node.alive or node.root is not None or node.stored:
        return
    node.alive = True
    if node.inplace:
        for parent in node.srcs:
            if (
                parent.alive
                and not parent.is_output
                and parent.kids == 1
                and parent.views == 0
                and parent.packed
                and parent.shape == node.shape
                and parent.dtype == node.dtype
            ):
                node.device = parent.device
                node.offset = parent.offset
                parent.alive = False
                return
    node.offset = allocators[node.device].alloc(node.nbytes)


def _release(node: Node, allocators: list[_Allocator]) -> None:
    if not node.is_output:
        allocators[node.device].free(node.offset, node.nbytes)
        node.alive = False


def _allocate(order: list[Node], leafs: list[Node], allocators: list[_Allocator]) -> None:
    for leaf in leafs:
        _place(leaf, allocators)
    for node in order:
        if node.root is not None:
            node.root.views += 1
        for src in node.srcs:
            src.kids += 1
    for node in order:
        srcs = node.srcs
        for src in srcs:
            if not src.alive and src.root is None and not src.stored:
                _place(src, allocators)
        _place(node, allocators)
        for src in srcs:
            src.kids -= 1
            if src.kids or src.views:
                continue
            root = src.root
            if root is None:
                if src.alive:
                    _release(src, allocators)
            else:
                root.views -= 1
                if not root.views and not root.kids and root.alive:
                    _release(root, allocators)
