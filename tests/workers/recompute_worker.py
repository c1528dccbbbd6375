"""Run by test_recompute.py under torchrun: a few steps of every kernel and recompute policy.

Arguments: the JSON file to write, cases ("torch cola_m") with commas between them, the overrides of
a tiny run. Triton's interpreter is on.
"""

import torch
from helpers import digest, make_config, micro_batches, whole_state, work

from cola_train import distributed
from cola_train.engines.base import Engine
from cola_train.train import build, set_determinism

STEPS, ROWS = 4, 4


def train_step(engine: Engine, step: int) -> float:
    """Its loss on this process's part of a global batch, at once; there are two of these, to be
    learnt by heart."""
    return engine.train_step(micro_batches(step % 2, ROWS, size=ROWS), 1e-2).loss


def run(overrides: list[str]) -> tuple[dict[str, object], dict[str, torch.Tensor]]:
    """Losses of all steps, a digest of the final weights and optimizer state, and the module of the
    loss; and the gradients of the first step, as AdamW's first moments have them."""
    config = make_config(*overrides)
    set_determinism(config)
    engine = build(config, distributed.device())
    losses = [train_step(engine, 0)]
    gradients = {
        name: tensor for name, tensor in whole_state(engine).items() if name.endswith("exp_avg")
    }
    losses += [train_step(engine, step) for step in range(1, STEPS)]
    weights = digest(whole_state(engine))
    loss = engine.model.head.cross_entropy
    loss_is_of = getattr(loss, "func", loss).__module__
    return {"losses": losses, "weights": weights, "loss is of": loss_is_of}, gradients


def main(cases: str, *overrides: str) -> dict[str, object]:
    results: dict[str, object] = {}
    gradients = {}
    for case in cases.split(","):
        kernels, policy = case.split()
        choice = [f"kernels={kernels}", f"recompute={policy}"]
        results[case], gradients[kernels] = run([*overrides, *choice])
    results["gradient errors"] = {
        name: ((gradients["triton"][name] - plain).norm() / plain.norm()).item()
        for name, plain in gradients["torch"].items()
    }
    return results


if __name__ == "__main__":
    work(main)
