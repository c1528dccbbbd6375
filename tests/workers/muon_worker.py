"""Run by optim/test_muon.py under torchrun. Arguments: the JSON file to write, a mode, a folder.

`shards`: Muon on row shards beside torch's on whole matrices, given the same gradients, on meshes
of 4 processes. `engines`: losses of 20 steps, a checkpoint after 10, and what comes after
the checkpoint of another number of processes, if there is one.
"""

from pathlib import Path
from typing import Any

import torch
from helpers import (
    load_checkpoint,
    micro_batches,
    save_checkpoint,
    values_config,
    whole_state,
    work,
)
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from benchmarks.collectives import Collectives
from cola_train import costs, distributed
from cola_train.optim import MuonOptions
from cola_train.optim.muon import Muon
from cola_train.parallel.shard import build_mesh
from cola_train.train import build

# of (3, 8) and (5, 30) the last of 4 processes has no row
SHAPES = [(24, 24), (37, 12), (12, 40), (3, 8), (8, 8), (40, 12), (5, 30)]
STEPS, SAVED_AT, LR = 20, 10, 1e-2
ENGINES: dict[str, dict[str, Any]] = {
    "": {"name": "fsdp"}, " ZeRO-0": {"name": "deepspeed", "zero_stage": 0},
}  # fmt: skip


def shards(folder: Path) -> dict[str, Any]:
    found = {}
    for copy_size in (4, 2, 1):
        mesh = build_mesh(copy_size, "cpu")
        placements = [*[Replicate()] * (mesh.ndim - 1), Shard(0)]
        generator = torch.Generator().manual_seed(0)

        def drawn(shape: tuple[int, ...], generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        whole = [torch.nn.Parameter(drawn(shape)) for shape in SHAPES]
        cut = [
            torch.nn.Parameter(distribute_tensor(p.detach().clone(), mesh, placements))
            for p in whole
        ]
        named = [(f"layers.{i}.w", p) for i, p in enumerate(cut)]
        options = MuonOptions("muon", lr=LR)
        ours = Muon([{"params": named, "shapes": [p.shape for p in cut]}], options)
        theirs = torch.optim.Muon(
            whole, LR, options.weight_decay, adjust_lr_fn=options.adjust_lr_fn
        )
        for _ in range(3):
            for a, b in zip(whole, cut, strict=True):
                a.grad = drawn(tuple(a.shape))
                b.grad = distribute_tensor(a.grad.clone(), mesh, placements)
            theirs.step()
            with Collectives(small=0) as counted:
                ours.step()
        differ = []
        for a, b in zip(whole, cut, strict=True):
            state = ours.state[b]["momentum_buffer"]
            assert isinstance(b, DTensor) and isinstance(state, DTensor)
            average = theirs.state[a]["momentum_buffer"]
            if not (a.equal(b.full_tensor()) and average.equal(state.full_tensor())):
                differ.append(list(a.shape))
        planned = options.update_cost(SHAPES, copy_size).traffic
        received = counted.bytes if distributed.rank() == 0 else {}
        found[str(copy_size)] = {
            "differ": differ, "traffic": dict(received), "planned": dict(planned),
        }  # fmt: skip
    return found


def engines(folder: Path) -> dict[str, Any]:
    found = {}
    for method in ("full", "cola"):
        for kind, engine_options in ENGINES.items():
            if kind and method == "full":
                continue
            config = values_config(
                method={"name": method}, optim={"name": "muon", "lr": LR}, engine=engine_options,
                run_dir=str(folder / "run"),
            )  # fmt: skip
            place = folder / f"{method}{kind}"
            saved = place.exists()
            engine = build(config, distributed.device())
            of: dict[str, Any] = {"losses": [], "resumed": []}
            if saved:
                load_checkpoint(engine, place)
                for step in range(SAVED_AT, STEPS):
                    of["resumed"].append(engine.train_step(micro_batches(step), LR).loss)
                engine.close()
                engine = build(config, distributed.device())
            for step in range(STEPS):
                if step == SAVED_AT and not saved:
                    save_checkpoint(engine, place, step)
                of["losses"].append(engine.train_step(micro_batches(step), LR).loss)
            states = [t for n, t in whole_state(engine).items() if n.startswith("optimizer.")]
            of["elements"] = sum(t.numel() for t in states if t.dim() > 0)
            counted, own = config.method.optimizer_elements, costs.weights(config)
            of["planned"] = sum(counted(config.model, config.optim, w) for w in own)
            engine.close()
            found[f"{method}{kind}"] = of
    return found


def main(mode: str, folder: str) -> dict[str, Any]:
    return {"shards": shards, "engines": engines}[mode](Path(folder))


if __name__ == "__main__":
    work(main)
