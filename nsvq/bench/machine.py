"""What a run was measured on, and how much memory it may use."""

import os
import platform
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

# The machine may be shared and must not run out; a GPU is ours alone.
USABLE_SHARE = {"cpu": 0.6, "cuda": 0.9}


def describe_machine() -> dict[str, str]:
    """Return processor, threads, memory, GPU, versions and date, without names of hosts or paths."""
    machine = {
        "CPU": _cpu_model(),
        "cores": str(os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        "memory": f"{total_memory(torch.device('cpu')) / 1e9:.1f} GB",
        "GPU": "none",
        "torch": torch.__version__,
        "vector-quantize-pytorch": _installed_version("vector-quantize-pytorch"),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "date": date.today().isoformat(),
    }
    if torch.cuda.is_available():
        gpu = torch.device("cuda")
        machine["GPU"] = f"{torch.cuda.get_device_name(gpu)}, {total_memory(gpu) / 1e9:.1f} GB"
    return machine


def memory_limit(device: torch.device) -> int:
    """Return the bytes beyond which a contender does not fit: a share of all memory, and no more than is free."""
    limit = int(USABLE_SHARE[device.type] * total_memory(device))
    if device.type == "cpu":
        return min(limit, _available_memory() or limit)
    return limit


def total_memory(device: torch.device) -> int:
    """Return the bytes of the device's memory."""
    if device.type == "cuda":
        total: int = torch.cuda.get_device_properties(device).total_memory
        return total
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _available_memory() -> int | None:
    """Return the bytes that Linux could hand out without swapping; None elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
