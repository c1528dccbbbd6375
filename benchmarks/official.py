"""Our CoLA and CoLA-M steps beside those of the paper's own code, of the same shape.

`--code` names a checkout of github.com/alvin-zyl/CoLA, and `--packages` a folder with a version of
transformers that it can import (`pip install --no-deps --target FOLDER transformers==4.51.3
'huggingface-hub<1' 'tokenizers<0.22'`). Its step is that of its main.py: weights, gradients and
moments in the compute dtype, where ours keeps them in fp32; clipping, AdamW. It runs as it is, and
once more with fused AdamW and the settings that cola_train gives its process.
"""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.apart import Step, apart
from benchmarks.report import Benchmark, Report, table
from benchmarks.timing import Timing, alternate, precision_name
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

# recompute policy -> its model type there
MODELS = {"none": "ColaForCausalLM", "cola_m": "ColaMForCausalLM"}


def add_official_options(parser: argparse.ArgumentParser) -> None:
    add_options(parser)
    parser.add_argument("--code", type=Path, required=True, metavar="FOLDER", help="its checkout")
    parser.add_argument(
        "--packages", type=Path, metavar="FOLDER", help="with the transformers that it needs"
    )


def run(options: argparse.Namespace) -> Report:
    if not (options.code / "cola" / "modeling_cola.py").exists():
        raise UserError(
            f"--code: {options.code} has no cola/modeling_cola.py; clone github.com/alvin-zyl/CoLA"
        )
    paths = [str(folder.resolve()) for folder in (options.packages, options.code) if folder]
    asked = any(text.startswith("train.precision=") for text in options.overrides)
    figures: dict[str, Any] = {}
    rows = []
    device = distributed.start()
    for precision in ["auto"] if asked else ["fp32", "bf16"]:
        for policy in MODELS:
            config = step_config(
                options,
                model="60m",
                method="cola",
                recompute=policy,
                **{"train.precision": precision},
            )
            name = f"{'cola_m' if policy == 'cola_m' else 'cola'}, {precision_name(config, device)}"
            timings = compare(config, paths, options.repeats)
            ours = timings["cola_train"]
            ratios = {of: ours.faster_than(timing) for of, timing in timings.items()}
            figures[name] = {
                "steps": {of: timing.figures() for of, timing in timings.items()},
                "ours_over_official": ratios,
            }
            rows += [
                [
                    f"{name}: {of}",
                    f"{timing.tokens_per_second:,.0f}",
                    f"{timing.median:.3f}",
                    f"{min(timing.seconds):.3f}",
                    "" if timing is ours else f"{ratios[of]:.2f}x",
                ]
                for of, timing in timings.items()
            ]
    headers = ["", "tokens/s", "s (median)", "s (min)", "ours is faster"]
    about = (
        f"{config.model.name}, {config.model.n_layers} layers, {config.batch_size} x "
        f"{config.train.sequence_length} tokens a step, {options.repeats} rounds"
    )
    return Report({"about": about, **figures}, f"{about}\n{table(headers, rows)}")


def compare(config: Config, paths: list[str], repeats: int) -> dict[str, Timing]:
    """The steps in alternation, each in a process of its own."""
    with (
        apart(build_ours, config) as ours,
        apart(build_official, config, paths, False) as official,
        apart(build_official, config, paths, True) as tuned,
    ):
        steps = ours.steps() | official.steps() | tuned.steps()
        seconds = alternate(steps, repeats)
    flops, tokens = step_flops(config), step_tokens(config)
    return {name: Timing(of, flops, tokens) for name, of in seconds.items()}


def build_ours(config: Config) -> dict[str, Step]:
    device = distributed.start()
    hardware.tune_process(config.train.threads, distributed.topology().local_world)
    return {"cola_train": trainer_step(config, device, random_batches(config))}


def build_official(config: Config, paths: list[str], tuned: bool) -> dict[str, Step]:
    """Its step by name; with our settings and fused AdamW if `tuned`."""
    threads = torch.get_num_threads()
    if tuned:
        hardware.tune_process(config.train.threads, distributed.topology().local_world)
    torch.set_num_threads(config.train.threads or threads)
    sys.path[:0] = paths
    step = official_step(config, random_batches(config), fused=tuned)
    return {"official code" + ", fused AdamW, our settings" * tuned: step}


def official_step(config: Config, batches: list[Batch], fused: bool) -> Step:
    """One step of its model: the same tokens and loss, documents unmasked."""
    try:
        library: Any = importlib.import_module("cola")
    except ImportError as error:
        raise UserError(
            f"official: its code does not import: {error}; --packages needs transformers 4.51.3"
        ) from error
    shape, device = config.model, distributed.device()
    dtype = hardware.compute_dtype(config.train.precision, device)
    model = getattr(library, MODELS[config.recompute.name])(
        library.ColaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.d_model,
            intermediate_size=shape.d_ff,
            num_hidden_layers=shape.n_layers,
            num_attention_heads=shape.n_heads,
            max_position_embeddings=config.train.sequence_length,
            rms_norm_eps=shape.norm_eps,
            rank=config.method.identity(shape)["rank"],
            only_lr_act=shape.activation == "low_rank",
            use_cache=False,
        )
    ).to(device, dtype)
    model.train()
    assert sum(p.numel() for p in model.parameters()) == costs.parameters(config)

    def loss(batch: Batch) -> Any:
        # its model shifts the labels itself: the last target of a row is left out
        tokens = batch.inputs.to(device)
        return model(input_ids=tokens, labels=tokens).loss

    return torch_step(config, model, batches, loss, fused)


BENCHMARK = Benchmark(
    "our CoLA steps beside the paper's own code (needs a checkout of it)", add_official_options, run
)
