"""Our full-rank training step beside that of `transformers`' LLaMA of the same shape.

Ours computes in train.precision with fp32 master weights and moments. In bf16 the peer runs both
ways that are in use: everything in bf16 (less work and precision than ours), and autocast over
fp32 weights (ours in precision). Each with AdamW as torch has it by default, and fused; and once
more with the settings that cola_train gives its process (hardware.py: threads, memory), which
others could make too. So that these settings help no one else, each of the three groups has a
process of its own; one step runs at a time.
"""

import argparse
import importlib
from contextlib import nullcontext
from typing import Any

import torch

from benchmarks.apart import Step, apart
from benchmarks.report import Benchmark, Report, table
from benchmarks.timing import Timing, alternate, precision_name, product_step
from benchmarks.trainer import (
    add_options,
    random_batches,
    step_config,
    step_flops,
    step_tokens,
    torch_step,
    trainer_step,
)
from cola_train import costs, distributed, hardware
from cola_train.config.schema import Config
from cola_train.data.loader import Batch
from cola_train.errors import UserError

OURS = "cola_train (full rank)"


def run(options: argparse.Namespace) -> Report:
    version = transformers().__version__
    asked = any(text.startswith("train.precision=") for text in options.overrides)
    configs = [
        step_config(options, model="60m", method="full", **{"train.precision": precision})
        for precision in (["auto"] if asked else ["fp32", "bf16"])
    ]
    config = configs[0]
    device = distributed.start()
    hardware.tune_process(config.train.threads, distributed.topology().local_world)
    figures: dict[str, Any] = {
        "model": config.model.name,
        "layers": config.model.n_layers,
        "batch_size": config.batch_size,
        "sequence_length": config.train.sequence_length,
        "repeats": options.repeats,
        "transformers": version,
        "precisions": {},
    }
    texts = [
        f"{config.model.name}, {config.model.n_layers} layers, {config.batch_size} x "
        f"{config.train.sequence_length} tokens a step, {options.repeats} rounds, "
        f"transformers {version}"
    ]
    for config in configs:
        name = precision_name(config, device)
        figures["precisions"][name], text = compare(config, device, options.repeats)
        texts.append(f"{name}\n{text}")
    return Report(figures, "\n\n".join(texts))


def compare(config: Config, device: torch.device, repeats: int) -> tuple[dict[str, Any], str]:
    """Time ours and every form of the peer in one precision: figures and a table."""
    dtype = hardware.compute_dtype(config.train.precision, device)
    product, product_flops = product_step(dtype, device)
    threads = torch.get_num_threads()
    with (
        apart(build_ours, config) as ours,
        apart(build_peers, config, threads, False) as peers,
        apart(build_peers, config, threads, True) as tuned_peers,
    ):
        steps = ours.steps() | peers.steps() | tuned_peers.steps()
        seconds = alternate({**steps, "product": product}, repeats)
    timings = {
        name: Timing(seconds[name], step_flops(config), step_tokens(config)) for name in steps
    }
    peak = Timing(seconds["product"], product_flops).flops_per_second
    ratios = {
        name: timings[OURS].faster_than(timing) for name, timing in timings.items() if name != OURS
    }
    figures = {
        "steps": {name: timing.figures() for name, timing in timings.items()},
        "ours_over_peer": ratios,
        "product_flops_per_second": peak,
    }
    rows = [
        [
            name,
            f"{timing.tokens_per_second:,.0f}",
            f"{timing.median:.3f}",
            f"{min(timing.seconds):.3f}",
            f"{timing.flops_per_second / 1e9:,.0f}",
            f"{timing.flops_per_second / peak:.0%}",
            f"{ratios[name]:.2f}x" if name in ratios else "",
        ]
        for name, timing in timings.items()
    ]
    headers = ["", "tokens/s", "s (median)", "s (min)", "GFLOP/s", "of product", "ours is faster"]
    note = f"a large product here: {peak / 1e9:,.0f} GFLOP/s"
    return figures, f"{table(headers, rows)}\n{note}"


def build_ours(config: Config) -> dict[str, Step]:
    device = distributed.start()
    hardware.tune_process(config.train.threads, distributed.topology().local_world)
    return {OURS: trainer_step(config, device, random_batches(config))}


def build_peers(config: Config, threads: int, tuned: bool) -> dict[str, Step]:
    """The peer's steps in the forms that are in use, by name; fused ones alone if `tuned`."""
    if tuned:
        hardware.tune_process(threads, distributed.topology().local_world)
    torch.set_num_threads(threads)
    device = distributed.device()
    batches = random_batches(config)
    fp32 = hardware.compute_dtype(config.train.precision, device) == torch.float32
    return {
        "transformers"
        + ", autocast" * autocast
        + ", fused AdamW" * fused
        + ", our settings" * tuned: peer_step(
            config, device, batches, autocast=autocast, fused=fused
        )
        for autocast in ([False] if fp32 else [False, True])
        for fused in ([True] if tuned else [False, True])
    }


def peer_step(
    config: Config, device: torch.device, batches: list[Batch], *, autocast: bool, fused: bool
) -> Step:
    """One step of LlamaForCausalLM: the same work as `trainer_step`, documents unmasked."""
    library = transformers()
    shape, dtype = config.model, hardware.compute_dtype(config.train.precision, device)
    model = library.LlamaForCausalLM(
        library.LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.d_model,
            intermediate_size=shape.d_ff,
            num_hidden_layers=shape.n_layers,
            num_attention_heads=shape.n_heads,
            max_position_embeddings=config.train.sequence_length,
            rms_norm_eps=shape.norm_eps,
            tie_word_embeddings=False,
            use_cache=False,
            attn_implementation="sdpa",
        )
    ).to(device, torch.float32 if autocast else dtype)
    assert sum(p.numel() for p in model.parameters()) == costs.parameters(config)
    if hardware.compiled_on(device, config):
        model = torch.compile(model)

    def loss(batch: Batch) -> Any:
        inputs, targets = batch.inputs.to(device), batch.targets.to(device)
        with torch.autocast(device.type, dtype) if autocast else nullcontext():
            # the targets are shifted already
            return model(input_ids=inputs, labels=targets, shift_labels=targets).loss

    return torch_step(config, model, batches, loss, fused)


def transformers() -> Any:
    """The library, which this benchmark alone needs.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise UserError(
            "peers: transformers is not installed; `pip install 'transformers>=4.56'`"
        ) from error


BENCHMARK = Benchmark(
    "our full-rank step beside transformers' LlamaForCausalLM with torch AdamW", add_options, run
)
