"""train.cuda_graph: what it refuses, and that a replayed step is the step.

Without a GPU the graph is the stand-in of recorded.py.
"""

import dataclasses
import math

import pytest
import torch
from helpers import make_config, unfused_adamw, whole_state
from recorded import Graph, pretend_cuda_graphs
from test_fsdp import batches_of, engine_of

from cola_train import distributed
from cola_train.commands.cli import compose
from cola_train.config.checks import OF_THE_CONFIG, load
from cola_train.engines.fsdp.graph import WARM_UP, CapturedStep
from cola_train.errors import UserError
from cola_train.model.loss import IGNORE_INDEX
from cola_train.parallel.topology import Topology
from cola_train.train import build

STEPS = WARM_UP + 5
DEVICE = distributed.device()
# of numbers that fp32 holds: on the device it is one
RATES = [2.0**-7 * (1 - step / 16) for step in range(STEPS)]


@pytest.fixture(params=["a stand-in", pytest.param("CUDA", marks=pytest.mark.gpu)])
def graphs(request, monkeypatch):
    """CUDA graphs, if this machine has them; and deterministic kernels."""
    if request.param == "a stand-in":
        if DEVICE.type != "cpu":
            pytest.skip("the engine runs on the GPU")
        pretend_cuda_graphs(monkeypatch)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def captured(overrides):
    """The engine of the same run with train.cuda_graph, whose checks want a GPU."""
    config = make_config(*overrides)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, cuda_graph=True))
    return build(config, distributed.start())


def steps_of(engine, steps=range(STEPS), **batches):
    """Some steps; one is a spike, and one has no token to predict in one micro-batch."""
    results = []
    for step in steps:
        parts = batches_of(count=2, rows=4, seed=step, **batches)
        if step == WARM_UP + 1:
            parts[0].targets.fill_(IGNORE_INDEX)
        limit = 1.0 if step in (1, WARM_UP + 2) else math.inf
        results.append(engine.train_step(parts, RATES[step], limit, stop=step == WARM_UP + 3))
    return results


@pytest.mark.parametrize(
    "options",
    [
        ["method=full"],
        ["method=cola", "recompute=cola_m", "train.precision=bf16", "optim.clip=0.25"],
    ],
)
def test_replayed_steps_are_the_steps(tiny, graphs, options):
    """Bit for bit: losses, norms, skips, who asks for the end, and every weight and moment."""
    usual, recorded = engine_of([*tiny, *options]), captured([*tiny, *options])
    expected, results = steps_of(usual), steps_of(recorded)
    assert results == expected
    skipped = [step for step, result in enumerate(results) if result.skipped]
    assert skipped == [1, WARM_UP + 2]
    assert [step for step, result in enumerate(results) if result.stop] == [WARM_UP + 3]
    graph = recorded.captured.graph
    assert graph is not None and getattr(graph, "replays", 5) == STEPS - WARM_UP
    before = whole_state(usual)
    for name, tensor in whole_state(recorded).items():
        assert torch.equal(tensor, before[name]), name


def test_a_checkpoint_goes_on_with_and_without(tiny, graphs):
    """From one to the other; and back to one in the middle of replays, as a roll-back goes."""
    usual, recorded = engine_of(tiny), captured(tiny)
    saved = [None, None]
    for i, engine in enumerate((usual, recorded)):
        steps_of(engine, range(WARM_UP + 2))
        saved[i] = whole_state(engine)
    expected = steps_of(usual, range(WARM_UP + 2, STEPS))

    def go_on(engine, state):
        for name, tensor in engine.state_dict().items():
            tensor.copy_(state[name])
        engine.load_state_dict(engine.state_dict())
        return steps_of(engine, range(WARM_UP + 2, STEPS))

    assert go_on(engine_of(tiny), saved[1]) == expected
    assert go_on(captured(tiny), saved[0]) == expected
    steps_of(recorded, range(WARM_UP + 2, STEPS))
    assert go_on(recorded, saved[0]) == expected


def test_batches_of_another_shape_are_refused(tiny, graphs):
    engine = captured(tiny)
    engine.train_step(batches_of(1, 4), 1e-2)
    with pytest.raises(ValueError, match=r"train.cuda_graph: .*\(2, 32\).* recorded with .*\(4,"):
        engine.train_step(batches_of(1, 2), 1e-2)


def test_the_stand_in_finds_what_a_graph_cannot_hold(graphs):
    """Or the tests above would prove nothing: a wait, and a number that the host makes."""
    if DEVICE.type != "cpu":
        pytest.skip("of the stand-in")
    graph, x = Graph(), torch.ones(3)
    factor = 2.0
    with torch.cuda.graph(graph, stream=None, capture_error_mode=""):
        y = x * factor
        x += 1
    assert x.tolist() == [1, 1, 1]
    factor = 3.0
    x.fill_(5.0)
    graph.replay()
    assert (x.tolist(), y.tolist()) == ([6, 6, 6], [10, 10, 10])
    for wait in (lambda: x.sum().item(), lambda: x + torch.tensor(1.0), lambda: x.nonzero()):
        with (
            pytest.raises(AssertionError, match="cannot be recorded"),
            torch.cuda.graph(Graph(), stream=None, capture_error_mode=""),
        ):
            wait()


@pytest.mark.parametrize(
    ("overrides", "processes", "named"),
    [
        ([], 2, "is for one process, and there are 2; use train.cuda_graph=false"),
        (["engine=deepspeed"], 1, "use engine=fsdp, or train.cuda_graph=false"),
        (["model.attention=flash"], 1, "use data.document_mask=false or model.attention=sdpa"),
        (["model.attention=flash", "data.document_mask=false"], 1, None),
        (["data.document_mask=true", "train.precision=fp8"], 1, None),
    ],
)
def test_what_cannot_be_recorded_is_refused_by_name(overrides, processes, named):
    values = compose(["model=1b", *overrides, "train.cuda_graph=true"], [])
    topology = Topology(processes, processes)
    if named is None:
        load(values, checks=OF_THE_CONFIG, topology=topology)
        return
    with pytest.raises(UserError) as refused:
        load(values, checks=OF_THE_CONFIG, topology=topology)
    (problem,) = refused.value.problems
    assert problem.startswith("train.cuda_graph: ") and problem.endswith(named)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="this machine has a GPU")
def test_a_machine_without_a_gpu_is_refused(tiny):
    with pytest.raises(UserError, match=r"^train.cuda_graph: needs an NVIDIA GPU, and this is a"):
        make_config(*tiny, "train.cuda_graph=true")


def test_an_optimizer_that_decides_on_the_host_is_refused(tiny):
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    optimizer = unfused_adamw(parameters, make_config(*tiny).optim)
    with pytest.raises(UserError, match=r"^train.cuda_graph: AdamW .*train.cuda_graph=false"):
        CapturedStep(optimizer, DEVICE)
