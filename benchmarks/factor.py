"""Models of bottlenecks that begin with a dense one's weights, beside such that begin at random."""

import argparse
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.overrides import make_config
from benchmarks.report import Benchmark, Report, table
from cola_train import distributed, hardware
from cola_train.config.schema import Config
from cola_train.convert import factor
from cola_train.convert.factor import Fit, Moments, Pairs, convert, empty_model, sample
from cola_train.data.loader import Batch, evaluation_batches
from cola_train.data.prepared import PreparedData, open_data
from cola_train.evaluation.loss import evaluate
from cola_train.inference.load import load_model
from cola_train.model.llama import Llama
from cola_train.model.loss import IGNORE_INDEX
from cola_train.progress import say
from cola_train.train import build, build_loader, uses_documents

PLACEMENTS = ("both", "low_rank", "full_rank")


@dataclass(frozen=True)
class OfWeights(Fit):
    """Truncated SVD of W, whatever its inputs are."""

    def bottlenecks(
        self, pairs: Pairs, weights: Mapping[str, Tensor], key: str
    ) -> dict[str, tuple[Tensor, Tensor]]:
        found = {}
        for name, W in weights.items():
            A, B = factor.factor(W, torch.eye(W.shape[1]), self.ranks[name])
            found[name] = A.float(), B.float()
        return found


@dataclass(frozen=True)
class WithoutSilu(Fit):
    """The best factors of a bottleneck without SiLU."""

    def bottlenecks(
        self, pairs: Pairs, weights: Mapping[str, Tensor], key: str
    ) -> dict[str, tuple[Tensor, Tensor]]:
        return Fit(self.ranks, False, self.gate_silu).bottlenecks(pairs, weights, key)


@dataclass(frozen=True)
class InPairs(Fit):
    """silu(z) - silu(-z) = z: the best factors of half the rank, without error."""

    def bottlenecks(
        self, pairs: Pairs, weights: Mapping[str, Tensor], key: str
    ) -> dict[str, tuple[Tensor, Tensor]]:
        ranks = {name: rank // 2 for name, rank in self.ranks.items()}
        half = Fit(ranks, False, self.gate_silu).bottlenecks(pairs, weights, key)
        return {
            name: (torch.cat([A, -A]), torch.cat([B, -B], dim=1)) for name, (A, B) in half.items()
        }


@dataclass(frozen=True)
class NotRotated(Fit):
    """Each rank-r number a direction of its own."""

    def bottlenecks(
        self, pairs: Pairs, weights: Mapping[str, Tensor], key: str
    ) -> dict[str, tuple[Tensor, Tensor]]:
        found = Fit(self.ranks, False, self.gate_silu).bottlenecks(pairs, weights, key)
        C = Moments(pairs()).second().float()
        for name, (A, B) in found.items():
            scale = self.size / ((A @ C) * A).sum(1).sqrt()
            found[name] = A * scale[:, None], 2 * B / scale
        factor.refit(pairs, found)
        return found


def arms(placement: str, fit: Fit) -> Iterator[tuple[str, Fit | None]]:
    """Names, and how each begins; None: at random."""
    yield "random", None
    yield "SVD of W", _as(OfWeights, fit)
    if not fit.silu:
        yield "fitted", fit
        return
    if placement == PLACEMENTS[0]:
        yield "fitted without SiLU", _as(WithoutSilu, fit)
        yield "pairs of half the rank", _as(InPairs, fit)
        yield f"fitted, not rotated, size {fit.size:g}", _as(NotRotated, fit)
    for size in (0.1, 0.3, 1.0):
        yield f"fitted, size {size:g}", replace(fit, size=size)


def _as(kind: type[Fit], fit: Fit) -> Fit:
    return kind(fit.ranks, fit.silu, fit.gate_silu, fit.size)


def continued(
    config: Config, data: PreparedData, start: Llama, points: list[int]
) -> dict[int, float]:
    """Validation loss after each of these steps of the config's recipe, from start's weights."""
    with closing(build(config, distributed.device())) as engine:
        weights = engine.weights()
        for name, weight in start.named_parameters():
            weights.assign(name, weight)
        loader, losses = build_loader(config, data), {}
        for step in range(max(points) + 1):
            if step in points:
                losses[step] = evaluate(engine.evaluate, validation(config, data)).loss
            if step < max(points):
                engine.train_step(loader.next(), config.method.learning_rate(config, step + 1))
        loader.close()
    return losses


def validation(config: Config, data: PreparedData) -> Iterator[Batch]:
    return evaluation_batches(
        data.validation,
        sequence_length=config.train.sequence_length,
        micro_batch_size=config.evaluation.batch_size,
        rank=0,
        world_size=1,
        packing=config.data.packing,
        with_documents=uses_documents(config),
        max_tokens=config.evaluation.tokens,
    )


@torch.no_grad()
def loss_of(model: Llama, batch: Batch) -> tuple[Tensor, int]:
    """Summed, and the number of predicted tokens."""
    loss = model(batch.inputs, batch.targets, batch.documents)
    return loss, int((batch.targets != IGNORE_INDEX).sum())


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dense", type=Path, required=True, help="a run of method=full")
    parser.add_argument("--tokens", type=int, default=65_536, help="for the moments (65536)")
    parser.add_argument("--points", default="0,25,100,200", help="steps after which it validates")
    parser.add_argument("--placements", default=",".join(PLACEMENTS), help="of SiLU (all)")
    parser.add_argument("--arms", default="", help="only those in whose name this pattern is found")


def run(options: argparse.Namespace) -> Report:
    dense = load_model(options.dense)
    shape = {f"model.{k}": getattr(dense.config, k) for k in SHAPE}
    points = [int(point) for point in options.points.split(",")]
    defaults = {k: str(v) for k, v in shape.items()} | {"train.steps": str(max(points))}
    figures: dict[str, dict[str, dict[int, float]]] = {}
    distributed.start()
    for placement in options.placements.split(","):
        config = make_config([*options.overrides, f"method.activation={placement}"], defaults)
        hardware.tune_process(config.train.threads, 1)
        data = open_data(config.data, config.model.vocab_size)
        batches = sample(data.train, config, options.tokens, uses_documents(config))
        dense_loss = evaluate(partial(loss_of, dense), validation(config, data)).loss
        figures[placement] = {}
        for name, fit in arms(placement, Fit.of(config)):
            if not re.search(options.arms, name):
                continue
            start = empty_model(config, distributed.device())
            if fit is not None:
                convert(dense, start, batches, fit)
            losses = figures[placement][name] = continued(config, data, start, points)
            say(f"{placement}, {name}: " + ", ".join(f"{loss:.4f}" for loss in losses.values()))
    step_tokens = config.batch_size * config.train.sequence_length
    rows = [
        [f"{placement}, {name}", *(f"{losses[point]:.3f}" for point in points)]
        for placement, arms_ in figures.items()
        for name, losses in arms_.items()
    ]
    headers = ["SiLU, start", *(f"{point * step_tokens:,}" for point in points)]
    text = "\n".join(
        [
            f"validation loss by tokens trained on; the dense model's is {dense_loss:.3f}; moments "
            f"of {options.tokens:,} tokens",
            table(headers, rows),
        ]
    )
    return Report({"dense": dense_loss, "losses": figures, "step_tokens": step_tokens}, text)


SHAPE = ("d_model", "d_ff", "n_layers", "n_heads", "vocab_size", "rank_ratio")

BENCHMARK = Benchmark("dense weights made CoLA's, beside a random init", add_options, run)
