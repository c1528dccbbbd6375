"""Every kernel against fp64 in three dtypes, and against itself, many times.

The error in every output and gradient is at most twice that of plain torch in the same dtype, plus
one rounding. `torch.empty` is full of NaN meanwhile, so that what a kernel does not write shows.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from cola_kernels import unavailable
from torch import Tensor

from benchmarks.gpu.parts import Figures, Given, Record
from cola_train import distributed
from cola_train.model.loss import IGNORE_INDEX

if TYPE_CHECKING:  # it imports Triton, which may not be there
    from benchmarks.kernels_cases import Case

ROOT = Path(__file__).parents[2]
CASES = ("tests/kernels/interpreter_cases.py", "tests/kernels/cross_entropy_cases.py")


def measure(given: Given, record: Record) -> None:
    sizes, device = given.sizes, distributed.device()
    if (reason := unavailable(device)) is not None:
        record("note", f"Triton's kernels cannot run here: {reason}")
        return
    from benchmarks.kernels_cases import cases

    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # or torch lets no matmul be deterministic
    torch.use_deterministic_algorithms(True)  # fills what is empty with NaN
    for dtype in sizes.dtypes:
        for name, shape in sizes.right.items():
            for case in cases(shape, getattr(torch, dtype), device):
                record(f"{case.name}, {name}, {dtype}", guarded(compare, case))
    torch.use_deterministic_algorithms(False)
    for dtype in sizes.dtypes:
        of_loss = logits_and_targets(sizes.vocabulary, getattr(torch, dtype), device)
        record(f"cross_entropy, {dtype}", guarded(compare_loss, *of_loss))
    *_, (name, shape) = sizes.right.items()
    for case in cases(shape, getattr(torch, sizes.dtypes[0]), device):
        key = f"{case.name}, {name}, {sizes.dtypes[0]}, repeated"
        record(key, guarded(repeat, case, sizes.repeats))
    record("tests", {"good": True, "said": "left out in a dry run: the suite has them"}
           if sizes.dry_run else run_tests())  # fmt: skip


def guarded(function: Any, *arguments: Any) -> Figures:
    """Its figures, or its error: the other cases are still to come."""
    try:
        figures: Figures = function(*arguments)
        return figures
    except Exception as error:
        return {"good": False, "error": f"{type(error).__name__}: {error}"}


def compare(case: "Case") -> Figures:
    """The largest error over what is allowed; at most 1 is right."""
    truth = results(replace(case, inputs=[doubled(x) for x in case.inputs]), "reference")
    plain, ours = results(case, "reference"), results(case, "fused")
    largest = max(of_allowed(*three) for three in zip(truth, plain, ours, strict=True))
    return {"good": largest <= 1, "of_allowed": largest}


def results(case: "Case", library: str) -> Sequence[Tensor]:
    from benchmarks.kernels_cases import LIBRARIES

    found: Any = case.subject(case.op(LIBRARIES[library]))()()
    return list(found)


def doubled(x: Tensor) -> Tensor:
    return x.detach().double().requires_grad_(x.requires_grad)


def of_allowed(truth: Tensor, plain: Tensor, ours: Tensor) -> float:
    """Norm of the error over twice plain torch's and a rounding; inf for one not finite."""
    allowed = 2 * (plain - truth).norm() + torch.finfo(ours.dtype).eps * truth.norm()
    ratio = float((ours - truth).norm() / allowed.clamp(min=1e-300))
    return ratio if ratio < float("inf") else float("inf")


def logits_and_targets(
    vocabulary: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Of 33 rows, every third of which has nothing to predict."""
    generator = torch.Generator(device).manual_seed(0)
    logits = 5 * torch.randn(33, vocabulary, generator=generator, device=device)
    targets = torch.randint(vocabulary, (33,), generator=generator, device=device)
    targets[::3] = IGNORE_INDEX
    return logits.to(dtype), targets


def compare_loss(logits: Tensor, targets: Tensor) -> Figures:
    """The loss and its gradient, which the kernel writes over the logits; torch's is in fp32."""
    from cola_kernels import reference
    from cola_kernels.ops.cross_entropy import cross_entropy_

    exact, plain = logits.double(), logits.to(torch.float32, copy=True)
    losses = [reference.cross_entropy_(x, targets, True) for x in (exact, plain)]
    losses.append(cross_entropy_(logits, targets, True))
    largest = max(of_allowed(*losses), of_allowed(exact, plain.to(logits.dtype), logits))
    return {"good": largest <= 1, "of_allowed": largest}


def repeat(case: "Case", times: int) -> Figures:
    """Whether all results are the same bits."""
    from benchmarks.kernels_cases import LIBRARIES

    subject: Any = case.subject(case.op(LIBRARIES["fused"]))
    first = subject()()
    same = torch.ones((), dtype=torch.bool, device=first[0].device)
    for _ in range(times - 1):
        for before, again in zip(first, subject()(), strict=True):
            same &= (bits(before) == bits(again)).all()
    return {"good": bool(same), "times": times}


def bits(x: Tensor) -> Tensor:
    """As integers: no NaN is equal to itself."""
    return x.view({2: torch.int16, 4: torch.int32}[x.element_size()])


def run_tests() -> Figures:
    """The kernels' own tests, which need pytest: layouts, odd uses, registration with torch."""
    if importlib.util.find_spec("pytest") is None:
        return {"good": True, "said": "left out: pytest is not installed"}
    command = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "kernels")}
    ran = subprocess.run(
        [*command, *CASES], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    lines = ran.stdout.strip().splitlines() or [""]
    return {"good": ran.returncode == 0, "said": lines[-1], "output": lines[-40:]}


def lines(figures: Figures) -> list[str]:
    if "note" in figures:
        return [figures["note"]]
    compared = {k: f for k, f in figures.items() if not k.endswith("repeated") and k != "tests"}
    repeated = {k: f for k, f in figures.items() if k.endswith("repeated")}
    said = [counted(compared, "agree with fp64 as well as plain torch does")]
    if ratios := [f["of_allowed"] for f in compared.values() if "of_allowed" in f]:
        said.append(f"The largest error is {max(ratios):.2f} of what is allowed.")
    if repeated:
        times = max(f.get("times", 0) for f in repeated.values())
        said.append(counted(repeated, f"give the same bits in {times:,} runs"))
    if "tests" in figures:
        said.append(f"The kernels' tests: {figures['tests']['said']}")
    wrong = [f"- **wrong**: {k}: {f}" for k, f in figures.items() if not f["good"]]
    return [" ".join(said), *([""] if wrong else []), *wrong]


def counted(of: Figures, what: str) -> str:
    return f"{sum(f['good'] for f in of.values())} of {len(of)} cases {what}."
