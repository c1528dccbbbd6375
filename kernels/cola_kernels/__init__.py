"""Fused low-rank layers for CoLA: y = B s(A x), s = SiLU or identity, forward and backward.

`cola_kernels.reference` is the truth in plain torch; `cola_kernels.fused` has the same functions
with the same signatures on Triton kernels, and `cola_kernels.composed` those that a model needs on
torch's own; `select` picks `fused` or `composed`. Nothing here imports Triton until the fused
functions are asked for.
"""

from cola_kernels.support import UnsupportedError, select, unavailable

__all__ = ["UnsupportedError", "select", "unavailable"]
