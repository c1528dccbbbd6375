"""Configs as a user's overrides make them, runs as a user starts them, and waiting for them."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from forked import run_forks
from torch import Tensor
from torch.distributed.tensor import DTensor

from cola_train import distributed
from cola_train.checkpoint.checkpointer import Checkpointer
from cola_train.checkpoint.flat_shard import FlatShard
from cola_train.commands.cli import compose, run_app
from cola_train.commands.overrides import check_overrides
from cola_train.config.checks import OF_THE_CONFIG, load
from cola_train.config.schema import Config
from cola_train.data.loader import Batch
from cola_train.engines.base import Engine
from cola_train.errors import UserError
from cola_train.methods import METHODS
from cola_train.methods.base import build_method
from cola_train.model.init import initialise
from cola_train.model.llama import Llama, build_model
from cola_train.optim import AdamWOptions
from cola_train.train import train

REPOSITORY = Path(__file__).parents[1]
WORKERS = REPOSITORY / "tests" / "workers"
CPU = torch.device("cpu")

# arXiv 2502.10940 and the official code: size -> (full-rank, CoLA) parameters
PAPER_PARAMETERS = {
    "60m": (58_073_600, 42_770_944),
    "130m": (134_105_856, 93_997_824),
    "350m": (367_969_280, 185_222_144),
    "1b": (1_339_082_752, 609_310_720),
    "7b": (6_738_415_616, 2_820_935_680),
}


# All parameters of a tiny model are below the size from which ZeRO-3 shards them, and one
# sub-group would hold them all: with these it shards, and has several sub-groups.
# Its buckets are of two gigabytes, which deterministic mode fills.
SMALL = {
    "stage3_param_persistence_threshold": 0,
    "sub_group_size": 2000,
    "reduce_bucket_size": 20_000,
    "allgather_bucket_size": 20_000,
}
ENGINES: dict[str, dict[str, Any]] = {"fsdp": {"name": "fsdp"}} | {
    f"ZeRO-{stage}": {
        "name": "deepspeed",
        "zero_stage": stage,
        "overrides": {"zero_optimization": SMALL},
    }
    for stage in range(4)
}
METHOD_NAMES = tuple(METHODS)  # of the product: some tests add a toy to them
# method -> the option that is a number of steps, between merges or between projections
PERIODS = {"relora": "merge_every", "galore": "refresh_every", "apollo": "refresh_every"}
TINY_VALUES: dict[str, dict[str, Any]] = {
    "model": {
        "name": "tiny", "d_model": 32, "d_ff": 37, "n_layers": 2, "n_heads": 4, "vocab_size": 300,
        "rank_ratio": 0.25, "activation": "both",
    },
    "engine": {"name": "fsdp"},
    "data": {"source": "stdlib"},
    "optim": {"name": "adamw"},
    "recompute": {"name": "none"},
    "train": {
        "sequence_length": 32, "batch_size": 8, "micro_batch_size": 2, "precision": "fp32",
        "threads": 1, "compile": False,
    },
}  # fmt: skip


def values_config(**groups: Any) -> Config:
    """A tiny run's config from plain values; a group of options is laid over TINY_VALUES'. For
    what has no YAML file."""
    values: dict[str, Any] = {"run_name": "tiny", "run_dir": "outputs/tiny", **TINY_VALUES}
    for name, value in groups.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
    return load(values, checks=OF_THE_CONFIG)


def method_values(method: str, every: int) -> dict[str, Any]:
    """Its group of options, with what it does now and then done after every so many steps."""
    return {"name": method} | ({PERIODS[method]: every} if method in PERIODS else {})


def refusal(**groups: Any) -> tuple[str, ...]:
    """What the config's own checks say against a `values_config`; nothing, if it may run."""
    try:
        values_config(**groups)
    except UserError as error:
        return error.problems
    return ()


def make_config(*overrides: str) -> Config:
    """The config that `cola-train OVERRIDES` would run."""
    good, problems = check_overrides(list(overrides))
    return load(compose(good, problems), problems)


def meta_model(config: Config, device: torch.device = CPU) -> Llama:
    """Its model, unsharded, on the meta device, with the kernels of `device`."""
    return build_model(config, build_method(config, device), device)


def real_model(config: Config, device: torch.device = CPU) -> Llama:
    """Its model, unsharded, with the weights that it begins with on `device`: a GPU draws others
    than a CPU."""
    model = meta_model(config, device).to_empty(device=device)
    initialise(model, config.seed)
    return model


