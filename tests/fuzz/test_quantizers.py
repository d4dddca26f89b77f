"""Whatever latents a quantizer is given, it keeps its contract or refuses them itself, in one error."""

import traceback
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nsvq
import nsvq.quantizers
from nsvq.quantizers import Quantizer, TransVQ

from .conftest import examples

PACKAGE = Path(nsvq.__file__).parent
EXPORTED = [getattr(nsvq.quantizers, name) for name in nsvq.quantizers.__all__]
QUANTIZERS = [
    kind for kind in EXPORTED if isinstance(kind, type) and issubclass(kind, Quantizer) and kind is not Quantizer
]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
OTHERS = [torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64]
SPECIAL = [float("nan"), float("inf"), -float("inf"), 1e30, -1e38, 1e-40, 0.0, 65504.0]
sides = st.sampled_from([0, 1, 1, 2, 3, 5, 7])


@st.composite
def latents(draw, dim):
    shape = [draw(sides), *draw(st.lists(sides, max_size=3))]
    shape.insert(1, draw(st.sampled_from([dim] * 8 + [dim + 1, 1, 0])))
    dtype = draw(st.sampled_from(FLOATS * 3 + OTHERS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    z = (torch.randn(shape, generator=generator) * draw(st.sampled_from([1.0, 1.0, 1e-6, 1e4]))).to(dtype)
    if z.numel() and dtype in FLOATS and draw(st.integers(0, 3)) == 0:
        z.view(-1)[draw(st.integers(0, z.numel() - 1))] = draw(st.sampled_from(SPECIAL))
    layout = draw(st.sampled_from(["plain", "transposed", "strided", "expanded", "flat"]))
    if layout == "transposed":
        z = z.transpose(0, -1).contiguous().transpose(0, -1)
    elif layout == "strided":
        z = torch.stack([z, z], dim=-1)[..., 0]
    elif layout == "expanded":
        z = z[:1].expand(z.shape)
    elif layout == "flat":
        z = z.flatten()
    return z


@st.composite
def cases(draw):
    dim, size = draw(st.sampled_from([1, 2, 3, 6])), draw(st.sampled_from([1, 2, 5, 16]))
    options = draw(st.sampled_from([{}, {}, {"commitment_weight": 0.0}]))
    return draw(st.sampled_from(QUANTIZERS)), dim, size, options, draw(latents(dim)), draw(st.booleans())


def is_what_was_chosen(quantizer, z, out):
    """Indices are those of the nearest codes, and `lookup` gives what was put out, up to rounding."""
    rows, codes = (side.detach().double() for side in quantizer.search_space(z))
    distances = (rows[:, None] - codes[None]).square().sum(dim=2)
    chosen = distances.gather(1, out.indices.reshape(-1, 1)).squeeze(1)
    scale = rows.square().sum(dim=1) + codes.square().sum(dim=1).max()
    assert (chosen - distances.amin(dim=1) <= 1e-5 * scale).all()
    looked_up = quantizer.lookup(out.indices).detach().double()
    computed = torch.finfo(torch.promote_types(z.dtype, torch.float32)).eps * z.double().abs().max()
    cast = torch.finfo(z.dtype).eps * looked_up.abs() + torch.finfo(z.dtype).tiny
    assert ((out.quantized.detach().double() - looked_up).abs() <= 4 * computed + cast + 1e-6).all()


def keeps_its_contract_or_refuses(case):
    kind, dim, size, options, z, training = case
    torch.manual_seed(0)
    small = {"width": 8} if kind is TransVQ else {}
    quantizer = kind(dim, size, **small, **options).train(training)
    if z.dtype == torch.float64:
        quantizer.double()
    z = z.requires_grad_(z.is_floating_point())
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    refusal = None
    try:
        out = quantizer(z)
    except (ValueError, TypeError) as error:
        refusal = error
    if refusal is not None:
        raiser = traceback.extract_tb(refusal.__traceback__)[-1]
        assert Path(raiser.filename).is_relative_to(PACKAGE)
        assert raiser.line.startswith("raise ")
        assert "\n" not in str(refusal)
        assert all(value.equal(before[name]) for name, value in quantizer.state_dict().items())
        return
    assert z.is_floating_point()
    assert z.ndim >= 2
    assert z.shape[1] == dim
    assert z.isfinite().all()
    assert out.quantized.shape == z.shape
    assert out.quantized.dtype == z.dtype
    assert out.indices.shape == (z.shape[0], *z.shape[2:])
    assert out.indices.dtype == torch.int64
    assert ((out.indices >= 0) & (out.indices < size)).all()
    assert out.loss.shape == ()
    # Where squares overflow float32, the loss says so, and a training stops at it.
    assert out.loss.isfinite() or z.detach().abs().max() > 1e18
    assert quantizer.lookup(out.indices).shape == z.shape
    assert quantizer.lookup(out.indices).isfinite().all()
    if not training:
        is_what_was_chosen(quantizer, z.detach(), out)
        assert all(value.equal(before[name]) for name, value in quantizer.state_dict().items())
    (out.loss + out.quantized.double().sum()).backward()
    assert z.grad.isfinite().all()


@examples(60)
@given(cases())
def test_any_latents_are_quantized_or_refused(case):
    keeps_its_contract_or_refuses(case)


@pytest.mark.slow
@examples(600)
@given(cases())
def test_many_latents_are_quantized_or_refused(case):
    keeps_its_contract_or_refuses(case)
