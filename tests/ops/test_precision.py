import pytest
import torch
from torch import nn

from nsvq.ops import call_raised, common_dtype

HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ([torch.bfloat16], torch.float32),
        ([torch.bfloat16, torch.float16], torch.float32),
        ([torch.float32, torch.float16], torch.float32),
        ([torch.float64, torch.float16], torch.float64),
    ],
)
def test_common_dtype_is_the_widest_and_at_least_float32(types, expected):
    assert common_dtype(*(torch.zeros(1, dtype=dtype) for dtype in types)) == expected


@pytest.mark.parametrize("half", HALF)
def test_a_half_module_computes_in_float32_and_its_parameters_get_the_gradient(half):
    layer = nn.Linear(5, 3).to(half)
    inputs = torch.randn(4, 5).to(half)
    output = call_raised(layer, inputs)
    torch.testing.assert_close(output, inputs.float() @ layer.weight.float().T + layer.bias.float())
    output.sum().backward()
    assert layer.weight.grad.dtype == half
    assert layer.weight.dtype == half
    torch.testing.assert_close(layer.bias.grad.float(), torch.full((3,), 4.0))


def test_autocast_does_not_lower_the_module():
    layer, inputs = nn.Linear(5, 3), torch.randn(4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        output = call_raised(layer, inputs)
    assert output.equal(layer(inputs))
