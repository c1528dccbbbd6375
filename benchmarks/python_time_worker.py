"""One side of `python_time`: the parts of a training step, timed each time its stdin asks.

Run as a file, with the checkout to be timed on PYTHONPATH: it must run against commits whose API
differs, and `build_engine` is where that is known. Answers with one line of JSON for each line it
reads; "ready" is the first.

Usage: python -P python_time_worker.py METHOD KERNELS COMPILED LAYERS PRECISION
"""

import ctypes
import dataclasses
import json
import os
import sys
import time
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

WARMUP = 3  # the first steps compile, and allocate the optimizer's state
WIDTHS = {"vocab_size": 64, "d_model": 64, "d_ff": 96, "n_heads": 2}
NORM_EPS = 1.0  # or the gradients of norms of zeros, which unlaunched kernels leave, would overflow
LENGTH = 16  # tokens of the one sequence


def main() -> None:
    method, kernels, compiled, layers, precision = sys.argv[1:]
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # its default; silences a warning
    import torch

    torch.set_num_threads(1)
    if kernels == "triton":
        stub_triton()
    engine = build_engine(method, kernels, compiled == "True", int(layers), precision)
    window = torch.randint(WIDTHS["vocab_size"], (1, LENGTH + 1))
    batch = Batch(window[:, :-1].contiguous(), window[:, 1:].contiguous())
    parts = Parts(engine)
    for _ in range(WARMUP):
        parts.step(batch)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(parts.step(batch)), flush=True)


class Batch(SimpleNamespace):
    """The trainer's batch, whichever commit's: inputs and targets (1, LENGTH), no documents."""

    def __init__(self, inputs: Any, targets: Any) -> None:
        super().__init__(inputs=inputs, targets=targets, documents=None)

    def to(self, device: Any) -> "Batch":
        return Batch(self.inputs.to(device), self.targets.to(device))


class Parts:
    """Times an engine's own step. Its forward pass ends where it has a loss, its backward pass is
    `Tensor.backward`; the rest is the norm, clipping, the optimizer, and what is counted."""

    def __init__(self, engine: Any) -> None:
        import torch

        self.engine = engine
        self.seconds = dict.fromkeys(("forward", "backward"), 0.0)
        loss = "loss" if hasattr(engine, "loss") else "_loss"
        setattr(engine, loss, self.timed("forward", getattr(engine, loss)))
        backward = self.timed("backward", torch.Tensor.backward)
        torch.Tensor.backward = lambda *a, **k: backward(*a, **k)  # type: ignore[method-assign]

    def timed(self, part: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            start = time.thread_time()
            result = function(*args, **options)
            self.seconds[part] += time.thread_time() - start
            return result

        return call

    def step(self, batch: Batch) -> dict[str, float]:
        """Seconds of the main thread in one step, by part."""
        self.seconds.update(forward=0.0, backward=0.0)
        start = time.thread_time()
        result = self.engine.train_step([batch], 1e-4)
        total = time.thread_time() - start
        if result.skipped:
            raise RuntimeError("a step was not finite: its optimizer did not run")
        return self.seconds | {"rest": total - sum(self.seconds.values())}


def build_engine(method: str, kernels: str, compiled: bool, layers: int, precision: str) -> Any:
    """The checkout's engine, on what a GPU would run: no kernel or norm that CPUs alone take.

    Knows this commit and 5dacad5, whose packages are modules here and whose norm looks at devices.
    """
    import torch.nn.functional as F

    from benchmarks.bare_config import bare_config
    from cola_train import distributed

    def either(*names: str) -> Any:
        """The first that there is of "module:attribute"."""
        for name in names:
            module, attribute = name.split(":")
            try:
                return getattr(import_module(module), attribute)
            except (ModuleNotFoundError, AttributeError):
                continue
        raise ImportError(f"this checkout has none of {', '.join(names)}")

    either("cola_train.model.norm:RMSNorm").forward = lambda self, x: F.rms_norm(
        x, self.weight.shape, self.weight, self.eps
    )
    config: Any = bare_config(
        "1b", method, "none", batch_size=1, sequence_length=LENGTH, precision=precision,
        compiled=compiled, layers=layers, kernels=kernels,
    )  # fmt: skip
    model = dataclasses.replace(config.model, **WIDTHS, norm_eps=NORM_EPS)
    config = dataclasses.replace(config, model=model)
    device = distributed.start()
    try:
        for_cpus: Any = import_module("cola_train.model.cpu")
        for_cpus.specialise = lambda *a, **k: None
        build = either("cola_train.train:build")
    except ModuleNotFoundError:  # 5dacad5
        build_method = either("cola_train.methods:build_method")
        method_of = build_method(config)
        built = either("cola_train.model:build_model")(config, method_of)
        either("cola_train.parallel:apply_recompute")(built, config.recompute)
        if compiled:
            either("cola_train.parallel:compile_blocks")(built)
        return either("cola_train.engines:build_engine")(config, built, method_of, device)
    return build(config, device)


def stub_triton() -> None:
    """Let Triton compile for sm_90 and dispatch as on a GPU, but launch nothing.

    What no kernel writes is zero, as torch then allocates it: the step stays finite.
    """
    import cola_kernels.support
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Utils:
        def load_binary(self, *args: Any) -> tuple[int, ...]:
            return 1, 1, 128, 0, 1024  # module, function, registers, spills, most threads

        def unload_module(self, *args: Any) -> None:
            pass

        def get_device_properties(self, device: int) -> dict[str, int]:
            return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32,
                    "max_num_regs": 65536}  # fmt: skip

    class Launcher:
        def __init__(self, *args: Any) -> None:
            pass

        def __call__(self, *args: Any, **options: Any) -> None:
            pass

    class Driver:
        utils, launcher_cls, binary_ext = Utils(), Launcher, "cubin"

        def get_current_device(self) -> int:
            return 0

        def set_current_device(self, device: int) -> None:
            pass

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

        def map_python_to_cpp_type(self, name: str) -> str:
            return name

    allocator = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libc10.so"))
    ctypes.c_bool.in_dll(allocator, "FLAGS_caffe2_cpu_allocator_do_zero_fill").value = True
    driver.set_active(Driver())
    torch.cuda.device = lambda device: nullcontext()  # type: ignore
    torch.cuda.current_device = lambda: 0
    cola_kernels.support.unavailable = lambda device: None


if __name__ == "__main__":
    main()
