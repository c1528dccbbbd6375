"""Prefill and decode of one model, full rank beside CoLA: our path and transformers' `generate` of
the exported model, in alternation, each in a process of its own.

Decoding goes on from a cache of `context` positions, prefilled once. What a token must read, its
weights and the cache, over what it takes is the bandwidth reached; the ratio of full rank's bytes
to CoLA's is the most that CoLA can gain there.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.apart import Step, apart
from benchmarks.overrides import make_config
from benchmarks.report import Benchmark, Report, table
from benchmarks.timing import alternate, precision_name
from cola_train import distributed, hardware
from cola_train.config.schema import Config
from cola_train.convert.export import config_json, modeling_file
from cola_train.convert.names import exported_names
from cola_train.errors import UserError
from cola_train.gpus import GPUS
from cola_train.inference.graphs import fastest
from cola_train.inference.prepare import prepare
from cola_train.methods.base import build_method
from cola_train.model.init import initialise
from cola_train.model.llama import Llama, build_model
from cola_train.model.padding import remove_padding
from cola_train.planning.constants import StepConstants
from cola_train.planning.inference import Use, plans

METHODS = ("full", "cola")
LIBRARIES = ("cola_train", "transformers")
PLAIN = "cola_train cola plain"
NATIVE, COMPILED = "native", "compiled"
PREFILL, DECODE = "prefill", "decode"


@dataclass(frozen=True)
class Case:
    batch: int
    context: int  # positions before the first token that is decoded

    def __str__(self) -> str:
        return f"{self.batch} x {self.context}"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64], help="(1 8 64)")
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 1024, 4096],
                        help="positions before those decoded (128 1024 4096)")  # fmt: skip
    parser.add_argument("--new", type=int, default=32, help="tokens decoded in a round (32)")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds (5)")
    parser.add_argument("--cache-gb", type=float, default=2.0,
                        help="leave out cases with a larger cache of full rank (2)")  # fmt: skip
    parser.add_argument("--libraries", nargs="+", choices=[*BUILDERS],
                        default=list(LIBRARIES),
                        help=f"of: {', '.join(LIBRARIES)} (these); {NATIVE}: ours by compiled C++ "
                        f"on a CPU; {COMPILED}: ours by torch.compile on a GPU")  # fmt: skip
    parser.add_argument("--plain", action="store_true",
                        help="also CoLA in torch's layout, on torch's kernels")  # fmt: skip


def run(options: argparse.Namespace) -> Report:
    check(options)
    longest = max(options.contexts) + options.new + 1
    defaults = {"model": "350m", "train.precision": "bf16", "train.sequence_length": str(longest)}
    configs = {
        method: make_config(options.overrides, defaults | {"method": method}) for method in METHODS
    }
    device = distributed.device()
    precision = precision_name(configs["full"], device)
    everything = [Case(*case) for case in product(options.batch, options.contexts)]
    everything.sort(key=lambda case: case.batch * case.context)  # memory's peak only goes up
    limit = options.cache_gb * 1e9
    cases = [case for case in everything if cache_bytes(configs["full"], case) <= limit]
    left_out = [str(case) for case in everything if case not in cases]
    results: dict[str, dict[str, dict[str, Any]]] = {}
    with ExitStack() as stack:
        processes = {
            f"{library} {method}": stack.enter_context(
                apart(BUILDERS[library], configs[method], cases, options.new)
            )
            for library in options.libraries
            for method in METHODS
        }
        if options.plain:
            arguments = (build_ours, configs["cola"], cases, options.new, True)
            processes[PLAIN] = stack.enter_context(apart(*arguments))
        steps = {name: process.steps() for name, process in processes.items()}
        for case in cases:
            of_case: dict[str, dict[str, Any]] = {name: {} for name in steps}
            results[str(case)] = of_case
            for part in (PREFILL, DECODE):
                named = {name: of[f"{part} {case}"] for name, of in steps.items()}
                tokens = case.batch * (options.new if part == DECODE else case.context)
                for name, seconds in alternate(named, options.repeats, warmup=1).items():
                    of_case[name][part] = {"seconds": seconds, "tokens": tokens}
            for name, process in processes.items():
                of_case[name]["peak_bytes"] = process.peak_memory()
                config = configs[name.split()[1]]
                of_case[name]["read_bytes"] = bytes_read(config, case, options.new)
    figures = {
        "model": configs["full"].model.name, "layers": configs["full"].model.n_layers,
        "precision": precision, "new_tokens": options.new, "repeats": options.repeats,
        "left_out": left_out, "cases": results,
        "ratios": {case: ratios(subjects) for case, subjects in results.items()},
    }  # fmt: skip
    text = (
        f"{figures['model']}, {figures['layers']} layers, {precision}, {options.new} tokens a "
        f"round, {options.repeats} rounds\n"
    )
    if left_out:
        text += f"left out, caches above {options.cache_gb:g} GB: {', '.join(left_out)}\n"
    return Report(figures, f"{text}{results_table(results)}\n\n{ratios_table(results)}")


def check(options: argparse.Namespace) -> None:
    problems = [
        f"--{name}: must be at least {least}, got {value}"
        for name, least, values in (
            ("batch", 1, options.batch), ("contexts", 2, options.contexts),
            ("new", 1, [options.new]), ("repeats", 1, [options.repeats]),
        )
        for value in values
        if value < least
    ]  # fmt: skip
    if any(text.startswith("method=") for text in options.overrides):
        problems.append("method: this benchmark compares full rank with CoLA; leave method= out")
    if problems:
        raise UserError(*problems)


def cache_bytes(config: Config, case: Case) -> int:
    return plan_of(config, case, 0).cache_bytes


def bytes_read(config: Config, case: Case, new: int) -> int:
    """Of a decoding step, at the middle of the tokens that are decoded."""
    return plan_of(config, case, new // 2).read_bytes


def plan_of(config: Config, case: Case, more: int) -> Any:
    element = 4 if config.train.precision == "fp32" else 2
    use = Use(config, case.batch, case.context + more, GPUS["h100-80gb"], 0, StepConstants())
    found = plans(replace(use, element=element))
    return next(each for each in found if each.name == "kv")


# --- subjects -------------------------------------------------------------------------------

HELD: dict[Case, Any] = {}  # the cache of a process's last prefill, which decoding goes on from


def tokens_of(config: Config, case: Case, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (case.batch, case.context)
    return torch.randint(config.model.vocab_size, shape, generator=generator).to(device)


def random_model(config: Config) -> Llama:
    """With fp32 weights of the model's own shapes."""
    device = distributed.start()
    hardware.tune_process(config.train.threads, distributed.topology().local_world)
    model = build_model(config, build_method(config, device), device)
    remove_padding(model)
    model.to_empty(device=device)
    initialise(model, 0)
    return model.eval().requires_grad_(False)


