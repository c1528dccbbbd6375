"""A workspace of W&B for runs of this trainer, through wandb's own library: how well they predict,
how fast they are, what they hold, the health of their bottlenecks, and methods beside each other.

The library is an extra, and takes seconds to import: it is imported where a workspace is built.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

from cola_train.errors import UserError
from cola_train.run.sinks.figures import HEALTH
from cola_train.run.sinks.wandb import logged_in

EXTRA = "pip install 'cola_train[workspaces]'"
NAME = "CoLA"  # of the workspace, where nothing else is said
X = "tokens"  # what every curve is over
LOSS, VALIDATION = "train/loss", "validation/loss"
SMOOTHING = 0.6  # of training losses, which are noisy; W&B's own kind of average

# Of each bottleneck: figure, its title, which of a projection's layers is shown.
BOTTLENECKS = (
    ("z_rank", "effective rank of z", "median"),
    ("z_rank", "effective rank of z, least", "min"),
    ("s_rank", "effective rank of \u03c3(z)", "median"),
    ("dead", "dead directions, largest share", "max"),
    ("saturated", "saturated directions, largest share", "max"),
    ("norm_ba", "spectral norm of BA, largest", "max"),
    ("norm_a", "spectral norm of A, largest", "max"),
    ("norm_b", "spectral norm of B, largest", "max"),
    ("condition", "condition of BA, largest", "max"),
    ("update_a", "update of A over its norm", "median"),
    ("update_b", "update of B over its norm", "median"),
)
# Of each block: figure, title.
BLOCKS = (
    ("grad_norm", "gradient norm of a block"),
    ("max_logit", "largest attention logit"),
    ("residual_rms", "rms of the residual stream"),
)
LOGARITHMIC = {"norm_ba", "norm_a", "norm_b", "condition", "update_a", "update_b", "grad_norm"}


def build(entity: str, project: str, name: str = NAME) -> Any:
    """The `wandb_workspaces.workspaces.Workspace`, which is not saved.

    entity: W&B's user or team that has the project.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    if find_spec("wandb_workspaces") is None:
        raise UserError(f"wandb: a workspace needs wandb-workspaces, not installed here; `{EXTRA}`")
    from wandb_workspaces.workspaces import Section, Workspace, WorkspaceSettings

    panels = {
        "quality": quality(),
        "speed": speed(),
        "memory": memory(),
        "low-rank health": health(),
        "methods": methods(),
    }
    return Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[Section(name=title, panels=each, is_open=True) for title, each in panels.items()],
        settings=WorkspaceSettings(x_axis=X, max_runs=20),
    )


def quality() -> list[Any]:
    """Losses and what makes them."""
    return [
        curve("validation loss", [VALIDATION]),
        curve("training loss", [LOSS], smoothing_type="exponentialTimeWeighted",
              smoothing_factor=SMOOTHING, smoothing_show_original=True),
        curve("validation perplexity", ["validation/perplexity"], log_y=True),
        regex("validation loss of further sets", f"^{VALIDATION}/.+$"),
        regex("tasks", "^task/.+$"),
        curve("gradient norm", ["train/grad_norm"], log_y=True),
        curve("learning rate", ["train/lr"]),
        curve("steps skipped so far", ["train/skipped"]),
    ]  # fmt: skip


def speed() -> list[Any]:
    return [
        curve("tokens a second", ["perf/tokens_per_second"]),
        curve("MFU", ["perf/mfu"]),
        curve("seconds a step", ["perf/step_seconds"]),
        curve("of which waiting for data", ["perf/data_seconds"]),
    ]


def memory() -> list[Any]:
    return [
        curve("largest memory of a process (bytes)", ["perf/peak_memory_bytes"]),
        bars("largest memory of a process (bytes)", "perf/peak_memory_bytes", "max"),
    ]


