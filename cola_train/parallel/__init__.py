"""What is done to a finished model from outside, in this order: recompute, compile, shard."""

from cola_train.parallel.compile import compile_blocks
from cola_train.parallel.recompute import apply_recompute
from cola_train.parallel.shard import build_mesh, shard

__all__ = ["apply_recompute", "build_mesh", "compile_blocks", "shard"]
