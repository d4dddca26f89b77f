"""What a checkpoint says beside weights and optimizers."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from nsvq.cli.checkpoint_io import AtomicCheckpointIO
from nsvq.cli.run_state import random_states, restore_random_state


def draws():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.gauss(0, 1), np.random.standard_normal(1).tolist()


def test_random_states_come_back_from_a_file_that_is_loaded_safely():
    draws()
    file = io.BytesIO()
    torch.save(random_states(), file)
    file.seek(0)
    expected = draws()
    assert draws() != expected
    restore_random_state(torch.load(file, weights_only=True))
    assert draws() == expected


def random_states_of_a_rank(seed):
    torch.manual_seed(seed + torch.distributed.get_rank())
    states = random_states()
    expected = torch.rand(3)
    torch.manual_seed(9)
    restore_random_state(states)
    return expected, torch.rand(3)


def test_every_rank_gets_its_own_state_back(rank_pool):
    (expected0, found0), (expected1, found1) = rank_pool.run(random_states_of_a_rank, 3)
    assert expected0.equal(found0)
    assert expected1.equal(found1)
    assert not found0.equal(found1)


def test_a_rank_without_a_saved_state_keeps_its_own(rank_pool):
    states = random_states()
    first, second = rank_pool.run(draw_after_restoring, states)
    torch.manual_seed(4)
    assert second.equal(torch.rand(3))
    assert not first.equal(second)


def draw_after_restoring(states):
    torch.manual_seed(4)
    restore_random_state(states)
    return torch.rand(3)


class Full:
    def __reduce__(self):
        raise OSError(28, "No space left on device")


def test_a_checkpoint_that_cannot_be_written_leaves_the_former_one(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"step": 1}, path)
    with pytest.raises(OSError, match=rf"checkpoint {path} could not be written: No space left on device"):
        writer.save_checkpoint({"step": 2, "more": Full()}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(path.parent.iterdir()) == [path]


def test_a_checkpoint_takes_its_place_whole(tmp_path, monkeypatch):
    path, seen = tmp_path / "last.ckpt", []
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"step": 1}, path)
    replace = Path.replace

    def watched(self, target):
        seen.append((torch.load(self, weights_only=True), torch.load(target, weights_only=True)))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    writer.save_checkpoint({"step": 2}, path)
    assert seen == [({"step": 2}, {"step": 1})]
    assert torch.load(path, weights_only=True) == {"step": 2}
