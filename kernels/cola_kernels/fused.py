"""The fused ops, on Triton kernels: `reference`'s functions with the same signatures.

`linear` and `gated` are `composed`'s: full-rank linears have nothing to fuse.
"""

from cola_kernels.composed import gated, linear
from cola_kernels.names import FUSED_RANK_R_OPS as RANK_R_OPS
from cola_kernels.names import FUSED_RESIDUAL_OPS as RESIDUAL_OPS
from cola_kernels.ops.down import down
from cola_kernels.ops.gated_down import gated_down
from cola_kernels.ops.up import up

__all__ = ["RANK_R_OPS", "RESIDUAL_OPS", "down", "gated", "gated_down", "linear", "up"]
