"""docs/theory.md: its claims hold on every case, and can fail; its table is the code's."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from helpers import REPOSITORY
from torch import Generator

from benchmarks import theory
from benchmarks.__main__ import main
from benchmarks.bottleneck_error import (
    ACTIVATIONS,
    Problem,
    best_error,
    effective_rank,
    linear_starts,
    normal,
    one_thread,
)
from benchmarks.theory_targets import CASES


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with one_thread():
        yield


def problem_of(case: str) -> Problem:
    return CASES[case].make(Generator().manual_seed(theory.SEED))


def test_every_claim_holds_and_a_wrong_figure_breaks_it(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    arguments = ["theory", "--quick", "--plots", str(tmp_path), "--json", str(path)]
    assert main(arguments) == 0
    figures = json.loads(path.read_text())
    assert all(claim["holds"] and claim["values"] for claim in figures["claims"])
    drawn = {image.name for image in tmp_path.glob("*.png")}
    assert drawn == {"theory_scale.png", "theory_ranks.png", "theory_bound.png"}

    def broken(case: str, sigma: str, factor: float) -> set[int]:
        errors = deepcopy(figures["errors"])
        errors[case][0]["errors"][sigma] *= factor
        claims = theory.claims_of(errors, figures["slopes"], figures["bounds"])
        return {number for number, claim in enumerate(claims) if not claim.holds}

    floor, never_worse, equal, odd, strict = range(5)
    assert broken("dense layer", "silu", 0.999) == {floor, equal}
    assert broken("odd teacher", "gelu", 0.999) == {odd}
    assert broken("gated MLP", "silu", 1.5) == {never_worse, strict}


def test_the_linear_error_is_that_of_the_best_matrix() -> None:
    problem = problem_of("bent layer")
    X, Y = problem.inputs, problem.targets
    dense = torch.linalg.lstsq(X.T, Y.T).solution.T  # whitened, the truncated SVD is the best
    L = torch.linalg.cholesky(X @ X.T)
    U, s, Vh = torch.linalg.svd(dense @ L)
    W = torch.linalg.solve(L.T, (U[:, :3] * s[:3] @ Vh[:3]).T).T
    assert problem.linear_error(3) == pytest.approx(float((Y - W @ X).square().sum()), rel=1e-10)
    assert problem.floor(3) < problem.linear_error(3)


def test_a_teacher_is_found_and_effective_rank_is_the_definition() -> None:
    generator = Generator().manual_seed(3)
    X = normal(generator, 6, 128)
    silu = ACTIVATIONS["silu"]
    targets = normal(generator, 5, 2) @ silu.function(normal(generator, 2, 6) @ X)
    problem = Problem.of(X, targets)
    assert best_error(problem, linear_starts(problem, 2), silu, 80) < 1e-8
    assert problem.linear_error(2) > 0.1
    spectrum = torch.diag(torch.tensor([3.0, 2.0, 1.0, 1.0], dtype=torch.float64))
    found = [effective_rank(spectrum, alpha) for alpha in (0.5, 0.6, 0.86, 0.87, 0.94, 1.0)]
    assert found == [1, 1, 2, 3, 4, 4]


def test_the_docs_table_is_the_codes() -> None:
    text = (REPOSITORY / "docs" / "theory.md").read_text()
    table = text.split("targets, rank")[1].split("```")[0].splitlines()[2:]
    assert len(table) == len(CASES) * len(theory.FULL.ranks)
    for line in table:
        case, rest = line.split(",")
        rank, floor, linear, *_, silu, tanh = rest.split()
        problem = problem_of(case)
        expected = [problem.floor(int(rank)), problem.linear_error(int(rank))]
        assert [float(floor), float(linear)] == pytest.approx(expected, abs=6e-5)
        for shown, sigma in ((silu, "silu"), (tanh, "tanh")):
            found = problem.strictness(int(rank), ACTIVATIONS[sigma])
            assert float(shown) == pytest.approx(found, abs=6e-4)


def test_what_cannot_be_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["theory", "--quick", "model=1b"]) == 2
    (tmp_path / "file").touch()
    assert main(["theory", "--quick", "--plots", str(tmp_path / "file")]) == 2
    found = capsys.readouterr().err
    assert "takes no config options" in found and "--plots: cannot make" in found
