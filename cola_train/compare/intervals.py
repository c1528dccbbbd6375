"""Student's t interval of a mean: what a few seeds say, and no more."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """Of the mean of some differences; low and high are infinite where one seed says nothing."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """mean +- t s / sqrt(n), s the sample standard deviation of n values, t Student's quantile
    with n - 1 degrees of freedom. values: at least one."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Interval(mean, -math.inf, math.inf)
    t = two_sided_quantile(confidence, len(values) - 1)
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def two_sided_quantile(confidence: float, degrees: int) -> float:
    """The t with P(|T| < t) = confidence, by bisection: 4.303 for 0.95 and 2 degrees of freedom."""
    low, high = 0.0, 1.0
    while within(high, degrees) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, degrees) < confidence else (low, middle)
    return (low + high) / 2


def within(t: float, degrees: int) -> float:
    """P(|T| < t) of Student's distribution, a finite sum for whole degrees of freedom
    (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine = math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for i in range(2 + odd, degrees + 1, 2):  # each term is of the powers below degrees - 1
        total += term
        term *= (i - 1) / i * cosine**2
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
