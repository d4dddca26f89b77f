"""What every exported quantizer promises."""

import copy
import pickle

import pytest
import torch

from nsvq.quantizers import EMAVQ, NSVQ, FactorizedVQ, SimVQ, TransVQ, VanillaVQ

DIM, K = 6, 16
HALF = [torch.bfloat16, torch.float16]
SHAPES = [(7, DIM), (3, DIM, 5), (2, DIM, 3, 4), (2, DIM, 2, 3, 4)]


@pytest.fixture
def quantizer(quantizer_class):
    return quantizer_class(dim=DIM, codebook_size=K)


def latents(*shape):
    return torch.randn(*(shape or (2, DIM, 3, 4)))


def train(quantizer, steps=3):
    encoder = torch.nn.Parameter(torch.eye(DIM))
    optimizer = torch.optim.SGD([encoder, *quantizer.parameters()], lr=0.1)
    for _ in range(steps):
        out = quantizer(torch.einsum("bc...,cd->bd...", latents(), encoder))
        optimizer.zero_grad()
        (out.loss + out.quantized.square().mean()).backward()
        optimizer.step()
        quantizer.on_epoch_end()


def assert_same_state(quantizer, state):
    assert quantizer.state_dict().keys() == state.keys()
    for name, tensor in quantizer.state_dict().items():
        assert tensor.equal(state[name]), name


def assert_same_output(actual, expected):
    assert actual.quantized.equal(expected.quantized)
    assert actual.indices.equal(expected.indices)
    assert actual.loss.equal(expected.loss)
    assert actual.losses.keys() == expected.losses.keys()


def test_the_exported_classes_are_found(quantizer_class):
    assert quantizer_class.__module__.startswith("nsvq.quantizers")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_types_and_ranges(quantizer, shape, training):
    quantizer.train(training)
    z = latents(*shape)
    out = quantizer(z)
    assert out.quantized.shape == z.shape
    assert out.quantized.dtype == z.dtype
    assert out.indices.shape == (shape[0], *shape[2:])
    assert out.indices.dtype == torch.int64
    assert 0 <= out.indices.min() <= out.indices.max() < K
    assert quantizer.codebook.shape == (K, DIM)
    assert (quantizer.dim, quantizer.codebook_size) == (DIM, K)


def test_positions_keep_their_place(quantizer):
    z = latents(2, DIM, 3, 4)
    quantizer.eval()
    indices = quantizer(z).indices
    for b, h, w in ((0, 0, 0), (1, 2, 1), (0, 1, 3)):
        assert quantizer(z[b, :, h, w][None]).indices.item() == indices[b, h, w]


def test_a_channels_last_input_gives_the_same_output(quantizer):
    z = latents(2, DIM, 3, 4)
    quantizer.eval()
    torch.testing.assert_close(quantizer(z.to(memory_format=torch.channels_last)).quantized, quantizer(z).quantized)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lookup_of_the_indices_is_the_quantized(quantizer, shape):
    quantizer.eval()
    out = quantizer(latents(*shape))
    torch.testing.assert_close(quantizer.lookup(out.indices), out.quantized, rtol=1e-6, atol=1e-6)


def test_lookup_returns_the_rows_of_the_codebook(quantizer):
    assert quantizer.lookup(torch.arange(K)).equal(quantizer.codebook)


def test_the_search_space_is_where_the_nearest_code_wins(quantizer):
    z = latents(2, DIM, 3, 4)
    quantizer.eval()
    rows, codes = quantizer.search_space(z)
    assert rows.shape[0] == 2 * 3 * 4
    assert codes.shape[0] == K
    assert rows.shape[1] == codes.shape[1]
    nearest = (rows.double()[:, None] - codes.double()[None]).square().sum(dim=2).argmin(dim=1)
    assert quantizer(z).indices.equal(nearest.view(2, 3, 4))


@pytest.mark.parametrize("training", [True, False])
def test_the_loss_is_the_sum_of_its_parts(quantizer, training):
    quantizer.train(training)
    out = quantizer(latents())
    assert out.loss.shape == ()
    assert out.loss.isfinite()
    torch.testing.assert_close(out.loss, sum(out.losses.values()))
    assert "commitment" in out.losses


