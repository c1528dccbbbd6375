"""The ops on Triton kernels where those fuse something: `reference`'s functions with the same
signatures.

`linear`, `gated` and `down` are `composed`'s: in them there is nothing to fuse. Nothing as wide as
d_ff is kept for the backward pass; `fused_wide` keeps it.
"""

from cola_kernels.composed import down, gated, linear
from cola_kernels.names import FUSED_RANK_R_OPS as RANK_R_OPS
from cola_kernels.names import FUSED_RESIDUAL_OPS as RESIDUAL_OPS
from cola_kernels.ops.gated_down import gated_down
from cola_kernels.ops.up import up

__all__ = ["RANK_R_OPS", "RESIDUAL_OPS", "down", "gated", "gated_down", "linear", "up"]
