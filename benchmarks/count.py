"""What a block really does and keeps, counted on fake tensors: nothing is computed or allocated."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from cola_kernels.support import library
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from cola_train.config.schema import Config
from cola_train.inference.prepare import Wrapping
from cola_train.methods.base import build_method
from cola_train.model import cpu
from cola_train.model.attention import rotary_for
from cola_train.model.context import AttentionContext
from cola_train.model.llama import Llama
from cola_train.model.padding import remove_padding
from cola_train.parallel.recompute import apply_recompute

ATEN = torch.ops.aten
# torch has formulas for the attention of GPUs alone
CPU_ATTENTION = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
    ),
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda dy, q, k, v, *_, **__: sdpa_backward_flop_count(dy, q, k, v)
    ),
}


@dataclass(frozen=True)
class Count:
    """Of one block, for one position: FLOPs, and bytes alive between forward and backward. Of the
    whole block, bytes of its buffers.

    Saved-tensor hooks see all of them without recomputation, and a checkpointed region's inputs.
    """

    forward_flops: float
    backward_flops: float
    saved_bytes: float
    hooked_bytes: float  # of them, what saved-tensor hooks see
    buffer_bytes: int


class LiveStorages(TorchDispatchMode):
    """Remembers every storage an op made. Saved-tensor hooks would miss what selective
    checkpointing keeps; this misses nothing that is alive."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return out

    def bytes(self, *without: Tensor) -> int:
        """Of the storages that are alive, but for those of tensors `without`."""
        skip = {tensor.untyped_storage()._cdata for tensor in without}
        return sum(
            size for at, (ref, size) in self.made.items() if at not in skip and not ref.expired()
        )


def count_block(
    config: Config,
    kernels: str | None = None,
    dtype: torch.dtype = torch.float32,
    padded: bool = True,
) -> Count:
    """Count the first block of `config`'s model, on the CPU's kernels for attention.

    kernels: torch or triton, in place of what `config` says; Triton's ops can be counted anywhere.
    padded: with the widths that are stored, as it runs; else with the model's own, of which
        formulas of FLOPs are.
    """
    method = build_method(config, torch.device("cpu"))
    if kernels is not None:
        ops = library(kernels, method.keep_wide)
        method.ops = method.ops.over(ops) if isinstance(method.ops, Wrapping) else ops
    B, T = 1, config.train.sequence_length
    with FakeTensorMode():
        with default_dtype(dtype):
            model = Llama(config.model, method, T)
            if not padded:
                remove_padding(model)
        cpu.specialise(model, dtype, compiled=False)
        apply_recompute(model, config.recompute.name, method.kept_ops)
        block = model.layers[0]
        x = torch.empty(B, T, config.model.d_model, dtype=dtype, requires_grad=True)
        context = AttentionContext(rotary_for(model.rotary.float(), x), model.make_mask(None, x))
        own = [*model.parameters(), *model.buffers(), context.rotary]
        packed: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            packed[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with (
            flops() as forward,
            LiveStorages() as live,
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            y = block(x, context)
        saved = x.nbytes + live.bytes(x, y, *own)
        others = {t.untyped_storage()._cdata for t in (y, *own)}
        hooked = sum(t.untyped_storage().nbytes() for at, t in packed.items() if at not in others)
        packed.clear()
        with flops() as backward:
            y.backward(torch.empty_like(y))
    positions = B * T
    return Count(
        forward_flops=forward.get_total_flops() / positions,
        backward_flops=backward.get_total_flops() / positions,
        saved_bytes=saved / positions,
        hooked_bytes=hooked / positions,
        buffer_bytes=sum(buffer.nbytes for buffer in block.buffers()),
    )


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def flops() -> Iterator[FlopCounterMode]:
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        yield counter
