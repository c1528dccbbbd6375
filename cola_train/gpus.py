"""What GPUs can do, from NVIDIA's data sheets: SXM parts unless named PCIe, dense, no sparsity."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """`device_name`: words of the name that CUDA gives it."""

    device_name: str
    memory_bytes: int
    bf16_flops: float  # FLOP/s
    fp32_flops: float  # the same without TF32
    fp8_flops: float | None  # None: it has no fp8
    memory_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s each way to the GPUs of its node: NVLink, or PCIe x16
    multiprocessors: int
    capability: tuple[int, int]  # CUDA's compute capability
    # Whether the fused kernels were measured faster there than torch's own: what kernels=auto goes
    # by. Set it with the figures in docs/benchmarks.md (`python -m benchmarks kernels`).
    fused_kernels: bool = False


GPUS = {
    "h100-80gb": Gpu("H100", 80 * GIB, 989e12, 67e12, 1979e12, 3.35e12, 450e9, 132, (9, 0)),
    "h100-pcie": Gpu("H100 PCIe", 80 * GIB, 756e12, 51e12, 1513e12, 2.0e12, 64e9, 114, (9, 0)),
    # its fused kernels were timed, and are no faster: docs/benchmarks.md
    "h200": Gpu("H200", 141 * GIB, 989e12, 67e12, 1979e12, 4.8e12, 450e9, 132, (9, 0)),
    "a100-80gb": Gpu("A100", 80 * GIB, 312e12, 19.5e12, None, 2.039e12, 300e9, 108, (8, 0)),
    "a100-40gb": Gpu("A100", 40 * GIB, 312e12, 19.5e12, None, 1.555e12, 300e9, 108, (8, 0)),
    "l40s": Gpu("L40S", 48 * GIB, 362e12, 91.6e12, 733e12, 0.864e12, 32e9, 142, (8, 9)),
    "a10": Gpu("A10", 24 * GIB, 125e12, 31.2e12, None, 0.6e12, 32e9, 72, (8, 6)),
    "rtx4090": Gpu("4090", 24 * GIB, 165e12, 82.6e12, 330e12, 1.008e12, 32e9, 128, (8, 9)),
}
