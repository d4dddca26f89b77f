"""LPIPS as a meter: the mean over all images, whatever the batches and processes."""

import copy
import math

import pytest
import torch

from nsvq.distributed import rank, world_size
from nsvq.metrics import LPIPSMetric
from nsvq.pretrained import find, lpips_network


@pytest.fixture
def trunk(fake_hub):
    fake_hub("alex")
    return find("alex")


def batches(*sizes):
    images = [torch.rand(size, 3, 32, 32) * 2 - 1 for size in sizes]
    return [(side + spread * torch.randn(side.shape), side) for spread, side in enumerate(images)]


def test_is_the_mean_over_images_not_over_batches(trunk):
    network = lpips_network("alex", trunk)
    metric = LPIPSMetric(network)
    data = batches(1, 5)
    for reconstructions, images in data:
        metric.update(reconstructions.requires_grad_(), images)
    with torch.no_grad():
        values = torch.cat([network(*sides).flatten() for sides in data]).double()
    result = metric.compute()
    assert result.dtype == torch.float64
    assert not result.requires_grad
    assert not LPIPSMetric(network)(*data[0]).requires_grad
    assert float(result) == pytest.approx(float(values.mean()), rel=1e-6)
    assert int(metric.images) == 6
    metric.reset()
    metric.update(*data[1])
    assert float(metric.compute()) == pytest.approx(float(values[1:].mean()), rel=1e-6)


def test_is_float32_under_autocast(trunk):
    network = lpips_network("alex", trunk)
    (data,) = batches(3)
    metric, under_autocast = LPIPSMetric(network), LPIPSMetric(network)
    metric.update(*data)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast.update(*data)
    assert under_autocast.compute().equal(metric.compute())


def test_its_network_is_no_part_of_it(trunk):
    network = lpips_network("alex", trunk)
    metric = LPIPSMetric(network)
    metric.persistent(True)
    assert list(metric.state_dict()) == ["distance_sum", "images"]
    assert list(metric.modules()) == [metric]
    assert list(metric.parameters()) == []
    assert copy.deepcopy(metric).distance.network is network


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_images_have_no_distance(trunk):
    assert math.isnan(float(LPIPSMetric(lpips_network("alex", trunk)).compute()))


def test_refuses_what_the_network_does_not_take(trunk):
    with pytest.raises(ValueError, match="three channels"):
        LPIPSMetric(lpips_network("alex", trunk)).update(torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32))


def measure_share(trunk, shares):
    """Measure this rank's share, or all shares without a group."""
    metric = LPIPSMetric(lpips_network("alex", trunk))
    for sides in shares if world_size() == 1 else [shares[rank()]]:
        metric.update(*sides)
    return float(metric.compute())


def test_two_ranks_with_uneven_batches_equal_one_process(rank_pool, trunk):
    shares = batches(2, 5)
    expected = measure_share(trunk, shares)
    assert rank_pool.run(measure_share, trunk, shares) == pytest.approx([expected] * 2, rel=1e-6)