def health() -> list[Any]:
    """Curves of runs with health.every; one for each projection."""
    of_projections = [
        regex(title, f"^{HEALTH}/{figure}/[a-z]+/{kind}$", log_y=figure in LOGARITHMIC)
        for figure, title, kind in BOTTLENECKS
    ]
    of_blocks = [
        curve(
            title,
            [f"{HEALTH}/{figure}/{kind}" for kind in ("min", "median", "max")],
            log_y=figure in LOGARITHMIC,
        )
        for figure, title in BLOCKS
    ]
    return [*of_projections, *of_blocks]


def methods() -> list[Any]:
    """What methods of training reach, and at what price. A run's last values count."""
    from wandb_workspaces.reports import v2

    def at_last(name: str) -> Any:
        return v2.SummaryMetric(name)

    def axis(metric: Any, name: str, **more: Any) -> Any:
        return v2.ParallelCoordinatesPlotColumn(metric=metric, display_name=name, **more)

    return [
        curve("validation loss by method", [VALIDATION], groupby=v2.Config("method.name"),
              groupby_aggfunc="mean", groupby_rangefunc="minmax"),
        bars("last validation loss, the best of each method", VALIDATION, "min"),
        v2.ScatterPlot(title="speed and validation loss", y=at_last(VALIDATION),
                       x=at_last("perf/tokens_per_second")),
        v2.ScatterPlot(title="FLOPs a token and validation loss", y=at_last(VALIDATION),
                       x=v2.Config("training_flops_per_token"), log_x=True),
        v2.ParallelCoordinatesPlot(
            title="from settings to loss",
            columns=[
                axis(v2.Config("method.name"), "method"),
                axis(v2.Config("parameters"), "parameters", log=True),
                axis(v2.Config("optim.lr"), "learning rate", log=True),
                axis(at_last("perf/peak_memory_bytes"), "memory"),
                axis(at_last("perf/tokens_per_second"), "tokens a second"),
                axis(at_last(VALIDATION), "validation loss", inverted=True),
            ],
        ),
        v2.RunComparer(diff_only="split"),
    ]  # fmt: skip


def curve(title: str, metrics: Sequence[str], **more: Any) -> Any:
    from wandb_workspaces.reports.v2 import LinePlot

    return LinePlot(title=title, x=X, y=list(metrics), **more)


def regex(title: str, pattern: str, **more: Any) -> Any:
    """Curves of all metrics whose names match."""
    from wandb_workspaces.reports.v2 import LinePlot

    return LinePlot(title=title, x=X, metric_regex=pattern, **more)


def bars(title: str, metric: str, choose: Literal["min", "max", "mean"]) -> Any:
    """A bar for each method: `choose` (min, max, mean) of its runs' last values."""
    from wandb_workspaces.reports.v2 import BarPlot, Config, SummaryMetric

    return BarPlot(title=title, metrics=[SummaryMetric(metric)], groupby=Config("method.name"),
                   groupby_aggfunc=choose)  # fmt: skip


def as_json(workspace: Any) -> dict[str, Any]:
    """What W&B is sent of it, as JSON values."""
    view: dict[str, Any] = workspace._to_model().model_dump(
        mode="json", by_alias=True, exclude_none=True
    )
    return view


def save(entity: str | None, project: str, name: str = NAME) -> str:
    """Build the workspace and save it as a new view of the project; returns its address.

    entity: None: the user's own.

    Raises:
        UserError: W&B knows no user here, cannot be reached, or refuses it.
    """
    if not logged_in():
        raise UserError("wandb: nobody is logged in here; `wandb login`, or write it by out=FILE")
    import wandb

    try:
        workspace = build(entity or wandb.Api().default_entity or "", project, name)
        workspace.save()
        return str(workspace.url)
    except UserError:
        raise
    except Exception as error:  # the library's, W&B's, the network's
        raise UserError(
            f"wandb: the workspace was not saved ({error}); look at project={project} and "
            f"entity={entity or 'null'}, or write it by out=FILE"
        ) from error
