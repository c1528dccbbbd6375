"""Passes over one new column as one graph, for all steps: compiled, or recorded by CUDA.

Both want a static cache (`caches.make_cache(static=True)`), of which the device knows how far it is
filled; and are called as the model is. Other passes, as of prompts, run as usual.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cola_train.errors import UserError
from cola_train.inference.caches import KeyValueCache, make_cache
from cola_train.inference.native import Native
from cola_train.model.llama import Llama

# (rows, columns that there is room for, how many of each row's first ones are padding or None)
CacheMaker = Callable[[int, int, Tensor | None], KeyValueCache]


def fastest(
    model: Llama, kind: str, cuda_graph: bool | None = None, native: bool = False
) -> tuple[Callable[..., Tensor], CacheMaker]:
    """What to call in a model's place, and the caches of a kind to call it with.

    cuda_graph: record a step, and replay it; None: where that is known to be faster. native: a
        token of a single sequence by compiled C++.

    Raises:
        UserError: a graph is wanted and the model is on no GPU; compiled C++ is, and cannot be had
            for it.
    """
    device = model.embedding.weight.device
    if cuda_graph and device.type != "cuda":
        raise UserError("cuda_graph: the model is not on a GPU; leave it out")
    if native:
        if kind != "kv":
            raise UserError(f"native: it is for cache=kv alone, and this is cache={kind}")
        return Native(model), partial(make_cache, kind, model)
    static = recorded(kind, device) if cuda_graph is None else cuda_graph
    return Recorded(model) if static else model, partial(make_cache, kind, model, static=static)


def recorded(kind: str, device: torch.device) -> bool:
    """On GPUs, where only the cache of keys and values has been tried."""
    return device.type == "cuda" and kind == "kv"


class Compiled:
    """torch.compile takes a step whole: no position is a number in it. Weights must be in torch's
    layout (`prepare(plain=True)`)."""

    def __init__(self, model: Llama, **options: Any) -> None:
        """options: of torch.compile."""
        self.model = model
        self.step = torch.compile(model.forward, fullgraph=True, dynamic=False, **options)

    def __call__(self, tokens_BT: Tensor, cache: KeyValueCache, last: int = 1) -> Tensor:
        one = tokens_BT.shape[1] == 1 and cache.static
        return (self.step if one else self.model)(tokens_BT, cache=cache, last=last)


class Recorded:
    """A step's kernels in a CUDA graph: the host launches them all by one call.

    The graph reads and writes the tensors of the cache that it was recorded with, and its own: what
    it returns lasts until the next call. Another cache is recorded anew.
    """

    def __init__(self, model: Llama) -> None:
        self.model = model
        self.stream = torch.cuda.Stream(model.embedding.weight.device)
        self.cache: KeyValueCache | None = None
        self.graph: torch.cuda.CUDAGraph
        self.tokens: Tensor
        self.logits: Tensor

    def __call__(self, tokens_BT: Tensor, cache: KeyValueCache, last: int = 1) -> Tensor:
        if tokens_BT.shape[1] > 1 or not cache.static:
            return self.model(tokens_BT, cache=cache, last=last)
        if self.cache is not cache:
            self._record(tokens_BT, cache)
        self.tokens.copy_(tokens_BT)
        self.graph.replay()
        return self.logits

    def _record(self, tokens_B1: Tensor, cache: KeyValueCache) -> None:
        """A step, which does nothing yet. The one before it, for kernels to be chosen and libraries
        to allocate, writes what the first replay will."""
        self.tokens, before = tokens_B1.clone(), cache.position.clone()
        current = torch.cuda.current_stream(self.tokens.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            self.model(self.tokens, cache=cache, last=1)
            cache.position.copy_(before)
        current.wait_stream(self.stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
            self.logits = self.model(self.tokens, cache=cache, last=1)
        self.cache = cache