def unfused_adamw(parameters: Any, options: AdamWOptions) -> torch.optim.Optimizer:
    """AdamW that knows nothing of `found_inf`; for `AdamWOptions.implementation`."""
    first, second = options.betas
    return torch.optim.AdamW(
        parameters, options.lr, (first, second), options.eps, options.weight_decay
    )


def micro_batches(step: int, rows: int = 8, size: int = 2) -> list[Batch]:
    """This process's share of `rows` sequences of random tokens, `size` at a time."""
    tokens = torch.randint(0, 300, (rows, 33), generator=torch.Generator().manual_seed(step))
    share = tokens.chunk(distributed.world_size())[distributed.rank()]
    return [Batch(t[:, :-1].contiguous(), t[:, 1:].contiguous(), None) for t in share.split(size)]


def whole_state(engine: Engine) -> dict[str, Tensor]:
    """Its state, every tensor whole and a copy."""
    tensors = {}
    for name, tensor in engine.state_dict().items():
        if isinstance(tensor, FlatShard):
            full = torch.zeros(tensor.shape)
            for offset, part in tensor.share().parts().items():
                where = [slice(at, at + n) for at, n in zip(offset, part.shape, strict=True)]
                full[tuple(where)] = part
            torch.distributed.all_reduce(full)
            tensors[name] = full
        else:
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            tensors[name] = whole.clone()
    return tensors


def digest(state: Mapping[str, Tensor]) -> str:
    """The same only where names and tensors are, bit for bit."""
    of_all = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        of_all.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return of_all.hexdigest()


def checkpointer(folder: Path) -> Checkpointer:
    """Of one checkpoint, written at once."""
    return Checkpointer(folder, keep=1, keep_best=False, asynchronous=False)


def save_checkpoint(engine: Engine, folder: Path, step: int) -> None:
    target = checkpointer(folder)
    target.save(step, engine.state_dict(), {})
    target.close()


def load_checkpoint(engine: Engine, folder: Path) -> None:
    """The newest one in the folder."""
    source, state = checkpointer(folder), engine.state_dict()
    path = source.find("auto")
    assert path is not None
    source.load(path, state)
    engine.load_state_dict(state)
    source.close()


def exit_code_of(overrides: list[str]) -> int:
    """`cola-train OVERRIDES` in this process, which costs no start; its exit code."""
    with pytest.raises(SystemExit) as exit_:
        run_app(train, overrides)
    return exit_.value.code


def child_environment(**variables: str) -> dict[str, str]:
    """This process's, in which the checkout, its kernels and these helpers can be imported."""
    path = [*map(str, (REPOSITORY, REPOSITORY / "kernels", REPOSITORY / "tests"))]
    path += filter(None, [variables.pop("PYTHONPATH", os.environ.get("PYTHONPATH"))])
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else restarts and gloo may hang
        "PYTHONPATH": os.pathsep.join(path),
        **variables,
    }


def start_python(
    *arguments: str | Path,
    processes: int = 0,
    restarts: int = 0,
    output: IO[str] | int = subprocess.PIPE,
    errors: IO[str] | int = subprocess.STDOUT,
    folder: Path = REPOSITORY,
    **variables: str,
) -> subprocess.Popen[str]:
    """`python ARGUMENTS`, under torchrun for 1 or more processes, in a process group of its own.

    restarts: of all its processes by torchrun when one has died. folder: to run in. variables: of
    the environment.
    """
    if 0 < distributed.gpus() < processes:  # each process takes one
        pytest.skip(f"needs {processes} GPUs, and there are {distributed.gpus()}")
    torchrun = [
        "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
        f"--max-restarts={restarts}",
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, *(torchrun if processes else []), *arguments],
        cwd=folder,
        env=child_environment(**variables),
        stdout=output,
        stderr=errors,
        text=True,
        start_new_session=True,
    )


