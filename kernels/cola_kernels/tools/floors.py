"""FLOPs and least bytes of every op, and the floor they give: the count in docs/kernels.md.

Shapes: n rows, d model width, F = d_ff, r bottleneck width, e bytes an element. Least bytes: each
input read once, each output written once, everything else in caches. "gradients" is an op's whole
backward pass, from what it keeps: all that it recomputes, every gradient.

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


SHAPES = {"1b": Shape(2048, 5461, 512), "7b": Shape(4096, 11008, 1024)}


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


if __name__ == "__main__":
    main()
