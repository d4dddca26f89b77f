"""Run folders as data frames, and their comparison."""

import csv
import json
import math

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from nsvq.analysis import Run, comparison_figure, comparison_table, find_runs, format_table
from nsvq.callbacks import CodebookHealth, CurvesOnDisk, EncoderDrift
from nsvq.cli.run_logger import RunLogger
from nsvq.models import VQVAE
from nsvq.networks import ConvDecoder, ConvEncoder
from nsvq.quantizers import VanillaVQ

CODEBOOK = """\
step,epoch,split,tokens,codebook_utilization,codebook_utilization_ceiling,perplexity,dead_codes,quantization_error
10,0,train,64,0.5,0.98,6.0,8,
10,0,val,128,0.25,0.99,3.5,12,0.4
20,0,train,64,0.75,0.98,6.0,4,
20,0,val,128,0.375,0.9904,4.25,10,0.31234
30,0,train,64,1.0,0.98,6.0,0,
"""
DRIFT = "step,epoch,delta_steps,drift_relative\n10,0,5,0.2\n15,0,5,0.1\n"
METRICS = "epoch,step,train/loss,val/psnr,val/ssim\n0,9,0.1,,\n0,9,,20.5,0.61\n0,19,,21.456,0.6789\n0,29,0.05,,\n"


def config(quantizer="nsvq.quantizers.NSVQ", callbacks=None, seed=3):
    init_args = {"quantizer": {"class_path": quantizer, "init_args": {"dim": 4, "codebook_size": 16}}}
    trainer = {"max_steps": 30, "callbacks": callbacks}
    return {"seed_everything": seed, "trainer": trainer, "model": {"class_path": "VQVAE", "init_args": init_args}}


@pytest.fixture
def write_run(tmp_path):
    """Write a run folder by hand."""

    def write(name="runs/a/version_0", codebook=CODEBOOK, drift=DRIFT, metrics=METRICS, **options):
        folder = tmp_path / name
        (folder / "curves").mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config(**options)))
        files = {"curves/codebook.csv": codebook, "curves/drift.csv": drift, "metrics.csv": metrics}
        for file, content in files.items():
            if content is not None:
                (folder / file).write_text(content)
        return folder

    return write


def test_runs_are_found_at_any_depth_in_the_order_of_the_paths(write_run, tmp_path):
    names = ["runs/b/version_0", "runs/a/version_1", "runs/a/version_0"]
    folders = dict(zip(names, map(write_run, names), strict=True))
    paths = [folders["runs/b/version_0"], tmp_path / "runs"]
    expected = ["runs/b/version_0", "runs/a/version_0", "runs/a/version_1"]
    assert [run.folder for run in find_runs(paths)] == [tmp_path / name for name in expected]


def test_other_configs_are_no_runs(write_run, tmp_path):
    folder = write_run()
    for name, content in {
        "text": "a",
        "list": "[1]",
        "other": "model: {init_args: {}}",
        "bad": "a: [",
        "bin": "\0",
    }.items():
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "config.yaml").write_text(content)
    assert [run.folder for run in find_runs([tmp_path / "runs"])] == [folder]


def test_a_path_without_runs_is_refused(write_run, tmp_path):
    write_run()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no run"):
        find_runs([tmp_path / "runs", tmp_path / "empty"])
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        find_runs([tmp_path / "runs", tmp_path / "nowhere"])


def test_what_a_run_tells_of_itself(write_run):
    folder = write_run()
    (folder / "environment.json").write_text(json.dumps({"git_commit": "abc"}))
    run = Run(folder)
    assert (run.name, run.method, run.codebook_size, run.seed) == ("version_0", "NSVQ", 16, 3)
    assert run.environment["git_commit"] == "abc"
    assert run.last("val/psnr") == 21.456
    assert math.isnan(run.last("val/nothing"))
    assert len(run.codebook) == 5
    assert run.drift["drift_relative"].tolist() == [0.2, 0.1]


@pytest.mark.parametrize(
    ("callbacks", "method"),
    [
        (None, "EMAVQ"),
        ([], "EMAVQ"),
        ([{"class_path": "lightning.pytorch.callbacks.Timer"}], "EMAVQ"),
        ([{"class_path": "nsvq.callbacks.DeadCodeReplacement"}], "EMAVQ + replacement"),
        ({"class_path": "nsvq.callbacks.DeadCodeReplacement", "init_args": {}}, "EMAVQ + replacement"),
        (
            [{"class_path": "nsvq.callbacks.EncoderFreeze", "init_args": {"from_step": 200}}],
            "EMAVQ + encoder frozen from step 200",
        ),
    ],
)
def test_the_method_names_the_quantizer_and_the_replacement(write_run, callbacks, method):
    assert Run(write_run(quantizer="nsvq.quantizers.EMAVQ", callbacks=callbacks)).method == method


def test_a_run_that_measured_nothing_yet_has_empty_frames(write_run):
    folder = write_run(codebook=None, drift="", metrics=None)
    run = Run(folder)
    assert run.environment == {}
    assert [len(frame) for frame in (run.codebook, run.drift, run.metrics)] == [0, 0, 0]
    row = comparison_table([run]).iloc[0]
    assert row[["run", "method", "K", "seed"]].tolist() == ["version_0", "NSVQ", 16, 3]
    assert row.drop(["run", "method", "K", "seed", "setting"]).isna().all()
    assert "–" in format_table(comparison_table([run]))


def test_runs_come_in_the_order_of_the_numbers_in_their_names(write_run):
    for name in ("lr=10", "lr=0.5", "lr=5", "lr=0.25,seed=1", "lr=0.25,seed=0"):
        folder = write_run(f"runs/{name}")
    names = [run.name for run in find_runs([folder.parent])]
    assert names == ["lr=0.25,seed=0", "lr=0.25,seed=1", "lr=0.5", "lr=5", "lr=10"]


