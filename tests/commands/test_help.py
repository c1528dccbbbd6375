"""`--help` and the page of options: what they show, and that both are of one source."""

import dataclasses

import pytest
from helpers import REPOSITORY, exit_code_of, run_python

from cola_train.commands.compare import CompareOptions
from cola_train.commands.dashboard import DashboardOptions
from cola_train.commands.dashboard_wandb import WorkspaceOptions
from cola_train.commands.eval import EvalConfig
from cola_train.commands.export import ExportOptions
from cola_train.commands.generate import GenerateOptions
from cola_train.commands.groups import OPTIONS, UNIONS, choices
from cola_train.commands.help import COMMANDS, help_lines
from cola_train.commands.import_ import ImportOptions
from cola_train.commands.options import GROUPS, of_group
from cola_train.commands.plan import PlanConfig
from cola_train.commands.plan_inference import InferenceOptions
from cola_train.commands.reference import page
from cola_train.commands.spectrum import SpectrumOptions
from cola_train.commands.watch import WatchOptions
from cola_train.config.describe import about, options_of
from cola_train.methods import METHODS

OWN = {
    "cola-plan": PlanConfig,
    "cola-compare": CompareOptions,
    "cola-plan inference": InferenceOptions,
    "cola-export": ExportOptions,
    "cola-eval": EvalConfig,
    "cola-import": ImportOptions,
    "cola-generate": GenerateOptions,
    "cola-watch": WatchOptions,
    "cola-dashboard": DashboardOptions,
    "cola-dashboard wandb": WorkspaceOptions,
    "cola-spectrum": SpectrumOptions,
}
# take no option of cola-train's
ALONE = ("cola-export", "cola-generate", "cola-watch", "cola-dashboard", "cola-dashboard wandb")


@pytest.fixture(autouse=True)
def without_the_toy(monkeypatch):
    """The tests' own method, which another file of this process may have brought."""
    monkeypatch.delitem(METHODS, "toy", raising=False)


def test_every_option_and_group_has_a_meaning():
    options = [option for group in ("", *GROUPS) for option in of_group(group)]
    tags = {f"{group}.{union.tag}" for group, union in UNIONS.items()}
    assert {option.name for option in options} == OPTIONS.keys() - GROUPS.keys() - tags
    assert [
        option.name for option in [*options, *options_of(PlanConfig)] if not option.meaning
    ] == []
    kinds = [*GROUPS.values(), *(of for union in UNIONS.values() for of in union.members.values())]
    assert [kind for kind in kinds if not about(kind)] == []


def test_the_page_is_up_to_date(monkeypatch):
    """`python -m cola_train.commands.reference > docs/options.md` makes it so."""
    monkeypatch.delenv("COLA_CACHE", raising=False)
    assert (REPOSITORY / "docs" / "options.md").read_text().splitlines() == list(page())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_help_is_one_screen_of_its_own(command):
    shared = {} if command in ALONE else OPTIONS
    lines = list(help_lines(command, [], choices(), shared, OWN.get(command)))
    assert len(lines) <= 48 and max(map(len, lines)) <= 120 and lines[0].startswith(command)
    text = "\n".join(lines)
    assert "--help GROUP" in text
    assert all((word in text) == (command not in ALONE) for word in ("60m", "experiment"))
    assert ("gpus_per_node=8" in text) == (command == "cola-plan")


def test_help_on_a_group_a_choice_and_an_option(capsys, tmp_path):
    assert exit_code_of(["--help", "train", "experiment"]) == 0
    out = capsys.readouterr().out
    assert "  train.steps=300 " in out and "optimizer steps, which the schedule spans" in out
    assert out.count("train.") >= len(dataclasses.fields(GROUPS["train"]))
    assert "experiment=paper_60m" in out
    assert exit_code_of(["--help", "model=60m", "train.precision"]) == 0
    out = capsys.readouterr().out
    assert "model.d_model=512" in out and "| fp32 | fp8] auto: bf16 where" in out
    assert exit_code_of(["--help", "data=c4"]) == 0
    out = capsys.readouterr().out
    assert "data.tokenizer=t5-base" in out and "data.files" not in out
    assert exit_code_of(["--help", "trian"]) == 2
    assert (
        capsys.readouterr().err == "error: option `trian` does not exist; did you mean `train`?\n"
    )


def test_every_command_has_its_own():
    for name, command in [("prepare", "cola-prepare"), ("plan", "cola-plan")]:
        assert run_python("-m", f"cola_train.commands.{name}", "-h").stdout.startswith(command)
