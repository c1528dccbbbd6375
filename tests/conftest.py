"""What the tests share: a tiny corpus, a tiny run's overrides, the `gpu` marker."""

import random
import re
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import torch
from helpers import REPOSITORY, make_config
from slurm_cluster import Cluster

from cola_train.config.schema import Config


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(
        key=lambda item: item.get_closest_marker("slow") is None
    )  # first, so that both processes end together
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):  # a folder's name is among an item's keywords
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU, and there is none"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a failed test said, its processes' output in it, stays in build/failed/: one that fails
    once in many runs must not be lost with the terminal."""
    report = yield
    if report.failed:
        folder = REPOSITORY / "build" / "failed"
        folder.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"\W+", "-", item.nodeid)[-120:]
        parts = [report.longreprtext, *(f"--- {name}\n{text}" for name, text in report.sections)]
        (folder / f"{name}-{call.when}.txt").write_text("\n".join(parts))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the chaos test did, also when it passed."""
    reports = [r for key in ("passed", "failed") for r in terminalreporter.getreports(key)]
    lines = [line for r in reports for name, line in r.user_properties if name == "chaos"]
    if lines:
        terminalreporter.section("chaos test")
        terminalreporter.write("\n".join(lines) + "\n")


@pytest.fixture
def config_of() -> Callable[..., Config]:
    return make_config


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes of one processor a process, for what is skipped where `unavailable()`."""
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    cluster.environment |= {
        "PYTHON": sys.executable,
        "GPUS_PER_NODE": "0",
        "CPUS_PER_PROCESS": "1",
        "TIME": "10",
        "SWEEP_LOGS": str(tmp_path_factory.mktemp("sweeps")),
    }
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small .txt files: sentences of a few dozen words."""
    folder = tmp_path_factory.mktemp("corpus")
    choose = random.Random(0)
    words = "the a cat dog tree runs sees under over old red and while then it was not".split()
    for i in range(60):
        sentences = (" ".join(choose.choices(words, k=choose.randint(3, 12))) for _ in range(20))
        (folder / f"{i:03d}.txt").write_text(". ".join(sentences))
    return folder


@pytest.fixture(scope="session")
def tiny(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a run that takes milliseconds a step: fp32, 2 layers of width 32."""
    return [
        "model.d_model=32", "model.d_ff=40", "model.n_layers=2", "model.vocab_size=300",
        "data=text", f"data.files=[{corpus}/*.txt]", "data.workers=1",
        f"data.cache_dir={tmp_path_factory.mktemp('cache')}",
        "train.sequence_length=32", "train.batch_size=8", "train.precision=fp32",
        "train.threads=1", "train.deterministic=true", "train.compile=false", "evaluation.every=0",
        "evaluation.tokens=1024", "evaluation.batch_size=8", "evaluation.sample_tokens=4",
        "checkpoint.every=5", "tracking=local", "tracking.progress=false",
    ]  # fmt: skip
