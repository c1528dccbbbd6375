"""The least squared error of a bottleneck B sigma(A x): the quantities of docs/theory.md.

X is (d, n) and Y is (m, n): n tokens in columns, their inputs and their targets. All is fp64.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import copysign, log

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from cola_train.spectra import gram

PAIRS = 64  # random pairs of directions that `Problem.strictness` tries
SMALL = 1e-5  # at this scale a smooth sigma is linear, to about the scale's square

Start = tuple[Tensor, float]  # A (rank, d), and a scale on it


@dataclass(frozen=True)
class Activation:
    """sigma, and the first term of its series at 0 that is not linear, if it has one:
    sigma(z) = sigma'(0) (z + coefficient * z^order + ...)."""

    function: Callable[[Tensor], Tensor]
    order: int = 0
    coefficient: float = 0.0
    smooth: bool = True  # sigma(0) = 0, and sigma'(0) exists and is not 0
    odd_part_linear: bool = False  # sigma(z) - sigma(-z) is a multiple of z


ACTIVATIONS = {
    "identity": Activation(lambda z: z, odd_part_linear=True),
    "silu": Activation(F.silu, 2, 0.5, odd_part_linear=True),
    "gelu": Activation(F.gelu, 2, (2 / torch.pi) ** 0.5, odd_part_linear=True),
    "tanh": Activation(torch.tanh, 3, -1 / 3),
    "relu": Activation(F.relu, smooth=False, odd_part_linear=True),
}


@dataclass(frozen=True)
class Problem:
    """Inputs (d, n) and targets (m, n) that a bottleneck is fitted to. The targets' norm is 1, so
    every error is a share of it."""

    inputs: Tensor
    targets: Tensor

    @staticmethod
    def of(inputs: Tensor, targets: Tensor) -> "Problem":
        return Problem(inputs, targets / targets.norm())

    @cached_property
    def dense(self) -> Tensor:
        """The W (m, d) that is nearest the targets."""
        solution: Tensor = torch.linalg.lstsq(self.inputs.T, self.targets.T).solution
        return solution.T

    @cached_property
    def explained(self) -> Tensor:
        """W X (m, n): all of the targets that is linear in the inputs."""
        return self.dense @ self.inputs

    @property
    def linear_share(self) -> float:
        """Of the targets' energy, from 0 to 1; 1 for linear targets, to rounding."""
        return float(self.explained.square().sum())

    @cached_property
    def directions(self) -> Tensor:
        """Left singular vectors of W X in columns, the largest first."""
        vectors: Tensor = torch.linalg.svd(self.explained, full_matrices=False).U
        return vectors

    def floor(self, rank: int) -> float:
        """No prediction of this rank has a smaller error (Eckart and Young)."""
        return float(torch.linalg.svdvals(self.targets)[rank:].square().sum())

    def linear_error(self, rank: int) -> float:
        """E_id: the least error of B A X, by reduced-rank regression."""
        A, B = self.linear(rank)
        return float((self.targets - B @ (A @ self.inputs)).square().sum())

    def linear(self, rank: int) -> tuple[Tensor, Tensor]:
        """A (rank, d) and B (m, rank) with that error; each row of A X has an rms of 1."""
        U = self.directions[:, :rank]
        A = U.T @ self.dense
        rms = (A @ self.inputs).square().mean(1).sqrt()
        return A / rms[:, None], U * rms

    def error(self, A: Tensor, activation: Activation) -> Tensor:
        """With the best B for this A (rank, d). Its gradient is right: B's own is zero there."""
        features = activation.function(A @ self.inputs)
        with torch.no_grad():
            B = torch.linalg.lstsq(features.T, self.targets.T).solution.T
        return (self.targets - B @ features).square().sum()

    def initial_slope(self, rank: int, activation: Activation) -> float:
        """Of the error with scale * A of `linear`, over scale^(order - 1), at scale 0."""
        A, B = self.linear(rank)
        products = (B.T @ (self.targets - self.explained)) * (A @ self.inputs) ** activation.order
        return -2 * activation.coefficient * float(products.sum())

    def strictness(self, rank: int, activation: Activation) -> float:
        """Positive where docs/theory.md proves an error below E_id; see `witness`."""
        return self.witness(rank, activation)[0] if activation.order else 0.0

    def witness(self, rank: int, activation: Activation) -> tuple[float, Tensor, Tensor]:
        """The largest correlation, found on the axes and on PAIRS random pairs (h, g) with h g > 0,
        of what no linear map explains (along h) with a power of the linear code (along g)."""
        A, B = self.linear(rank)
        generator = Generator().manual_seed(0)
        axes = torch.eye(rank, dtype=A.dtype)
        g = torch.cat([axes, normal(generator, PAIRS, rank)])
        h = torch.cat([axes, normal(generator, PAIRS, rank)])
        h = h * (h * g).sum(1, keepdim=True).sign()
        left = h @ B.T @ (self.targets - self.explained)
        right = (g @ (A @ self.inputs)) ** activation.order
        found = (left * right).sum(1) / ((h @ B.T).norm(dim=1) * right.norm(dim=1))
        # The term of an even power has either sign: the scale's.
        found = found * copysign(1, activation.coefficient) if activation.order % 2 else found.abs()
        best = int(found.argmax())
        return float(found[best]), h[best], g[best]


def normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def effective_rank(matrix: Tensor, alpha: float) -> int:
    """Of a matrix's singular values."""
    return gram.effective_rank(torch.linalg.svdvals(matrix).tolist(), alpha)


def linear_starts(problem: Problem, rank: int) -> Iterator[Start]:
    """The best linear code: small, and larger with either sign; and half of it with its negative,
    from which sigma(z) - sigma(-z) makes a linear bottleneck of half the rank."""
    A, _ = problem.linear(rank)
    yield A, SMALL
    for scale in (0.3, 2.0):
        yield A, scale
        yield -A, scale
    half, _ = problem.linear((rank + 1) // 2)
    yield torch.cat([half, -half])[:rank], 1.0


def proof_starts(problem: Problem, rank: int, activation: Activation) -> Iterator[Start]:
    """From the proof that the condition suffices: one number of the code is along g and leaves
    sigma's linear part, the others are orthogonal to h and so small that they do not."""
    if not activation.order:
        return
    A, _ = problem.linear(rank)
    _, h, g = problem.witness(rank, activation)
    others = torch.linalg.svd(h[None]).Vh[1:]  # (rank - 1, rank)
    first = g[None] / (g @ (A @ problem.inputs)).square().mean().sqrt()
    for scale in (0.1, -0.1):
        yield torch.cat([scale * first, SMALL * others]) @ A, 1.0


def random_starts(problem: Problem, rank: int, tries: int, seed: int = 0) -> Iterator[Start]:
    """`tries` rotations of the best linear code, and as many random codes."""
    generator = Generator().manual_seed(seed)
    A, _ = problem.linear(rank)
    for _ in range(tries):
        yield torch.linalg.qr(normal(generator, rank, rank)).Q @ A, 1.0
        drawn = normal(generator, *A.shape)
        yield drawn / (drawn @ problem.inputs).square().mean(1, keepdim=True).sqrt(), 1.0


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrices as small as these are slower on more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def best_error(
    problem: Problem, starts: Iterable[Start], activation: Activation, iterations: int
) -> float:
    """The least error that L-BFGS finds from any of the starts: an upper bound of E_sigma, which
    is an infimum and need not be reached."""
    return min(_descend(problem, *start, activation, iterations) for start in starts)


def _descend(
    problem: Problem, A: Tensor, scale: float, activation: Activation, iterations: int
) -> float:
    """The least error on the way; the scale of each row of A is a parameter of its own."""
    A = A.clone().requires_grad_()
    scales = torch.full((len(A), 1), log(scale), dtype=A.dtype, requires_grad=True)
    seen: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        error = problem.error(A * scales.clamp(-10, 5).exp(), activation)
        torch.autograd.backward(error)
        seen.append(error.item())
        return error

    optimizer = torch.optim.LBFGS(
        [A, scales], max_iter=iterations, tolerance_grad=1e-9, tolerance_change=1e-10,
        history_size=20, line_search_fn="strong_wolfe",
    )  # fmt: skip
    optimizer.step(closure)
    return min(seen)
