"""The order of samples: a permutation for each epoch and seed, computed index by index."""

import numpy as np
import pytest

from cola_train.data.order import shuffled


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 97, 1000, 4096, 4097])
def test_is_a_permutation(n: int) -> None:
    order = shuffled(np.arange(n), n, seed=3, epoch=1)
    assert np.array_equal(np.sort(order), np.arange(n))


def test_any_part_equals_that_part_of_the_whole() -> None:
    n = 1000
    whole = shuffled(np.arange(n), n, seed=0, epoch=0)
    some = np.array([999, 0, 512, 7])
    assert np.array_equal(shuffled(some, n, seed=0, epoch=0), whole[some])


def test_epochs_and_seeds_give_orders_that_look_independent() -> None:
    n = 20_000
    orders = [
        shuffled(np.arange(n), n, seed, epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]
    ]
    correlations = np.corrcoef([np.arange(n), *orders])[np.triu_indices(5, k=1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(n)  # five standard deviations
    neighbours = np.abs(np.diff(orders[0]))  # of two random samples: n / 3 apart on average
    assert abs(neighbours.mean() / (n / 3) - 1) < 0.05


def test_a_corpus_of_billions_costs_no_more() -> None:
    n = 5_000_000_011
    order = shuffled(np.arange(n - 10_000, n), n, seed=0, epoch=0)
    assert order.min() >= 0 and order.max() < n and np.unique(order).size == 10_000


def test_does_not_change_between_versions() -> None:
    """A resumed run relies on it: these values were written down once."""
    assert shuffled(np.arange(8), 8, seed=42, epoch=2).tolist() == [5, 6, 4, 3, 0, 7, 2, 1]
