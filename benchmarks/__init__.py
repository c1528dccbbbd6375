"""Every figure in the docs comes from a command here: `python -m benchmarks NAME`."""

import importlib.util
import sys
from pathlib import Path

# from a bare checkout too, with nothing installed but torch
if importlib.util.find_spec("cola_kernels") is None:
    sys.path.append(str(Path(__file__).parents[1] / "kernels"))
