import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from nsvq.ops import call_raised, common_dtype, nearest_codes

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


# torch refuses its older functions once the newer attributes are used, hence a process for each.
WATCHED = """
import sys, torch
from nsvq.ops import kernel_codebook_loss, nearest_codes
exec(sys.argv[1])
backends = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
before = [backend.fp32_precision for backend in backends]
seen, product = [], torch.mm

def watched(*operands, **options):
    seen.append([backend.fp32_precision for backend in backends])
    return product(*operands, **options)

torch.mm = watched
nearest_codes(torch.randn(5, 3), torch.randn(4, 3))
kernel_codebook_loss(torch.randn(5, 3), torch.randn(4, 3), "gaussian", 1.0, 0.5)
assert seen == 2 * [["ieee", "ieee"]], seen
assert [backend.fp32_precision for backend in backends] == before
print(before)
"""


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="this torch has only the older functions")
@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ("", "['none', 'none']"),
        ("torch.set_float32_matmul_precision('medium')", "['tf32', 'bf16']"),
        ("torch.backends.cuda.matmul.allow_tf32 = True", "['tf32', "),
        ("torch.backends.fp32_precision = 'tf32'", "['tf32', 'tf32']"),
        ("torch.backends.cuda.matmul.fp32_precision = 'tf32'", "['tf32', "),
        ("torch.backends.mkldnn.matmul.fp32_precision = 'bf16'", "'bf16']"),
    ],
)
def test_shorter_products_that_networks_are_allowed_stay_out(setting, allowed):
    result = subprocess.run([sys.executable, "-c", WATCHED, setting], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert allowed in result.stdout


def test_threads_that_search_together_leave_what_networks_are_allowed():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: nearest_codes(torch.randn(50, 4), torch.randn(60, 4)), range(200)))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
