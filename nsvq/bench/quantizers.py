"""Part A: seconds and peak memory of every contender at every size."""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch

from nsvq.bench.contenders import BASELINE, Contender
from nsvq.bench.grid import Cell, GridCell
from nsvq.bench.memory import Memory, measure_memory
from nsvq.bench.timing import Spread, repeat, spread, take_turns
from nsvq.bench.workload import clear_gradients, make_latents, step, timed_step

# A turn's least length as a share of the time for a size: fast contenders are measured several times a turn.
TURN_SHARE = 0.02
COLUMNS = [
    "device", "N", "K", "D", "contender", "seconds", "seconds_q1", "seconds_q3", "rounds", "ratio", "peak_MB", "status",
]  # fmt: skip


def measure_quantizers(
    cells: Sequence[GridCell], contenders: Sequence[Contender], device: torch.device, limit: int, seconds: float
) -> pd.DataFrame:
    """Measure quantizers.

    Timed is `step`: forward in training mode and backward of mean(quantized²) + loss to latents and code vectors, not
    the optimizer. All contenders of a size live in this process and take turns; memory is measured before.

    Args:
        cells: The sizes.
        contenders: The contenders.
        device: Where they run.
        limit: Bytes that count as the machine's memory.
        seconds: Time for the rounds of a size.

    Returns:
        One row for each size and contender that was due there: median `seconds` and their quartiles, their `ratio` to
        VanillaVQ at this size, `peak_MB` (10⁶ bytes), and `status`: "ok" or why it was not measured.
    """
    frames = []
    for number, (cell, everyone) in enumerate(cells, start=1):
        _progress(f"quantizers on {device.type}, {number}/{len(cells)}: {cell}, memory")
        due = [contender for contender in contenders if everyone or contender.goes_everywhere]
        memory = {contender.name: measure_memory(contender, cell, device, limit) for contender in due}
        _progress(f"quantizers on {device.type}, {number}/{len(cells)}: {cell}, time")
        times = time_cell(due, memory, cell, device, limit, seconds)
        frames.append(pd.DataFrame([_row(device, cell, name, times.get(name), memory[name]) for name in memory]))
        _progress(", ".join(f"{name} {value.median:.3g} s" for name, value in times.items()))
    table: pd.DataFrame = pd.concat(frames, ignore_index=True)
    baseline = table[table["contender"] == BASELINE].set_index(["N", "K", "D"])["seconds"].rename("baseline")
    table["ratio"] = table["seconds"] / table.join(baseline, on=["N", "K", "D"])["baseline"]
    ordered: pd.DataFrame = table.reindex(columns=COLUMNS)
    return ordered


def time_cell(
    contenders: Sequence[Contender],
    memory: Mapping[str, Memory],
    cell: Cell,
    device: torch.device,
    limit: int,
    seconds: float,
) -> dict[str, Spread]:
    """Time contenders that take turns at one size.

    Args:
        contenders: The contenders.
        memory: What the step of each needs; who does not fit beside everyone's parameters is left out.
        cell: The size.
        device: Where they run.
        limit: Bytes that count as the machine's memory.
        seconds: Time for the rounds.

    Returns:
        Seconds of `step` by name.
    """
    latents = make_latents(cell, device)
    # A GPU's kernels and memory are set up at the first call of full size; a CPU's libraries by any call.
    warm_up = latents[: cell.latents if device.type == "cuda" else max(1, cell.latents // 16)]
    peaks = {name: need.peak for name, need in memory.items() if need.peak is not None}
    modules = {c.name: c.build(cell.dim, cell.codes).to(device) for c in contenders if c.name in peaks}
    held = sum(value.nbytes for module in modules.values() for value in module.state_dict().values())
    turns = {}
    for name, module in modules.items():
        if peaks[name] + held > limit:
            continue
        step(module, warm_up)
        clear_gradients(module, latents)
        turns[name] = partial(repeat, partial(timed_step, module, latents), TURN_SHARE * seconds)
    return {name: spread(values) for name, values in take_turns(turns, seconds).items()}


def _row(device: torch.device, cell: Cell, name: str, time: Spread | None, memory: Memory) -> dict[str, Any]:
    return {
        "device": device.type,
        "N": cell.latents,
        "K": cell.codes,
        "D": cell.dim,
        "contender": name,
        "seconds": time.median if time else float("nan"),
        "seconds_q1": time.low if time else float("nan"),
        "seconds_q3": time.high if time else float("nan"),
        "rounds": time.rounds if time else 0,
        "peak_MB": float("nan") if memory.peak is None else memory.peak / 1e6,
        "status": memory.reason or ("ok" if time else "not timed: does not fit beside the others"),
    }


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
