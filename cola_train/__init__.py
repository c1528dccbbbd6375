"""Pre-training of CoLA language models."""

import os

# Read when torch loads OpenMP: idle threads sleep rather than spin. Spinning is 5 % faster on a
# machine of one's own and 6 times slower beside another program (docs/benchmarks.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
