import subprocess
import sys

import pytest
import torch

from nsvq.bench import memory
from nsvq.bench.contenders import contenders
from nsvq.bench.grid import Cell
from nsvq.bench.memory import is_out_of_memory, measure_memory

CPU = torch.device("cpu")
PAIRS = Cell(4_096, 8_192, 16)


def contender(name):
    return next(contender for contender in contenders(CPU) if contender.name == name)


def test_an_allocation_of_200_megabytes_is_measured_as_such():
    code = (
        "import torch; from nsvq.bench.memory import peak_bytes\n"
        "torch.ones(100_000_000)\n"  # a higher peak before must not hide it
        "print(peak_bytes(lambda: torch.ones(50_000_000).sum(), torch.device('cpu')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) == pytest.approx(200e6, rel=0.2)


def test_a_child_measures_what_the_formula_of_plain_autograd_says():
    plain = contender("autograd NSVQ")
    result = measure_memory(plain, PAIRS, CPU, limit=8 * 10**9)
    assert result.peak == pytest.approx(plain.pair_bytes * PAIRS.latents * PAIRS.codes, rel=0.2)
    assert result.reason == ""


def test_a_contender_whose_formula_is_over_the_limit_is_not_started(monkeypatch):
    monkeypatch.setattr(memory, "get_context", None)
    result = measure_memory(contender("autograd NSVQ"), PAIRS, CPU, limit=10**8)
    assert result.peak is None
    assert result.reason == "does not fit: 0.5 GB by its formula"


def test_a_contender_that_goes_beyond_the_limit_does_not_fit():
    # Its codebook alone takes 4 GB, and no formula warns of it.
    result = measure_memory(contender("VanillaVQ"), Cell(16, 1_000_000, 1_000), CPU, limit=2 * 10**9)
    assert result.peak is None
    assert result.reason.startswith("does not fit")


def test_an_error_that_is_not_about_memory_is_told_and_ends_no_run():
    result = measure_memory(contender("VanillaVQ"), Cell(16, 8, 0), CPU, limit=2 * 10**9)
    assert result.peak is None
    assert result.reason == "failed: its process failed with exit code 1"


def test_errors_of_memory_are_told_from_others():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
