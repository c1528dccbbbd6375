"""docs/theory.md in figures: what a bottleneck B sigma(A x) can and cannot do, on made data.

Every claim there is tried on every case; the command fails if one does not hold.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from benchmarks import theory_figures
from benchmarks.bottleneck_error import (
    ACTIVATIONS,
    Problem,
    best_error,
    effective_rank,
    linear_starts,
    one_thread,
    proof_starts,
    random_starts,
)
from benchmarks.report import Benchmark, Report, table
from benchmarks.theory_targets import CASES, power_law
from cola_train.errors import EXIT_DONE, UserError

ROUNDING = 1e-9
EXACT = 1e-6
SEED = 1
BOUNDED = ("SiLU teacher", "gated MLP", "bent layer")
DECAYS = (0.5, 1.0, 2.0)  # of power laws: the i-th squared singular value is about i^-decay
CURVES = {  # scales of A
    "auto-encoder": torch.logspace(-3, 1, 33, dtype=torch.float64),
    "bent layer": torch.linspace(-0.15, 0.15, 40, dtype=torch.float64),  # 0 is not among them
}
SCALED = {"silu": "bent layer", "gelu": "bent layer", "tanh": "odd teacher"}


@dataclass(frozen=True)
class Effort:
    """How much is tried."""

    ranks: Sequence[int]
    tries: int  # random starts of a kind
    iterations: int  # of L-BFGS from each start
    alphas: Sequence[float]
    width: int  # of the power laws


FULL = Effort((1, 2, 4, 8), 2, 60, (0.8, 0.9, 0.95, 0.99), 32)
QUICK = Effort((1, 2), 1, 8, (0.8, 0.95), 16)


@dataclass
class Claim:
    """Holds if no value is above the limit."""

    text: str
    limit: float
    values: list[float] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return bool(self.values) and max(self.values) <= self.limit


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="few ranks and starts: seconds")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw the figures there")


def run(options: argparse.Namespace) -> Report:
    if options.overrides:
        raise UserError(f"theory: takes no config options; remove {options.overrides[0]}")
    if options.plots:
        try:
            options.plots.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--plots: cannot make {options.plots}: {error.strerror}") from error
    effort = QUICK if options.quick else FULL
    with one_thread():
        problems = {name: case.make(Generator().manual_seed(SEED)) for name, case in CASES.items()}
        errors = {name: errors_of(problem, effort) for name, problem in problems.items()}
        slopes = slopes_of(problems, max(effort.ranks))
        bounds = bounds_of(problems, effort)
        curves = {name: scale_curve(problems[name], max(effort.ranks), scales)
                  for name, scales in CURVES.items()}  # fmt: skip
    claims = claims_of(errors, slopes, bounds)
    figures = {"errors": errors, "slopes": slopes, "bounds": bounds, "scale": curves,
               "claims": [asdict(claim) | {"holds": claim.holds} for claim in claims]}  # fmt: skip
    if options.plots:
        theory_figures.draw_scale(curves, slopes, options.plots / "theory_scale.png")
        theory_figures.draw_ranks(errors, options.plots / "theory_ranks.png")
        theory_figures.draw_bound(bounds, options.plots / "theory_bound.png")
    text = text_of(errors, slopes, bounds, claims)
    return Report(figures, text, EXIT_DONE if all(claim.holds for claim in claims) else 1)


def errors_of(problem: Problem, effort: Effort) -> list[dict[str, Any]]:
    """For each rank: the floor, E_id, the least error found with each sigma, and the condition."""
    rows = []
    for rank in effort.ranks:
        found = {}
        for name, activation in ACTIVATIONS.items():
            starts = list(random_starts(problem, rank, effort.tries))
            if name != "identity":  # whose optimum random starts have to find by themselves
                starts += [*linear_starts(problem, rank), *proof_starts(problem, rank, activation)]
            found[name] = best_error(problem, starts, activation, effort.iterations)
        rows.append(
            {
                "rank": rank,
                "floor": problem.floor(rank),
                "linear": problem.linear_error(rank),
                "errors": found,
                "strictness": {n: problem.strictness(rank, a) for n, a in ACTIVATIONS.items()},
            }
        )
    return rows


def slopes_of(problems: dict[str, Problem], rank: int) -> dict[str, dict[str, Any]]:
    """How fast the error leaves E_id as the scale leaves 0: by the formula, and by differences."""
    slopes = {}
    for name, case in SCALED.items():
        problem, activation, step = problems[case], ACTIVATIONS[name], 1e-3
        A, _ = problem.linear(rank)
        above = float(problem.error(step * A, activation))
        if activation.order == 2:
            measured = (above - float(problem.error(-step * A, activation))) / (2 * step)
        else:
            measured = (above - problem.linear_error(rank)) / step**2
        slopes[name] = {"case": case, "rank": rank, "measured": measured,
                        "formula": problem.initial_slope(rank, activation)}  # fmt: skip
    return slopes


def scale_curve(problem: Problem, rank: int, scales: Tensor) -> dict[str, Any]:
    """E_id, and the errors over the scale of the best linear A, with the best B at each."""
    A, _ = problem.linear(rank)
    return {
        "rank": rank,
        "linear": problem.linear_error(rank),
        "scales": scales.tolist(),
        "errors": {
            name: [float(problem.error(scale * A, activation)) for scale in scales]
            for name, activation in ACTIVATIONS.items()
            if name != "identity"
        },
    }


def bounds_of(problems: dict[str, Problem], effort: Effort) -> list[dict[str, Any]]:
    """SiLU's error at the effective rank of the targets' linear part, beside its bound; and at one
    rank less than the targets' own."""
    cases = {f"power law {decay:g}": power_law(Generator().manual_seed(SEED), effort.width, decay)
             for decay in DECAYS} | {name: problems[name] for name in BOUNDED}  # fmt: skip
    rows = []
    for name, problem in cases.items():
        width = len(problem.targets)
        for alpha in effort.alphas:
            own = effective_rank(problem.targets, alpha)
            rank = effective_rank(problem.explained, alpha)
            rows.append(
                {
                    "case": name,
                    "alpha": alpha,
                    "rank": rank,
                    "error": silu_error(problem, rank, effort),
                    "bound": 1 - alpha * problem.linear_share,
                    "cost": rank * (width + len(problem.inputs)) / problem.dense.numel(),
                    "own_rank": own,
                    "below": silu_error(problem, own - 1, effort),
                }
            )
    return rows


