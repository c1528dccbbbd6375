"""Where the fused ops run, and what they say where they cannot."""

import importlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from cola_kernels.tiles import TYPICAL, Target

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class UnsupportedError(ValueError):
    """A shape, dtype or device that a fused op does not take; the message names op and fix."""


def interpreting() -> bool:
    """Whether Triton interprets kernels on CPU tensors; read when Triton is first imported."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def unavailable(device: torch.device | str) -> str | None:
    """Why the fused ops cannot run on `device`; None where they can."""
    device = torch.device(device)
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cpu":
        return None if interpreting() else "Triton runs on CPUs only with TRITON_INTERPRET=1"
    return _not_from("the kernels", device, (8, 0), "Ampere")


def fp8_unavailable(device: torch.device | str) -> str | None:
    """Why `device` has no fp8 matmuls; None where it has."""
    return _not_from("fp8 matmuls", torch.device(device), (8, 9), "Ada")


def _not_from(
    what: str, device: torch.device, capability: tuple[int, int], generation: str
) -> str | None:
    """Why `device` is no NVIDIA GPU of at least this compute capability, which `what` need."""
    if device.type != "cuda":
        return f"{what} are for NVIDIA GPUs, not for {device.type}"
    if torch.version.hip is not None:
        return f"{what} are for NVIDIA GPUs, not for AMD's"
    if not torch.cuda.is_available():
        return "this process sees no CUDA GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < capability:
        return (
            f"{what} need compute capability {'.'.join(map(str, capability))} ({generation}); this "
            f"GPU has {major}.{minor}"
        )
    return None


def library(kernels: str, keep_wide: bool) -> ModuleType:
    """The module of the ops for `kernels` = torch or triton, wherever they may run."""
    fused = "fused_wide" if keep_wide else "fused"
    return importlib.import_module(f"cola_kernels.{'composed' if kernels == 'torch' else fused}")


def select(
    kernels: str, device: torch.device | str, keep_wide: bool = True, fp8: bool = False
) -> ModuleType:
    """The module with `linear`, `gated`, `down`, `up` and `gated_down` for `kernels` = torch or
    triton.

    keep_wide: whether triton's `gated_down` keeps what is as wide as d_ff for the backward pass,
        or computes it again there; torch's keeps it, unless a recomputation policy says otherwise.
    fp8: with fp8 products in them, which a CPU emulates.

    Raises:
        UnsupportedError: triton or fp8 where it cannot run, both together, or an unknown name.
    """
    if kernels not in ("torch", "triton"):
        raise UnsupportedError(f"kernels={kernels}: use torch or triton")
    if fp8:
        return _fp8(kernels, torch.device(device))
    if kernels == "triton" and (reason := unavailable(device)) is not None:
        raise UnsupportedError(f"kernels=triton: {reason}; use kernels=torch")
    return library(kernels, keep_wide)


def _fp8(kernels: str, device: torch.device) -> ModuleType:
    if kernels == "triton":
        raise UnsupportedError("kernels=triton: these ops have no fp8; use kernels=torch")
    if device.type != "cpu" and (reason := fp8_unavailable(device)) is not None:
        raise UnsupportedError(f"fp8: {reason}")
    return importlib.import_module("cola_kernels.fp8")


_meta_target: Target | None = None  # within `targeting`


@contextmanager
def targeting(of: Target) -> Iterator[None]:
    """Launches on meta tensors are made for this."""
    global _meta_target
    before, _meta_target = _meta_target, of
    try:
        yield
    finally:
        _meta_target = before


def target(op: str, device: torch.device) -> Target:
    """What launches on `device` are made for.

    Raises:
        UnsupportedError: the fused ops cannot run there.
    """
    if device.type == "meta" and _meta_target is not None:
        return _meta_target
    return _target(op, device)


@cache
def _target(op: str, device: torch.device) -> Target:
    reason = unavailable(device)
    if reason is not None:
        raise UnsupportedError(f"cola_kernels.{op}: {reason}")
    if device.type == "cpu":
        return replace(TYPICAL["sm_90"], processors=4)  # interpreted; a program has several tiles
    properties = torch.cuda.get_device_properties(device)
    # 9.0 and 10.x have 227 KiB of shared memory; 8.6, 8.9 and 12.x less than 8.0
    capability = (properties.major, properties.minor)
    large = "sm_90" if properties.major in (9, 10) else "sm_86"
    arch = "sm_80" if capability == (8, 0) else large
    return Target(arch, properties.multi_processor_count)


class Signature(NamedTuple):
    """What an op checks of a tensor: checks of the same signatures are made once."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def signature(x: Tensor) -> Signature:
    return Signature(x.shape, x.dtype, x.device)


Checked = Tensor | Signature


def check_rows(op: str, name: str, x: Checked) -> None:
    """Raises UnsupportedError if x has no axis before its last."""
    if len(x.shape) < 2:
        raise UnsupportedError(
            f"cola_kernels.{op}: {name} has shape {tuple(x.shape)}; it needs an axis of rows "
            "before its last"
        )


def check_matrices(op: str, weights: Mapping[str, Checked]) -> None:
    """Raises UnsupportedError for the first of `weights` that is not a matrix."""
    for name, weight in weights.items():
        if len(weight.shape) != 2:
            raise UnsupportedError(
                f"cola_kernels.{op}: {name} has shape {tuple(weight.shape)}; it must be a matrix"
            )


def check(op: str, tensors: Mapping[str, Checked], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Shape, dtype and device of an op's inputs.

    Args:
        tensors: by the argument's name; all must share one dtype and one device.
        shapes: what each must be.

    Raises:
        UnsupportedError: for the first that is not.
    """
    first_name, first = next(iter(tensors.items()))
    if first.dtype not in DTYPES:
        raise UnsupportedError(
            f"cola_kernels.{op}: {first_name} is {first.dtype}; use bfloat16, float16 or float32"
        )
    if interpreting() and first.dtype == torch.bfloat16:
        raise UnsupportedError(
            f"cola_kernels.{op}: {first_name} is bfloat16, on which Triton's interpreter is "
            "wrong; use float16 or float32 with TRITON_INTERPRET=1"
        )
    for name, tensor in tensors.items():
        for what in ("dtype", "device"):
            if getattr(tensor, what) != getattr(first, what):
                raise UnsupportedError(
                    f"cola_kernels.{op}: {name} has {what} {getattr(tensor, what)}, but "
                    f"{first_name} has {getattr(first, what)}; they must be the same"
                )
        if tuple(tensor.shape) != shapes[name]:
            raise UnsupportedError(
                f"cola_kernels.{op}: {name} has shape {tuple(tensor.shape)}, not {shapes[name]}"
            )
        if tensor.shape[-1] == 0:
            raise UnsupportedError(f"cola_kernels.{op}: {name} is of width 0")


def check_residual(op: str, weights: Sequence[Tensor], residual: Tensor | None) -> None:
    """Raises UnsupportedError for a residual with more than one weight, or with none."""
    if residual is not None and len(weights) != 1:
        raise UnsupportedError(
            f"cola_kernels.{op}: residual with {len(weights)} weights; give it one weight"
        )