def dtype_of(config: Config) -> torch.dtype:
    return hardware.compute_dtype(config.train.precision, distributed.device())


def build_ours(
    config: Config, cases: Sequence[Case], new: int, plain: bool = False
) -> dict[str, Step]:
    model = prepare(random_model(config), dtype_of(config), plain)
    return dict(steps_of(config, cases, lambda case: ours(model, config, case, new)))


def build_native(config: Config, cases: Sequence[Case], new: int) -> dict[str, Step]:
    model = prepare(random_model(config), dtype_of(config), plain=True)
    return dict(steps_of(config, cases, lambda case: ours(model, config, case, new, native=True)))


def build_compiled(config: Config, cases: Sequence[Case], new: int) -> dict[str, Step]:
    model = prepare(random_model(config), dtype_of(config))
    return dict(steps_of(config, cases, lambda case: ours(model, config, case, new, compiled=True)))


def ours(model: Llama, config: Config, case: Case, new: int, **how: bool) -> tuple[Step, Step]:
    """As generation decodes: on a GPU by a CUDA graph; how: of `fastest`."""
    tokens = tokens_of(config, case, distributed.device())
    run, new_cache = fastest(model, "kv", **how)

    @torch.inference_mode()
    def prefill() -> None:
        HELD.clear()
        cache = HELD[case] = new_cache(case.batch, case.context + new, None)
        model(tokens, cache=cache, last=1)

    @torch.inference_mode()
    def decode() -> None:
        cache = HELD[case]
        cache.filled = case.context - 1
        cache.position.fill_(case.context - 1)
        last = tokens[:, -1:]
        for _ in range(new):
            last = run(last, cache=cache, last=1).argmax(-1)

    return prefill, decode


