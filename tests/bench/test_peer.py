import sys

import pytest
import torch

from nsvq.bench import peer
from nsvq.bench.contenders import contenders
from nsvq.bench.grid import Cell
from nsvq.bench.workload import make_codes, make_latents, step

CELL = Cell(32, 16, 8)
CPU = torch.device("cpu")


def test_without_the_peer_its_rows_are_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    assert peer.peer_module() is None
    names = [contender.name for contender in contenders(CPU)]
    assert "VanillaVQ" in names
    assert not [name for name in names if "peer" in name]
    with pytest.raises(ModuleNotFoundError, match="nsvq-lab\\[bench\\]"):
        peer.peer_vq(0.25, 8, 16)


def test_the_peer_computes_what_its_counterparts_do():
    pytest.importorskip("vector_quantize_pytorch")
    by_name = {contender.name: contender for contender in contenders(CPU)}
    for ours, theirs in (("VanillaVQ", "VectorQuantize (peer)"), ("EMAVQ", "VectorQuantize EMA (peer)")):
        latents = make_latents(CELL, CPU)
        outputs = [by_name[name].build(CELL.dim, CELL.codes).train()(latents) for name in (ours, theirs)]
        assert torch.equal(outputs[0][1], outputs[1][1].flatten())
        torch.testing.assert_close(outputs[0][0], outputs[1][0][0])


def test_running_means_of_the_peer_start_and_move_as_ours():
    pytest.importorskip("vector_quantize_pytorch")
    by_name = {contender.name: contender for contender in contenders(CPU)}
    ours = by_name["EMAVQ"].build(CELL.dim, CELL.codes)
    theirs = by_name["VectorQuantize EMA (peer)"].build(CELL.dim, CELL.codes)
    torch.testing.assert_close(theirs.quantizer.codebook, make_codes(CELL.codes, CELL.dim))
    for module in (ours, theirs):
        step(module, make_latents(CELL, CPU))
    torch.testing.assert_close(ours.codebook, theirs.quantizer.codebook)
