"""`fused`, but that `gated_down` keeps g, u and p, as wide as d_ff, and so computes nothing twice.

For a run that has the memory, or that recomputes whole blocks. A policy that keeps the rank-r
vectors is for `fused`.
"""

from cola_kernels.fused import RANK_R_OPS, RESIDUAL_OPS, down, gated, linear, up
from cola_kernels.ops.gated_down import gated_down_wide as gated_down

__all__ = ["RANK_R_OPS", "RESIDUAL_OPS", "down", "gated", "gated_down", "linear", "up"]
