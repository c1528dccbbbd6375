"""The recipes that are meant to be run, and what the docs say they take."""

import re

import pytest
from helpers import REPOSITORY

from benchmarks import planning
from cola_train.commands.cli import compose
from cola_train.commands.overrides import check_overrides
from cola_train.config.checks import OF_THE_CONFIG, load
from cola_train.config.schema import Config
from cola_train.gpus import GPUS
from cola_train.parallel.topology import Topology
from cola_train.planning.estimate import Assumptions, step_time
from cola_train.planning.memory import memory
from cola_train.planning.run import Run

RECIPES = {"1b_8gpus": 8, "1b_64gpus": 64, "7b_64gpus": 64}
PAPER = ["paper_60m", "paper_130m", "paper_350m", "paper_1b", "paper_7b"]
GIVEN = Assumptions(GPUS["h100-80gb"], 0.7, 400.0, 0.1)  # cola-plan's defaults
DOCS = REPOSITORY / "docs"


def config_of(*overrides: str, gpus: int = 1) -> Config:
    good, problems = check_overrides(list(overrides))
    topology = Topology(gpus, min(gpus, 8))
    return load(compose(good, problems), problems, topology=topology, checks=OF_THE_CONFIG)


def recipe(name: str, *overrides: str) -> Run:
    gpus = RECIPES[name]
    config = config_of(f"experiment={name}", "train.compile=true", *overrides, gpus=gpus)
    return Run(config, Topology(gpus, 8))


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("options", ["kernels=torch", "kernels=triton", "method=full"])
def test_a_recipe_fits_an_80_gb_gpu_with_room(name, options):
    run = recipe(name, options)
    assert memory(run).total < 0.75 * GIVEN.usable_bytes
    assert run.config.train.sequence_length >= 1024 and run.config.train.batch_tokens
    assert run.config.evaluation.batch_size <= run.micro_batch_size
    time = step_time(run, GIVEN)
    assert time.collectives < 0.9 * time.kernels  # which hide them
    tokens = run.config.train.steps * run.config.train.batch_tokens
    # C4 en: 156 billion tokens, not counting T5's smaller pieces, in 1,024 files
    assert tokens <= run.config.data.max_files * 156e9 / 1024


@pytest.mark.parametrize("gpus", [1, 8])
@pytest.mark.parametrize("options", ["kernels=torch", "kernels=triton", "method=full"])
@pytest.mark.parametrize("name", PAPER)
def test_a_papers_micro_batch_fits_an_80_gb_gpu(name, options, gpus):
    """And it is a part of a GPU's share, be it one GPU or eight."""
    if (name, options, gpus) == ("paper_7b", "method=full", 1):
        gpus = 2  # the paper's full rank is too large for one, whatever the batch
    config = config_of(f"experiment={name}", options, gpus=gpus)
    run = Run(config, Topology(gpus, 8), gpu=GIVEN.gpu)
    assert config.batch_size == run.accumulation * run.micro_batch_size * gpus == 512
    assert run.tokens >= 4096  # rows enough for GEMMs
    assert memory(run).total < GIVEN.usable_bytes


def test_the_figures_of_the_docs_are_the_plans():
    text = (DOCS / "pretraining.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE)
    assert [name for name, _ in rows] == list(RECIPES)
    for name, cells in rows:
        run = recipe(name, "kernels=torch")
        train, seconds = run.config.train, step_time(run, GIVEN).total
        hours = train.steps * seconds / 3600
        assert cells.split(" | ") == [
            str(RECIPES[name]),
            f"{train.steps * train.batch_tokens / 1e9:.0f} billion",
            f"{train.batch_tokens / 1e6:.1f} million tokens",
            f"{memory(run).total / 2**30:.1f} GiB",
            f"{seconds:.3f} s",
            f"{hours:.3g} hours",
            f"{hours * RECIPES[name]:,.0f}",
        ]
    waits = step_time(recipe("7b_64gpus", "kernels=torch", "engine.sharding=full"), GIVEN).total
    assert f"{64_000 * waits / 3600:.1f} hours in place of" in text


@pytest.mark.parametrize("where", ["README.md", "docs/planning.md"])
def test_shares_of_parameters_and_compute_are_those_of_the_costs(where):
    text = " ".join((REPOSITORY / where).read_text().split())
    for size in planning.SIZES:
        of = planning.compute_of(size)
        shares = [of["cola"][cost] / of["full"][cost] for cost in of["full"]]
        if where == "README.md":  # half or less from 350m on
            assert (max(shares) < 0.51) == (size not in ("60m", "130m"))
        if where == "docs/planning.md" or size in ("60m", "7b"):
            assert re.search(
                f"{shares[0]:.2f} and {shares[1]:.2f} (of them )?at {size}", text
            ), (size, shares)  # fmt: skip


def test_a_model_of_prose_continues_prose():
    for name in [*PAPER, *RECIPES]:
        prompt = config_of(f"experiment={name}").evaluation.sample_prompt
        assert prompt == "The best way to ", name
    assert config_of().evaluation.sample_prompt == "def "
    chosen = config_of("experiment=paper_60m", "evaluation.sample_prompt=Once")
    assert chosen.evaluation.sample_prompt == "Once"


def test_the_commands_of_the_docs_compose():
    """With the options of the page; files and SLURM are not looked at."""
    text = (DOCS / "pretraining.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^(?:NODES=8 )?(?:cola-prepare|launch/\S+) (.*)$", text, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        options = [word.strip("'") for word in command.split()]
        gpus = RECIPES[options[0].removeprefix("experiment=")]
        config = config_of(*options, gpus=gpus)
        assert config.data.source == ("text" if "data=text" in options else "c4")