def test_the_commitment_weight_scales_the_commitment_loss(quantizer_class):
    parts = []
    for weight in (0.25, 0.5):
        torch.manual_seed(0)
        quantizer = quantizer_class(dim=DIM, codebook_size=K, commitment_weight=weight).eval()
        parts.append(quantizer(torch.linspace(-1, 1, 8 * DIM).view(8, DIM)).losses)
    torch.testing.assert_close(2 * parts[0].pop("commitment"), parts[1].pop("commitment"))
    assert parts[0] == parts[1]


@pytest.mark.parametrize("source", ["loss", "quantized"])
def test_the_gradient_reaches_every_latent(quantizer, source):
    z = latents().requires_grad_()
    out = quantizer(z)
    value = out.loss if source == "loss" else (out.quantized * latents()).sum()
    value.backward()
    assert z.grad.isfinite().all()
    assert z.grad.abs().sum(dim=1).gt(0).all()


def test_the_loss_moves_the_codes_or_the_update_does(quantizer):
    before = quantizer.codebook.detach().clone()
    train(quantizer, steps=1)
    assert not quantizer.codebook.equal(before)


def test_evaluation_changes_nothing(quantizer):
    train(quantizer)
    quantizer.eval()
    state = copy.deepcopy(quantizer.state_dict())
    z = latents()
    first, second = quantizer(z), quantizer(z)
    quantizer.lookup(first.indices)
    quantizer.search_space(z)
    assert_same_state(quantizer, state)
    assert_same_output(first, second)


def test_the_state_dict_restores_outputs_and_training(quantizer_class, quantizer, tmp_path):
    train(quantizer)
    torch.save(quantizer.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(99)
    other = quantizer_class(dim=DIM, codebook_size=K)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same_state(other, quantizer.state_dict())
    z = latents()
    assert_same_output(other(z), quantizer(z))
    assert_same_state(other, quantizer.state_dict())
    assert_same_output(other.eval()(z), quantizer.eval()(z))


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))], ids=["deepcopy", "pickle"])
def test_copies_are_equal_and_independent(quantizer, copier):
    train(quantizer)
    twin = copier(quantizer)
    state = copy.deepcopy(quantizer.state_dict())
    z = latents()
    assert_same_output(twin.eval()(z), quantizer.eval()(z))
    train(twin.train())
    assert_same_state(quantizer, state)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("half", HALF)
def test_half_latents_are_compared_in_float32(quantizer, half, training):
    quantizer.train(training)
    z = latents(64, DIM).to(half)
    raised = copy.deepcopy(quantizer)(z.float())
    out = quantizer(z)
    assert out.quantized.dtype == half
    assert out.indices.equal(raised.indices)
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, raised.loss)
    torch.testing.assert_close(out.quantized, raised.quantized.to(half))


@pytest.mark.parametrize("half", HALF)
def test_half_latents_receive_a_half_gradient(quantizer, half):
    z = latents().to(half).requires_grad_()
    out = quantizer(z)
    (out.loss + out.quantized.float().square().mean()).backward()
    assert z.grad.dtype == half
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("half", HALF)
def test_a_half_module_trains_with_a_float32_loss(quantizer, half):
    quantizer.to(half)
    out = quantizer(latents().to(half))
    assert out.loss.dtype == torch.float32
    assert out.loss.isfinite()
    if any(parameter.requires_grad for parameter in quantizer.parameters()):
        out.loss.backward()


def test_float64_stays_float64(quantizer):
    quantizer.double()
    out = quantizer(latents(64, DIM).double())
    assert out.quantized.dtype == out.loss.dtype == quantizer.codebook.dtype == torch.float64
    rows, codes = quantizer.search_space(latents().double())
    assert rows.dtype == codes.dtype == torch.float64


@pytest.mark.parametrize("training", [True, False])
def test_autocast_changes_nothing(quantizer, training):
    quantizer.train(training)
    z = latents(64, DIM)
    plain = copy.deepcopy(quantizer)(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = quantizer(z)
        looked_up = quantizer.lookup(out.indices)
        codebook = quantizer.codebook
    assert_same_output(out, plain)
    assert codebook.equal(quantizer.codebook)
    assert looked_up.equal(quantizer.lookup(out.indices))


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.zeros(2, DIM + 1, 3), rf"\(B, {DIM}, \*spatial\), got \(2, {DIM + 1}, 3\)"),
        (torch.zeros(2, 3, DIM), rf"\(B, {DIM}, \*spatial\), got \(2, 3, {DIM}\)"),
        (torch.zeros(DIM), rf"\(B, {DIM}, \*spatial\), got \({DIM},\)"),
        (torch.zeros(2, DIM, 3, dtype=torch.int64), "floating point latents, got torch.int64"),
    ],
    ids=["channels", "channels last", "no batch", "integer"],
)
@pytest.mark.parametrize("training", [True, False])
def test_bad_latents_are_refused_and_change_nothing(quantizer, z, message, training):
    quantizer.train(training)
    state = copy.deepcopy(quantizer.state_dict())
    with pytest.raises(ValueError, match=f"{type(quantizer).__name__} .*{message}"):
        quantizer(z)
    with pytest.raises(ValueError, match=message):
        quantizer.search_space(z)
    assert_same_state(quantizer, state)


