"""Pre-training of CoLA language models.

from cola_train import load_model
model = load_model("outputs/small-cola-stdlib")
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cola_train.inference.load import load_model

__all__ = ["__version__", "load_model"]

__version__ = "0.1.0"

# Read when torch loads OpenMP: idle threads sleep rather than spin. Spinning is 5 % faster on a
# machine of one's own and 6 times slower beside another program (docs/benchmarks.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    if name != "load_model":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cola_train.inference.load import load_model  # torch, only where it is asked for

    return load_model
