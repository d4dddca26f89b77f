"""Going on with other options, and beginning with a run's weights."""

import json
from pathlib import Path

import pytest
import torch

from nsvq.cli import main
from nsvq.cli.changes import refuse_changes

from .conftest import SMALL

LAST = "runs/quickstart/first/checkpoints/last.ckpt"


@pytest.fixture
def first(quickstart):
    quickstart("--trainer.max_steps=4", "--version=first", "--model.quantizer=NSVQ")
    return torch.load(LAST, weights_only=True)


def again(experiments, *words):
    base = ["fit", "--config", str(experiments / "quickstart.yaml"), *SMALL, "--model.quantizer=NSVQ"]
    return [*base, "--ckpt_path", LAST, *words]


def test_every_changed_option_is_named_and_stops_the_run_unless_it_is_allowed(first, refusal, experiments):
    more = ["--trainer.max_steps=6", "--trainer.log_every_n_steps=2", "--checkpoint.every_n_train_steps=1"]
    changed = ["--model.quantizer.commitment_weight=0.5", "--data.size=16", "--trainer.callbacks+=DeadCodeReplacement"]
    line = refusal(*again(experiments, *more, *changed))
    assert line.startswith("the checkpoint was made with other options: ")
    assert "model.quantizer.commitment_weight 0.25 → 0.5" in line
    assert "data.size 32 → 16" in line
    assert "trainer.callbacks.0.unused_steps (none) → 100" in line
    for free in ("max_steps", "log_every", "checkpoint.every", "version"):
        assert free not in line
    assert "--allow_changes" in line
    assert torch.load(LAST, weights_only=True)["global_step"] == 4
    assert main(again(experiments, *more, *changed, "--allow_changes")) == 0
    assert torch.load(LAST, weights_only=True)["global_step"] == 6
    # What was allowed once is what the run is from now on.
    assert main(again(experiments, *changed, "--trainer.max_steps=7")) == 0
    assert "commitment_weight 0.5 → 0.25" in refusal(*again(experiments, "--trainer.max_steps=8"))


def test_another_optimizer_is_refused_even_if_changes_are_allowed(first, refusal, experiments):
    line = refusal(*again(experiments, "--model.optimizer=SGD", "--allow_changes"))
    assert "model.optimizer.class_path torch.optim.Adam → torch.optim.SGD; use --init_from" in line


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"state_dict": {"a": 1}}, "holds no state_dict of tensors"),
        ({"state_dict": [1]}, "holds no state_dict of tensors"),
        ([1], "holds no state_dict of tensors"),
        (None, "holds weights only: give it to --init_from"),
    ],
)
def test_a_file_that_is_no_checkpoint_of_a_run_is_refused(first, refusal, experiments, content, part):
    torch.save({"state_dict": first["state_dict"]} if content is None else content, "other.ckpt")
    assert part in refusal(*again(experiments, "--ckpt_path", "other.ckpt"))


def test_a_damaged_record_does_not_keep_a_run_from_going_on(first, experiments):
    record = Path("runs/quickstart/first/environment.json")
    record.write_text("{")
    with pytest.warns(UserWarning, match=r"environment\.json is damaged: the commands that began this run are lost"):
        main(again(experiments, "--trainer.max_steps=5"))
    assert json.loads(record.read_text())["train_steps"] == 5


def test_steps_logging_workers_and_checkpoints_are_free(first, experiments):
    free = ["--trainer.max_steps=6", "--trainer.log_every_n_steps=2", "--data.num_workers=1"]
    assert main(again(experiments, *free, "--checkpoint.every_n_train_steps=1", "--trainer.profiler=simple")) == 0


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        (({"batch_size": 8}, 1), ({"batch_size": 4}, 2), False),
        (({"batch_size": 8}, 1), ({"batch_size": 8}, 2), False),
        (({"batch_size": 8}, 1), ({"batch_size": 4}, 1), True),
        (({"batch_size": 8}, 2), ({"batch_size": 4}, 3), True),
        (({"num_workers": 0}, 1), ({"num_workers": 4}, 1), False),
    ],
)
def test_a_batch_may_be_divided_among_more_processes(before, after, refused):
    (old, former), (new, present) = before, after
    configs = ({"data": {"class_path": "A", "init_args": part}} for part in (old, new))
    if not refused:
        return refuse_changes(*configs, (former, present))
    with pytest.raises(ValueError, match=r"data\.batch_size 8 → 4"):
        refuse_changes(*configs, (former, present))
    return None


def test_a_run_can_begin_with_the_weights_of_another(first, quickstart, tmp_path):
    words = ["--model.quantizer=NSVQ", "--init_from", LAST, "--trainer.max_steps=1", "--model.optimizer.lr=1e-12"]
    quickstart(*words, "--version=second", "--model.quantizer.bandwidth=3.0")
    state = torch.load(tmp_path / "runs/quickstart/second/checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 1
    assert state["state_dict"]["quantizer.codebook_loss.bandwidth_position"] == 1
    assert first["state_dict"]["quantizer.codebook_loss.bandwidth_position"] == 1
    torch.testing.assert_close(
        state["state_dict"]["encoder.layers.0.weight"],
        first["state_dict"]["encoder.layers.0.weight"],
        atol=1e-9,
        rtol=0,
    )


def test_weights_of_another_model_are_refused(first, refusal, experiments):
    base = ["fit", "--config", str(experiments / "quickstart.yaml")]
    assert "belongs to another model" in refusal(*base, "--init_from", LAST, "--model.quantizer=TransVQ")
    assert "checkpoint none.ckpt does not exist" in refusal(*base, "--init_from", "none.ckpt")
