"""Conformance with an independent implementation; golden/*.npz holds its inputs and outputs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nsvq.quantizers import NSVQ, TransVQ, VanillaVQ

GOLDEN = Path(__file__).parent / "golden"
FREE_CASES = [
    "vanilla",
    "nsvq_tau1",
    "nsvq_tau1_small_latents",
    "nsvq_tau0p125",
    "nsvq_tau2e-5",
    "nsvq_clamped",
    "nsvq_tau1_codebook_ste",
]


def load(file, prefix=""):
    with np.load(GOLDEN / file) as arrays:
        names = [name for name in arrays.files if name.startswith(prefix)]
        return {name.removeprefix(prefix): torch.from_numpy(arrays[name]) for name in names}


def assert_golden(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def gradients(value, inputs):
    return torch.autograd.grad(value, inputs, retain_graph=True, materialize_grads=True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", FREE_CASES)
def test_free_codebooks_agree(case, training):
    golden = load("nsvq.npz", f"{case}/")
    bandwidth, neighbor_weight, commitment_weight, codebook_weight, kernel_on, codebook_straight_through = golden[
        "meta"
    ].tolist()
    codebook_size, dim = golden["codebook"].shape
    weights = {"commitment_weight": commitment_weight, "codebook_weight": codebook_weight}
    if kernel_on:
        quantizer = NSVQ(
            dim,
            codebook_size,
            kernel="clamped_softmax",
            bandwidth=bandwidth,
            neighbor_weight=neighbor_weight,
            codebook_straight_through=bool(codebook_straight_through),
            **weights,
        )
    else:
        quantizer = VanillaVQ(dim, codebook_size, **weights)
    quantizer.train(training)
    quantizer.codebook.data.copy_(golden["codebook"])
    latents = golden["latents"].requires_grad_()
    out = quantizer(latents)
    assert out.indices.equal(golden["indices"])
    assert_golden(out.loss, golden["loss"])
    assert_golden(out.quantized, golden["quantized"])
    for value, suffix in ((out.loss, "loss"), ((out.quantized * golden["upstream_grad"]).sum(), "quantized")):
        to_latents, to_codebook = gradients(value, [latents, quantizer.codebook])
        assert_golden(to_latents, golden[f"grad_latents_from_{suffix}"])
        assert_golden(to_codebook, golden[f"grad_codebook_from_{suffix}"])


@pytest.mark.parametrize("file", ["transvq.npz", "transvq_deep.npz"])
def test_transvq_agrees(file):
    golden, parameters, parameter_gradients = load(file), load(file, "param/"), load(file, "grad/")
    depth, num_heads, frozen_dim, dim, codebook_size, width = (int(number) for number in golden["meta"][:6])
    mlp_ratio, commitment_weight, codebook_weight = golden["meta"][6:].tolist()
    quantizer = TransVQ(
        dim, codebook_size, frozen_dim, depth, width, num_heads, mlp_ratio, commitment_weight, codebook_weight
    )
    quantizer.transform.load_state_dict(parameters)
    quantizer.frozen_codebook.copy_(golden["frozen_codebook"])
    latents = golden["latents"].requires_grad_()
    out = quantizer(latents)
    assert_golden(quantizer.codebook, golden["codebook"])
    assert out.indices.equal(golden["indices"])
    assert_golden(out.loss, golden["loss"])
    assert_golden(out.quantized, golden["quantized"])
    trained = dict(quantizer.named_parameters())
    assert trained.keys() == {f"transform.{name}" for name in parameter_gradients}
    from_loss = gradients(out.loss, [latents, *trained.values()])
    assert_golden(from_loss[0], golden["grad_latents_from_loss"])
    for name, gradient in zip(trained, from_loss[1:], strict=True):
        assert_golden(gradient, parameter_gradients[name.removeprefix("transform.")])
    (to_latents,) = gradients((out.quantized * golden["upstream_grad"]).sum(), [latents])
    assert_golden(to_latents, golden["grad_latents_from_quantized"])
