"""`python -m benchmarks decode_kernels` at tiny shapes in Triton's interpreter; run by
test_benchmark.py in a process of its own, which can import torch, Triton, numpy and little else.

Usage: decode_benchmark_case.py JSON_FILE BLOCKED_MODULE...
"""

import sys

FILE, *BLOCKED = sys.argv[1:]
sys.modules.update(dict.fromkeys(BLOCKED))  # importing one fails, as if it were not there

import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from benchmarks import decode_kernels  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.decode_cases import LAYERS, Block  # noqa: E402

assert main(["decode_kernels"]) == 2  # there is no GPU

from cola_kernels.ops import decode  # noqa: E402
from cola_kernels.tools.floors import Shape, decoded  # noqa: E402

shape = Shape(d=48, d_ff=80, r=16, n=2)


def check_costs() -> None:
    """FLOPs as torch counts them; bytes of weights, x and outputs."""
    weights = Block(shape, torch.float16, "cpu")
    x = torch.randn(shape.n, shape.d).half()
    for name, cost in decoded(shape).items():
        with FlopCounterMode(display=False) as counter:
            LAYERS[name](decode, weights, x)
        assert counter.get_total_flops() == cost.flops, name
        parts = {"qkv": ("qkv_a", "qkv_b"), "o": ("o_a", "o_b")}.get(
            name, ("mlp_a", "mlp_b", "down_a", "down_b")
        )
        size = sum(getattr(weights, part).numel() for part in parts) + 2 * x.numel()
        assert cost.bytes == 2 * (size + (2 * x.numel() if name == "qkv" else 0)), name


check_costs()
decode_kernels.DECODED["350m"] = shape
decode_kernels.DEVICE, decode_kernels.DTYPE = "cpu", torch.float16
decode_kernels.OTHERS = (torch.float32,)
decode_kernels.ENOUGH, decode_kernels.REPLAYS = 1, 1
decode_kernels.unavailable = lambda device: None
arguments = ["--model", "350m", "--rows", "2", "--rounds", "1", "--json", FILE]
sys.exit(main(["decode_kernels", *arguments]))
