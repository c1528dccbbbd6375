"""Run by methods/test_relora.py: one merge under each engine, of factors and state that are given.

Arguments: the JSON file to write, then each case, "precision engine". Writes checksums of the
whole weights and optimizer state, which are equal only where these are, bit for bit.
"""

import hashlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from helpers import ENGINES, micro_batches, values_config, whole_state, work
from torch import Tensor

from cola_train import distributed
from cola_train.train import build

MERGE = 2
RELORA = {"name": "relora", "merge_every": MERGE, "rewarm_steps": 1}


def given(name: str, like: Tensor) -> Tensor:
    """N(0, 1) of that shape, by name."""
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little")
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def merge(case: str, prune: str, folder: Path) -> dict[str, Any]:
    precision, name = case.split()
    config = values_config(
        method={**RELORA, "prune": prune}, engine=ENGINES[name], run_dir=str(folder),
        train={"precision": precision, "steps": 10},
    )  # fmt: skip
    engine = build(config, distributed.device())
    engine.state_dict()  # allocates the optimizer's state
    weights = engine.weights()
    names = [n for n in weights.names() if n.endswith(("_A", "_B"))]
    for n in names:
        weights.assign(n, given(n, weights.full(n)))
        weights.change_state(n, partial(given, f"{n}/state"))
    batch = micro_batches(1, distributed.world_size() * 2)[0]
    before = engine.evaluate(batch)[0].item()
    metrics = engine.after_step(MERGE)
    state = whole_state(engine)
    after = engine.evaluate(batch)[0].item()
    result = engine.train_step(micro_batches(1), 1e-2)  # what is computed with is what was merged
    engine.close()
    kept = {n: t for n, t in state.items() if n.startswith("model.") or "_A." in n or "_B." in n}
    return {
        "sums": {n: hashlib.sha256(t.cpu().numpy().tobytes()).hexdigest() for n, t in kept.items()},
        "loss": [before, after], "metrics": metrics, "next": result.loss,
        "B": [t.any().item() for n, t in state.items() if n.startswith("model.") and "_B" in n],
    }  # fmt: skip


def merges(*cases: str) -> dict[str, Any]:
    folder = Path(sys.argv[1]).parent  # of the result
    return {
        f"{case} {prune}": merge(case, prune, folder)
        for case in cases
        for prune in (("magnitude", "random") if case == "fp32 fsdp" else ("magnitude",))
    }


if __name__ == "__main__":
    work(merges)
