"""The fused ops, on Triton kernels: `reference`'s functions with the same signatures."""

from cola_kernels.down import down
from cola_kernels.gated_down import gated_down
from cola_kernels.gated_up import gated_up
from cola_kernels.up import up

__all__ = ["down", "gated_down", "gated_up", "up"]
