"""Passes over one new column as one graph, for all steps: blocks compiled, the step recorded by
CUDA, or both.

Both want a static cache (`caches.make_cache(static=True)`), of which the device knows how far it is
filled. Other passes, as of prompts, run as usual.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from cola_train.errors import UserError
from cola_train.inference.caches import KeyValueCache, make_cache, step_of
from cola_train.inference.native import Native
from cola_train.model.context import AttentionContext
from cola_train.model.llama import Llama
from cola_train.parallel.compile import compile_blocks

# (rows, columns that there is room for, how many of each row's first ones are padding or None)
CacheMaker = Callable[[int, int, Tensor | None], KeyValueCache]
ROUND = 256


def fastest(
    model: Llama,
    kind: str,
    cuda_graph: bool | None = None,
    compiled: bool = False,
    native: bool = False,
) -> tuple[Callable[..., Tensor], CacheMaker]:
    """What to call in a model's place, and the caches of a kind to call it with.

    cuda_graph: record a step, and replay it; None: where that is known to be faster. compiled: a
        step's blocks, by torch.compile, which the model's own are replaced by. native: a token of a
        single sequence by compiled C++.

    Raises:
        UserError: one of the first two is wanted and the model is on no GPU; compiled C++ is, and
            cannot be had for it.
    """
    device = model.embedding.weight.device
    for name, wanted in (("cuda_graph", cuda_graph), ("compile", compiled)):
        if wanted and device.type != "cuda":
            raise UserError(f"{name}: the model is not on a GPU; leave it out")
    if native:
        if kind != "kv":
            raise UserError(f"native: it is for cache=kv alone, and this is cache={kind}")
        return Native(model), partial(make_cache, kind, model)
    if cuda_graph is None:
        cuda_graph = recorded(kind, device)
    new_cache: CacheMaker = partial(make_cache, kind, model, static=cuda_graph or compiled)
    if compiled:
        compile_blocks(model, when=is_step, dynamic=False)
        new_cache = rounded(new_cache)
    return Recorded(model) if cuda_graph else model, new_cache


def recorded(kind: str, device: torch.device) -> bool:
    """On GPUs, where only the cache of keys and values has been tried."""
    return device.type == "cuda" and kind == "kv"


def is_step(context: AttentionContext) -> bool:
    """Over one column of a static cache: the same shapes, whichever it is."""
    return context.cache is not None and step_of(context).begin is None


def rounded(new_cache: CacheMaker) -> CacheMaker:
    """Lengths by the `ROUND`: one that is new is compiled anew."""
    return lambda batch, length, starts: new_cache(batch, -(-length // ROUND) * ROUND, starts)


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
