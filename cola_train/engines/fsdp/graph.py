"""A step's kernels, recorded in a CUDA graph: the host launches them all by one call."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from cola_train.data.loader import Batch
from cola_train.engines.fsdp.masters import takes_found_inf
from cola_train.errors import UserError

# `Engine.device_step`
DeviceStep = Callable[[Sequence[Batch], float | Tensor, Tensor], tuple[Tensor, list[str]]]

WARM_UP = 3  # steps that run as usual: kernels are compiled, the optimizer allocates its state


class CapturedStep:
    """Calls a step as usual at first, then records it, and from then on replays the record.

    A replay reads and writes the addresses of the recording: weights and optimizer state, which
    therefore stay where they are, and buffers of its own for what changes from step to step. What
    a step allocates, its gradients too, lies in the graph's memory, which nothing else uses.
    Python runs once, in the recording.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        """Raises UserError where the optimizer cannot decide on the device."""
        if not takes_found_inf(optimizer):
            raise UserError(
                f"train.cuda_graph: {type(optimizer).__name__} cannot leave out a step on the "
                "device, as torch's fused optimizers do (found_inf); use train.cuda_graph=false"
            )
        self.optimizer = optimizer
        self.stream = torch.cuda.Stream(device)
        self.lr = torch.zeros((), device=device)  # torch's fused kernels read it in fp32
        self.inputs: list[Tensor] = []  # of all micro-batches, then the limits
        self.steps = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: tuple[Tensor, list[str]]

    def __call__(
        self, step: DeviceStep, batches: Sequence[Batch], lr: float | Tensor, limits: Tensor
    ) -> tuple[Tensor, list[str]]:
        """What `step` returns; the next call overwrites its tensor.

        Raises:
            ValueError: the batches have other shapes than those of the first call.
        """
        self._fill([*_tensors(batches), limits])
        self.lr.fill_(lr)
        if self.steps < WARM_UP:
            self.steps += 1
            return self._warm_up(step, batches)
        if self.graph is None:
            self.graph = self._capture(step, batches)
        self.graph.replay()
        return self.result

    def _fill(self, given: list[Tensor]) -> None:
        """Copy a step's inputs to where the record reads them."""
        if not self.inputs:
            self.inputs = [tensor.clone() for tensor in given]
        shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (given, self.inputs)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"train.cuda_graph: a step's batches have the shapes {shapes[0][:-1]} and were "
                f"recorded with {shapes[1][:-1]}; use train.cuda_graph=false where they change"
            )
        torch._foreach_copy_(self.inputs, given)

    def _run(self, step: DeviceStep, batches: Sequence[Batch]) -> tuple[Tensor, list[str]]:
        """The step on the inputs' copies; `batches` says which of them there are."""
        *tensors, limits = self.inputs
        parts = iter(tensors)
        copies = [
            Batch(next(parts), next(parts), None if batch.documents is None else next(parts))
            for batch in batches
        ]
        return step(copies, self.lr, limits)

    def _warm_up(self, step: DeviceStep, batches: Sequence[Batch]) -> tuple[Tensor, list[str]]:
        """A step as usual, but on the stream of the recording: autograd remembers streams."""
        current = torch.cuda.current_stream(self.lr.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = self._run(step, batches)
        current.wait_stream(self.stream)
        return result

    def _capture(self, step: DeviceStep, batches: Sequence[Batch]) -> torch.cuda.CUDAGraph:
        """Record a step, which does nothing yet."""
        for group in self.optimizer.param_groups:
            group["capturable"] = True  # else torch refuses; fused kernels are the same
        graph = torch.cuda.CUDAGraph()
        # other threads pin batches and write checkpoints meanwhile
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self.result = self._run(step, batches)
        return graph


def _tensors(batches: Sequence[Batch]) -> list[Tensor]:
    fields = [(batch.inputs, batch.targets, batch.documents) for batch in batches]
    return [tensor for tensors in fields for tensor in tensors if tensor is not None]
