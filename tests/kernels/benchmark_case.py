"""`python -m benchmarks kernels` at tiny shapes in Triton's interpreter; run by test_benchmark.py
in a process of its own, which can import torch, Triton, numpy and little else.

Usage: benchmark_case.py JSON_FILE BLOCKED_MODULE...
"""

import functools
import sys

FILE, *BLOCKED = sys.argv[1:]
sys.modules.update(dict.fromkeys(BLOCKED))  # importing one fails, as if it were not there

import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from benchmarks import kernels  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402

assert main(["kernels"]) == 2  # there is no GPU

from cola_kernels.tools.floors import Shape, table  # noqa: E402

from benchmarks.gpu.ops import cpu_seconds  # noqa: E402
from benchmarks.kernels_cases import LIBRARIES, cases  # noqa: E402

shape = Shape(d=48, d_ff=80, r=16, n=20)  # d_ff: the ops' own outputs are padded
cpu = torch.device("cpu")


def check_costs() -> None:
    """The count of each case: FLOPs as torch counts them, bytes of all that goes in and out."""
    names = []
    for case in cases(shape, torch.float16, cpu):
        timed = case.subject(case.op(LIBRARIES["fused"]))()
        with FlopCounterMode(display=False) as counter:
            outputs = timed()
        assert counter.get_total_flops() == case.cost.flops, case.name
        tensors = [*case.inputs, *outputs]
        if case.gradients:
            tensors += case.op(LIBRARIES["fused"])(*case.inputs)  # as large as their gradients
        size = 2 * sum(tensor.numel() for tensor in tensors)
        if case.name.startswith("up_add") and case.gradients:
            size -= 2 * 2 * shape.n * shape.d  # the residual is not read, its gradient is dy
        assert size == case.cost.bytes, case.name
        names.append(case.name)
    assert sorted(names) == sorted(name for name in table(shape) if not name.startswith("gated_up"))


check_costs()
kernels.SHAPES["1b"] = shape
kernels.DEVICE, kernels.DTYPE = "cpu", torch.float32
kernels.PRODUCT_SIZE = kernels.COPY_SIZE = 64
kernels.unavailable = lambda device: None
kernels.gpu_seconds = cpu_seconds  # stands in for the GPU's clock
torch.compile = functools.partial(torch.compile, backend="aot_eager")  # inductor takes minutes
sys.exit(main(["kernels", "--model", "1b", "--rounds", "2", "--json", FILE]))
