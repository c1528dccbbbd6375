"""What the figures decide: the defaults for this GPU, and which claims of docs/gpu-todo.md hold."""

from collections.abc import Callable, Iterator, Mapping

from benchmarks.gpu.parts import Figures, Outcome
from benchmarks.gpu.policies import speed_of
from benchmarks.gpu.steps import UNPADDED

Claim = tuple[bool | None, str]  # held, did not; None: not tried; and the figure
Found = Mapping[str, Figures]  # of each part, by name
OVER_FULL = 1.86  # cola over full rank at 1b, arXiv 2502.10940
COLA_M_SPEED = 0.85  # of cola's, by the planner's model
CPU_PERPLEXITY, PERPLEXITY_APART = 50.19, 0.02  # of the default run; share of it
CPU_TOKENS, TOKENS_APART = 8.86e6, 0.03  # that it trains on: Python 3.11's library; share of them
MEMORY_APART, TIME_APART = 0.1, 0.15  # shares of the planner's bytes and seconds
NOT_TRIED: Claim = (None, "")
MODES = {  # the end of a step's name
    "eager": "train.compile=false",
    "compiled": "train.compile=true",
    "graph": "train.compile=true train.cuda_graph=true",
}


def verdict(outcomes: Mapping[str, Outcome], dry_run: bool) -> list[str]:
    found = {name: outcome.figures for name, outcome in outcomes.items()}
    defaults = best(found)
    said = ["A dry run decides nothing; these lines show their form."] if dry_run else []
    said += ["Best here for CoLA at 1b:", "", *defaults] if defaults else ["No step was timed."]
    said += ["", "| claim | | figure |", "|---|---|---|"]
    for text, judge in CLAIMS.items():
        held, figure = judge(found)
        word = {True: "held", False: "**did not hold**", None: "not tried"}[held]
        said.append(f"| {text} | {'dry run' if dry_run and held is not None else word} "
                    f"| {figure} |")  # fmt: skip
    return said


def best(found: Found) -> list[str]:
    """Lines about the fastest of what was timed."""
    timed = list(all_steps(found, "cola"))
    if not timed:
        return []
    speed, where, name = max(timed)
    kernels, mode = name.removeprefix("cola, ").split(", ")
    said = [
        f"- `kernels={kernels} {MODES[mode]}` and a micro-batch "
        f"of {micro_batch(where)}: {speed:,.0f} tokens/s"
    ]
    compiled = "eager" if mode == "eager" else "compiled"
    policies = found.get("policies", {}).get(f"{kernels}, {compiled}", {})
    speeds = {p: f["tokens_per_second"] for p, f in policies.items() if "tokens_per_second" in f}
    if speeds:
        fastest = max(speeds, key=lambda policy: speeds[policy])
        said.append(
            f"- `recompute={fastest}` where memory allows it; "
            + "; ".join(
                f"`{p}` {s / speeds[fastest]:.2f} of its speed{peak_of(policies[p])}"
                for p, s in speeds.items()
            )
        )
    return said


def peak_of(figures: Figures) -> str:
    peak = figures.get("peak_memory_bytes")
    return f" at {peak / 2**30:.1f} GiB" if peak else ""


def all_steps(found: Found, method: str) -> Iterator[tuple[float, str, str]]:
    """Tokens/s, shape and name of all steps of a method that were timed, as models are stored."""
    for part, end in (("steps", ""), ("graphs", ", graph")):
        for where, of in found.get(part, {}).items():
            if where.endswith(UNPADDED):
                continue
            for name, f in of.items():
                if name.split(", ")[0] == method and "tokens_per_second" in f:
                    yield f["tokens_per_second"], where, f"{name}{end}"


def micro_batch(where: str) -> int:
    """Of a key of the part `steps`."""
    return int(where.split(" x ")[0])


# --- the claims: each from the figures ------------------------------------------------------


def right(found: Found) -> Claim:
    return all_good(found, repeated=False)


def same_bits(found: Found) -> Claim:
    return all_good(found, repeated=True)


def all_good(found: Found, repeated: bool) -> Claim:
    good = [
        f["good"]
        for key, f in found.get("correctness", {}).items()
        if isinstance(f, dict) and key.endswith("repeated") == repeated
    ]
    return (all(good), f"{sum(good)} of {len(good)}") if good else NOT_TRIED


def worth_it(found: Found) -> Claim:
    ops = {key: f for key, f in found.get("ops", {}).items() if "reached" in f}
    if not ops:
        return NOT_TRIED
    missed = [key for key, f in ops.items() if not f["reached"]]
    few = ", ".join(missed[:3]) + (", ..." if len(missed) > 3 else "")
    return not missed, f"{len(ops) - len(missed)} of {len(ops)}" + (
        f"; not {few}" if missed else ""
    )


def over_full(found: Found) -> Claim:
    full, cola = (max(all_steps(found, method), default=None) for method in ("full", "cola"))
    if full is None or cola is None:
        return NOT_TRIED
    ratio = cola[0] / full[0]
    return ratio >= OVER_FULL, f"{ratio:.2f} ({cola[2]} at {cola[1]}; {full[2]} at {full[1]})"


Ratios = list[tuple[Figures, Figures]]


