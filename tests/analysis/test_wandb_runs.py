"""W&B's runs give the table of their folders; what W&B would answer is read from the files of real offline runs."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import wandb

from nsvq.analysis import (
    Run,
    correlation_table,
    curves_figure,
    curves_table,
    run_settings,
    run_variants,
    seed_means,
    wandb_curves,
)
from nsvq.cli import main

from ..cli import wandb_file

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SMALL = [
    *("--config", str(EXPERIMENTS / "quickstart.yaml"), "--config", str(EXPERIMENTS / "loggers" / "wandb.yaml")),
    *("--data.batch_size=2", "--data.samples_per_epoch=8", "--trainer.limit_val_batches=2"),
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--encoder_drift.num_images=2"),
]
FIT = ["--trainer.val_check_interval=2", "--trainer.max_steps=7", "--encoder_drift.every_n_steps=3"]
NSVQ = ["--model.quantizer=NSVQ", "--model.quantizer.codebook_size=16"]
EVERY_STEP = "--trainer.log_every_n_steps=1"
EVERY_OTHER_STEP = "--trainer.log_every_n_steps=2"
RUNS = {
    "a": [*NSVQ, EVERY_STEP],
    "b": [*NSVQ, EVERY_STEP, "--seed_everything=1", "--model.quantizer.neighbor_weight=0.5"],
    "c": ["--trainer.callbacks+=CodebookInitialization", EVERY_OTHER_STEP, "--model.encoder_lr_factor=5"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three run folders and that of a validation, all logged to W&B's offline files too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("workplace"))
        patch.setenv("WANDB_MODE", "offline")
        for name in ("NSVQ_RUN_FOLDER", "NSVQ_WEIGHTS_DIR", "LOCAL_RANK"):
            patch.delenv(name, raising=False)
        for name, words in RUNS.items():
            assert main(["fit", *SMALL, *FIT, *words, f"--version={name}"]) == 0
            wandb.finish()
        trained = "runs/quickstart/a/checkpoints/last.ckpt"
        assert main(["validate", *SMALL, *NSVQ, "--version=v", f"--ckpt_path={trained}"]) == 0
        wandb.finish()
        wandb.teardown()
        yield {name: Path("runs/quickstart", name).resolve() for name in (*RUNS, "v")}


def recorded(folder):
    """Return a run as `wandb.Api` gives it, with the content of its offline file."""
    (path,) = folder.rglob("*.wandb")
    run = wandb_file.read(path)
    return SimpleNamespace(config=run.config, rows=run.history, scan_history=lambda: iter(run.history))


def api(*runs):
    """Return what stands for `wandb.Api`, with these runs for any path; it keeps what it was asked."""
    asked = []

    def answer(path, filters):
        asked.append((path, filters))
        return iter(runs)

    return SimpleNamespace(runs=answer, asked=asked)


@pytest.fixture
def run(folders):
    """The first run as `wandb.Api` gives it, to be changed."""
    return recorded(folders["a"])


def test_the_table_is_that_of_the_folders(folders):
    runs = [Run(folders[name]) for name in RUNS]
    expected = curves_table(runs)
    # Steps at which drift was measured and nothing was logged.
    unlogged = (expected["run"] == 2) & (expected["step"] == 3)
    assert unlogged.sum() == 1
    expected = expected[~unlogged].reset_index(drop=True)
    there = api(*(recorded(folders[name]) for name in (*RUNS, "v")))
    table = wandb_curves("someone/nsvq", {"group": "quickstart"}, there)
    assert there.asked == [("someone/nsvq", {"group": "quickstart"})]
    # Meters compute in float64 and loggers write float32.
    pd.testing.assert_frame_equal(table, expected, rtol=1e-6, atol=1e-7)
    assert table["method"].unique().tolist() == [
        "NSVQ",
        "NSVQ (neighbor_weight=0.5)",
        "VanillaVQ + initialization",
    ]
    assert run_variants(runs) == table.drop_duplicates("run")["method"].tolist()
    assert run_settings(runs) == table.drop_duplicates("run")["setting"].tolist()
    measured = table[table["run"] == 0].set_index("step")
    assert measured["utilization"].dropna().index.tolist() == [2, 4, 6]
    assert measured["churn"].dropna().index.tolist() == [3, 6]
    assert measured["training_loss"].dropna().index.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_figures_and_statistics_take_it(folders):
    there = api(*(recorded(folders[name]) for name in RUNS))
    table, same = wandb_curves("someone/nsvq", api=there), curves_table([Run(folders[name]) for name in RUNS])
    assert [panel.get_title() for panel in curves_figure(table).axes] == [
        panel.get_title() for panel in curves_figure(same).axes
    ]
    last = table.dropna(subset=["psnr"]).groupby("run").last()
    assert len(seed_means(last[last["K"] == 16], ["psnr"], by=("K",))) == 1
    assert correlation_table(table)["measure"].tolist() == correlation_table(same)["measure"].tolist()


def test_words_of_an_agent_are_no_settings(folders, run):
    other = recorded(folders["b"])
    other.config |= {"config": "methods/nsvq.yaml", "trainer.callbacks+": "EncoderFreeze", "model.quantizer": "NSVQ"}
    assert set(wandb_curves("someone/nsvq", api=api(run, other))["setting"]) == {""}


def test_what_a_run_repeated_counts_once(run):
    expected = wandb_curves("someone/nsvq", api=api(run))
    begun = [{**row, "train/loss": 9.0} for row in run.rows if "train/loss" in row]
    beyond = {"trainer/global_step": 99, "train/loss": 9.0, "val/psnr": 9.0}
    run.scan_history = lambda: iter([*begun, beyond, *run.rows])
    pd.testing.assert_frame_equal(wandb_curves("someone/nsvq", api=api(run)), expected)


def test_empty_values_and_words_for_numbers(run):
    for row in run.rows:
        row.setdefault("val/quantization_error", None)
        if "val/psnr" in row:
            row |= {"val/quantization_error": "NaN", "val/psnr": "Infinity"}
    run.rows.append({"note": 1})
    table = wandb_curves("someone/nsvq", api=api(run))
    assert table["quantization_error"].isna().all()
    assert table["psnr"].dropna().tolist() == [float("inf")] * 3


def test_drift_without_its_meter_is_no_drift(run):
    run.config["encoder_drift"] = None
    assert "churn" not in wandb_curves("someone/nsvq", api=api(run))


def test_other_runs_are_left_out(folders, run):
    classifier = SimpleNamespace(config={"model": "resnet", "lr": 0.1}, scan_history=None)
    expected = wandb_curves("someone/nsvq", api=api(run))
    pd.testing.assert_frame_equal(wandb_curves("someone/nsvq", api=api(classifier, run)), expected)
    with pytest.raises(ValueError, match="someone/nsvq: none of 2 W&B runs is a training run of a quantizer"):
        wandb_curves("someone/nsvq", api=api(classifier, recorded(folders["v"])))


def test_a_path_without_runs_is_named():
    with pytest.raises(ValueError, match=r"^someone/else holds no W&B run$"):
        wandb_curves("someone/else", api=api())
    with pytest.raises(ValueError, match=r"^someone/else with filters {'group': 'x'} holds no W&B run$"):
        wandb_curves("someone/else", {"group": "x"}, api())

    def refuse(path, filters):
        raise ValueError("Could not find project else")

    with pytest.raises(ValueError, match=r"^someone/else: Could not find project else$"):
        wandb_curves("someone/else", api=SimpleNamespace(runs=refuse))


def test_none_asks_wandb_itself(run, monkeypatch):
    monkeypatch.setattr(wandb, "Api", lambda: api(run))
    assert len(wandb_curves("someone/nsvq")) == 7
