"""The VQ-VAE as a LightningModule: losses, learning rates, schedules, precision."""

import copy

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.utils.data import DataLoader

from nsvq.models import VQVAE
from nsvq.networks import ConvDecoder, ConvEncoder
from nsvq.quantizers import EMAVQ, NSVQ, BandwidthSchedule, FactorizedVQ, SimVQ, TransVQ, VanillaVQ

DIM, K, SIDE = 4, 16, 16
ENCODER = {"encoder", "to_latents"}
TRANSFORMS = {SimVQ: "quantizer.transform", TransVQ: "quantizer.transform", FactorizedVQ: "quantizer.project_in"}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:You are trying to `self.log\\(\\)`"),
]


def build(quantizer=VanillaVQ, options=None, **arguments):
    torch.manual_seed(0)
    networks = {"encoder": ConvEncoder([8, 8], 1), "decoder": ConvDecoder([8, 8], 1)}
    return VQVAE(quantizer(DIM, K, **(options or {})), **(networks | arguments))


def images(count=8, side=SIDE):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def fit(model, *callbacks, **arguments):
    defaults = {
        "accelerator": "cpu",
        "max_steps": 2,
        "logger": False,
        "callbacks": list(callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "limit_val_batches": 0,
    }
    trainer = Trainer(**(defaults | arguments))
    trainer.fit(model, DataLoader(images(), batch_size=4), DataLoader(images(), batch_size=4))
    return trainer


def rates(optimizer):
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


class Losses(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.values.append(outputs["loss"].item())


def test_encode_decode_and_forward_shapes():
    model = build()
    latents = model.encode(images(2))
    assert latents.shape == (2, DIM, SIDE // 4, SIDE // 4)
    assert model.decode(latents).shape == (2, 3, SIDE, SIDE)
    reconstructions, output = model(images(2))
    assert reconstructions.shape == (2, 3, SIDE, SIDE)
    assert output.indices.shape == (2, SIDE // 4, SIDE // 4)


@pytest.mark.parametrize("kind", ["mse", "l1"])
def test_the_loss_is_reconstruction_plus_quantizer_loss(kind):
    model = build(reconstruction_loss=kind)
    batch = images(4)
    reconstructions, output = model(batch)
    difference = reconstructions - batch
    expected = (difference.square().mean() if kind == "mse" else difference.abs().mean()) + output.loss
    losses = Losses()
    fit(model, losses, max_steps=1)
    assert losses.values == pytest.approx([expected.item()], rel=1e-6)


def test_training_and_validation_log_their_losses_and_image_quality():
    trainer = fit(build(NSVQ), limit_val_batches=2)
    parts = {"loss", "reconstruction_loss", "commitment_loss", "codebook_loss"}
    names = {f"{split}/{part}" for split in ("train", "val") for part in parts}
    assert set(trainer.callback_metrics) == names | {"train/bandwidth", "val/psnr", "val/ssim"}
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for split in ("train", "val"):
        total = sum(values[f"{split}/{part}"] for part in parts - {"loss"})
        assert values[f"{split}/loss"] == pytest.approx(total, rel=1e-6)


def group_names(model, optimizer):
    """Map each parameter's name to the names of its groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {name: [] for name in names.values()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            groups[names[id(parameter)]].append(group["name"])
    return groups


@pytest.mark.parametrize("quantizer", [VanillaVQ, NSVQ, EMAVQ, SimVQ, TransVQ, FactorizedVQ])
def test_every_parameter_has_one_group_and_the_groups_their_rates(quantizer):
    model = build(
        quantizer,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1),
        encoder_lr_factor=0.5,
        codebook_lr_factor=10.0,
    )
    optimizer = model.configure_optimizers()
    has_codes = quantizer not in (EMAVQ, SimVQ, TransVQ)
    codes = {"codebook": pytest.approx(0.1)} if has_codes else {}
    assert rates(optimizer) == {"networks": 0.01, "encoder": pytest.approx(0.005)} | codes
    decay = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decay == {"networks": 0.1, "encoder": 0.1} | ({"codebook": 0.0} if has_codes else {})
    for name, groups in group_names(model, optimizer).items():
        if name in ("quantizer.codebook", "quantizer.code_vectors"):
            expected = "codebook"
        else:
            expected = "encoder" if name.split(".")[0] in ENCODER else "networks"
        assert groups == [expected], name
    if quantizer in TRANSFORMS:
        assert any(name.startswith(TRANSFORMS[quantizer]) for name in group_names(model, optimizer))


def test_weight_decay_does_not_move_codes_that_nothing_selects():
    model = build(optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.5))
    model.quantizer.codebook.data[3] = 1e3
    before = model.quantizer.codebook.detach().clone()
    fit(model)
    assert model.quantizer.codebook[3].equal(before[3])
    assert not model.quantizer.codebook.equal(before)


def test_a_scheduler_keeps_the_factors():
    model = build(
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5),
        lr_scheduler_interval="step",
        encoder_lr_factor=0.1,
        codebook_lr_factor=4.0,
    )
    trainer = fit(model, max_steps=3)
    assert rates(trainer.optimizers[0]) == pytest.approx({"networks": 0.0125, "encoder": 0.00125, "codebook": 0.05})


def test_a_scheduler_steps_per_epoch_unless_told_otherwise():
    def scheduler(optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

    trainer = fit(build(lr_scheduler=scheduler), max_epochs=3, max_steps=-1)
    assert rates(trainer.optimizers[0])["networks"] == pytest.approx(5e-4 / 8)


def test_an_encoder_factor_of_zero_freezes_the_encoder_alone():
    model = build(encoder_lr_factor=0.0)
    before = copy.deepcopy(model.state_dict())
    fit(model)
    for name, tensor in model.state_dict().items():
        frozen = name.split(".")[0] in ENCODER or not tensor.is_floating_point()
        assert tensor.equal(before[name]) == frozen, name


def test_schedules_per_epoch_advance_once_per_epoch():
    schedule = BandwidthSchedule(1.0, kind="exponential", decay=0.5, per="epoch")
    model = build(NSVQ, {"bandwidth": schedule})
    fit(model, max_epochs=3, max_steps=-1, limit_val_batches=2)
    assert float(model.quantizer.codebook_loss.bandwidth) == 0.125


def test_schedules_per_step_advance_in_training_only():
    schedule = BandwidthSchedule(1.0, kind="exponential", decay=0.5, per="step")
    model = build(NSVQ, {"bandwidth": schedule})
    fit(model, max_epochs=2, max_steps=-1, limit_val_batches=2)
    assert float(model.quantizer.codebook_loss.bandwidth) == 0.5**4


def test_wrong_image_sides_and_networks_are_refused():
    with pytest.raises(ValueError, match="multiples of the networks' reduction factor"):
        build()(images(1, side=18))
    with pytest.raises(ValueError, match="Flatten has no attribute in_channels"):
        build(decoder=nn.Flatten())
    with pytest.raises(ValueError, match="Flatten has no attribute out_channels"):
        build(encoder=nn.Flatten())


@pytest.mark.parametrize("factor", ["encoder_lr_factor", "codebook_lr_factor"])
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_impossible_factors_are_refused(factor, value):
    with pytest.raises(ValueError, match=factor):
        build(**{factor: value})


def test_gradient_clipping_bounds_the_joint_norm():
    def moved(**arguments):
        model = build(optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0))
        before = nn.utils.parameters_to_vector(model.parameters()).detach()
        fit(model, max_steps=1, **arguments)
        return float((nn.utils.parameters_to_vector(model.parameters()).detach() - before).norm())

    assert moved() > 0.02
    assert moved(gradient_clip_val=0.01) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("quantizer", [VanillaVQ, EMAVQ, TransVQ])
def test_the_same_seed_gives_the_same_losses_bit_for_bit(quantizer):
    def run():
        losses = Losses()
        fit(build(quantizer), losses, max_steps=4)
        return losses.values

    assert run() == run()


def test_bfloat16_training_chooses_the_codes_of_a_float32_search():
    model = build()
    seen = []

    def compare(quantizer, inputs, output):
        latents = inputs[0].detach()
        distances = torch.cdist(latents.movedim(1, -1).reshape(-1, DIM).double(), quantizer.codebook.detach().double())
        seen.append((latents.dtype, output.indices.flatten().equal(distances.argmin(dim=1))))

    model.quantizer.register_forward_hook(compare)
    losses = Losses()
    trainer = fit(model, losses, precision="bf16-mixed")
    assert seen == [(torch.bfloat16, True)] * 2
    assert trainer.global_step == 2
    assert torch.tensor(losses.values).isfinite().all()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_predictions_are_clamped_reconstructions_with_their_indices():
    model = build().eval()
    with torch.no_grad():
        model.from_latents.weight.mul_(1e6)
    batch = images(3)
    prediction = model.predict_step(batch, 0)
    reconstructions, output = model(batch)
    assert prediction["indices"].equal(output.indices)
    assert prediction["reconstructions"].equal(reconstructions.clamp(-1, 1))
    assert reconstructions.abs().max() > 1
