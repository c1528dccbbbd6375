"""`torch.cuda.graph` on a CPU: what a CUDA graph records of a step, and replays.

As on a GPU, a recording changes nothing, and a replay runs the recorded ops on the recorded
tensors, with the numbers that the host had given them: one that changes from step to step is frozen
unless it lies in a tensor. What would make the host wait, or copies to the device what the host has
just made, fails.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FORBIDDEN = {"aten::_local_scalar_dense", "aten::nonzero", "aten::lift_fresh"}


class Stream:
    """Of a device that does one thing after the other."""

    def __init__(self, device: Any = None) -> None: ...
    def wait_stream(self, other: Any) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *error: Any) -> None: ...


class Graph:
    """For `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.ops: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.replays = 0

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for op, arguments, options, outputs in self.ops:
            again = tensors(op(*arguments, **options))
            for output, now in zip(outputs, again, strict=True):
                if output.data_ptr() != now.data_ptr():
                    output.copy_(now)


class Recording(TorchDispatchMode):
    """For `torch.cuda.graph`."""

    def __init__(self, graph: Graph, stream: Stream, capture_error_mode: str) -> None:
        super().__init__()
        self.graph = graph
        self.before: list[tuple[Tensor, Tensor]] = []  # what an op was about to change, and a copy

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        assert op.name().split(".")[0] not in FORBIDDEN, f"{op} cannot be recorded"
        inputs = tensors((args, kwargs))
        if op._schema.is_mutable:
            self.before += [(tensor, tensor.clone()) for tensor in inputs]
        result = op(*args, **kwargs)
        owned = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        outputs = tensors(result)
        made = any(tensor.untyped_storage().data_ptr() not in owned for tensor in outputs)
        if made or op._schema.is_mutable:  # else views, which see what their tensors hold
            self.graph.ops.append((op, args, kwargs, outputs))
        return result

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for tensor, copy in reversed(self.before):
            tensor.data.copy_(copy)


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def pretend_cuda_graphs(monkeypatch: Any) -> None:
    """From here on `torch.cuda` has what `CapturedStep` calls, on the CPU."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
