"""The page of Markdown: the verdict first, then every part as far as it came."""

from collections.abc import Mapping

from benchmarks.gpu.parts import PARTS, Outcome
from benchmarks.gpu.verdict import verdict

DRY_RUN = (
    "**This was a dry run: tiny shapes on a CPU, Triton interpreted. No figure on this page says "
    "anything of a GPU.**"
)
ENDS = {
    "done": "",
    "cut": "Cut at its limit of {limit:.0f} s: what it had not measured by then is missing.",
    "failed": "Failed after {seconds:.0f} s:",
    "interrupted": "Interrupted after {seconds:.0f} s.",
}


def page(outcomes: Mapping[str, Outcome], dry_run: bool) -> str:
    first = next((outcome for outcome in outcomes.values() if outcome.device), None)
    device = first.device if first else "unknown"
    versions = ", ".join(f"{k} {v}" for k, v in first.versions.items()) if first else ""
    text = [f"# {'Dry run on ' if dry_run else ''}{device}", "", f"{versions}.", ""]
    text += [DRY_RUN, ""] if dry_run else []
    text += ["## Verdict", "", *verdict(outcomes, dry_run), ""]
    for name, outcome in outcomes.items():
        text += [f"## {PARTS[name].title}{' (dry run)' if dry_run else ''}", ""]
        if said := ENDS[outcome.end].format(**vars(outcome)):
            text += [said, ""]
        if outcome.fault:
            text += ["```text", outcome.fault, "```", ""]
        if outcome.figures:
            text += [*PARTS[name].module.lines(outcome.figures), ""]
    missing = [part.title for name, part in PARTS.items() if name not in outcomes]
    if missing:
        text += [f"Not run: {', '.join(missing)}.", ""]
    return "\n".join(text)
