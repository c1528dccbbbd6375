"""`cola-dashboard wandb`, as far as it goes without a network."""

import re
from typing import Any

import pytest
from helpers import read_json

from cola_train.commands.dashboard_wandb import WorkspaceOptions, run
from cola_train.dashboards import workspace
from cola_train.errors import UserError
from cola_train.run.sinks.figures import figures_of

LINES = (
    {"loss": 1.0, "lr": 1.0, "grad_norm": 1.0, "skipped": 0, "tokens_per_second": 1.0, "mfu": 1.0,
     "step_seconds": 1.0, "data_seconds": 1.0, "peak_memory_bytes": 1},
    {"val_loss": 1.0, "val_perplexity": 1.0, "val_loss/wiki": 1.0},
    {"task/arc/acc": 0.5},
    {"health": {figure: {"down": [1.0]} for figure in (
        "z_rank", "s_rank", "dead", "saturated", "norm_a", "norm_b", "norm_ba", "condition",
        "update_a", "update_b")}},
    {"health": {figure: [1.0] for figure in ("grad_norm", "max_logit", "residual_rms")}},
)  # fmt: skip


def found(value: Any, key: str) -> list[Any]:
    """All values of `key`, however deep."""
    if isinstance(value, list):
        return [each for item in value for each in found(item, key)]
    if not isinstance(value, dict):
        return []
    here = [value[key]] if key in value else []
    return here + [each for inner in value.values() for each in found(inner, key)]


def test_the_workspace_shows_what_runs_log(tmp_path, capsys):
    pytest.importorskip("wandb_workspaces", reason="the extra is not installed")
    file = tmp_path / "workspace.json"
    assert run(WorkspaceOptions(project="p", entity="e", out=str(file))) == 0
    view = read_json(file)
    assert (view["entity"], view["project"]) == ("e", "p")
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    names = [section["name"] for section in sections]
    assert names == ["quality", "speed", "memory", "low-rank health", "methods"]
    assert all(section["panels"] and section["isOpen"] for section in sections)

    logged = {name for line in LINES for name in figures_of(line)}
    plotted = {name for names in found(sections, "metrics") for name in names}
    assert len(plotted) > 15
    assert {name.removeprefix("summary_metrics.") for name in plotted} <= logged
    for pattern in found(sections, "metricRegex"):
        assert any(re.search(pattern, name) for name in logged), pattern
    curves = [each for each in found(sections, "xAxis") if not each.startswith(("summary:", "_"))]
    assert set(curves) == {"tokens", "config:training_flops_per_token.value"}


def test_what_is_missing_is_said_with_its_fix(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "logged_in", lambda: False)
    with pytest.raises(UserError, match="wandb login"):
        run(WorkspaceOptions())
    monkeypatch.setattr(workspace, "logged_in", lambda: True)
    monkeypatch.setattr(workspace, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'cola_train\[workspaces\]'"):
        run(WorkspaceOptions(entity="e"))


def test_a_workspace_that_is_not_saved_says_why(monkeypatch):
    class Refused:
        def save(self) -> None:
            raise RuntimeError("no such project")

    monkeypatch.setattr(workspace, "logged_in", lambda: True)
    monkeypatch.setattr(workspace, "build", lambda *_: Refused())
    with pytest.raises(UserError, match=r"not saved \(no such project\); look at project=p"):
        run(WorkspaceOptions(entity="e", project="p"))
