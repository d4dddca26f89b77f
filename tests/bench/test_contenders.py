import os

import pytest
import torch

from nsvq.bench.contenders import OnTriton, contenders
from nsvq.quantizers import VanillaVQ


def test_on_a_gpu_both_backends_are_measured():
    names = [contender.name for contender in contenders(torch.device("cuda"))]
    assert len(names) == len(set(names))
    for name in ("VanillaVQ", "NSVQ gaussian", "NSVQ clamped_softmax", "NSVQ softmax", "NSVQ gaussian narrow"):
        assert f"{name} (triton)" in names
    assert not any("triton" in contender.name for contender in contenders(torch.device("cpu")))


@pytest.mark.parametrize("before", [None, "torch"])
def test_the_triton_contender_asks_for_triton_and_leaves_the_choice_as_it_was(monkeypatch, before):
    if before is None:
        monkeypatch.delenv("NSVQ_BACKEND", raising=False)
    else:
        monkeypatch.setenv("NSVQ_BACKEND", before)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="NSVQ_BACKEND=triton"):
        OnTriton(VanillaVQ(4, 8))(torch.randn(5, 4))
    assert os.environ.get("NSVQ_BACKEND") == before
