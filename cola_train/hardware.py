"""What this machine's processor or GPU can do: precision, threads, peak speed, memory used."""

import contextlib
import ctypes
import importlib.util
import os
import platform
import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from cola_train.config.schema import Config
from cola_train.gpus import GPUS, Gpu


def has_bf16(device: torch.device) -> bool:
    """True where bf16 matmuls are faster than fp32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = _cpu_flags()
    return "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags


def _cpu_flags() -> set[str]:
    """Instruction set flags of the CPU; empty where the system does not tell."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith(("flags", "Features")):
                    return set(line.split(":", 1)[1].split())
    except OSError:
        pass
    return set()


def precision_on(device: torch.device, precision: str) -> str:
    """bf16, fp32 or fp8, for the option `train.precision`."""
    if precision != "auto":
        return precision
    return "bf16" if has_bf16(device) else "fp32"


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of weights and activations between ops; fp8 is within them."""
    return torch.float32 if precision_on(device, precision) == "fp32" else torch.bfloat16


def masks_at_speed(attention: str, device: torch.device) -> bool:
    """Whether attention within the documents of a row is as fast as over all of it: on CPUs
    (measured: no slower than plain causal attention) and with flash-attn; SDPA on a GPU would
    leave its flash kernel. attention: `model.attention`."""
    return attention == "flash" or device.type == "cpu"


def tune_process(threads: int | None, local_processes: int) -> None:
    """Set the CPU threads of this process, and keep its freed memory.

    threads: None: this process's share of the machine's cores. torchrun sets OMP_NUM_THREADS=1
        where the user has not, which idles cores.
    """
    _keep_freed_memory()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads or max(1, cores // local_processes))


def _keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next allocation instead of returning it.

    It would hand every large tensor back to the kernel and fault in a fresh, zeroed one a moment
    later: 10 to 15 % of a training step on a CPU (docs/log.md). Does nothing with another
    C library.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):
        pass


def gpu_named(name: str) -> Gpu | None:
    """The GPU to which CUDA gives that name; None if it is not in the table."""
    # the longest first: "H100 PCIe" before "H100"
    for gpu in sorted(GPUS.values(), key=lambda gpu: -len(gpu.device_name)):
        # whole words: an A10G is no A10, and an NVL or a laptop's part is another one
        if re.search(rf"\b{gpu.device_name}\b(?!.*\b(NVL|Laptop|D)\b)", name):
            return gpu
    return None


def kernels_on(device: torch.device, kernels: str, precision: str) -> str:
    """torch or triton, for the option `kernels`: auto is Triton on the GPUs where that was measured
    faster (`gpus.GPUS`), but for fp8, which Triton's kernels do not have."""
    if kernels != "auto":
        return kernels
    if precision == "fp8":
        return "torch"
    gpu = gpu_named(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return "triton" if gpu is not None and gpu.fused_kernels else "torch"


def compiled_on(device: torch.device, config: Config) -> bool:
    """Whether blocks are compiled, for the option `train.compile`: null is yes on a GPU, where
    torch.compile fuses what a block does between its matmuls; it needs Triton for that."""
    if config.train.compile is not None:
        return config.train.compile
    triton = importlib.util.find_spec("triton") is not None
    return device.type == "cuda" and triton and config.engine.compiles


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s that MFU is a fraction of: a GPU's data sheet, or on a CPU a measured product.

    None for a GPU that is not in the table, or in fp32 on one.
    """
    if device.type == "cuda":
        gpu = gpu_named(torch.cuda.get_device_name(device))
        return gpu.bf16_flops if gpu is not None and dtype == torch.bfloat16 else None
    n = 1024
    a = torch.ones(n, n, dtype=dtype)
    a @ a
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory this process has held since it began, or since `reset_peak_memory`: allocated
    on the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # of this program alone: getrusage's begins with that of the process that started it
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak_memory() -> None:
    """Return freed memory to the system, and count from here on, where the system can do it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets VmHWM: man proc


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that new processes can take: free, a cache that would give way, or swap, within the
    limits of this process's cgroups. None where the system does not tell.

    root: of the file system, for tests.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        sizes = {name: 1024 * int(rest.split()[0]) for name, rest in (x.split(":") for x in lines)}
        return min([sizes["MemAvailable"], *_cgroup_room(root)]) + sizes["SwapFree"]
    except (OSError, KeyError):
        return None


def _cgroup_room(root: Path) -> Iterator[int]:
    """What is left of the memory limit of each cgroup that this process is in."""
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            top, limit, used, prefix = "", "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            top, limit, used = "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            prefix = "total_"
        else:
            continue
        mount = root / "sys/fs/cgroup" / top
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            # No file: another namespace's path, or the root. "max": no limit.
            with contextlib.suppress(OSError, ValueError):
                room = int((folder / limit).read_text()) - int((folder / used).read_text())
                stat = dict(x.split() for x in (folder / "memory.stat").read_text().splitlines())
                cached = (stat[f"{prefix}{kind}_file"] for kind in ("active", "inactive"))
                yield room + sum(map(int, cached))
            if folder == mount:
                break


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
