"""Run by test_recompute.py under torchrun: a few steps of every kernel and recompute policy.

Arguments: the JSON file to write, cases ("torch cola_m") with commas between them, the overrides of
a tiny run. Triton's interpreter is on.
"""

import hashlib
import json
import sys

import torch
from helpers import make_config, whole_state

from cola_train import distributed
from cola_train.data.loader import Batch
from cola_train.train import build, set_determinism

STEPS, ROWS = 4, 4


def batch(step: int) -> Batch:
    """This process's part of a global batch; there are two of them, to be learnt by heart."""
    generator = torch.Generator().manual_seed(step % 2)
    tokens = torch.randint(0, 300, (ROWS, 33), generator=generator)
    mine = tokens.chunk(distributed.world_size())[distributed.rank()]
    return Batch(mine[:, :-1].contiguous(), mine[:, 1:].contiguous(), None)


def run(overrides: list[str]) -> tuple[dict[str, object], dict[str, torch.Tensor]]:
    """Losses of all steps, a digest of the final weights and optimizer state, and the module of the
    loss; and the gradients of the first step, as AdamW's first moments have them."""
    config = make_config(*overrides)
    set_determinism(config)
    engine = build(config, distributed.device())
    losses = [engine.train_step([batch(0)], 1e-2).loss]
    gradients = {
        name: tensor for name, tensor in whole_state(engine).items() if name.endswith("exp_avg")
    }
    losses += [engine.train_step([batch(step)], 1e-2).loss for step in range(1, STEPS)]
    digest = hashlib.sha256()
    for name, tensor in whole_state(engine).items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    loss = engine.model.head.cross_entropy
    loss_is_of = getattr(loss, "func", loss).__module__
    return {"losses": losses, "weights": digest.hexdigest(), "loss is of": loss_is_of}, gradients


def main() -> None:
    path, cases, *overrides = sys.argv[1:]
    distributed.start()
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
    if distributed.is_main():
        with open(path, "w") as file:
            json.dump(results, file)
    distributed.stop()


if __name__ == "__main__":
    main()