def contenders(found: Found, one: str, other: str) -> Ratios:
    """Figures of two contenders at the same shape, whose names differ in a word."""
    return [
        (f, of[name.replace(one, other)])
        for part in ("steps", "graphs")
        for of in found.get(part, {}).values()
        for name, f in of.items()
        if one in name and "loss" in f and "loss" in of.get(name.replace(one, other), {})
    ]


def shapes(found: Found, one: Callable[[str], bool], other: Callable[[str], bool]) -> Ratios:
    """Figures of a contender at two shapes."""
    steps = found.get("steps", {})
    return [
        (f, steps[there][name])
        for here in filter(one, steps)
        for there in filter(other, steps)
        for name, f in steps[here].items()
        if "loss" in f and "loss" in steps[there].get(name, {})
    ]


def faster(both: Ratios) -> Claim:
    ratios = [ours["tokens_per_second"] / theirs["tokens_per_second"] for ours, theirs in both]
    if not ratios:
        return NOT_TRIED
    return min(ratios) > 1, f"{min(ratios):.2f} to {max(ratios):.2f} times"


def triton_faster(found: Found) -> Claim:
    return faster(contenders(found, "triton", "torch"))


def triton_same_loss(found: Found) -> Claim:
    both = contenders(found, "triton", "torch")
    if not both:
        return NOT_TRIED
    apart = max(abs(ours["loss"] / theirs["loss"] - 1) for ours, theirs in both)
    return apart < 1e-3, f"first losses at most {apart:.1e} of it apart"


def compile_faster(found: Found) -> Claim:
    return faster(contenders(found, "compiled", "eager"))


def padded_faster(found: Found) -> Claim:
    steps = found.get("steps", {})
    both = [
        pair for where in steps for pair in shapes(found, where.__eq__, f"{where}{UNPADDED}".__eq__)
    ]
    return faster(both)


def larger_faster(found: Found) -> Claim:
    stored = [where for where in found.get("steps", {}) if not where.endswith(UNPADDED)]
    if len(stored) < 2:
        return NOT_TRIED
    least, *_, most = sorted(stored, key=micro_batch)
    return faster(shapes(found, most.__eq__, least.__eq__))


def cola_m(found: Found) -> Claim:
    speeds = [speed_of(of, "cola_m") for of in found.get("policies", {}).values()]
    speeds += [f["tokens_per_second"] / of["tokens_per_second"]
               for f, of in contenders(found, "cola_m", "cola")]  # fmt: skip
    known = [speed for speed in speeds if speed]
    if not known:
        return NOT_TRIED
    return max(known) >= COLA_M_SPEED, ", ".join(f"{speed:.2f}" for speed in known)


def light_faster(found: Found) -> Claim:
    ratios = []
    for of in found.get("policies", {}).values():
        light, other = (speed_of(of, policy) for policy in ("light", "cola_m"))
        if light and other:
            ratios.append(light / other)
    return (min(ratios) > 1, ", ".join(f"{r:.2f} times" for r in ratios)) if ratios else NOT_TRIED


def planned_memory(found: Found) -> Claim:
    return as_planned(found, "peak_memory_bytes", "planned_bytes", MEMORY_APART)


def planned_time(found: Found) -> Claim:
    return as_planned(found, "step_seconds_median", "planned_seconds", TIME_APART)


def as_planned(found: Found, measured: str, planned: str, apart: float) -> Claim:
    ratios = [
        f[measured] / f[planned]
        for part in ("policies", "graphs")
        for of in found.get(part, {}).values()
        for f in of.values()
        if measured in f and planned in f
    ]
    if not ratios:
        return NOT_TRIED
    held = all(abs(ratio - 1) <= apart for ratio in ratios)
    return held, f"measured over planned {min(ratios):.2f} to {max(ratios):.2f}"


def ends_alike(found: Found) -> Claim:
    of = found.get("training", {})
    if "validation" not in of or of["data"]["tokens"].startswith("bytes"):
        return (None, "its tokens were bytes") if "validation" in of else NOT_TRIED
    tokens, perplexity = of["data"]["train_tokens"], of["validation"]["perplexity"]
    if abs(tokens / CPU_TOKENS - 1) > TOKENS_APART:
        return None, f"its library is another: {tokens / 1e6:.2f} M tokens, not 8.86"
    held = abs(perplexity / CPU_PERPLEXITY - 1) <= PERPLEXITY_APART
    return held, f"perplexity {perplexity:.2f}; {CPU_PERPLEXITY} with Python 3.11's library"


CLAIMS: dict[str, Callable[[Found], Claim]] = {
    "The kernels are right, in bf16 too": right,
    "They give the same bits each time": same_bits,
    "Each fused op is 1.2 times torch.compile and reaches 70 % of its floor": worth_it,
    f"cola over full rank at 1b is at least {OVER_FULL}, each at its best": over_full,
    "kernels=triton is faster than kernels=torch": triton_faster,
    "kernels=triton gives the loss of kernels=torch": triton_same_loss,
    "train.compile=true is faster": compile_faster,
    "Stored padded, d_ff 5461 is faster than as it is": padded_faster,
    "The largest micro-batch is faster than the least": larger_faster,
    f"cola_m runs at {COLA_M_SPEED} of cola's speed or more": cola_m,
    "light is faster than cola_m": light_faster,
    "Peak memory is within a tenth of the planner's": planned_memory,
    "The step's time is within 15 % of the planner's": planned_time,
    "The default run ends as on a CPU": ends_alike,
}
