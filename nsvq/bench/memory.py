"""Peak memory of one step, on a CPU measured in a process of its own."""

import ctypes
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

from nsvq.bench.contenders import Contender
from nsvq.bench.grid import Cell
from nsvq.bench.workload import clear_gradients, make_latents, step

WARM_UP_ROWS = 16
# Constants of glibc's mallopt.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


class Memory(NamedTuple):
    """What a step needs."""

    peak: int | None
    """Bytes above what was there before it; None if it does not fit or failed."""
    reason: str = ""
    """Why there is no peak; empty if there is one."""


def measure_memory(contender: Contender, cell: Cell, device: torch.device, limit: int) -> Memory:
    """Measure the peak memory of a contender's step, unless it is predicted not to fit.

    The step runs after its parameters, its inputs and a step on a few latents, so that lazily loaded libraries are not
    counted. On a CPU it runs in a fresh process that is refused more than the limit; a GPU's allocator counts anywhere.

    Args:
        contender: The contender.
        cell: The size.
        device: Where it runs.
        limit: Bytes that count as the machine's memory.

    Returns:
        The peak, or why there is none.
    """
    predicted = contender.pair_bytes * cell.latents * cell.codes
    if predicted > limit:
        return Memory(None, f"does not fit: {predicted / 1e9:.1f} GB by its formula")
    if device.type == "cuda":
        return _measure(contender, cell, device, limit)
    # A fork of a process that has only imported torch starts at once; one of this process could inherit its threads.
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, "vector_quantize_pytorch"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, contender, cell, device, limit))
    process.start()
    sender.close()
    try:
        result: Memory = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        result = Memory(None, f"{'does not fit' if code < 0 else 'failed'}: its process {ended}")
    process.join()
    return result


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Return by how much the memory in use rose at most while something ran.

    Args:
        run: What to measure.
        device: The device whose memory is meant; on a CPU the resident memory of this process.

    Returns:
        Bytes.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    _forget_resident_peak()
    before = _resident_peak()
    run()
    return _resident_peak() - before


def _child(connection: Connection, contender: Contender, cell: Cell, device: torch.device, limit: int) -> None:
    _return_freed_memory_at_once()
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    connection.send(_measure(contender, cell, device, limit))


def _measure(contender: Contender, cell: Cell, device: torch.device, limit: int) -> Memory:
    try:
        module, latents = contender.build(cell.dim, cell.codes).to(device), make_latents(cell, device)
        step(module, latents[:WARM_UP_ROWS])
        clear_gradients(module, latents)
        result = Memory(peak_bytes(lambda: step(module, latents), device))
    except (MemoryError, RuntimeError) as error:
        # A run of hours goes on; its table tells what happened here.
        line = str(error).partition("\n")[0]
        result = Memory(None, "does not fit: memory ran out" if is_out_of_memory(error) else f"failed: {line}")
    if result.peak is not None and result.peak > limit:
        return Memory(None, f"does not fit: took {result.peak / 1e9:.1f} GB")
    return result


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that memory ran out."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def _return_freed_memory_at_once() -> None:
    """Keep glibc from holding freed memory back, from which a later step would be served unseen."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 2**17)
        libc.mallopt(M_TRIM_THRESHOLD, 2**17)


def _forget_resident_peak() -> None:
    """Set the peak that Linux keeps back to what is resident now; elsewhere the peak since the start remains."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _resident_peak() -> int:
    """Return the most bytes that were resident."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
