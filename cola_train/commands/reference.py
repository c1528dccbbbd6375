"""The page of all options: `python -m cola_train.commands.reference > docs/options.md`."""

import os
from collections.abc import Iterator

from cola_train.commands.compare import CompareOptions
from cola_train.commands.dashboard import DashboardOptions
from cola_train.commands.dashboard_wandb import WorkspaceOptions
from cola_train.commands.eval import EvalConfig
from cola_train.commands.export import ExportOptions
from cola_train.commands.generate import GenerateOptions
from cola_train.commands.groups import choices
from cola_train.commands.import_ import ImportOptions
from cola_train.commands.options import (
    GROUPS,
    choice_lines,
    default_choice,
    meaning,
    of_group,
)
from cola_train.commands.plan import PlanConfig
from cola_train.commands.plan_inference import InferenceOptions
from cola_train.commands.spectrum import SpectrumOptions
from cola_train.commands.watch import WatchOptions
from cola_train.config.describe import Option, about, options_of


def page() -> Iterator[str]:
    """Its lines."""
    yield from ("# Options", "")
    yield "`python -m cola_train.commands.reference` makes this page of the dataclasses' comments."
    yield "`--help GROUP` shows a part of it; `--help data=text` those of a choice."
    yield from ("", "## The run itself", *table(of_group("")))
    for group, kind in GROUPS.items():
        yield from ("", f"## {group}", "", f"{about(kind)}.", *choice_list(group))
        yield from table(of_group(group))
    yield from ("", "## experiment", "", "Several groups and options at once.")
    yield from choice_list("experiment")
    yield from ("", "## cola-plan's own", *table(options_of(PlanConfig)))
    yield from ("", "## cola-compare's own", *table(options_of(CompareOptions)))
    yield from ("", "## cola-generate's own", *table(options_of(GenerateOptions)))
    yield from ("", "## cola-dashboard's own", *table(options_of(DashboardOptions)))
    yield from ("", "## cola-plan inference's own", *table(options_of(InferenceOptions)))
    yield from ("", "## cola-export's own", *table(options_of(ExportOptions)))
    yield from ("", "## cola-eval's own", *table(options_of(EvalConfig)))
    yield from ("", "## cola-watch's own", *table(options_of(WatchOptions)))
    yield from ("", "## cola-dashboard wandb's own", *table(options_of(WorkspaceOptions)))
    yield from ("", "## cola-spectrum's own", *table(options_of(SpectrumOptions)))
    yield from ("", "## cola-import's own", *table(options_of(ImportOptions)))


def choice_list(group: str) -> Iterator[str]:
    lines = list(choice_lines(group, choices()))
    if lines:
        yield ""
    for choice, text in lines:
        first = " (default)" if choice == f"{group}={default_choice(group)}" else ""
        yield f"- `{choice}`{first}" + (f": {text}" if text else "")


def table(options: list[Option]) -> Iterator[str]:
    yield from ("", "| option | kind | default | meaning |", "|---|---|---|---|")
    for option in options:
        cells = [f"`{option.name}`", option.kind, f"`{option.default}`" if option.default else ""]
        cells.append(meaning(option))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    os.environ.pop("COLA_CACHE", None)  # the default of no machine
    print("\n".join(page()))
