import pytest
import torch

from nsvq.ops import straight_through


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_value_is_the_code_to_the_last_bit(dtype, share):
    latents = 1e4 * torch.randn(200, 7, dtype=dtype)
    quantized = 1e-3 * torch.randn(200, 7, dtype=dtype)
    assert straight_through(latents, quantized, share).equal(quantized)
    assert not (latents + (quantized - latents)).equal(quantized)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_latents_get_the_whole_gradient_and_codes_their_share(share):
    latents = torch.randn(6, 3, requires_grad=True)
    quantized = torch.randn(6, 3, requires_grad=True)
    upstream = torch.randn(6, 3)
    straight_through(latents, quantized, share).backward(upstream)
    assert latents.grad.equal(upstream)
    if share:
        torch.testing.assert_close(quantized.grad, share * upstream)
    else:
        assert quantized.grad is None
