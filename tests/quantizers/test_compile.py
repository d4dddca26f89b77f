"""torch.compile: search and kernel loss are operators of their own, so that a quantizer is one graph."""

import copy

import pytest
import torch

from nsvq.models import VQVAE
from nsvq.networks import ConvDecoder, ConvEncoder
from nsvq.quantizers import NSVQ, BandwidthSchedule, TransVQ

DIM = 8


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build(quantizer_class):
    return quantizer_class(DIM, 32)


def gradients(quantizer, z, call):
    z = z.clone().requires_grad_()
    out = call(z)
    (out.loss + out.quantized.square().mean()).backward()
    return out, [z.grad, *(p.grad for p in quantizer.parameters())]


@pytest.mark.parametrize("training", [True, False])
def test_a_quantizer_is_one_graph(quantizer_class, training):
    quantizer = build(quantizer_class).train(training)
    explained = torch._dynamo.explain(quantizer)(torch.randn(2, DIM, 4, 4))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons


@pytest.mark.parametrize(
    "build",
    [
        lambda: NSVQ(DIM, 32, bandwidth=BandwidthSchedule(1.0, unit="winner_distance"), initial_scale=1.0),
        lambda: NSVQ(DIM, 32, bandwidth=BandwidthSchedule(1.0, unit="code_distance"), initial_scale=1.0),
        lambda: TransVQ(DIM, 32, initial_scale=1.0),
    ],
)
def test_what_the_first_batch_measures_breaks_no_later_graph(build):
    quantizer, z = build(), torch.randn(2, DIM, 4, 4)
    quantizer(z)
    assert torch._dynamo.explain(quantizer)(z).graph_break_count == 0
    quantizer.load_state_dict(build().state_dict())
    assert not quantizer.scale_is_set
    quantizer(z)
    assert quantizer.scale_is_set


def test_only_the_stop_on_broken_values_breaks_a_models_graph(quantizer_class):
    model = VQVAE(build(quantizer_class), ConvEncoder([8], 0), ConvDecoder([8], 0))
    images = torch.rand(2, 3, 16, 16)
    explained = torch._dynamo.explain(model.train().forward)(images)
    assert {reason.user_stack[-1].name for reason in explained.break_reasons} == {"_stop_at"}
    torch._dynamo.reset()
    assert torch._dynamo.explain(model.eval().forward)(images).graph_break_count == 0


def test_a_compiled_quantizer_gives_the_same_numbers(quantizer_class):
    quantizer, z = build(quantizer_class), torch.randn(2, DIM, 4, 4)
    twin = copy.deepcopy(quantizer)
    plain, plain_gradients = gradients(quantizer, z, quantizer)
    compiled, compiled_gradients = gradients(twin, z, torch.compile(twin, backend="aot_eager", fullgraph=True))
    assert compiled.indices.equal(plain.indices)
    torch.testing.assert_close(compiled.loss, plain.loss)
    for actual, expected in zip(compiled_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(actual, expected)
    for name, value in quantizer.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[name], value)


def test_a_compiled_quantizer_follows_its_bandwidth():
    quantizer, z = NSVQ(DIM, 32, bandwidth=None), torch.randn(2, DIM, 4, 4)
    twin = copy.deepcopy(quantizer)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        torch.testing.assert_close(compiled(z).loss, quantizer(z).loss)
        quantizer.on_epoch_end()
        twin.on_epoch_end()


def test_a_compiled_quantizer_evaluates_without_gradients(quantizer_class):
    quantizer, z = build(quantizer_class).eval(), torch.randn(2, DIM, 4, 4)
    with torch.no_grad():
        expected = quantizer(z)
        compiled = torch.compile(quantizer, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(z).quantized, expected.quantized)


def test_broken_latents_are_refused_by_a_compiled_quantizer(quantizer_class):
    compiled = torch.compile(build(quantizer_class), backend="aot_eager", fullgraph=True)
    with pytest.raises(ValueError, match="latents with non-finite values"):
        compiled(torch.full((2, DIM), float("nan")))