def silu_error(problem: Problem, rank: int, effort: Effort) -> float:
    if not rank:
        return 1.0
    starts = list(linear_starts(problem, rank))
    if problem.linear_share > 1 - ROUNDING:
        starts = starts[:1]  # the smallest scale is the best
    return best_error(problem, starts, ACTIVATIONS["silu"], effort.iterations)


def claims_of(
    errors: dict[str, list[dict[str, Any]]],
    slopes: dict[str, dict[str, Any]],
    bounds: list[dict[str, Any]],
) -> list[Claim]:
    floor = Claim("no sigma is below the floor", ROUNDING)
    never_worse = Claim("E_sigma <= E_id (smooth sigma)", EXACT)
    equal = Claim("E_sigma = E_id (linear targets, smooth sigma)", EXACT)
    odd = Claim("E_sigma >= E_id (odd targets; sigma's odd part linear)", ROUNDING)
    strict = Claim("E_sigma < E_id (the condition holds)", -EXACT)
    pairs = Claim("E_sigma(2r) <= E_id(r) (sigma's odd part linear)", ROUNDING)
    slope = Claim("the slope at scale 0 is the formula's", 0.01)
    upper = Claim("E_silu(k) <= the bound by effective rank", EXACT)
    lower = Claim("E_silu(k - 1) > 1 - alpha", 0.0)
    for name, rows in errors.items():
        linear_errors = {row["rank"]: row["linear"] for row in rows}
        for row in rows:
            for sigma, error in row["errors"].items():
                activation, ratio = ACTIVATIONS[sigma], error / row["linear"]
                floor.values.append(row["floor"] - error)
                if activation.smooth:
                    never_worse.values.append(ratio - 1)
                    if CASES[name].linear:
                        equal.values.append(abs(ratio - 1))
                if activation.odd_part_linear:
                    if CASES[name].odd:
                        odd.values.append(1 - ratio)
                    if sigma != "identity" and row["rank"] / 2 in linear_errors:
                        pairs.values.append(error - linear_errors[row["rank"] // 2])
                if row["strictness"][sigma] > ROUNDING:
                    strict.values.append(ratio - 1)
    slope.values += [abs(of["measured"] / of["formula"] - 1) for of in slopes.values()]
    upper.values += [row["error"] - row["bound"] for row in bounds]
    lower.values += [1 - row["alpha"] - row["below"] for row in bounds]
    return [floor, never_worse, equal, odd, strict, pairs, slope, upper, lower]


def text_of(
    errors: dict[str, list[dict[str, Any]]],
    slopes: dict[str, dict[str, Any]],
    bounds: list[dict[str, Any]],
    claims: list[Claim],
) -> str:
    first: list[Sequence[str]] = [
        [
            f"{name}, {row['rank']}",
            f"{row['floor']:.4f}",
            f"{row['linear']:.4f}",
            *(f"{row['errors'][sigma] / row['linear']:.4f}" for sigma in ACTIVATIONS),
            *(f"{row['strictness'][sigma]:z.3f}" for sigma in ("silu", "tanh")),
        ]
        for name, rows in errors.items()
        for row in rows
    ]
    second: list[Sequence[str]] = [
        [f"{sigma}, {of['case']}, {of['rank']}", f"{of['formula']:.5f}", f"{of['measured']:.5f}"]
        for sigma, of in slopes.items()
    ]
    third: list[Sequence[str]] = [
        [
            f"{row['case']}, {row['alpha']:g}",
            str(row["rank"]),
            f"{row['error']:.4f}",
            f"{row['bound']:.4f}",
            f"{row['cost']:.2f}",
            str(row["own_rank"]),
            f"{row['below']:.4f}",
            f"{1 - row['alpha']:.2f}",
        ]
        for row in bounds
    ]
    fourth: list[Sequence[str]] = [
        [claim.text, str(len(claim.values)), f"{max(claim.values):.1e}", f"{claim.limit:.0e}",
         "yes" if claim.holds else "NO"]
        for claim in claims
    ]  # fmt: skip
    return "\n".join(
        [
            "errors as shares of the targets' energy; E_sigma as a multiple of E_id",
            table(["targets, rank", "floor", "E_id", *ACTIVATIONS, "silu's condition", "tanh's"],
                  first),
            "",
            "slope of the error at scale 0, over the scale (silu, gelu) or its square (tanh)",
            table(["", "formula", "measured"], second),
            "",
            "SiLU at effective rank k of the targets' linear part, and below k of the targets",
            table(["targets, alpha", "k", "E_silu(k)", "bound", "FLOPs of dense", "k of targets",
                   "E_silu(k - 1)", "1 - alpha"], third),
            "",
            table(["claim", "tried", "worst", "allowed", "holds"], fourth),
        ]
    )  # fmt: skip


BENCHMARK = Benchmark(
    "when a bottleneck's sigma helps: errors against truncated SVD (plots)", add_options, run
)
