"""FLOPs and least bytes of every op, and the floor they give: the count in docs/kernels.md.

Shapes: n rows, d model width, F = d_ff, r bottleneck width, e bytes an element. Least bytes: each
input read once, each output written once, everything else in caches. "gradients" is an op's whole
backward pass, from what it keeps: all that it recomputes, every gradient.

Of decoding: what a token reads at least, the weights, and what launches add to it
(`cola_kernels.decode`).

Run it for the tables: `python -m cola_kernels.tools.floors`
"""

from dataclasses import dataclass

# An H100 as measured on large bf16 products and large copies.
FLOPS_PER_SECOND = 800e12
BYTES_PER_SECOND = 3.0e12


@dataclass(frozen=True)
class Shape:
    """A model's widths, and the rows (tokens) of a step."""

    d: int
    d_ff: int
    r: int
    n: int = 16384


@dataclass(frozen=True)
class Cost:
    """FLOPs, and bytes moved at least."""

    flops: int
    bytes: int

    @property
    def floor_seconds(self) -> float:
        """The larger of the two times: nothing runs faster."""
        return max(self.flops / FLOPS_PER_SECOND, self.bytes / BYTES_PER_SECOND)


# Of decoding: bytes a second of data sheets; microseconds from one kernel's last block to the next
# one's first in a CUDA graph, which are assumed: what an H200 took is in docs/kernels.md.
BANDWIDTHS = {"H100": 3.35e12, "H200": 4.8e12}
LAUNCH = 2.5
LAUNCHES, TORCH_LAUNCHES = (
    8,
    20,
)  # of a block, with joined weights: products, SiLUs, norms, gate and residuals

SHAPES = {"1b": Shape(2048, 5461, 512), "7b": Shape(4096, 11008, 1024)}


# d_ff as it is stored; a single row
DECODED = {
    "350m": Shape(1024, 2736, 256, 1),
    "1b": Shape(2048, 5504, 512, 1),
    "7b": Shape(4096, 11008, 1024, 1),
}
BLOCKS = {"350m": 24, "1b": 24, "7b": 32}
VOCABULARY = 32000


def encode(n: int, d: int, d_out: int, r: int, parts: int, e: int = 2) -> Cost:
    """`parts` y (n, d_out) from x (n, d) and as many pairs of weights (r, d) and (d_out, r)."""
    weights = parts * r * (d + d_out)
    return Cost(2 * n * weights, e * (weights + n * (d + parts * d_out)))


def decoded_mlp(n: int, d: int, d_ff: int, r: int, e: int = 2) -> Cost:
    """y (n, d) from x (n, d) and six weights; z, p and z_d stay in the L2 cache."""
    weights = 3 * r * (d + d_ff)
    return Cost(2 * n * weights, e * (weights + 2 * n * d))


def decoded(shape: Shape) -> dict[str, Cost]:
    """The layers of a block in decoding, by name; x is each residual too, read once."""
    n, d, r = shape.n, shape.d, shape.r
    return {
        "qkv": encode(n, d, d, r, 3),
        "o": encode(n, d, d, r, 1),
        "mlp": decoded_mlp(n, d, shape.d_ff, r),
    }


def up_add(n: int, d: int, r: int, e: int = 2) -> Cost:
    """y (n, d) from z (n, r), weights (d, r), and the residual (n, d)."""
    return Cost(2 * n * d * r, e * (n * r + d * r + 2 * n * d))


def up_add_gradients(n: int, d: int, r: int, e: int = 2) -> Cost:
    """dz (n, r) and dB (d, r) from dy (n, d), z and the weights. The residual's gradient is dy."""
    return Cost(4 * n * d * r, e * (n * d + 2 * n * r + 2 * d * r))


def gated_up(n: int, d_ff: int, r: int, keep: bool, e: int = 2) -> Cost:
    """p (n, F), with `keep` g and u too, from h (n, 2 r) and two weights (F, r)."""
    outputs = 3 if keep else 1
    return Cost(4 * n * d_ff * r, e * (2 * n * r + 2 * d_ff * r + outputs * n * d_ff))


def gated_backward(n: int, d_ff: int, r_d: int, e: int = 2) -> Cost:
    """dg and du (n, F) from dz_d (n, r_d), a weight (r_d, F), g and u (n, F)."""
    return Cost(2 * n * d_ff * r_d, e * (n * r_d + d_ff * r_d + 4 * n * d_ff))


