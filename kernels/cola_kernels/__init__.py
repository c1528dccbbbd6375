"""Fused low-rank layers for CoLA: y = B s(A x), s = SiLU or identity, forward and backward.

`cola_kernels.reference` is the truth in plain torch; `cola_kernels.fused` has the same functions
with the same signatures on Triton kernels, and `cola_kernels.composed` those that a model needs on
torch's own; `cola_kernels.fp8` has the latter with fp8 products. `select` picks one. Nothing here
imports Triton until the fused functions are asked for.
"""

from cola_kernels.support import UnsupportedError, fp8_unavailable, select, unavailable

__all__ = ["UnsupportedError", "fp8_unavailable", "select", "unavailable"]
