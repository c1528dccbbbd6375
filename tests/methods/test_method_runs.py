"""Runs of every method: the same losses on any number of processes, checkpoints around a merge or a
refresh resumed to the bit, skipped steps that leave no trace, SIGKILL."""

import json

import pytest
import toy_method
from helpers import PERIODS, exit_code_of, launch, result_of_worker, wait_for_step
from workers.method_runs_worker import LAST, MOVED, SKIPPED, STEPS, places, saved

from cola_train.methods import METHODS

toy_method.register()
# Losses of about 5.7 are sums in fp32, whose last bit is 5e-7; sums in another order differ by a
# few of it. So do gradients, by 1e-7 of themselves; with eps at 1e-3 Adam does not amplify that,
# and 20 steps of at most 1e-2 an element carry it on.
ROUNDING = 2e-5


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Number of processes -> method -> what they saw."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("runs")
    worker = "method_runs_worker.py"
    return {n: result_of_worker(worker, folder, processes=n) for n in (2, 1, 4)}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_losses_do_not_depend_on_the_number_of_processes(found, method):
    alone = found[1][method]["full"]["losses"]
    assert len(alone) == STEPS and alone[-1] < alone[1] - 0.1
    for processes, shardings in places(method).items():
        for sharding in shardings:
            losses = found[processes][method][sharding]["losses"]
            assert losses == pytest.approx(alone, rel=0, abs=ROUNDING), (processes, sharding)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_skipped_step_leaves_no_trace(found, method):
    for processes, shardings in places(method).items():
        for sharding in shardings:
            assert found[processes][method][sharding]["changed"] == []
    losses = found[1][method]["full"]["losses"]
    # of the same batch, by weights that one step has changed
    assert losses[SKIPPED - 1] == pytest.approx(losses[SKIPPED + 1], abs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_around_an_event_a_checkpoint_resumes_to_the_bit(found, method):
    undisturbed, resumed = found[2][method]["full"], found[2][method]["resumed"]
    assert set(resumed) == {str(step) for step in saved(method)}
    for step, run in resumed.items():
        assert run["losses"] == undisturbed["losses"][int(step) : LAST], step
        assert run["state"] == undisturbed["state"], step


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_moves_to_other_processes_and_to_another_engine(found, method):
    """From two processes to one, to four in two copies, and to DeepSpeed."""
    expected = found[2][method]["full"]["losses"][MOVED:LAST]
    for processes in places(method):
        moved = found[processes][method]["moved"]["losses"]
        assert moved == pytest.approx(expected, rel=0, abs=ROUNDING), processes


def lines(run_dir):
    """Of metrics.jsonl, without what a clock or the machine decides."""
    kept = ("step", "tokens", "loss", "lr", "grad_norm")
    text = (run_dir / "metrics.jsonl").read_text()
    return [{k: line.get(k) for k in kept} for line in map(json.loads, text.splitlines())]


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted({"relora", "galore"} & METHODS.keys()))
def test_killed_between_events_it_is_the_undisturbed_run(tiny, tmp_path, method):
    common = [*tiny, f"method={method}", f"method.{PERIODS[method]}=10", "train.steps=40"]
    common += ["checkpoint.every=4"]
    assert exit_code_of([*common, f"run_dir={tmp_path / 'undisturbed'}"]) == 0
    killed = [*common, f"run_dir={tmp_path / 'killed'}"]
    process = launch(killed)
    wait_for_step(tmp_path / "killed", 15, process)
    process.kill()
    process.wait()
    assert len(lines(tmp_path / "killed")) < 40
    assert exit_code_of(killed) == 0
    assert lines(tmp_path / "killed") == lines(tmp_path / "undisturbed")
