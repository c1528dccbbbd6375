"""Names of ops that a policy may tell apart, as the dispatcher writes them; needs no Triton.

`composed`, `fused` and `fp8` export their own as `RANK_R_OPS` and `RESIDUAL_OPS`.
    RANK_R_OPS: their outputs are the rank-r vectors z, before the activation.
    RESIDUAL_OPS: they end a half of a block, and their outputs are the residual stream.
"""

COMPOSED_RANK_R_OPS = frozenset({"cola_kernels::down"})
COMPOSED_RESIDUAL_OPS: frozenset[str] = frozenset()  # aten adds the residual
FUSED_RANK_R_OPS = frozenset({"cola_kernels::down", "cola_kernels::gated_down"})
FUSED_RESIDUAL_OPS = frozenset({"cola_kernels::up_add"})
FP8_RANK_R_OPS = frozenset({"cola_kernels::fp8_down"})
FP8_RESIDUAL_OPS = frozenset({"cola_kernels::fp8_linear_add"})

# of all: a policy need not know on which a model runs
RANK_R_OPS = COMPOSED_RANK_R_OPS | FUSED_RANK_R_OPS | FP8_RANK_R_OPS
RESIDUAL_OPS = COMPOSED_RESIDUAL_OPS | FUSED_RESIDUAL_OPS | FP8_RESIDUAL_OPS
