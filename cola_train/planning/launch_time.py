"""What one kernel takes on a GPU, by its shape. A model: nothing here is measured.

A GEMM is cut into tiles of its output; the GPU's multiprocessors compute one each, so tiles come in
waves. A wave takes its main loop along K, and its first loads and last stores. cuBLAS is taken to
choose the fastest of five tiles, and of a few ways to share K out among them.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import log2

from cola_train.gpus import Gpu
from cola_train.methods.launches import Attention, FusedGemm, Gemm, Launch, Pass
from cola_train.planning.constants import StepConstants

# Rows and columns of a tile; its FLOP/s and its fill over the largest's. Chosen: what smaller tiles
# lose in reuse of what they load.
TILES = (
    (128, 256, 1.0, 1.0),
    (256, 128, 1.0, 1.0),
    (128, 128, 0.762, 0.75),
    (64, 256, 0.762, 0.75),
    (64, 128, 0.533, 0.625),
)
SPLITS = (1, 2, 3, 4, 6, 8)  # of K
DEPTH = 64  # elements along K of a step of the main loop
ALIGNMENT = 16  # bytes, of the rows of matmuls' operands
OUTPUT_SHARE = 0.3  # of what odd rows cost, if they are the output's alone. Chosen.
LONG = 1024  # tokens from which attention has another kernel on Hopper
US = 1e-6


@dataclass(frozen=True)
class Chip:
    """A GPU in one precision. element: bytes of the compute dtype; fp8: train.precision=fp8."""

    gpu: Gpu
    constants: StepConstants
    element: int
    fp8: bool = False

    @property
    def peak_flops(self) -> float:
        return self.gpu.fp32_flops if self.element == 4 else self.gpu.bf16_flops

    @cached_property
    def flops_here(self) -> float:
        """Peak FLOP/s of one multiprocessor."""
        return self.peak_flops / self.gpu.multiprocessors

    def moved(self, elements: float) -> float:
        """Seconds of what a matmul must read and write at least."""
        bandwidth = self.gpu.memory_bandwidth * self.constants.gemm_bandwidth
        return elements * self.element / bandwidth + self.constants.launch_us * US

    def passed(self, size: float) -> float:
        """Seconds of an elementwise kernel over so many bytes, read and written."""
        bandwidth = self.gpu.memory_bandwidth * self.constants.pass_bandwidth
        return size / bandwidth + self.constants.launch_us * US

    def seconds(self, launch: Launch) -> float:
        match launch:
            case Gemm():
                return gemm_seconds(launch, self)
            case FusedGemm():
                return fused_seconds(launch, self)
            case Pass():
                return self.passed(launch.elements * self.element)
            case Attention():
                return attention_seconds(launch, self)


def waves(rows: int, columns: int, tile: tuple[int, int], chip: Chip, split: int = 1) -> int:
    tiles = -(-rows // tile[0]) * -(-columns // tile[1])
    return -(-tiles * split // chip.gpu.multiprocessors)


def gemm_seconds(gemm: Gemm, chip: Chip) -> float:
    """Of a matmul by cuBLAS."""
    M, N, K = gemm.rows, gemm.columns, gemm.depth
    moved = chip.moved(M * K + K * N + M * N + gemm.more)
    if min(M, N) == 1:  # a vector, which is no tile's work
        return moved
    if chip.fp8 and gemm.fp8 and chip.gpu.fp8_flops:
        computed = cublas_seconds(M, N, K, chip, chip.gpu.fp8_flops / chip.gpu.bf16_flops)
        # rounded from two bytes an element to one; the weight's largest numbers first
        return max(computed, moved) + chip.passed(3 * M * K + 7 * K * N)
    return max(cublas_seconds(M, N, K, chip) * odd_factor(gemm, chip), moved)


@lru_cache(maxsize=10_000)
def cublas_seconds(M: int, N: int, K: int, chip: Chip, faster: float = 1.0) -> float:
    """Of (M, K) x (K, N), its FLOPs alone, with aligned rows. faster: its main loop, so many times
    than in the compute dtype."""
    constants, found = chip.constants, []
    steps = -(-K // DEPTH)
    partial = 8 * M * N / (chip.gpu.memory_bandwidth * constants.partials_bandwidth)
    for rows, columns, rate, fill in TILES:
        step = 2 * rows * columns * DEPTH / (chip.flops_here * constants.gemm_peak * rate * faster)
        for split in SPLITS:
            wave = -(-steps // split) * step + fill * constants.gemm_fill_us * US
            seconds = waves(M, N, (rows, columns), chip, split) * wave + constants.launch_us * US
            if split > 1:  # fp32 partial sums are written, and read by one more kernel
                seconds += split * partial + constants.launch_us * US
            found.append(seconds)
    return min(found)


def odd_factor(gemm: Gemm, chip: Chip) -> float:
    """What rows that are not aligned cost."""
    *operands, output = (width * chip.element % ALIGNMENT != 0 for width in gemm.widths)
    slower = chip.constants.odd_rows - 1
    return 1 + slower * (1 if any(operands) else OUTPUT_SHARE if output else 0)


def fused_seconds(gemm: FusedGemm, chip: Chip) -> float:
    """Of a persistent Triton kernel: most of a tile's fill and epilogue hides behind the next one's
    main loop. A single product is taken to be as fast as cuBLAS's but for its epilogue."""
    M, N, K, constants = gemm.rows, gemm.columns, gemm.depth, chip.constants
    if gemm.products == 1:
        computed = cublas_seconds(M, N, K, chip) * constants.fused_epilogue
    else:
        tile = 128
        step = 2 * tile * tile * DEPTH / (chip.flops_here * constants.fused_peak)
        fills = (gemm.products - 1) * constants.fused_fill_us * US
        wave = gemm.products * -(-K // DEPTH) * step + fills
        computed = waves(M, N, (tile, tile), chip) * wave + constants.launch_us * US
    return max(computed, chip.passed(gemm.moved * chip.element))


def attention_seconds(attention: Attention, chip: Chip) -> float:
    """Of flash attention: by its matmuls, half of the square, or by what it reads and writes."""
    constants = chip.constants
    nd = attention.tokens * attention.d_model
    matmuls, passes = (2.5, 8) if attention.backward else (1, 4)  # pairs of them; of nd elements
    rate = attention_share(attention.length, constants) * chip.peak_flops
    if attention.length >= LONG and chip.gpu.capability == (9, 0):
        rate *= constants.attention_hopper
    if attention.backward:
        rate *= constants.attention_backward
    computed = 2 * matmuls * attention.length * nd / rate + constants.launch_us * US
    return max(computed, chip.passed(passes * nd * chip.element))


def attention_share(length: int, constants: StepConstants) -> float:
    """Of the peak FLOP/s, between the constants by the logarithm of the length."""
    known = (constants.attention_256, constants.attention_1024, constants.attention_4096)
    place = min(2.0, max(0.0, (log2(length) - 8) / 2))
    below = min(1, int(place))
    return known[below] + (known[below + 1] - known[below]) * (place - below)
