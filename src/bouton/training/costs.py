"""What a run costs the machine: peak FLOP/s to compare with, peak memory, energy."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path

import torch

# Dense peaks of the matrix units with 16-bit factors and 32-bit sums, FLOP/s, which is what torch computes in bf16 and
# fp16; the figures that vendors print with sparsity are halved. From NVIDIA's data sheets of the products. Of several
# names that fit the first counts.
GPU_PEAKS: tuple[tuple[str, float], ...] = (
    ("GB200", 2.5e15),
    ("B200", 2.25e15),
    ("GH200", 990e12),
    ("H200 NVL", 836e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 836e12),
    ("H100", 989e12),  # SXM
    ("A100", 312e12),
    ("A40", 149.7e12),
    ("A30", 165e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("T4", 65e12),
    ("V100S", 130e12),
    ("V100-PCIE", 112e12),
    ("V100", 125e12),  # SXM2
)
_NO_BF16 = ("T4", "V100S", "V100-PCIE", "V100")  # their figures are for fp16

# GeForce cards: multiprocessors and boost clock in MHz of the desktop card. All three generations do 512 such FLOPs per
# clock and multiprocessor (half of what they do with 16-bit sums): the appendices of the white papers of GA102 (RTX
# 3080: 59.5 TFLOPS, 3090: 71), AD102 (RTX 4080: 97.5, 4090: 165.2) and RTX Blackwell (RTX 5080: 112.6, 5090: 209.5).
GEFORCE: dict[str, tuple[int, int]] = {
    "RTX 3060": (28, 1777),
    "RTX 3060 Ti": (38, 1665),
    "RTX 3070": (46, 1725),
    "RTX 3070 Ti": (48, 1770),
    "RTX 3080": (68, 1710),  # 10 GB; that of 12 GB has 70 and the same name
    "RTX 3080 Ti": (80, 1665),
    "RTX 3090": (82, 1695),
    "RTX 3090 Ti": (84, 1860),
    "RTX 4060": (24, 2460),
    "RTX 4060 Ti": (34, 2535),
    "RTX 4070": (46, 2475),
    "RTX 4070 SUPER": (56, 2475),
    "RTX 4070 Ti": (60, 2610),
    "RTX 4070 Ti SUPER": (66, 2610),
    "RTX 4080": (76, 2505),
    "RTX 4080 SUPER": (80, 2550),
    "RTX 4090": (128, 2520),
    "RTX 5060": (30, 2497),
    "RTX 5060 Ti": (36, 2572),
    "RTX 5070": (48, 2512),
    "RTX 5070 Ti": (70, 2452),
    "RTX 5080": (84, 2617),
    "RTX 5090": (170, 2407),
}

_measured: dict[tuple[str, str, int], float] = {}


def peak_flops(device: torch.device, precision: str) -> tuple[float | None, str]:
    """Peak FLOP/s of one device for MFU, and where the number comes from.

    On a GPU in 16 bits: the data sheet's figure, if the GPU is known. Otherwise (another GPU, float32, bf16 on a GPU
    that has none, a CPU): the best matrix product measured here with the number of threads in use (a tenth of a second,
    once per process).
    """
    low = "16" in precision
    if device.type == "cuda" and low and (known := sheet_peak(torch.cuda.get_device_name(device), precision)):
        return known
    if device.type not in ("cpu", "cuda"):
        return None, f"no peak known for {device.type}"
    half = torch.float16 if device.type == "cuda" and "bf16" not in precision else torch.bfloat16
    dtype = half if low else torch.float32
    return _measure(device, dtype), f"measured matrix product ({str(dtype).removeprefix('torch.')})"


def sheet_peak(name: str, precision: str) -> tuple[float, str] | None:
    """Dense 16-bit peak in FLOP/s of the GPU that torch calls ``name``, and its source; None if it is not known.

    A name must be that of the card itself: the RTX 4070 is neither the 4070 Ti nor the 4070 of laptops.
    """
    kind = "bf16" if "bf16" in precision else "fp16"
    for key, (multiprocessors, clock) in GEFORCE.items():
        if name.endswith(f"GeForce {key}"):
            return multiprocessors * 512 * clock * 1e6, f"data sheet ({key}, {kind} dense, fp32 sums)"
    for key, peak in GPU_PEAKS:
        if re.search(rf"(?<![0-9A-Za-z]){key}(?![0-9A-Za-z])", name):  # an L40 is no L4
            missing = kind == "bf16" and key in _NO_BF16
            return None if missing else (peak, f"data sheet ({key}, {kind} dense)")
    return None


def _measure(device: torch.device, dtype: torch.dtype) -> float:
    key = (str(device), str(dtype), torch.get_num_threads())
    if key not in _measured:
        n = 512 if device.type == "cpu" else 8192
        a = torch.full((n, n), 0.5, device=device, dtype=dtype)
        b = torch.full((n, n), 0.25, device=device, dtype=dtype)
        out = torch.empty_like(a)
        best = float("inf")
        stop = time.perf_counter() + 0.15
        with torch.no_grad():
            torch.mm(a, b, out=out)
            while best == float("inf") or time.perf_counter() < stop:
                _synchronize(device)
                begin = time.perf_counter()
                torch.mm(a, b, out=out)
                _synchronize(device)
                best = min(best, time.perf_counter() - begin)
        _measured[key] = 2.0 * n**3 / best
    return _measured[key]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory() -> None:
    """Begin a new peak, so that a run does not report the peak of an earlier one in the same process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Peak bytes since :func:`reset_peak_memory`: allocated by torch on a GPU, resident set of the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with contextlib.suppress(OSError):
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if match:
            return int(match[1]) * 1024
    try:  # elsewhere than on Linux: the peak of the process's whole life
        import resource
        import sys
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


class EnergyMeter:
    """Joules between construction and :meth:`joules`, where the machine lets us read them.

    A GPU through NVML's total-energy counter, a CPU through RAPL package counters; both count the whole device,
    whoever uses it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begin = self._read()

    def joules(self) -> float | None:
        """Energy so far, None if it cannot be read or a counter wrapped."""
        now = self._read()
        if self._begin is None or now is None or now < self._begin:
            return None
        return now - self._begin

    def _read(self) -> float | None:
        if self._device.type == "cuda":
            try:
                import pynvml

                pynvml.nvmlInit()
                # By its name: NVML numbers all GPUs, torch those of CUDA_VISIBLE_DEVICES.
                uuid = torch.cuda.get_device_properties(self._device).uuid
                handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
                return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
            except Exception:
                return None  # no NVML, or a GPU without the counter
        try:
            counters = sorted(Path("/sys/class/powercap").glob("intel-rapl:[0-9]*/energy_uj"))
            packages = [c for c in counters if c.parent.name.count(":") == 1]
            return sum(int(c.read_text()) for c in packages) / 1e6 if packages else None
        except (OSError, ValueError):
            return None
