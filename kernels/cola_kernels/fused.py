"""The fused ops, on Triton kernels: `reference`'s functions with the same signatures."""

from cola_kernels.ops.down import down
from cola_kernels.ops.gated_down import gated_down
from cola_kernels.ops.up import up

__all__ = ["down", "gated_down", "up"]
