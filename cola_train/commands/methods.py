"""The tables of docs/methods.md, all methods at all sizes: `python -m cola_train.commands.methods`.

From the formulas of `cola-plan`: nothing is built, and no torch imported. Each method has its
defaults at a size, no recomputation, one GPU; times and what a run learns are not said here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from cola_train import costs
from cola_train.commands.groups import config_dir
from cola_train.config.fields import build
from cola_train.config.schema import Config
from cola_train.engines import ENGINES
from cola_train.files import read_yaml
from cola_train.methods import METHODS
from cola_train.methods.recipe import SIZES
from cola_train.parallel.topology import Topology
from cola_train.planning.memory import memory
from cola_train.planning.run import FP32, Run

SEQUENCES, LENGTH = 32, 256  # of the micro-batch whose activations are counted


def runs() -> dict[str, list[Run]]:
    """Of each method one for each size, with its defaults."""
    alone = Topology(1, 1)
    return {name: [Run(config_of(name, size), alone) for size in SIZES] for name in METHODS}


def config_of(method: str, size: str) -> Config:
    problems: list[str] = []
    values = {
        "run_name": "table",
        "run_dir": "outputs/table",
        "model": read_yaml(config_dir() / "model" / f"{size}.yaml"),
        "method": {"name": method},
        "recompute": {"name": METHODS[method].policies[0]},
        "engine": {"name": next(iter(ENGINES))},
        "data": {"source": "stdlib"},
        "optim": {"name": "adamw"},
        "train": {"sequence_length": LENGTH, "batch_size": SEQUENCES, "precision": "bf16"},
    }
    config: Config = build(Config, values, "", problems)
    assert not problems, problems
    return config


def parameters(run: Run) -> str:
    """All of them, and after a slash those that are trained, where some are not."""
    every, trained = (costs.parameters(run.config, trained=only) for only in (False, True))
    return f"{millions(every)} / {millions(trained)}" if trained < every else millions(every)


def millions(count: int) -> str:
    return f"{count / 1e6:,.1f}"


def optimizer_state(run: Run) -> str:
    return f"{FP32 * sum(map(run.optimizer_elements, run.weights)) / 2**30:.2f}"


def activations(run: Run) -> str:
    return f"{memory(run).largest['activations'] / 2**30:.2f}"


def peak(run: Run) -> str:
    return f"{memory(run).total / 2**30:.2f}"


def flops(run: Run) -> float:
    return costs.training_flops_per_token(run.config)


def pass_flops(run: Run) -> int:
    return costs.micro_batch_flops(run.config)


def page() -> Iterator[str]:
    """Its lines."""
    found = runs()
    quantities: dict[str, Callable[[Run], str]] = {
        "Parameters in millions, all / trained": parameters,
        "Optimizer state in GiB, fp32": optimizer_state,
        f"Activations in GiB, {SEQUENCES} x {LENGTH} tokens in bf16, no recomputation": activations,
        "Peak memory of one GPU in GiB, the same step": peak,
        "GFLOP a token, forward and backward": lambda run: f"{flops(run) / 1e9:.3f}",
    }
    for title, cell in quantities.items():
        yield from (f"**{title}**", "", *table({m: map(cell, of) for m, of in found.items()}), "")
    full, *others = METHODS
    ratios = {
        name: [flops(run) / flops(of) for run, of in zip(found[name], found[full], strict=True)]
        for name in others
    }
    cells = {name: (f"{ratio:.2f}" for ratio in of) for name, of in ratios.items()}
    yield from (f"**FLOPs a token, of {full} rank's**", "", *table(cells), "")
    passes = {name: list(map(pass_flops, of)) for name, of in found.items()}
    cells = {name: (f"{each / 1e9:,.0f}" for each in of) for name, of in passes.items() if any(of)}
    if cells:
        yield from ("**GFLOP more a micro-batch, of any size**", "", *table(cells), "")
    saves_none = [name for name, of in ratios.items() if min(of) >= 1]
    if saves_none:
        *first, last = saves_none
        names = f"{', '.join(first)} and {last} save" if first else f"{last} saves"
        yield f"**{names} no FLOPs**: what they save is memory."


def table(rows: Mapping[str, Iterable[str]]) -> Iterator[str]:
    yield f"| | {' | '.join(SIZES)} |"
    yield f"|---{'|---:' * len(SIZES)}|"
    for name, cells in rows.items():
        yield f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n".join(page()))
