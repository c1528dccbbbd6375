"""Inputs and targets on which docs/theory.md says what sigma can and cannot do."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from benchmarks.bottleneck_error import Problem, normal

WIDTH = 16  # of inputs and targets
TOKENS = 512
HIDDEN = 8  # rank of the teachers


@dataclass(frozen=True)
class Case:
    """A kind of targets, and what makes it one."""

    make: Callable[[Generator], Problem]
    linear: bool = False  # targets are a linear map of the inputs
    odd: bool = False  # with every token comes its negative, inputs and targets


def rotated(sources: Tensor, decay: float, generator: Generator) -> Tensor:
    """Inputs of covariance i^-decay, from independent sources (d, n), in a random basis."""
    d = len(sources)
    Q = torch.linalg.qr(normal(generator, d, d)).Q
    scales = torch.arange(1, d + 1, dtype=sources.dtype) ** (-decay / 2)
    return Q @ (scales[:, None] * sources)


def skewed(generator: Generator, width: int = WIDTH, decay: float = 1.0) -> Tensor:
    """Exponential sources: far from Gaussian and from symmetric."""
    uniform = torch.rand(width, TOKENS, generator=generator, dtype=torch.float64)
    sources = -uniform.log() - 1
    return rotated(sources, decay, generator)


def auto_encoder(generator: Generator) -> Problem:
    X = skewed(generator)
    return Problem.of(X, X)


def dense_layer(generator: Generator) -> Problem:
    X = skewed(generator)
    return Problem.of(X, normal(generator, WIDTH, WIDTH) @ X)


def odd_teacher(generator: Generator) -> Problem:
    half = rotated(normal(generator, WIDTH, TOKENS // 2), 0.0, generator)
    X = torch.cat([half, -half], dim=1)
    A, B = normal(generator, HIDDEN, WIDTH) / 2, normal(generator, WIDTH, HIDDEN)
    return Problem.of(X, B @ torch.tanh(A @ X))


def silu_teacher(generator: Generator) -> Problem:
    X = rotated(normal(generator, WIDTH, TOKENS), 0.0, generator)
    A, B = normal(generator, HIDDEN, WIDTH) / 2, normal(generator, WIDTH, HIDDEN)
    return Problem.of(X, B @ F.silu(A @ X))


def gated_mlp(generator: Generator) -> Problem:
    X = rotated(normal(generator, WIDTH, TOKENS), 1.0, generator)
    gate, up = normal(generator, WIDTH, WIDTH), normal(generator, WIDTH, WIDTH)
    return Problem.of(X, F.silu(gate @ X) * (up @ X))


def bent_layer(generator: Generator) -> Problem:
    """A linear map and a little of its own square."""
    X = skewed(generator)
    Y = normal(generator, WIDTH, WIDTH) @ X
    return Problem.of(X, Y + 0.05 * Y.square())


def power_law(generator: Generator, width: int, decay: float) -> Problem:
    X = skewed(generator, width, decay)
    return Problem.of(X, X)


CASES = {
    "auto-encoder": Case(auto_encoder, linear=True),
    "dense layer": Case(dense_layer, linear=True),
    "odd teacher": Case(odd_teacher, odd=True),
    "SiLU teacher": Case(silu_teacher),
    "gated MLP": Case(gated_mlp),
    "bent layer": Case(bent_layer),
}
