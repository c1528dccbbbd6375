"""A summary in sentences, for page and Markdown alike."""

from collections.abc import Iterator, Mapping
from typing import Any

from cola_train.compare.verdicts import BETTER, UNTOLD, WORSE, lower

Summary = Mapping[str, Any]
EDGE = "edge"  # learning rates at the grid's end
DROPPED = "dropped"  # a state of an arm
OTHER_TEXT = "other text"  # data have changed, or arms have their own
OTHER_PRECISION = "other precision"  # machines differ


def title(summary: Summary) -> str:
    names = [arm["name"] for arm in sorted(summary["arms"], key=lambda arm: arm["number"])]
    shown = names if len(names) <= 5 else [*names[:4], f"{len(names) - 4} more"]
    return "Compared: " + (
        " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]
    )


def design(summary: Summary) -> Iterator[str]:
    """What was equal, and how learning rates were chosen."""
    plan = summary["plan"]
    tokens, base = f"{plan['tokens']:,} tokens", plan["baseline"]
    yield {
        "tokens": f"Every arm sees {tokens}, the same batches in the same order.",
        "flops": f"Every arm spends the training FLOPs that {base} spends on {tokens}; "
        "batches come in the same order.",
        "seconds": f"Every arm trains for as long as {base} needs for {tokens}; batches come "
        "in the same order.",
    }[plan["budget"]] + _agreement(summary)
    if plan["lr"]:
        rates = ", ".join(f"{lr:g}" for lr in sorted(plan["lr"]))
        yield (
            f"Each arm's learning rate is the one of {rates} with the lowest validation loss after "
            f"{_horizon(plan['lr_share'])}, with one seed."
        )
    else:
        yield "Learning rates are those that the arms name; none was searched for."
    if plan["drop"] is not None:
        yield (
            f"A rule set beforehand: an arm has whole runs only if its best short run's loss is "
            f"{_drop(plan['drop'], base)}."
        )
    if not summary["finished"]:
        yield "This comparison is not finished: figures may change."


def _horizon(share: float) -> str:
    return "a whole run" if share == 1 else f"{100 * share:g} % of a whole run's steps"


def _agreement(summary: Summary) -> str:
    """What whole runs took, where it is meant to be equal."""
    budget = summary["plan"]["budget"]
    words = {"tokens": "Tokens", "flops": "FLOPs"}
    difference = summary["differences"].get(budget)
    if difference is None:
        return ""
    if difference < 0.005:
        return f" {words[budget]} of whole runs are equal."
    return f" {words[budget]} of whole runs differ by {difference:.2g} % at most."


def _drop(drop: float, base: str) -> str:
    if drop == 0:
        return f"not above {base}'s"
    side = "below" if drop > 0 else "above"
    return f"at {'least' if drop > 0 else 'most'} {abs(drop):g} nats {side} {base}'s"


def findings(summary: Summary) -> Iterator[tuple[str, str]]:
    """(verdict, sentence) for each verdict that some arm has, best news first; then `OTHER_TEXT`,
    `OTHER_PRECISION`, `DROPPED` and `EDGE`."""
    base = summary["plan"]["baseline"]
    intros = {
        BETTER: f"Perplexity better than {base}'s, by the 95 % interval over seeds",
        WORSE: f"Perplexity worse than {base}'s, by the 95 % interval over seeds",
        UNTOLD: f"Not told apart from {base} by these seeds, which does not mean equal",
        "one seed": f"With one seed, so nothing is known of the difference to {base}",
    }
    for verdict, intro in intros.items():
        arms = [arm for arm in summary["arms"] if arm["against"]["verdict"] == verdict]
        named = [
            f"{arm['name']} ({lower(arm['against']['percent'])})"
            if verdict in (BETTER, WORSE)
            else arm["name"]
            for arm in arms
        ]
        if named:
            yield verdict, f"{intro}: {', '.join(named)}."
    others = [arm["name"] for arm in summary["arms"] if not arm["same_text"]]
    if others:
        yield (
            OTHER_TEXT,
            (
                f"Not all validated on the text of {base} with its tokenizer, so that perplexities "
                f"cannot be compared: {', '.join(others)}."
            ),
        )
    others = [arm["name"] for arm in summary["arms"] if not arm["same_precision"]]
    if others:
        yield (
            OTHER_PRECISION,
            (
                f"By train.precision=auto not all runs were in the precision of {base}'s, as they "
                f"ran on other machines: {', '.join(others)}."
            ),
        )
    dropped = [arm["name"] for arm in summary["arms"] if arm["state"] == DROPPED]
    if dropped:
        yield DROPPED, f"Dropped after the short runs, by the rule below: {', '.join(dropped)}."
    edge = [arm["name"] for arm in summary["arms"] if arm["lr_edge"]]
    if edge:
        words = "Chosen at the end of the grid, so that a better learning rate may lie beyond it"
        if len(summary["plan"]["lr"]) == 1:
            words = "Only one learning rate was tried, and others may be better"
        yield EDGE, f"{words}: {', '.join(edge)}."


