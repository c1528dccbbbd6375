"""Every recompute policy of one model, CoLA's and full rank's, in alternation: time and memory.

Needs torch, Triton and numpy alone. The policies of a method share one model and optimizer:
a policy is only another `forward` on the same modules.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from benchmarks.apart import Step, apart
from benchmarks.bare_config import bare_config
from benchmarks.count import count_block
from benchmarks.report import Benchmark, Report, table
from benchmarks.timing import Timing, alternate, precision_name, product_step
from cola_train import costs, distributed, hardware
from cola_train.config.schema import Config
from cola_train.data.loader import Batch
from cola_train.engines.base import Engine, StepResult, build_engine
from cola_train.errors import UserError
from cola_train.methods.base import Method, build_method
from cola_train.model.llama import Llama, build_model
from cola_train.model.padding import remove_padding
from cola_train.parallel.compile import compile_blocks
from cola_train.parallel.recompute import apply_recompute

CONTENDERS = {  # name: method, policy
    "full rank": ("full", "none"),
    "full rank, full": ("full", "full"),
    "cola": ("cola", "none"),
    "cola, light": ("cola", "light"),
    "cola, cola_m": ("cola", "cola_m"),
    "cola, full": ("cola", "full"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="60m", help="a file of configs/model (60m)")
    parser.add_argument("--layers", type=int, help="in place of the model's own number")
    parser.add_argument("--batch", type=int, default=8, help="sequences a step (8)")
    parser.add_argument("--sequence", type=int, default=256, help="tokens a sequence (256)")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument("--kernels", choices=("auto", "torch", "triton"), default="auto")
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds (7)")
    parser.add_argument(
        "--only", nargs="+", choices=tuple(CONTENDERS), default=list(CONTENDERS), metavar="NAME",
        help=f"contenders, of: {', '.join(CONTENDERS)}",
    )  # fmt: skip


def run(options: argparse.Namespace) -> Report:
    if options.overrides:
        raise UserError(f"{options.overrides[0]}: this benchmark takes no config options; see -h")
    if "cola" not in options.only:
        raise UserError("--only: cola must be among them, the others are compared with it")
    configs = {name: config_of(name, options) for name in options.only}
    memory = {} if torch.cuda.is_available() else cpu_memory(configs)

    device = distributed.start()
    hardware.tune_process(None, distributed.topology().local_world)
    steps = build_steps(configs, device)
    if device.type == "cuda":
        memory = {name: gpu_memory(step) for name, step in steps.items()}
    config = configs["cola"]
    product, product_flops = product_step(hardware.compute_dtype(options.precision, device), device)
    seconds = alternate({**steps, "product": product}, options.repeats)

    fused = uses_triton(config, device)
    tokens = options.batch * options.sequence
    results: dict[str, dict[str, Any]] = {}
    timings = {}
    for name, c in configs.items():
        flops = costs.training_flops_per_token(c)
        again = c.model.n_layers * costs.block_cost(c, fused).recomputed_flops
        timings[name] = Timing(seconds[name], flops * tokens, tokens)
        results[name] = {
            **timings[name].figures(),
            **memory[name],
            "blocks_keep_bytes": kept_bytes(c, fused, device) * tokens,
            "flops_per_token": flops,
            "recomputed_flops_per_token": again,
            "faster_than_cola": timings[name].faster_than(Timing(seconds["cola"], 0)),
            "executed_flops_per_token": flops + again,
        }
    peak = Timing(seconds["product"], product_flops).flops_per_second
    figures: dict[str, Any] = {
        "model": options.model,
        "layers": config.model.n_layers,
        "precision": precision_name(config, device),
        "kernels": "triton" if fused else "torch",
        "compiled": options.compile,
        "batch_size": options.batch,
        "sequence_length": options.sequence,
        "repeats": options.repeats,
        "contenders": results,
        "product_flops_per_second": peak,
    }
    text = [
        f"{options.model}, {config.model.n_layers} layers, {figures['precision']}, "
        f"kernels={figures['kernels']}{', compiled' if options.compile else ''}, "
        f"{options.batch} x {options.sequence} tokens a step, {options.repeats} rounds",
        results_table(results, peak),
        f"a large product here: {peak / 1e9:,.0f} GFLOP/s",
    ]
    if "full rank" in configs:
        full = configs["full rank"]
        ratio = timings["cola"].faster_than(timings["full rank"])
        ceiling = costs.training_flops_per_token(full) / costs.training_flops_per_token(config)
        executed = (
            results["full rank"]["executed_flops_per_token"]
            / results["cola"]["executed_flops_per_token"]
        )
        figures |= {"cola_over_full": ratio, "flop_ratio": ceiling, "executed_flop_ratio": executed}
        text.append(
            f"cola / full rank: {ratio:.2f}; ceiling (FLOP ratio): {ceiling:.2f}, with what "
            f"the kernels recompute {executed:.2f}; reached: {ratio / ceiling:.0%}"
        )
    return Report(figures, "\n".join(text))


def config_of(name: str, options: argparse.Namespace) -> Config:
    method, policy = CONTENDERS[name]
    return bare_config(
        options.model,
        method,
        policy,
        batch_size=options.batch,
        sequence_length=options.sequence,
        precision=options.precision,
        compiled=options.compile,
        layers=options.layers,
        kernels=options.kernels,
    )


HOOKS = ("forward", "attend", "feed_forward")  # what a policy or compilation puts on a block
Forwards = list[dict[str, Callable[..., Any]]]


@dataclass(frozen=True)
class PolicyStep:
    """held: bytes of the engine's weights and optimizer on a GPU, where others are beside it."""

    engine: Engine
    blocks: nn.ModuleList
    forwards: Forwards
    batch: Batch
    lr: float
    held: int

    def __call__(self) -> StepResult:
        for block, own in zip(self.blocks, self.forwards, strict=True):
            for name in HOOKS:
                block.__dict__.pop(name, None)
            block.__dict__.update(own)
        result = self.engine.train_step([self.batch], self.lr)
        if result.skipped:
            raise RuntimeError("a step was not finite: its optimizer did not run")
        return result


