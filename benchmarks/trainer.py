"""The trainer's own optimizer step, as a benchmark's command line configures it."""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from benchmarks.apart import Step
from benchmarks.overrides import make_config
from cola_train import costs, distributed
from cola_train.config.schema import Config
from cola_train.data.loader import Batch
from cola_train.errors import UserError
from cola_train.optim import AdamWOptions
from cola_train.train import build, uses_documents


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of benchmarks that time steps; see `step_config`."""
    parser.add_argument("--batch", type=int, default=8, help="sequences a step (8)")
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds (7)")


def step_config(options: argparse.Namespace, **defaults: str) -> Config:
    """The config to time: the user's overrides over `defaults`, `--batch` sequences a step.

    Raises:
        UserError: it is wrong, or names a method, which the benchmark chooses.
    """
    if any(text.startswith("method=") for text in options.overrides):
        raise UserError("method: this benchmark chooses the methods it times; leave method= out")
    if options.repeats < 1:
        raise UserError(f"--repeats: must be at least 1, got {options.repeats}")
    batch = {"train.batch_size": str(options.batch), "train.micro_batch_size": "null"}
    return make_config(options.overrides, batch | defaults)


def random_batches(config: Config) -> list[Batch]:
    """The micro-batches of one step: random tokens, in documents of about 100 tokens where the
    trainer would keep documents apart."""
    generator = torch.Generator().manual_seed(config.seed)
    B = config.micro_batch_size(distributed.world_size())
    T = config.train.sequence_length
    batches = []
    for _ in range(config.batch_size // B):
        window = torch.randint(config.model.vocab_size, (B, T + 1), generator=generator)
        documents = None
        if uses_documents(config):
            documents = (torch.rand(B, T, generator=generator) < 0.01).cumsum(1, dtype=torch.int32)
        batches.append(Batch(window[:, :-1].contiguous(), window[:, 1:].contiguous(), documents))
    return batches


def trainer_step(config: Config, device: torch.device, batches: list[Batch]) -> Step:
    """One optimizer step exactly as the trainer runs it. Needs a process group."""
    engine = build(config, device)

    def step() -> None:
        if engine.train_step(batches, config.optim.lr).skipped:
            raise RuntimeError("a step was not finite: its optimizer did not run")

    return step


def torch_step(
    config: Config,
    model: nn.Module,
    batches: list[Batch],
    loss: Callable[[Batch], Tensor],
    fused: bool,
) -> Step:
    """One optimizer step of another's model, as scripts write it: the mean of its micro-batches'
    losses, clipping, and torch's AdamW; fused, or as torch chooses."""
    optim = config.optim
    assert isinstance(optim, AdamWOptions)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=optim.lr,
        betas=(optim.betas[0], optim.betas[1]),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=True if fused else None,
    )

    def step() -> None:
        for batch in batches:
            (loss(batch) / len(batches)).backward()
        if optim.clip is not None:
            clip_grad_norm_(model.parameters(), optim.clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def step_flops(config: Config) -> float:
    """FLOPs of one optimizer step, by costs.py."""
    return costs.training_flops_per_token(config) * step_tokens(config)


def step_tokens(config: Config) -> int:
    return config.batch_size * config.train.sequence_length
