"""A made-up comparison: what a ledger may hold, without a run."""

import math
import random
from typing import Any

GRID = [1e-3, 2e-3, 4e-3, 8e-3]
STEPS, BATCH = 400, 4096
NAMES = ["plain", "thin", "thinner", "long-name-of-a-method-with-many-options-1", "muon", "wild"]


def plan(names: list[str] | None = None, **changed: Any) -> dict[str, Any]:
    """Of arms by name; the first is the baseline."""
    names = NAMES if names is None else names
    return {
        "arms": {name: [f"method={name}"] for name in names},
        "common": ["model=tiny", "train.sequence_length=256"],
        "budget": "tokens",
        "tokens": STEPS * BATCH,
        "baseline": names[0],
        "seeds": 3,
        "lr": GRID,
        "lr_share": 0.2,
        "drop": None,
        **changed,
    }


def line(plan: dict[str, Any], arm: str, phase: str, seed: int, lr: float | None) -> dict[str, Any]:
    """Of a run that ended well, with figures that follow from its name."""
    number = list(plan["arms"]).index(arm)
    drawn = random.Random(f"{arm} {phase} {seed} {lr}")
    steps = STEPS if phase == "final" else STEPS // 5
    best = (2e-3, 4e-3, 8e-3, 1e-3)[number % 4]
    start, end = 7.6, 3.9 + 0.02 * number - 0.03 * (number == 1) + drawn.gauss(0, 0.004)
    end += 0.35 * math.log2((lr or best) / best) ** 2 + (0.8 if phase == "lr" else 0)

    def loss(step: int) -> float:
        return end + (start - end) * math.exp(-5 * step / steps) * (1 - step / steps)

    flops_per_token = 8.7e6 * (1 - 0.08 * (number % 5))
    speed = 14000.0 * (1 + 0.05 * (number % 5))
    at = range(steps // 8, steps + 1, steps // 8)
    end_words = {"lr": f"lr-{lr}", "final": f"seed-{seed}", "speed": "speed"}[phase]
    return {
        "member": f"{arm}+{end_words}",
        "key": "0" * 12,
        "arm": arm,
        "phase": phase,
        "lr": lr,
        "seed": seed,
        "state": "done",
        "why": "",
        "words": [*plan["common"], *plan["arms"][arm]],
        "steps": steps,
        "tokens": steps * BATCH,
        "flops": steps * BATCH * flops_per_token * 1.01,
        "flops_per_token": flops_per_token,
        "val_loss": loss(steps),
        "val_tokens": 131072,
        "bits_per_byte": loss(steps) / math.log(2) * 131072 / 400000,
        "biased_batches": 76,
        "curve": [[s, s * BATCH, s * BATCH / speed, loss(s)] for s in at],
        "seconds": steps * BATCH / speed,
        "tokens_per_second": speed + drawn.uniform(-50, 50),
        "parameters": 1_711_488 - 150_000 * (number % 5),
        "trained_parameters": 1_711_488 - 150_000 * (number % 5),
        "memory": {
            "weights": 6_845_952 - 500_000 * (number % 5),
            "gradients": 6_845_952 - 500_000 * (number % 5),
            "optimizer": 13_691_904 - 900_000 * (number % 7),
            "activations": 9_000_000 + 700_000 * number,
        },
        "peak_memory_bytes": 765_988_864 + int(drawn.uniform(0, 1e7)),
        "settings": {
            "method.name": arm,
            "optim.lr": lr,
            "model.d_model": 128,
            "seed": seed,
            **({"method.rank": 32} if number % 2 else {}),
        }
        if phase == "final"
        else {},
        "machine": "2 x AMD EPYC",
        "threads": 1,
        "versions": {"cola_train": "0.1", "torch": "2.13.0"},
        "commit": "0123456789ab",
        "date": "2026-11-26",
    }


def failed(of: dict[str, Any], why: str) -> dict[str, Any]:
    """The line of the same member, had it failed."""
    kept = (
        "member", "key", "arm", "phase", "lr", "seed", "words", "machine", "versions", "date",
        "commit",
    )  # fmt: skip
    return {**{name: of[name] for name in kept}, "state": "failed", "why": why}


def finished(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """All lines of a comparison in which nothing failed."""
    lines = []
    for arm in plan["arms"]:
        short = [line(plan, arm, "lr", 0, lr) for lr in plan["lr"] or ()]
        best = min(short, key=lambda of: of["val_loss"])["lr"] if short else None
        lines += short + [line(plan, arm, "final", seed, best) for seed in range(plan["seeds"])]
    return lines