def build_peer(config: Config, cases: Sequence[Case], new: int) -> dict[str, Step]:
    dtype = dtype_of(config)
    model = random_model(config).to(dtype)
    names = exported_names(name for name, _ in model.named_parameters())
    weights = {names[name]: weight for name, weight in model.named_parameters()}
    no_end: Any = SimpleNamespace(eos_id=None)
    values = config_json(config, dtype, no_end, modeling_file(config))
    module = import_module(config.method.modeling or "transformers")
    kind = values["architectures"][0].removesuffix("ForCausalLM")
    with torch.device("meta"):
        peer: Any = getattr(module, f"{kind}ForCausalLM")(
            getattr(module, f"{kind}Config")(**values)
        )
    peer.model.rotary_emb = type(peer.model.rotary_emb)(peer.config)  # its table is no weight
    peer.load_state_dict(weights, assign=True)
    return dict(steps_of(config, cases, lambda case: theirs(peer.eval(), config, case, new)))


def theirs(model: Any, config: Config, case: Case, new: int) -> tuple[Step, Step]:
    from transformers import DynamicCache

    tokens = tokens_of(config, case, model.device)

    @torch.inference_mode()
    def prefill() -> None:
        HELD.clear()
        cache = HELD[case] = DynamicCache(config=model.config)
        model(tokens, past_key_values=cache, logits_to_keep=1)

    @torch.inference_mode()
    def decode() -> None:
        cache = HELD[case]
        cache.crop(case.context - 1 - cache.get_seq_length())  # negative: so many less
        model.generate(
            tokens, attention_mask=torch.ones_like(tokens), past_key_values=cache,
            min_new_tokens=new, max_new_tokens=new, do_sample=False, pad_token_id=0,
        )  # fmt: skip

    return prefill, decode


def steps_of(
    config: Config, cases: Sequence[Case], subject: Callable[[Case], tuple[Step, Step]]
) -> Iterator[tuple[str, Step]]:
    for case in cases:
        prefill, decode = subject(case)
        yield f"{PREFILL} {case}", prefill
        yield f"{DECODE} {case}", decode


BUILDERS = {
    "cola_train": build_ours, "transformers": build_peer, NATIVE: build_native,
    COMPILED: build_compiled,
}  # fmt: skip


# --- tables ---------------------------------------------------------------------------------


def rate(part: dict[str, Any]) -> float:
    return float(part["tokens"] / statistics.median(part["seconds"]))


def faster(case: dict[str, Any], one: str, other: str, part: str) -> float:
    """Median over rounds of other's seconds over one's."""
    pairs = zip(case[other][part]["seconds"], case[one][part]["seconds"], strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def results_table(results: dict[str, Any]) -> str:
    headers = ["batch x context", "", "prefill tokens/s", "decode tokens/s", "ms a step",
               "MB read a step", "GB/s", "peak MB"]  # fmt: skip
    rows = []
    for case, subjects in results.items():
        for name, of in subjects.items():
            batch = int(case.split()[0])
            step = batch / rate(of[DECODE])
            rows.append([
                case, name, f"{rate(of[PREFILL]):,.0f}", f"{rate(of[DECODE]):,.1f}",
                f"{1e3 * step:.2f}", f"{of['read_bytes'] / 1e6:,.0f}",
                f"{of['read_bytes'] / step / 1e9:.1f}", f"{of['peak_bytes'] / 1e6:,.0f}",
            ])  # fmt: skip
    return table(headers, rows)


def ratios(subjects: dict[str, Any]) -> dict[str, float]:
    """What decoding gains in one case, beside the most that its bytes allow."""
    found = {}
    fast = [name for name in (NATIVE, COMPILED) if f"{name} full" in subjects]
    ours = (*fast, LIBRARIES[0])[0]
    full, cola = f"{ours} full", f"{ours} cola"
    if full in subjects:
        found["cola over full"] = faster(subjects, cola, full, DECODE)
        found["ceiling (bytes)"] = subjects[full]["read_bytes"] / subjects[cola]["read_bytes"]
        found["of the ceiling"] = found["cola over full"] / found["ceiling (bytes)"]
    if {PLAIN, mine := f"{LIBRARIES[0]} cola"} <= subjects.keys():
        found["over torch's kernels"] = faster(subjects, mine, PLAIN, DECODE)
    for name in (full, cola):
        if {name, theirs := name.replace(ours, LIBRARIES[1])} <= subjects.keys():
            found[f"over {theirs}"] = faster(subjects, name, theirs, DECODE)
    return found


def ratios_table(results: dict[str, Any]) -> str:
    rows = {case: ratios(subjects) for case, subjects in results.items()}
    headers = ["decode", *next(iter(rows.values()))]
    return table(headers, [[case, *(f"{x:.2f}" for x in of.values())] for case, of in rows.items()])


BENCHMARK = Benchmark(
    "prefill and decode, full rank and CoLA, beside transformers' generate", add_options, run
)
