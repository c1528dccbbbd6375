"""An arm against the baseline, in words that say what the seeds can tell and what they cannot."""

import math
from collections.abc import Mapping
from typing import Any

from cola_train.compare.intervals import mean_interval

BETTER, WORSE, UNTOLD = "better", "worse", "not told apart"
TESTED = (BETTER, WORSE, UNTOLD)


def against(
    name: str, baseline: str, own: Mapping[int, float], base: Mapping[int, float]
) -> dict[str, Any]:
    """The difference to the baseline over the seeds that both have.

    own, base: validation loss by seed. Differences are of losses, paired by seed (the same batches
    in the same order), and are told as percent of perplexity: 100 (exp(difference) - 1), negative
    where the arm is better. verdict: "baseline", "no seed" (of both), "one seed", or one of
    `TESTED`, by the t interval at 95 %.
    """
    seeds = sorted(own.keys() & base.keys())
    none = {"percent": None, "low_percent": None, "high_percent": None, "seeds": len(seeds)}
    if name == baseline:
        return {"verdict": "baseline", **none, "words": "the baseline"}
    if not seeds:
        return {"verdict": "no seed", **none, "words": f"no seed that {baseline} has too"}
    found = mean_interval([own[seed] - base[seed] for seed in seeds])
    percent = 100 * math.expm1(found.mean)
    if len(seeds) == 1:
        words = f"one seed tells nothing: {lower(percent)} in it, which may be luck"
        return {"verdict": "one seed", **none, "percent": percent, "words": words}
    low, high = 100 * math.expm1(found.low), 100 * math.expm1(found.high)
    if high < 0:
        verdict, words = BETTER, f"better: perplexity {lower(percent)} ({_range(low, high)})"
    elif low > 0:
        verdict, words = WORSE, f"worse: perplexity {lower(percent)} ({_range(low, high)})"
    else:
        verdict = UNTOLD
        words = f"not told apart by {len(seeds)} seeds: {_range(low, high)}"
    return {
        "verdict": verdict,
        "percent": percent,
        "low_percent": low,
        "high_percent": high,
        "seeds": len(seeds),
        "words": words,
    }


def lower(percent: float) -> str:
    """3.1 % lower, or higher."""
    return f"{_digits(percent)} % {'higher' if percent > 0 else 'lower'}"


def _digits(percent: float) -> str:
    """Its size; of a small one the first digit, so that what is not 0 does not say so."""
    size = abs(percent)
    return f"{size:.1f}" if size >= 0.1 else f"{size:.1g}"


def _range(low: float, high: float) -> str:
    """An interval: in the order of size where both its ends lie on one side."""
    if high < 0:
        return f"{_digits(high)} to {_digits(low)} % lower"
    if low > 0:
        return f"{_digits(low)} to {_digits(high)} % higher"
    return f"between {lower(low)} and {lower(high)}"
