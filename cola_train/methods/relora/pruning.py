"""Pruning of optimizer state at a merge: which elements become zero."""

import torch
from torch import Tensor

from cola_train.model.init import Rows, uniform


def quantile(values: Tensor, ratio: float) -> Tensor:
    """As `torch.quantile` defines it, a scalar: the element at ratio (n - 1) of the sorted ones,
    interpolated linearly. Of any number of elements, where torch's refuses more than 2^24."""
    flat = values.flatten()
    at = ratio * (len(flat) - 1)
    below = int(at)
    largest = flat.topk(len(flat) - below).values  # in descending order
    return torch.lerp(largest[-1], largest[max(len(largest) - 2, 0)], at - below)


def by_magnitude(state: Tensor, ratio: float) -> Tensor:
    """Zero but for the elements whose magnitude is above the `ratio` quantile of all."""
    size = state.abs()
    return torch.where(size > quantile(size, ratio), state, 0)


def at_random(state: Tensor, ratio: float, key: str) -> Tensor:
    """Zero but for elements drawn by `key`, each to stay with a probability of 1 - ratio: those
    of all tensors of the shape alike."""
    drawn = torch.empty_like(state)
    uniform(1.0)(Rows(drawn, 0, drawn.shape), key)
    return torch.where(drawn.abs() > ratio, state, 0)
