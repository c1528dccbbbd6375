"""One token of one sequence as one call of compiled C++ (native.cpp), on a CPU in bf16.

Decoding at batch 1 is bound by the bytes of the weights, and torch's calls take longer than a small
weight's bytes. The compiler runs once a machine and version; what it made is kept in the cache of
prepared data.
"""

import ctypes
import hashlib
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cola_train.data.options import default_cache_dir
from cola_train.errors import UserError
from cola_train.files import temporary_name
from cola_train.inference.caches import KeyValueCache, KeyValues, blocks_of
from cola_train.inference.prepare import JoinedAutoEncoderMLP, JoinedAutoEncoders, JoinedLinears
from cola_train.model.attention import Attention
from cola_train.model.llama import Llama
from cola_train.model.mlp import MLP

SOURCE = Path(__file__).with_suffix(".cpp")
COMPILER = ("g++", "-O3", "-march=native", "-fopenmp", "-std=c++17", "-shared", "-fPIC", "-w")
HEADS = range(16, 129, 16)  # widths of a head

Index, Pointer = ctypes.c_int64, ctypes.c_void_p


class Projections(ctypes.Structure):
    _fields_ = [("A", Pointer), ("B", Pointer * 3), ("rank", Index * 3), ("silu", Index)]


class Block(ctypes.Structure):
    _fields_ = [
        *((name, Pointer) for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm")),
        *((name, Projections) for name in ("qkv", "out", "gate_up", "down")),
        ("keys", Pointer), ("values", Pointer),
    ]  # fmt: skip


class Model(ctypes.Structure):
    _fields_ = [
        *((name, Index) for name in ("d", "f", "heads", "length", "vocabulary", "blocks",
                                     "threads", "gate_silu", "positions")),
        ("eps", ctypes.c_float), ("block", ctypes.POINTER(Block)),
        *((name, Pointer) for name in ("embedding", "norm", "head", "rotary", "scratch")),
    ]  # fmt: skip


class Native:
    """Called as the model is, which it asks for all but single tokens of one sequence."""

    def __init__(self, model: Llama) -> None:
        """model: from `prepare(model, torch.bfloat16, plain=True)`.

        Raises:
            UserError: it is not of that kind, or this machine cannot compile or run it.
        """
        if (reason := unavailable(model)) is not None:
            raise UserError(f"native: {reason}; leave it out")
        self.library, self.model = library(), model
        self.cache: KeyValueCache | None = None
        config, threads = model.config, torch.get_num_threads()
        blocks = [*blocks_of(model)]
        mlps = [block.mlp for block in blocks]
        self.blocks = (Block * len(blocks))(
            *(
                Block(
                    address(block.attention_norm.weight), address(block.mlp_norm.weight),
                    *head_norms(block.attention),
                    projections(block.attention.qkv), projections(block.attention.out),
                    *of_mlp(block.mlp),
                )
                for block in blocks
            )
        )  # fmt: skip
        elements = self.library.scratch_elements
        elements.restype, elements.argtypes = Index, [Index] * 4
        size = elements(config.d_model, config.d_ff, model.max_length, threads)
        self.scratch = torch.zeros(size)
        self.rotary = model.rotary.float().contiguous()
        self.logits = torch.empty(1, 1, config.vocab_size)
        silu = {mlp.silu if isinstance(mlp, MLP) else mlp.gate_silu for mlp in mlps}
        self.values = Model(
            config.d_model, config.d_ff, config.n_heads, 0, config.vocab_size, len(blocks),
            threads, silu == {True}, self.rotary.shape[1], config.norm_eps, self.blocks,
            address(model.embedding.weight), address(model.norm.weight),
            address(model.head.weight), self.rotary.data_ptr(), self.scratch.data_ptr(),
        )  # fmt: skip
        self.step = self.library.step
        self.step.argtypes = [ctypes.POINTER(Model), Index, Index, Pointer]
        self.step.restype = None

    def __call__(self, tokens_BT: Tensor, cache: KeyValueCache, last: int = 1) -> Tensor:
        """Logits, which last until the next call."""
        one = tokens_BT.shape == (1, 1) and type(cache) is KeyValueCache and cache.filled > 0
        # the scratch memory, and the rotary table, are of the model's length
        room = cache.filled < cache.length <= self.model.max_length
        if not (one and room and cache.starts_B is None and cache.dtype == torch.bfloat16):
            return self.model(tokens_BT, cache=cache, last=last)
        if cache is not self.cache:
            self.bind(cache)
        logits = self.logits.data_ptr()
        self.step(ctypes.byref(self.values), int(tokens_BT), cache.filled, logits)
        cache.filled += 1
        cache.position.fill_(cache.filled)
        return self.logits

    def bind(self, cache: KeyValueCache) -> None:
        """Read and write the keys and values of this one."""
        self.cache, self.values.length = cache, cache.length
        for block, kept in zip(self.blocks, cache.blocks, strict=True):
            assert isinstance(kept, KeyValues)
            block.keys, block.values = kept.keys.data_ptr(), kept.values.data_ptr()


def unavailable(model: Llama) -> str | None:
    """Why the model cannot run so here; None: it can."""
    weight, width = model.embedding.weight, model.config.head_dim
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return f"it is for bf16 on a CPU, and this is {weight.dtype} on {weight.device.type}"
    if "avx512_bf16" not in cpu_flags():
        return "this CPU has no AVX-512 BF16"
    if shutil.which(COMPILER[0]) is None:
        return f"{COMPILER[0]} is not installed"
    if width not in HEADS:
        return f"heads of {width} are not among {HEADS.start} to {HEADS[-1]} in steps of 16"
    of_known = all(known(block.attention.qkv) and known(block.mlp) for block in blocks_of(model))
    return None if of_known else "the method's linears are not in one of the forms it knows"


def known(module: Any) -> bool:
    if isinstance(module, MLP):
        return known(module.gate_up) and known(module.down)
    return isinstance(module, JoinedLinears | JoinedAutoEncoders | JoinedAutoEncoderMLP)


def cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return {flag for line in text.splitlines() if line.startswith("flags") for flag in line.split()}


def library() -> Any:
    """native.cpp, compiled.

    Raises:
        UserError: it cannot be.
    """
    about = "\n".join([*COMPILER, SOURCE.read_text(), platform.machine(), *sorted(cpu_flags())])
    name = f"native-{hashlib.sha256(about.encode()).hexdigest()[:16]}.so"
    path = Path(default_cache_dir()).expanduser() / "native" / name
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            made = temporary_name(path)
            subprocess.run([*COMPILER, SOURCE, "-o", made], check=True, capture_output=True)
            made.replace(path)
        return ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        said = next((line for line in lines if "error" in line), "no message")
        raise UserError(f"native: {COMPILER[0]} cannot compile {SOURCE.name} ({said})") from None
    except OSError as error:
        raise UserError(f"native: {path} cannot be made or loaded ({error})") from None


def address(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    assert tensor.is_contiguous() and tensor.dtype == torch.bfloat16
    return tensor.data_ptr()


def head_norms(attention: Attention) -> tuple[int | None, int | None]:
    """Of queries and keys."""
    if not attention.normed:
        return None, None
    return address(attention.q_norm.weight), address(attention.k_norm.weight)


def of(A: Tensor, Bs: Sequence[Tensor] = (), silu: bool = False) -> Projections:
    ranks = (Index * 3)(*(B.shape[1] for B in Bs))
    return Projections(address(A), (Pointer * 3)(*map(address, Bs)), ranks, silu)


def projections(module: Any) -> Projections:
    if isinstance(module, JoinedLinears):
        return of(module.weight)
    return of(module.A, module.decoders(), module.activation)


def of_mlp(mlp: Any) -> tuple[Projections, Projections]:
    """Of gate and up, and of down."""
    if isinstance(mlp, MLP):
        return projections(mlp.gate_up), projections(mlp.down)
    return (
        of(mlp.A, [mlp.gate_B, mlp.up_B], mlp.activation),
        of(mlp.down_A, [mlp.down_B], mlp.activation),
    )