def run_python(
    *arguments: str | Path,
    processes: int = 0,
    expect: int | None = 0,
    seconds: float = 900,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` to its end, with exit code `expect`; stdout and stderr apart. seconds: as
    of `wait_until`. options: as of `start_python`."""
    process = start_python(*arguments, processes=processes, errors=subprocess.PIPE, **options)
    output, errors = finish(process, expect, seconds)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def finish(
    process: subprocess.Popen[str], expect: int | None = 0, seconds: float = 900
) -> tuple[str, str]:
    """stdout and stderr of a process that must end with exit code `expect`; if it hangs, it ends
    here, with all that it has started."""
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        raise AssertionError(f"no end after {seconds} s\n{output}{errors or ''}") from None
    assert expect in (None, process.returncode), f"{process.returncode}\n{output}{errors or ''}"
    return output, errors


def run_forked(
    *arguments: str | Path,
    processes: int = 0,
    expect: int = 0,
    seconds: float = 900,
    folder: Path = REPOSITORY,
    together: bool = False,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """`run_python` without what a process's start and torchrun cost; see forked.py. With GPUs,
    which a fork may not share, it is `run_python`.

    folder: to run in. together: stderr is in stdout, as it came. variables: of the environment,
    for all but imports.
    """
    if distributed.gpus():
        errors = subprocess.STDOUT if together else subprocess.PIPE
        options = {"processes": processes, "errors": errors, "folder": folder, **variables}
        process = start_python(*arguments, **options)
        output = finish(process, expect, seconds)
        return subprocess.CompletedProcess(process.args, process.returncode, *output)
    words, environment = [str(word) for word in arguments], child_environment(**variables)
    with tempfile.TemporaryDirectory() as temporary:
        files = [Path(temporary, name) for name in ("stdout", "stdout" if together else "stderr")]
        codes = run_forks(words, processes, environment, folder, *files, seconds)
        said = (files[0].read_text(), "" if together else files[1].read_text())
    failed = [code for code in codes if code]
    assert failed or None not in codes, f"no end after {seconds} s\n{''.join(said)}"
    done = subprocess.CompletedProcess(words, failed[0] if failed else 0, *said)
    assert done.returncode == expect, f"{done.returncode}\n{''.join(said)}"
    return done


def run_worker(name: str, *arguments: str | Path, **options: Any) -> None:
    """A script of workers/; options as of `run_python`. Variables are there for what it imports."""
    variables = options.keys() - {"processes", "expect", "seconds"}
    run = run_python if variables else run_forked
    run(WORKERS / name, *arguments, **options)


def work(task: Callable[..., Any]) -> None:
    """What a script of workers/ does: its task, with all arguments but the first, on each of the
    processes that it was started on; and what `result_of_worker` reads."""
    path, *arguments = sys.argv[1:]
    torch.set_num_threads(1)
    distributed.start()
    result = task(*arguments)
    if distributed.is_main():
        Path(path).write_text(json.dumps(result))
    distributed.stop()


def result_of_worker(name: str, *arguments: str | Path, **options: Any) -> Any:
    """What a script of workers/ writes as JSON to the file that is its first argument."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        run_worker(name, result, *arguments, **options)
        return json.loads(result.read_text())


def launch(overrides: list[str], processes: int = 0, **options: Any) -> subprocess.Popen[str]:
    """Start `python -m cola_train OVERRIDES`; options as of `start_python`."""
    module = ["-m", "cola_train"]
    return start_python(*module, *overrides, processes=processes, **options)


def run_to_end(overrides: list[str], processes: int = 0, expect: int = 0) -> str:
    """The output of a run that must end with exit code `expect`."""
    module = ["-m", "cola_train", *overrides]
    return run_forked(*module, processes=processes, expect=expect, together=True).stdout


def wait_until(
    condition: Callable[[], bool],
    what: str,
    process: subprocess.Popen[Any] | None = None,
    seconds: float = 120,
    every: float = 0.01,
) -> None:
    """Until `condition` holds; fails when `process` has ended without, or after `seconds`, which
    are there to end a test that hangs: a busy machine must not come near them."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None and not condition():
            raise AssertionError(f"ended with {process.returncode} before {what}")
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(every)


def wait_for_step(
    run_dir: Path, step: int, process: subprocess.Popen[Any] | None = None, seconds: float = 120
) -> None:
    """Until metrics.jsonl has a line for `step`."""
    path = run_dir / "metrics.jsonl"
    wait_until(
        lambda: path.exists() and f'"step": {step},' in path.read_text(),
        f"step {step}", process, seconds,
    )  # fmt: skip


def ranks_of(agent: int) -> dict[int, int]:
    """Rank -> process id of the processes that a torchrun has started."""
    found = {}
    for child in children_of(agent):
        with contextlib.suppress(OSError):  # it is ending
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            found |= {int(v[5:]): child for v in variables if v.startswith(b"RANK=")}
    return found


def children_of(process: int) -> list[int]:
    """Its child processes; those of all its threads."""
    found = []
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in file.read_text().split()]
    return found


def losses(run_dir: Path) -> dict[int, float]:
    """Step to training loss, from metrics.jsonl; a step logged twice fails."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert len(steps) == len(set(steps))
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())
