"""The program: both benchmarks in one run."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from nsvq.bench.contenders import contenders
from nsvq.bench.grid import GridName, grid_cells
from nsvq.bench.growth import growth_table
from nsvq.bench.machine import describe_machine, memory_limit
from nsvq.bench.peer import MISSING, peer_module
from nsvq.bench.quantizers import COLUMNS as QUANTIZER_COLUMNS
from nsvq.bench.quantizers import measure_quantizers
from nsvq.bench.report import markdown_report, save_report
from nsvq.bench.targets import targets_table
from nsvq.bench.training import COLUMNS as TRAINING_COLUMNS
from nsvq.bench.training import measure_training
from nsvq.bench.training_settings import training_settings

# Seconds for the rounds of a size and of a model; three rounds are always finished.
CELL_SECONDS: dict[GridName, float] = {"default": 15, "full": 20, "tiny": 0}
MODEL_SECONDS: dict[GridName, float] = {"default": 75, "full": 180, "tiny": 0}
# A GPU's steps are short.
SHARE = {"cpu": 1.0, "cuda": 0.2}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks, print the report and save it.

    Args:
        arguments: Command line; None: the process's own.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: no GPU is available", file=sys.stderr)
        return 2
    start = time.perf_counter()
    grid: GridName = "full" if options.full else options.grid
    notes = [] if peer_module() else [MISSING]
    for note in notes:
        print(note, file=sys.stderr)
    devices = _devices(options.device)
    quantizers, training = pd.DataFrame(columns=QUANTIZER_COLUMNS), pd.DataFrame(columns=TRAINING_COLUMNS)
    if options.only != "training":
        cells = grid_cells(grid)
        quantizers = pd.concat(
            [
                measure_quantizers(
                    cells, contenders(device), device, memory_limit(device), CELL_SECONDS[grid] * SHARE[device.type]
                )
                for device in devices
            ]
        )
        # Part B may take as long again.
        save_report(options.output, "", {"quantizers": quantizers, "growth": growth_table(quantizers)})
    if options.only != "quantizers":
        settings = training_settings(grid)
        training = pd.concat(
            [measure_training(settings, device, MODEL_SECONDS[grid] * SHARE[device.type]) for device in devices]
        )
    tables = {
        "targets": targets_table(quantizers, training),
        "quantizers": quantizers,
        "growth": growth_table(quantizers),
        "training": training,
    }
    machine = describe_machine() | {"duration": f"{(time.perf_counter() - start) / 60:.1f} min"}
    report = markdown_report(machine, tables, notes)
    print(report)
    save_report(options.output, report, tables)
    print(f"saved to {options.output}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nsvq.bench",
        description="Time and memory of the quantizers beside vector-quantize-pytorch's and plain autograd, and the "
        "time of training steps. About 15 minutes on 2 CPU cores.",
    )
    parser.add_argument("--full", action="store_true", help="measure the whole grid of sizes, which takes hours")
    parser.add_argument("--grid", choices=("default", "full", "tiny"), default="default", help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=("quantizers", "training"), help="run one of the two parts")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CPU and GPU, if present"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/bench"), help="folder of the results, runs/bench by default"
    )
    return parser


def _devices(choice: str) -> list[torch.device]:
    names = {"auto": ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]}.get(choice, [choice])
    return [torch.device(name) for name in names]
