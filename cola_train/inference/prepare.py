"""A model's weights as generation reads them fastest.

Decoding reads each weight once a token, and does little else. So what reads one input lies in one
tensor, where training joins the parameters at every call; on CPUs in oneDNN's layout; and GPUs have
kernels for few rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from cola_kernels import unavailable
from torch import Tensor, nn

from cola_train.inference import packed
from cola_train.model.linear import AutoEncoders, Linears, Ops
from cola_train.model.llama import Block, Llama
from cola_train.model.mlp import MLP, AutoEncoderMLP
from cola_train.model.norm import RMSNorm


@runtime_checkable
class Wrapping(Protocol):
    """Ops that do more than those they wrap."""

    def over(self, ops: Ops) -> Ops:
        """The same around other ops."""
        ...


@dataclass(frozen=True)
class Layout:
    """How weights are laid out, and with what ops they are read; None: the module's own."""

    of: Callable[[Tensor], Tensor]
    ops: Ops | None

    def ops_of(self, own: Ops) -> Ops:
        """In place of a module's own, which may wrap others."""
        if self.ops is None:
            return own
        return own.over(self.ops) if isinstance(own, Wrapping) else self.ops

    def joined(self, weights: list[Tensor]) -> nn.Parameter:
        """Those of one input, one below the other."""
        return frozen(self.of(torch.cat(weights) if len(weights) > 1 else weights[0]))


def frozen(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)


PLAIN = Layout(lambda weight: weight, None)


def fastest(device: torch.device, dtype: torch.dtype) -> Layout:
    """For a token at a time of a few rows."""
    if packed.can_pack(device, dtype):
        return Layout(packed.pack, packed.PackedOps())
    if device.type == "cuda" and unavailable(device) is None:
        from cola_kernels.ops import decode  # imports Triton

        return Layout(PLAIN.of, decode)
    return PLAIN


@torch.no_grad()
def prepare(model: Llama, dtype: torch.dtype, plain: bool = False) -> Llama:
    """Change a model in place, and for good, into one that only generates.

    Its function stays, but for rounding. Its weights have other names and shapes, and on CPUs a
    layout that no other op reads. Memory is that of the weights, and meanwhile of a module's more.

    dtype: of weights and activations. plain: in torch's layout, by the modules' own ops, as
        torch.compile wants it on a CPU.
    """
    for parameter in model.parameters():  # buffers keep theirs: rotary angles are fp32
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(dtype)
    device = model.embedding.weight.device
    layout = PLAIN if plain else fastest(device, dtype)
    for block in model.layers:
        assert isinstance(block, Block)
        block.attention.qkv = ready(block.attention.qkv, layout)
        block.attention.out = ready(block.attention.out, layout)
        block.mlp = ready(block.mlp, layout)
    if layout.of is packed.pack:
        model.head.weight = frozen(packed.pack(model.head.weight))
        model.head.linear = packed.linear
    if device.type == "cpu":
        for module in [*model.modules()]:
            if isinstance(module, RMSNorm):
                module.normalise = RowNorm(module.weight, module.eps)
    return model.eval()


def ready(module: nn.Module, layout: Layout) -> nn.Module:
    """The module's twin of joined weights; itself where it has none, which is slower."""
    if isinstance(module, Linears):
        return JoinedLinears(module, layout)
    if isinstance(module, AutoEncoders):
        return JoinedAutoEncoders(module, layout)
    if isinstance(module, AutoEncoderMLP):
        return JoinedAutoEncoderMLP(module, layout)
    if isinstance(module, MLP):
        module.gate_up = ready(module.gate_up, layout)
        module.down = ready(module.down, layout)
    return module


class JoinedLinears(nn.Module):
    """`Linears` that own one weight."""

    def __init__(self, linears: Linears, layout: Layout) -> None:
        super().__init__()
        weights = linears.weights()
        self.widths = [len(weight) for weight in weights]
        self.ops = layout.ops_of(linears.ops)
        self.weight = layout.joined(weights)
        self.joined = [self.weight]  # found faster than a parameter

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, ...]:
        (y,) = self.ops.linear(x, self.joined, residual)
        return (y,) if len(self.widths) == 1 else y.split(self.widths, dim=-1)


class JoinedAutoEncoders(AutoEncoders):
    """The same, of one A."""

    def __init__(self, layers: AutoEncoders, layout: Layout) -> None:
        nn.Module.__init__(self)
        self.d_in, self.d_outs, self.ranks = layers.d_in, layers.d_outs, layers.ranks
        self.activation, self.ops = layers.activation, layout.ops_of(layers.ops)
        self.A = layout.joined(layers.encoders())
        self.B = nn.ParameterList(frozen(layout.of(B)) for B in layers.decoders())
        self.lists: tuple[list[Tensor], list[Tensor]] = [self.A], [*self.B]

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, ...]:
        As, Bs = self.lists
        return self.ops.up(self.ops.down(x, As), Bs, residual, self.activation)

    def encoders(self) -> list[Tensor]:
        return self.lists[0]

    def decoders(self) -> list[Tensor]:
        return self.lists[1]


class JoinedAutoEncoderMLP(AutoEncoderMLP):
    """The same, of one A for gate and up."""

    def __init__(self, mlp: AutoEncoderMLP, layout: Layout) -> None:
        nn.Module.__init__(self)
        self.d_model, self.d_ff, self.ranks = mlp.d_model, mlp.d_ff, mlp.ranks
        self.activation, self.gate_silu = mlp.activation, mlp.gate_silu
        self.ops = layout.ops_of(mlp.ops)
        self.A = layout.joined(mlp.encoders())
        for name in ("gate_B", "up_B", "down_A", "down_B"):
            setattr(self, name, frozen(layout.of(getattr(mlp, name))))
        self.tuple: tuple[Tensor, ...] = (
            self.A, self.gate_B, self.up_B, self.down_A, self.down_B
        )  # fmt: skip

    def forward(self, x_BTD: Tensor, residual_BTD: Tensor) -> Tensor:
        ops, activation = self.ops, self.activation
        A, gate_B, up_B, down_A, down_B = self.tuple
        z = ops.down(x_BTD, [A])
        z = ops.gated_down(z, gate_B, up_B, down_A, activation, self.gate_silu)
        return ops.up(z, [down_B], residual_BTD, activation)[0]


class RowNorm:
    """RMSNorm in fewer of torch's ops than its own has on a CPU: hypot(|x|, sqrt(D eps)) is
    sqrt(D) times what x is divided by."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        D = len(weight)
        self.weight = weight.detach().float() * D**0.5
        self.least = torch.tensor((D * eps) ** 0.5)

    def __call__(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x / length.hypot_(self.least)).mul_(self.weight).to(x.dtype)
