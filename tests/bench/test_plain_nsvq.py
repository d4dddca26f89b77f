import pytest
import torch

from nsvq.bench.plain_nsvq import PlainNSVQ, plain_kernel_loss
from nsvq.ops import KERNELS, kernel_codebook_loss
from nsvq.quantizers import NSVQ

N, K, D = 40, 23, 6
WEIGHT = {"gaussian": 0.5, "clamped_softmax": 0.3, "softmax": 0.1}


@pytest.fixture
def latents():
    return torch.randn(N, D, dtype=torch.float64)


@pytest.fixture
def codes():
    return torch.randn(K, D, dtype=torch.float64)


@pytest.mark.parametrize("bandwidth", [0.05, float(D)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_loss_gradient_and_winners_equal_the_projects(latents, codes, kernel, bandwidth):
    results = []
    for loss_of in (plain_kernel_loss, kernel_codebook_loss):
        leaf = codes.clone().requires_grad_()
        output = loss_of(latents, leaf, kernel, bandwidth, WEIGHT[kernel])
        (gradient,) = torch.autograd.grad(output[0], leaf)
        results.append((output[0].detach(), output[1], gradient))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_module_does_the_arithmetic_of_nsvq(latents, codes, kernel):
    ours = NSVQ(D, K, kernel, bandwidth=2.0, neighbor_weight=WEIGHT[kernel]).double()
    ours.replace_codes(torch.arange(K), codes)
    plain = PlainNSVQ(codes.clone(), kernel, 2.0, WEIGHT[kernel], commitment_weight=0.25)
    results = []
    for module in (ours, plain):
        z = latents.clone().requires_grad_()
        quantized, indices, loss, *_ = module(z)
        (quantized.square().mean() + loss).backward()
        results.append((quantized.detach(), indices, loss.detach(), z.grad, module.codebook.grad))
    torch.testing.assert_close(results[0], results[1])
