"""The order of training samples: a function of seed, epoch and position, with no state."""

import numpy as np

ROUNDS = 8


def shuffled(positions: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Which of `n` samples comes at each position of an epoch: int64, same shape.

    A permutation of range(n) that is computed index by index, so a resumed run knows its place
    at once and no process holds the whole order. It is a Feistel network on the smallest even
    number of bits that holds n; a result past n goes through again until it falls below n.
    """
    half = np.uint64(max(1, (int(n - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = np.random.SeedSequence([seed, epoch]).generate_state(ROUNDS, np.uint64)

    def permute(values: np.ndarray) -> np.ndarray:
        left, right = values >> half, values & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        return (left << half) | right

    result = permute(np.asarray(positions).astype(np.uint64))
    while (outside := result >= n).any():
        result[outside] = permute(result[outside])
    return result.astype(np.int64)


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every bit of the result depends on every bit of the input."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
