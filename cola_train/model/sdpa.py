"""Which of torch's kernels attend on a GPU: its own choice, but where that is slow or wrong."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from cola_train.config.schema import Config

CUDNN, FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
OTHERS = [FLASH, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
CUDNN_LENGTH = 1024  # tokens from which cuDNN's kernel is to be taken on Hopper


@contextmanager
def sdpa_kernels(config: Config, documents: bool, device: torch.device) -> Iterator[None]:
    """For the length of a run, backward passes included: a recomputed forward must take the kernel
    that the first took.

    documents: whether attention gets a mask.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    order = kernel_order(config.train.sequence_length, documents, capability)
    if order is None:
        yield
        return
    with sdpa_kernel(order, set_priority=True):
        yield


def kernel_order(
    length: int, documents: bool, capability: tuple[int, int]
) -> list[SDPBackend] | None:
    """The kernels that may run, the first that can is taken; None: as torch chooses.

    With a mask and an odd multiple of 64 tokens, cuDNN's gradients may be NaN (pytorch issue
    196678, cuDNN 9.20). Without one it is the fastest on Hopper, where torch takes it first with
    cuDNN above 9.15; before that its backward pass reads beyond lengths that are no multiple of
    128 (issue 169849). In deterministic mode torch takes the next: cuDNN's is not.
    """
    if documents:
        return OTHERS if length % 128 == 64 and capability >= (8, 0) else None
    on_hopper = capability == (9, 0)
    return [CUDNN, *OTHERS] if on_hopper and length >= CUDNN_LENGTH and length % 128 == 0 else None