def build_steps(
    configs: dict[str, Config], device: torch.device, padded: bool = True
) -> dict[str, PolicyStep]:
    """An optimizer step for each contender, as the trainer runs it; it returns the step's result.

    Contenders whose configs differ in policy, compilation and batch alone share their modules.

    padded: as models are stored; else with weights of their own widths, aligned or not.
    """
    steps: dict[str, PolicyStep] = {}
    left = dict(configs)
    while left:
        config = next(iter(left.values()))
        sharing = {name: c for name, c in left.items() if same_modules(c, config)}
        method = build_method(config, device)
        model = build_model(config, method, device)
        if not padded:
            remove_padding(model)
        forwards = {name: take_policy(c, model, method) for name, c in sharing.items()}
        before = allocated(device)
        engine = build_engine(config, model, method, device)
        engine.state_dict()  # allocates the optimizer's
        held = allocated(device) - before
        for name, own in sharing.items():
            batch = random_batch(own)
            steps[name] = PolicyStep(
                engine, model.layers, forwards[name], batch, own.optim.lr, held
            )
            del left[name]
    return steps


def allocated(device: torch.device) -> int:
    """Bytes of tensors on a GPU; 0 of a CPU's."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def same_modules(a: Config, b: Config) -> bool:
    """Whether two configs differ in what is put on a model's blocks alone, and in their batch. The
    policy is such a thing with torch's ops; Triton's are chosen by it."""
    train = replace(
        a.train, compile=b.train.compile, batch_size=b.batch_size, batch_tokens=b.train.batch_tokens
    )
    policy = b.recompute if a.kernels == "torch" else a.recompute
    return replace(a, recompute=policy, train=train) == b


def take_policy(config: Config, model: Llama, method: Method) -> Forwards:
    """What `config`'s policy puts on each block, taken off again."""
    apply_recompute(model, config.recompute.name, method.kept_ops)
    if config.train.compile:
        compile_blocks(model)
    return [
        {k: block.__dict__.pop(k) for k in HOOKS if k in block.__dict__} for block in model.layers
    ]