def gated_recompute(n: int, d_ff: int, r: int, r_d: int, e: int = 2) -> Cost:
    """dg, du and p (n, F) from dz_d (n, r_d), h (n, 2 r) and the three weights."""
    flops = 4 * n * d_ff * r + 2 * n * d_ff * r_d
    inputs = n * r_d + 2 * n * r + 2 * d_ff * r + d_ff * r_d
    return Cost(flops, e * (inputs + 3 * n * d_ff))


def gated_down(n: int, d_ff: int, r: int, r_d: int, e: int = 2) -> Cost:
    """z_d (n, r_d) from z (n, 2 r), two weights (F, r) and one (r_d, F)."""
    flops = 4 * n * d_ff * r + 2 * n * d_ff * r_d
    return Cost(flops, e * (2 * n * r + 2 * d_ff * r + d_ff * r_d + n * r_d))


def gated_down_gradients(
    n: int, d_ff: int, r: int, r_d: int, kept: bool = False, e: int = 2
) -> Cost:
    """dz (n, 2 r) and the three weights' gradients from dz_d (n, r_d), z and the weights; g and u
    anew, or `kept`."""
    flops = (8 if kept else 12) * n * d_ff * r + 4 * n * d_ff * r_d
    return Cost(flops, e * (4 * n * r + n * r_d + 4 * d_ff * r + 2 * d_ff * r_d))


def table(shape: Shape) -> dict[str, Cost]:
    """Every use of a Triton kernel in one block of the model, and of the ops around it, by name."""
    n, d, d_ff, r = shape.n, shape.d, shape.d_ff, shape.r
    return {
        "up_add": up_add(n, d, r),
        "up_add, gradients": up_add_gradients(n, d, r),
        "gated_up, keep": gated_up(n, d_ff, r, keep=True),
        "gated_backward": gated_backward(n, d_ff, r),
        "gated_up": gated_up(n, d_ff, r, keep=False),
        "gated_recompute": gated_recompute(n, d_ff, r, r),
        "gated_down, keep": gated_down(n, d_ff, r, r),
        "gated_down, keep, gradients": gated_down_gradients(n, d_ff, r, r, kept=True),
        "gated_down": gated_down(n, d_ff, r, r),
        "gated_down, gradients": gated_down_gradients(n, d_ff, r, r),
    }


def decode_table() -> None:
    """Microseconds a token of the linears of all blocks, without attention, embedding and head."""
    print("\ndecoding, bf16: the linears of all blocks, \u00b5s a token\n")
    print("| model, GPU | weights MB | full rank's MB | floor | with launches | torch's launches |")
    print("|" + "---|" * 6)
    for name, one in DECODED.items():
        for gpu, bandwidth in BANDWIDTHS.items():
            blocks = BLOCKS[name]
            floor = blocks * sum(cost.bytes for cost in decoded(one).values()) / bandwidth * 1e6
            weights = blocks * one.r * (8 * one.d + 3 * (one.d + one.d_ff)) * 2 / 1e6
            full = blocks * one.d * (4 * one.d + 3 * one.d_ff) * 2 / 1e6
            ours, torchs = (floor + blocks * n * LAUNCH for n in (LAUNCHES, TORCH_LAUNCHES))
            print(f"| {name}, {gpu} | {weights:.0f} | {full:.0f} | {floor:.0f} | {ours:.0f} "
                  f"| {torchs:.0f} |")  # fmt: skip


def main() -> None:
    for name, shape in SHAPES.items():
        print(f"\n{name}: d = {shape.d}, d_ff = {shape.d_ff}, r = {shape.r}, n = {shape.n}, bf16\n")
        print("| op | GFLOP | least MB | compute µs | memory µs | floor µs |")
        print("|---|---|---|---|---|---|")
        for op, cost in table(shape).items():
            print(
                f"| {op} | {cost.flops / 1e9:.0f} | {cost.bytes / 1e6:.0f} "
                f"| {cost.flops / FLOPS_PER_SECOND * 1e6:.0f} "
                f"| {cost.bytes / BYTES_PER_SECOND * 1e6:.0f} | {cost.floor_seconds * 1e6:.0f} |"
            )
    decode_table()


if __name__ == "__main__":
    main()