def failures(summary: Summary) -> Iterator[str]:
    for arm in summary["arms"]:
        for failure in arm["failures"]:
            yield f"{failure['member']}: {failure['why'] or 'no reason is known'}"


def meanings(summary: Summary) -> Iterator[tuple[str, str]]:
    """What each figure is, by the words of the tables' headings."""
    batches = {arm["biased_batches"] for arm in summary["arms"]} - {None}
    n = f", here N = {batches.pop():,}" if len(batches) == 1 else ""
    tests = summary["comparisons"]
    yield (
        "validation perplexity",
        "exp of the mean loss over all validation tokens and over seeds. After ±: the sample "
        "standard deviation of the seeds' losses, as percent of perplexity.",
    )
    luck = ""
    if tests > 1:
        luck = (
            f" One interval in twenty misses the truth: of these {tests} comparisons, "
            f"{0.05 * tests:.2g} would call a difference where there is none."
        )
    yield (
        "95 % interval",
        "of the difference in loss to the baseline, paired by seed (Student's t), as percent of "
        "perplexity. It tells of other seeds, not of other data, sizes or lengths. Not told apart "
        "does not mean equal: more seeds may tell." + luck,
    )
    yield (
        "biased perplexity",
        f"exp(loss · N / (N + 1)){n}: what the evaluation prints that GaLore, SLTrain and CoLA "
        "share, which divides the loss of N batches by N + 1. It is too low, the more "
        "so the smaller N (theirs is 76 or so), and is here only to be set beside their tables.",
    )
    if summary["plan"]["lr"]:
        yield (
            "perplexity after the first part of a run, one seed",
            "of the short runs that learning rates were chosen by, at the best of them; in "
            "parentheses against the baseline's. It is of one seed, and the best of several: it "
            "helps to choose, and proves nothing.",
        )
    yield "bits per byte", "loss in bits by bytes of text, which does not depend on the tokenizer."
    yield (
        "tokens, training FLOPs, seconds",
        "of a whole run, the mean over seeds. FLOPs are the model's forward and backward passes "
        "and the optimizer's matmuls; FLOPs a token are the model's alone. Seconds are of the "
        "steps, without validation; they depend on what else the machine did.",
    )
    yield (
        "memory",
        "planned for one process, each part at its largest, in powers of 1000. The "
        "measured peak is of the whole process; on a CPU the program and its libraries are part of "
        "it.",
    )


def origin(summary: Summary) -> Iterator[str]:
    """Where and when this was measured, and how to make it again."""
    dates = summary["dates"]
    if dates:
        yield "Measured " + (dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}") + "."
        if summary["machines"]:
            yield f"Machine: {'; '.join(summary['machines'])}."
        yield f"Versions: {'; '.join(summary['versions'])}."
        if summary["commits"]:
            yield f"Commit: {', '.join(summary['commits'])}."


def again() -> Iterator[str]:
    """How to make the report again, and the runs; commands stand between backticks."""
    yield (
        "In the folder of this file, `cola-compare folder=. report=true` makes it again from "
        "comparison.yaml and ledger.jsonl."
    )
    yield (
        "`cola-compare folder=.` runs what the ledger does not have: everything, beside a "
        "comparison.yaml alone."
    )
