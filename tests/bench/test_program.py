import subprocess
import sys

import pandas as pd
import pytest
import torch

from nsvq.bench.contenders import contenders
from nsvq.bench.program import main
from nsvq.bench.training_settings import training_quantizers

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "nsvq.bench", "--grid", "tiny", "--device", "cpu", "--output", str(folder)]
    return folder, subprocess.run(command, capture_output=True, text=True, check=True)


def test_every_contender_is_measured_and_written(run):
    table = pd.read_csv(run[0] / "quantizers.csv")
    names = [contender.name for contender in contenders(CPU)]
    for _, cell in table[table["N"] == 64].groupby("K"):
        assert cell["contender"].tolist() == names
    assert set(table["status"]) == {"ok"}
    assert table.notna().all(axis=None)
    assert (table[["seconds", "ratio"]] > 0).all(axis=None)


def test_every_quantizer_trains_in_both_models(run):
    table = pd.read_csv(run[0] / "training.csv")
    for _, model in table.groupby("model"):
        assert model["quantizer"].tolist() == list(training_quantizers())
    assert table["model"].nunique() == 2
    assert table.notna().all(axis=None)
    assert (table[["seconds", "images_per_second", "quantizer_share"]] > 0).all(axis=None)


def test_growth_goals_and_figure_are_written(run):
    growth = pd.read_csv(run[0] / "growth.csv")
    assert growth.notna().all(axis=None)
    assert set(growth["grows_with"]) == {"N", "K"}
    # No size of the tiny grid is one that a goal speaks of.
    assert set(pd.read_csv(run[0] / "targets.csv")["reached"]) == {"not measured"}
    assert (run[0] / "quantizers.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_is_printed_and_names_the_machine_without_paths(run):
    folder, result = run
    assert (folder / "report.md").read_text() in result.stdout
    for word in ("CPU:", "torch threads:", "## Targets", "## Quantizers", "## Growth", "## Training"):
        assert word in result.stdout
    assert str(folder) not in result.stdout


def test_without_the_peer_the_program_says_so_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    monkeypatch.setattr("nsvq.bench.program.grid_cells", lambda grid: [])
    monkeypatch.setattr("nsvq.bench.program.measure_quantizers", lambda *_: pd.read_csv(tmp_path / "empty.csv"))
    columns = "device,N,K,D,contender,seconds,seconds_q1,seconds_q3,rounds,ratio,peak_MB,status"
    (tmp_path / "empty.csv").write_text(f"{columns}\ncpu,1,2,3,VanillaVQ,1,1,1,3,1,1,ok\n")
    assert main(["--only", "quantizers", "--output", str(tmp_path / "out")]) == 0
    output = capsys.readouterr()
    assert "vector-quantize-pytorch is not installed" in output.out
    assert not (tmp_path / "out" / "training.csv").exists()