def random_batch(config: Config) -> Batch:
    """Random tokens; no documents, so that each attention kernel can run at its best."""
    generator = torch.Generator().manual_seed(config.seed)
    shape = (config.batch_size, config.train.sequence_length + 1)
    window = torch.randint(config.model.vocab_size, shape, generator=generator)
    return Batch(window[:, :-1].contiguous(), window[:, 1:].contiguous(), None)


def kept_bytes(config: Config, fused: bool, device: torch.device) -> float:
    """What all blocks keep for the backward pass, for one token: on a GPU by costs.py's formula;
    on a CPU counted, as bf16 attention there is another one."""
    dtype = hardware.compute_dtype(config.train.precision, device)
    if device.type == "cuda":
        each: float = costs.block_cost(config, fused).saved_bytes(dtype.itemsize)
    else:
        each = count_block(config, dtype=dtype).saved_bytes
    return config.model.n_layers * each


def uses_triton(config: Config, device: torch.device) -> bool:
    return hardware.kernels_on(device, config.kernels, config.train.precision) == "triton"


def gpu_memory(step: PolicyStep) -> dict[str, int]:
    """Peak bytes allocated during a step, without what other steps hold; and above what weights and
    optimizer hold between steps."""
    step()
    torch.cuda.synchronize()
    between = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    above = torch.cuda.max_memory_allocated() - between
    return {"peak_memory_bytes": step.held + above, "peak_above_weights_bytes": above}


def cpu_memory(configs: dict[str, Config]) -> dict[str, dict[str, int]]:
    """Peak resident bytes of each contender, in a process of its own: a process' peak never goes
    down again."""
    peaks = {}
    for name, config in configs.items():
        with apart(build_one, config) as process:
            step = process.steps()["step"]
            for _ in range(2):  # the first allocates the optimizer's state
                step()
            peaks[name] = {"peak_memory_bytes": process.peak_memory()}
    return peaks


def build_one(config: Config) -> dict[str, Step]:
    device = distributed.start()
    hardware.tune_process(None, distributed.topology().local_world)
    return {"step": build_steps({"step": config}, device)["step"]}


def results_table(results: dict[str, dict[str, Any]], peak: float) -> str:
    headers = ["", "tokens/s", "s (median)", "s (min)", "of cola's speed", "of product",
               "bound", "recomputed", "blocks keep MiB", "peak GiB"]  # fmt: skip
    of_cola = results["cola"]["executed_flops_per_token"]
    rows: list[Sequence[str]] = [
        [
            name,
            f"{of['tokens_per_second']:,.0f}",
            f"{of['step_seconds_median']:.3f}",
            f"{of['step_seconds_min']:.3f}",
            f"{of['faster_than_cola']:.2f}",
            f"{of['flops_per_second'] / peak:.0%}",
            f"{of_cola / of['executed_flops_per_token']:.2f}",
            f"{of['recomputed_flops_per_token'] / of['flops_per_token']:.1%}",
            f"{of['blocks_keep_bytes'] / 2**20:,.0f}",
            f"{of['peak_memory_bytes'] / 2**30:.2f}",
        ]
        for name, of in results.items()
    ]
    note = (
        "bound: cola's speed at equal FLOP/s; recomputed: of the FLOPs without; blocks keep: "
        "by formula on a GPU, counted on a CPU"
    )
    measured = [
        f"{name}: {of['peak_above_weights_bytes'] / 2**20:,.0f} MiB allocated at the peak above "
        "weights and optimizer"
        for name, of in results.items()
        if "peak_above_weights_bytes" in of
    ]
    return "\n".join([table(headers, rows), note, *measured])


BENCHMARK = Benchmark(
    "step time and memory of every recompute policy, full rank beside them", add_options, run
)
