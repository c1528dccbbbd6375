"""Where the fused ops run, and what they say where they cannot."""

import importlib
import importlib.util
import os
from collections.abc import Mapping
from types import ModuleType

import torch
from torch import Tensor

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
    if device.type != "cuda":
        return f"the kernels are for NVIDIA GPUs, not for {device.type}"
    if torch.version.hip is not None:
        return "the kernels are for NVIDIA GPUs, not for AMD's"
    if not torch.cuda.is_available():
        return "this process sees no CUDA GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"the kernels need compute capability 8.0 (Ampere); this GPU has {major}.{minor}"
    return None


def select(kernels: str, device: torch.device | str) -> ModuleType:
    """The module with `linear`, `gated`, `down`, `up` and `gated_down` for `kernels` = torch or
    triton.

    Raises:
        UnsupportedError: triton where it cannot run, or an unknown name.
    """
    if kernels not in ("torch", "triton"):
        raise UnsupportedError(f"kernels={kernels}: use torch or triton")
    if kernels == "torch":
        return importlib.import_module("cola_kernels.composed")
    if (reason := unavailable(device)) is not None:
        raise UnsupportedError(f"kernels=triton: {reason}; use kernels=torch")
    return importlib.import_module("cola_kernels.fused")


def architecture(op: str, device: torch.device) -> str:
    """The architecture whose launch configurations `device` takes.

    Raises:
        UnsupportedError: the fused ops cannot run there.
    """
    reason = unavailable(device)
    if reason is not None:
        raise UnsupportedError(f"cola_kernels.{op}: {reason}")
    if device.type == "cpu":
        return "sm_90"
    capability = torch.cuda.get_device_capability(device)
    if capability == (8, 0):
        return "sm_80"
    # 9.0 and 10.x have 227 KiB of shared memory; 8.6, 8.9 and 12.x less than 8.0
    return "sm_90" if capability[0] in (9, 10) else "sm_86"


def flat(op: str, name: str, x: Tensor) -> Tensor:
    """x (..., d) as (n, d).

    Raises:
        UnsupportedError: it has no leading axis.
    """
    if x.dim() < 2:
        raise UnsupportedError(
            f"cola_kernels.{op}: {name} has shape {tuple(x.shape)}; it needs an axis of rows "
            "before its last"
        )
    return x.flatten(0, -2)


def check_matrices(op: str, weights: Mapping[str, Tensor]) -> None:
    """Raises UnsupportedError for the first of `weights` that is not a matrix."""
    for name, weight in weights.items():
        if weight.dim() != 2:
            raise UnsupportedError(
                f"cola_kernels.{op}: {name} has shape {tuple(weight.shape)}; it must be a matrix"
            )


def check(op: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
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
