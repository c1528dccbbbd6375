"""The leading singular vectors of a gradient, with signs that no library chooses."""

import torch
from torch import Tensor

from cola_train.model.init import seed_of

OVERSAMPLING = 10  # vectors beyond r, and
POWER_STEPS = 2  # what randomized vectors lack without them (Halko et al., arXiv 0909.4061, 4.4)


def right_vectors(G: Tensor, r: int) -> Tensor:
    """(m, n) fp32 -> (r, n): the right singular vectors of the r largest singular values."""
    return with_signs(torch.linalg.svd(G, full_matrices=False).Vh[:r])


def randomized_right_vectors(G: Tensor, r: int, key: str) -> Tensor:
    """About the same from matmuls with r + 10 vectors, which are drawn on the CPU by `key`."""
    m, n = G.shape
    width = min(r + OVERSAMPLING, m, n)
    generator = torch.Generator().manual_seed(seed_of(key))
    Q = orthonormal(G.T @ torch.randn(m, width, generator=generator).to(G.device))
    for _ in range(POWER_STEPS):
        Q = orthonormal(G.T @ orthonormal(G @ Q))
    return with_signs(torch.linalg.svd(G @ Q, full_matrices=False).Vh[:r] @ Q.T)


def orthonormal(columns: Tensor) -> Tensor:
    """Of the same span."""
    return torch.linalg.qr(columns).Q


def with_signs(vectors: Tensor) -> Tensor:
    """(r, n): each row's largest entry positive. A singular vector's sign is arbitrary, and moments
    are carried over from one projection to the next: without this a run would depend on whose SVD
    it uses."""
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return torch.where(largest < 0, -vectors, vectors)