@pytest.mark.parametrize("shape", [(0, DIM), (2, DIM, 0, 3)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_no_latents_are_refused_and_change_nothing(quantizer, shape, training):
    quantizer.train(training)
    state = copy.deepcopy(quantizer.state_dict())
    with pytest.raises(ValueError, match=rf"{type(quantizer).__name__} got no latents: the shape is \({shape[0]}, "):
        quantizer(torch.zeros(shape))
    assert_same_state(quantizer, state)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("training", [True, False])
def test_one_latent_that_is_not_finite_is_refused_and_changes_nothing(quantizer, value, training):
    quantizer.train(training)
    z = torch.randn(40, DIM)
    z[17, 1] = value
    state = copy.deepcopy(quantizer.state_dict())
    with pytest.raises(ValueError, match="latents with non-finite values"):
        quantizer(z)
    assert_same_state(quantizer, state)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dim", 0),
        ("dim", -1),
        ("codebook_size", 0),
        ("commitment_weight", -0.1),
        ("commitment_weight", float("nan")),
        ("commitment_weight", float("inf")),
    ],
)
def test_bad_arguments_are_refused_by_name(quantizer_class, field, value):
    with pytest.raises(ValueError, match=field):
        quantizer_class(**({"dim": DIM, "codebook_size": K} | {field: value}))


def test_one_code_takes_everything(quantizer_class):
    quantizer = quantizer_class(dim=DIM, codebook_size=1)
    train(quantizer)
    assert quantizer(latents()).indices.eq(0).all()


def test_replaced_codes_stand_where_they_were_put(quantizer):
    train(quantizer)
    rows, codes = (side.detach() for side in quantizer.search_space(latents()))
    chosen = torch.tensor([K - 1, 0, 5])
    if quantizer.free_codes is None:
        with pytest.raises(TypeError, match=type(quantizer).__name__):
            quantizer.replace_codes(chosen, rows[:3])
        return
    quantizer.replace_codes(chosen, rows[:3])
    expected = codes.index_copy(0, chosen, rows[:3])
    torch.testing.assert_close(quantizer.search_space(latents())[1], expected)


@pytest.mark.parametrize("cls", [SimVQ, TransVQ])
def test_transformed_codebooks_have_no_free_codes(cls):
    assert cls(dim=DIM, codebook_size=K).free_codes is None


@pytest.mark.parametrize("cls", [VanillaVQ, NSVQ, EMAVQ, FactorizedVQ])
def test_free_codes_are_the_stored_tensor(cls):
    quantizer = cls(dim=DIM, codebook_size=K)
    stored = [*quantizer.parameters(), *quantizer.buffers()]
    assert any(quantizer.free_codes is tensor for tensor in stored)


@pytest.mark.parametrize("cls", [VanillaVQ, NSVQ])
def test_the_codebook_is_a_parameter(cls):
    assert isinstance(cls(dim=DIM, codebook_size=K).codebook, torch.nn.Parameter)


@pytest.mark.parametrize("cls", [VanillaVQ, NSVQ])
def test_the_codebook_starts_uniform_within_one_over_k(cls):
    codebook = cls(dim=64, codebook_size=50).codebook
    assert codebook.abs().max() <= 1 / 50
    assert codebook.abs().max() > 0.99 / 50
    assert codebook.mean().abs() < 1e-3


@pytest.mark.parametrize("cls", [SimVQ, TransVQ])
def test_the_frozen_codebook_is_normal_and_never_trained(cls):
    quantizer = cls(dim=64, codebook_size=200)
    frozen = quantizer.frozen_codebook.clone()
    assert frozen.std().item() == pytest.approx(64**-0.5, rel=0.05)
    quantizer(torch.randn(8, 64)).loss.backward()
    assert "frozen_codebook" not in dict(quantizer.named_parameters())
    assert quantizer.frozen_codebook.equal(frozen)