def test_the_table_holds_the_last_validation(write_run):
    folder = write_run()
    (folder / "environment.json").write_text(json.dumps({"train_seconds": 12.0, "train_steps": 30}))
    assert comparison_table([Run(folder)]).to_dict("records") == [
        {
            "run": "version_0",
            "method": "NSVQ",
            "K": 16,
            "seed": 3,
            "setting": "",
            "step": 20,
            "utilization": 0.375,
            "ceiling": 0.9904,
            "training_utilization": 1.0,
            "perplexity": 4.25,
            "quantization_error": 0.31234,
            "psnr": 21.456,
            "ssim": 0.6789,
            "dead_codes": 10,
            "seconds": 12.0,
            "seconds_per_step": 0.4,
        }
    ]


def test_the_table_holds_the_image_quality_of_the_last_validation_only(write_run):
    names = "epoch,step,val/psnr,val/ssim,val/lpips_alex,val/rfid_n3000\n"
    measured = write_run("runs/a", metrics=names + "0,9,20.0,0.5,0.4,90.5\n0,19,21.0,0.6,0.25,45.678\n")
    earlier = write_run("runs/b", metrics=names + "0,9,20.0,0.5,0.4,90.5\n0,19,21.0,0.6,,\n")
    table = comparison_table([Run(measured), Run(earlier)])
    assert table["lpips_alex"].iloc[0] == 0.25
    assert table["rfid_n3000"].iloc[0] == 45.678
    assert table[["lpips_alex", "rfid_n3000"]].iloc[1].isna().all()
    assert "0.250" in format_table(table)
    assert "45.68" in format_table(table)
    assert "lpips_alex" not in comparison_table([Run(earlier)])


def test_the_printed_table_names_and_aligns_what_it_shows(write_run):
    runs = [Run(write_run()), Run(write_run("runs/longer_name", codebook=None))]
    header, first, second = format_table(comparison_table(runs)).splitlines()
    assert header.split()[:4] == ["run", "method", "K", "seed"]
    words = first.split()
    for value in ("37.5%", "99.0%", "0.3123", "21.46", "0.679", "10"):
        assert value in words
    for title in ("utilization", "ceiling", "quant. error", "PSNR/dB", "SSIM", "dead codes"):
        assert title in header
    assert header.index("utilization") < header.index("ceiling") < header.index("quant. error")
    assert second.split().count("–") >= 6
    assert len(header) == len(first) == len(second)


def test_the_figure_has_three_panels_with_a_line_per_run(write_run, tmp_path):
    runs = [Run(write_run()), Run(write_run("runs/b")), Run(write_run("runs/no_drift", drift=None))]
    figure = comparison_figure(runs)
    utilization, error, drift = figure.axes
    assert [len(axes.lines) for axes in figure.axes] == [3, 3, 2]
    assert utilization.lines[0].get_xdata().tolist() == [10, 20]
    assert utilization.lines[0].get_ydata().tolist() == [25.0, 37.5]
    assert error.lines[0].get_ydata().tolist() == [0.4, 0.31234]
    assert drift.lines[0].get_ydata().tolist() == [0.2, 0.1]
    assert "5 steps" in drift.get_ylabel()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["version_0", "b", "no_drift"]
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


@pytest.mark.parametrize("missing", ["codebook", "drift", "both"])
def test_the_figure_is_drawn_whatever_is_missing(write_run, tmp_path, missing):
    run = Run(write_run(**{name: None for name in ("codebook", "drift") if missing in (name, "both")}))
    comparison_figure([run]).savefig(tmp_path / "figure.png")


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:Experiment logs")
def test_a_real_runs_table_equals_its_files(tmp_path):
    folder = tmp_path / "runs" / "tiny" / "version_0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config("nsvq.quantizers.VanillaVQ")))
    trainer = Trainer(
        accelerator="cpu",
        max_steps=4,
        val_check_interval=2,
        log_every_n_steps=1,
        logger=RunLogger(folder),
        callbacks=[CodebookHealth(2), EncoderDrift(2), CurvesOnDisk()],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    loader = DataLoader(torch.rand(8, 3, 16, 16) * 2 - 1, batch_size=2)
    trainer.fit(VQVAE(VanillaVQ(4, 16), ConvEncoder([4, 8], 1), ConvDecoder([4, 8], 1)), loader, loader)

    def last_row(file, **conditions):
        with (folder / file).open(newline="") as opened:
            rows = [
                row for row in csv.DictReader(opened) if all(check(row[name]) for name, check in conditions.items())
            ]
        return rows[-1]

    codes = last_row("curves/codebook.csv", split="val".__eq__)
    images = last_row("metrics.csv", **{"val/psnr": bool})
    (run,) = find_runs([tmp_path])
    row = comparison_table([run]).iloc[0]
    assert (row["method"], row["K"], row["step"]) == ("VanillaVQ", 16, 4)
    assert row["utilization"] == float(codes["codebook_utilization"]) > 0
    assert row["ceiling"] == float(codes["codebook_utilization_ceiling"])
    assert row["perplexity"] == float(codes["perplexity"])
    assert row["quantization_error"] == float(codes["quantization_error"]) > 0
    assert row["dead_codes"] == float(codes["dead_codes"])
    assert (row["psnr"], row["ssim"]) == (float(images["val/psnr"]), float(images["val/ssim"]))
    assert float(trainer.callback_metrics["val/psnr"]) == pytest.approx(row["psnr"])
    assert run.drift["step"].tolist() == [2, 4]
    assert [len(axes.lines) for axes in comparison_figure([run]).axes] == [1, 1, 1]
