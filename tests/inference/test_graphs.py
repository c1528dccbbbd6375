"""Steps of a static cache: one graph for all of them, which computes what the model does."""

from typing import Any

import pytest
import torch
from recorded import pretend_cuda_graphs
from test_kinds import COLA, STARTS, of_method, tiny
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from cola_train.inference.caches import KeyValueCache, kinds, make_cache
from cola_train.inference.graphs import Recorded, fastest, is_step
from cola_train.inference.prepare import prepare
from cola_train.model.llama import Llama
from cola_train.parallel.compile import compile_blocks

GPU = torch.cuda.is_available()
STEPS = 6


@pytest.fixture(params=["a stand-in", pytest.param("CUDA", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """Where CUDA graphs are: on a GPU, or pretended on a CPU."""
    if request.param == "CUDA":
        return torch.device("cuda")
    pretend_cuda_graphs(monkeypatch)
    return torch.device("cpu")


def logits_of(call, cache: KeyValueCache, tokens: Tensor) -> Tensor:
    """Of a prompt's last position, then of each token after it."""
    first, *steps = tokens.split([5, *[1] * STEPS], dim=1)
    return torch.cat([call(part, cache=cache, last=1).clone() for part in (first, *steps)], dim=1)


def case(method, device: torch.device) -> tuple[Llama, Tensor, Tensor]:
    model = prepare(tiny(method).to(device), torch.float32, plain=True)
    tokens = torch.randint(300, (3, 5 + STEPS), generator=torch.Generator().manual_seed(0))
    return model, tokens.to(device), (STARTS // 2).to(device)


@pytest.mark.parametrize("whole", [True, False], ids=["model", "blocks"])
@pytest.mark.parametrize("method", [{"name": "full"}, COLA[0]], ids=of_method)
def test_one_graph_serves_all_steps(method, whole) -> None:
    """Without Inductor, whose C++ takes time."""
    model, tokens, starts = case(method, torch.device("cpu"))
    usual = case(method, torch.device("cpu"))[0]
    graphs = CompileCounterWithBackend("aot_eager")
    step = model
    if whole:
        step = torch.compile(model, fullgraph=True, dynamic=False, backend=graphs)
    else:
        compile_blocks(model, when=is_step, dynamic=False, backend=graphs)

    def call(tokens: Tensor, **rest: Any) -> Tensor:
        return (step if tokens.shape[1] == 1 else model)(tokens, **rest)

    for kind in kinds(model):
        padding = None if kind == "absorbed" else starts
        torch.compiler.reset()
        graphs.frame_count = 0
        for _ in range(2):  # another cache of these shapes takes the same graph
            cache = make_cache(kind, model, 3, 16, padding, static=True)
            logits = logits_of(call, cache, tokens)
            assert graphs.frame_count == 1
        expected = logits_of(usual, make_cache(kind, usual, 3, 16, padding), tokens)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", [{"name": "full"}, COLA[0]], ids=of_method)
def test_replayed_steps_are_the_steps(method, device) -> None:
    model, tokens, starts = case(method, device)
    for kind in kinds(model):
        for padding in (None, starts):
            recorded = Recorded(model)
            for _ in range(2):
                cache = make_cache(kind, model, 3, 16, padding, static=True)
                logits = logits_of(recorded, cache, tokens)
                usual = make_cache(kind, model, 3, 16, padding, static=True)
                assert torch.equal(logits, logits_of(model, usual, tokens))
                assert int(cache.position) == 5 + STEPS
                assert getattr(recorded.graph, "replays", STEPS) == STEPS


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("method", [{"name": "full"}, COLA[0]], ids=of_method)
def test_a_gpu_decodes_as_a_cpu(method, compiled) -> None:
    """One row: by a CUDA graph, and the kernels for few rows."""
    model, tokens, _ = case(method, torch.device("cpu"))
    expected = logits_of(model, make_cache("kv", model, 1, 16), tokens[:1])
    call, new_cache = fastest(prepare(tiny(method).cuda(), torch.float32), "kv", compiled=compiled)
    logits = logits_of(call, new_cache(1, 16, None), tokens[:1].cuda())
    torch.testing.assert_close(logits.cpu(), expected, atol=1e-4, rtol=1e-4)
