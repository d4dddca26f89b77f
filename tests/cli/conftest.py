from pathlib import Path

import pytest
import wandb

from nsvq.cli import main

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SMALL = [
    "--data.batch_size=2",
    "--data.samples_per_epoch=8",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.limit_val_batches=2",
    "--encoder_drift.num_images=2",
]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty working folder: runs go there and nowhere else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    # No weights of this machine: the tests are the same everywhere.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.delenv("NSVQ_WEIGHTS_DIR", raising=False)
    monkeypatch.delenv("NSVQ_RUN_FOLDER", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    yield tmp_path
    # The next test's run would join this one's, with its settings.
    if wandb.run is not None:
        wandb.finish()
        wandb.teardown()


@pytest.fixture
def experiments():
    return EXPERIMENTS


@pytest.fixture
def quickstart():
    """Run a subcommand on the quickstart, made small."""

    def run(*words: str, command: str = "fit", config: Path = EXPERIMENTS / "quickstart.yaml") -> int:
        return main([command, "--config", str(config), *SMALL, *words])

    return run


@pytest.fixture
def refusal(capsys):
    """Run a command that must fail with exit code 2 and return the one line that it prints."""

    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(list(words))
        assert stop.value.code == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nsvq")]
        assert len(errors) == 1, errors
        assert errors[0].startswith("nsvq: error: ")
        return errors[0].removeprefix("nsvq: error: ")

    return run
