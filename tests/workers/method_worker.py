"""Run by methods/test_method_contract.py: every method, and the toy, under every engine that the
config's checks do not refuse it.

Arguments: the JSON file to write, `save` or `resume`, a folder for checkpoints. `save`: builds,
trains and saves; `resume`: goes on from there on this number of processes. Writes what it saw.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import toy_method
from helpers import ENGINES as WAYS
from helpers import (
    load_checkpoint,
    method_values,
    micro_batches,
    refusal,
    save_checkpoint,
    values_config,
    whole_state,
    work,
)
from torch import Tensor

from benchmarks.collectives import Collectives
from cola_train import distributed
from cola_train.config.schema import Config
from cola_train.engines.base import Engine
from cola_train.methods import METHODS
from cola_train.train import build

STEPS, LR = 3, 1e-2
ENGINES = WAYS | {"replicate": {"name": "fsdp", "sharding": "replicate"}}


def groups_of(method: str, engine: str) -> dict[str, dict[str, Any]]:
    """What of a run's values is the pair's. What a method does now and then comes after STEPS
    steps: before the checkpoint, or in the first step after it."""
    return {"method": method_values(method, STEPS), "engine": ENGINES[engine]}


def engines_of(method: str) -> list[str]:
    """Those that the config's checks do not refuse the method."""
    return [engine for engine in ENGINES if not refusal(**groups_of(method, engine))]


def config_of(method: str, engine: str, folder: Path, precision: str) -> Config:
    return values_config(
        **groups_of(method, engine), train={"precision": precision}, run_dir=str(folder / "run"),
        optim={"name": "adamw", "eps": 1e-3},  # rounding of gradients near zero stays small
    )  # fmt: skip


def digest(state: dict[str, Tensor]) -> dict[str, list[float]]:
    """Of every tensor: two sums that a change of any element changes."""
    flat = {name: tensor.reshape(-1).double() for name, tensor in state.items()}
    return {
        name: [(torch.arange(1, len(t) + 1) * t).sum().item(), t.abs().sum().item()]
        for name, t in flat.items()
    }


def unfilled(engine: Engine) -> list[str]:
    """Parameters and buffers that hold what deterministic mode fills fresh memory with."""
    tensors = {**whole_state(engine), **dict(engine.model.named_buffers())}
    return [
        name
        for name, t in tensors.items()
        if not name.startswith("optimizer.")
        and (
            (t == torch.iinfo(t.dtype).max).any()
            if not t.is_floating_point()
            else not t.isfinite().all()
        )
    ]


def step(engine: Engine, number: int) -> Any:
    """Step `number`, from 1; rank 1 asks for the end in step 2."""
    stop = number == 2 and distributed.rank() == 1
    result = engine.train_step(micro_batches(number), LR, stop=stop)
    engine.after_step(number)
    return result


def not_zero(engine: Engine) -> list[str]:
    """Padded parameters of which some padding is not exactly zero."""
    stored = engine.stored_weights()
    wholes = {name: (stored.full(name), padding) for name, padding in engine.paddings.items()}
    assert wholes
    return [n for n, (w, padding) in wholes.items() if not w.equal(padding.pad(padding.cut(w)))]


def moments(engine: Engine, ending: str) -> list[float]:
    """The largest first moment of each parameter with that ending."""
    state = whole_state(engine)
    return [t.abs().max().item() for n, t in state.items() if n.endswith(f"{ending}.exp_avg")]


def save(method: str, name: str, folder: Path, precision: str) -> dict[str, Any]:
    config, linear = config_of(method, name, folder, precision), F.linear
    engine = build(config, distributed.device())
    buffers = dict(engine.model.named_buffers())
    found: dict[str, Any] = {
        "unfilled": unfilled(engine),
        "buffers": sorted({str(buffer.dtype) for buffer in buffers.values()}),
    }
    weights = engine.weights()
    frozen = [n for n, p in engine.model.named_parameters() if not p.requires_grad]
    norms = [n for n in weights.names() if "norm" in n]
    before = {n: weights.full(n) for n in [*frozen, *norms]}
    results = [step(engine, 1)]
    found["moved"] = [n for n in before if not torch.equal(weights.full(n), before[n])]
    results.append(step(engine, 2))  # the toy merges after it
    merged = {n: weights.full(n) for n in frozen}
    found["merged"] = sum(not torch.equal(merged[n], before[n]) for n in frozen)
    found["reset"], found["kept"] = moments(engine, "_B"), moments(engine, "_A")
    with Collectives() as counted:
        results.append(engine.train_step(micro_batches(3), LR))
    engine.after_step(3)
    found["traffic"] = dict(counted.bytes)
    found["undone"] = [n for n in frozen if not torch.equal(weights.full(n), merged[n])]
    found["stop"] = [result.stop for result in results]
    found["metrics"] = results[0].metrics
    save_checkpoint(engine, folder / method / precision / name, STEPS)
    found["saved"] = digest(state := whole_state(engine))
    found["not zero"] = not_zero(engine)
    found["padded"] = [
        n for n in weights.names() if weights.full(n).shape != state[f"model.{n}"].shape
    ]
    found["next"] = step(engine, STEPS + 1).loss
    state = [t for n, t in whole_state(engine).items() if n.startswith("optimizer.")]
    found["optimizer elements"] = sum(t.numel() for t in state if t.dim() > 0)
    engine.close()
    found["linear"] = F.linear is linear
    return found


def resume(method: str, name: str, folder: Path, precision: str) -> dict[str, Any]:
    config = config_of(method, name, folder, precision)
    engine = build(config, distributed.device())
    load_checkpoint(engine, folder / method / precision / name)
    found: dict[str, Any] = {"loaded": digest(whole_state(engine))}
    found["next"] = step(engine, STEPS + 1).loss
    engine.close()
    return found


def main(mode: str, folder: str) -> dict[str, Any]:
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    toy_method.register()
    task = {"save": save, "resume": resume}[mode]
    cases = [(method, "fp32") for method in METHODS] + [("toy", "bf16")]
    return {
        f"{method} {precision} {engine}": task(method, engine, Path(folder), precision)
        for method, precision in cases
        for engine in engines_of(method)
    }


if __name__ == "__main__":
    work(main)
