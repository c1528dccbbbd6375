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


def down(n: int, d: int, R: int, e: int = 2) -> Cost:
    """z (n, R) from x (n, d) and weights (R, d); `R` is the sum of the projections' ranks."""
    return Cost(2 * n * d * R, e * (n * d + d * R + n * R))


def up(n: int, d: int, r: int, projections: int = 1, residual: bool = False, e: int = 2) -> Cost:
    """y (n, d) of each projection from its z (n, r), weights (d, r), and the residual (n, d)."""
    out = n * d * (2 if residual else 1)
    return Cost(2 * n * d * r * projections, e * projections * (n * r + d * r + out))


def down_gradients(n: int, d: int, R: int, e: int = 2) -> Cost:
    """dx (n, d) and dA (R, d) from dz (n, R), x and the weights."""
    return Cost(4 * n * d * R, e * (2 * n * d + 2 * d * R + n * R))


def up_gradients(n: int, d: int, r: int, projections: int = 1, e: int = 2) -> Cost:
    """dz (n, r) and dB (d, r) of each projection from dy (n, d), z and the weights. A residual's
    gradient is dy itself."""
    return Cost(4 * n * d * r * projections, e * projections * (n * d + 2 * n * r + 2 * d * r))


def up_backward(n: int, d: int, r: int, projections: int = 1, e: int = 2) -> Cost:
    """dz (n, r) of each projection from dy (n, d), weights (d, r) and z (n, r)."""
    return Cost(2 * n * d * r * projections, e * projections * (n * d + d * r + 2 * n * r))


def gated_down(n: int, d_ff: int, r: int, r_d: int, e: int = 2) -> Cost:
    """z_d (n, r_d) from z (n, 2 r), two weights (F, r) and one (r_d, F)."""
    flops = 4 * n * d_ff * r + 2 * n * d_ff * r_d
    return Cost(flops, e * (2 * n * r + 2 * d_ff * r + d_ff * r_d + n * r_d))


def gated_down_backward(n: int, d_ff: int, r: int, e: int = 2) -> Cost:
    """dg, du and p (n, F) from dp (n, F), h (n, 2 r) and two weights (F, r)."""
    return Cost(4 * n * d_ff * r, e * (4 * n * d_ff + 2 * n * r + 2 * d_ff * r))


def gated_down_gradients(n: int, d_ff: int, r: int, r_d: int, e: int = 2) -> Cost:
    """dz (n, 2 r) and the three weights' gradients from dz_d (n, r_d), z and the weights; g and u
    anew."""
    flops = 12 * n * d_ff * r + 4 * n * d_ff * r_d
    return Cost(flops, e * (4 * n * r + n * r_d + 4 * d_ff * r + 2 * d_ff * r_d))


def table(shape: Shape) -> dict[str, Cost]:
    """Every use of an op in one block of the model, by name."""
    n, d, d_ff, r = shape.n, shape.d, shape.d_ff, shape.r
    return {
        "down, q/k/v": down(n, d, 3 * r),
        "down, q/k/v, gradients": down_gradients(n, d, 3 * r),
        "down, gate/up": down(n, d, 2 * r),
        "down, gate/up, gradients": down_gradients(n, d, 2 * r),
        "down, o": down(n, d, r),
        "down, o, gradients": down_gradients(n, d, r),
        "down, MLP down": down(n, d_ff, r),
        "down, MLP down, gradients": down_gradients(n, d_ff, r),
        "up, q/k/v": up(n, d, r, projections=3),
        "up, q/k/v, gradients": up_gradients(n, d, r, projections=3),
        "up_add, o or MLP down": up(n, d, r, residual=True),
        "up_add, o or MLP down, gradients": up_gradients(n, d, r),
        "up_backward, q/k/v": up_backward(n, d, r, projections=3),
        "up_backward, o or MLP down": up_backward(n, d, r),
        "up_backward, gate/up": up_backward(n, d_ff, r, projections=2),
        "gated_down": gated_down(n, d_ff, r, r),
        "gated_down, gradients": gated_down_gradients(n, d_ff, r, r),
        "gated_down_backward": gated_down_backward(n, d_ff, r),
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
