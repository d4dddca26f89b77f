"""The VQ-GAN as a LightningModule: losses, alternation, counting, schedules, faults."""

import copy
import itertools

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from nsvq.losses import AdversarialLoss
from nsvq.models import VQGAN, VQVAE
from nsvq.networks import ConvDecoder, ConvEncoder
from nsvq.quantizers import EMAVQ, NSVQ, BandwidthSchedule, FactorizedVQ, SimVQ, TransVQ, VanillaVQ

DIM, K, SIDE = 4, 16, 16

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:You are trying to `self.log\\(\\)`"),
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization"),
]


class Judge(nn.Module):
    """A discriminator small enough to reason about."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)
        self.out = nn.Conv2d(4, 1, 1)

    def forward(self, images):
        return self.out(torch.tanh(self.conv(images)))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05)


def build(quantizer=VanillaVQ, options=None, adversarial=None, kind=VQGAN, **arguments):
    torch.manual_seed(0)
    networks = {"encoder": ConvEncoder([8, 8], 1), "decoder": ConvDecoder([8, 8], 1)}
    if kind is VQGAN:
        networks |= {
            "discriminator": Judge(),
            "perceptual_weight": 0.0,
            "adversarial": AdversarialLoss(**(adversarial or {})),
            "discriminator_optimizer": sgd,
        }
    return kind(quantizer(DIM, K, **(options or {})), **(networks | {"optimizer": sgd} | arguments))


def images(count=8):
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def fit(model, *callbacks, count=8, batch_size=4, ckpt_path=None, **arguments):
    defaults = {
        "accelerator": "cpu",
        "max_steps": 2,
        "logger": False,
        "callbacks": list(callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
    }
    trainer = Trainer(**(defaults | arguments))
    loader = DataLoader(images(count), batch_size=batch_size)
    trainer.fit(model, loader, loader, ckpt_path=ckpt_path)
    return trainer


class Record(Callback):
    """Keeps what a run logged and the weights after each batch."""

    def __init__(self):
        self.logged, self.weights = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.weights.append(copy.deepcopy(pl_module.state_dict()))


def moved(before, after, part):
    """Whether any weight of a part of the model changed."""
    names = [name for name in before if name.startswith(part) and before[name].is_floating_point()]
    assert names
    return any(not before[name].equal(after[name]) for name in names)


def test_a_step_is_what_the_formulas_say():
    """One step against plain autograd on a copy."""
    model = build(adversarial={"weight": 0.5}, reconstruction_loss="l1").double()
    twin = copy.deepcopy(model)
    batch = images(4).double()
    output = twin.quantizer(twin.encode(batch))
    decoded = twin.decode(output.quantized)
    reconstruction = (decoded - batch).abs().mean()
    adversarial = -twin.discriminator(decoded).mean()
    last = twin.decoder.last_layer
    ratio = torch.autograd.grad(reconstruction, last, retain_graph=True)[0].norm() / (
        torch.autograd.grad(adversarial, last, retain_graph=True)[0].norm() + 1e-4
    )
    total = reconstruction + output.loss + 0.5 * ratio * adversarial
    tokenizer = [value for name, value in twin.named_parameters() if not name.startswith("discriminator")]
    tokenizer_gradients = torch.autograd.grad(total, tokenizer)
    judged = (torch.relu(1 - twin.discriminator(batch)), torch.relu(1 + twin.discriminator(decoded.detach())))
    judge = list(twin.discriminator.parameters())
    judge_gradients = torch.autograd.grad((judged[0].mean() + judged[1].mean()) / 2, judge)
    with torch.no_grad():
        for value, gradient in zip([*tokenizer, *judge], [*tokenizer_gradients, *judge_gradients], strict=True):
            value -= 0.05 * gradient
    record = Record()
    fit(model, record, max_steps=1, precision="64-true", count=4)
    for name, value in twin.named_parameters():
        torch.testing.assert_close(record.weights[0][name], value.detach(), msg=name)
    logged = record.logged[0]
    assert logged["train/loss"] == pytest.approx(total.item(), rel=1e-6)
    assert logged["train/adversarial_weight"] == pytest.approx(0.5 * ratio.item(), rel=1e-6)
    assert logged["train/discriminator_loss"] == pytest.approx(
        ((judged[0].mean() + judged[1].mean()) / 2).item(), rel=1e-6
    )


@pytest.mark.parametrize("quantizer", [VanillaVQ, NSVQ, EMAVQ, SimVQ, TransVQ, FactorizedVQ])
def test_without_its_losses_it_is_the_vqvae(quantizer):
    """Weight 0 leaves the very weights that VQVAE's automatic optimization makes, so each batch is seen once."""
    plain = build(quantizer, kind=VQVAE, reconstruction_loss="l1").double()
    adversarial = build(quantizer, adversarial={"weight": 0.0}).double()
    adversarial.load_state_dict(plain.state_dict(), strict=False)
    fit(plain, max_steps=5, precision="64-true", gradient_clip_val=0.5)
    adversarial.gradient_clip_val = 0.5
    fit(adversarial, max_steps=5, precision="64-true")
    theirs = adversarial.state_dict()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(theirs[name], value, msg=name)


def test_the_discriminator_starts_first_and_the_tokenizer_feels_it_later():
    model = build(adversarial={"discriminator_start": 2, "start": 4, "ramp": 1})
    record = Record()
    before = copy.deepcopy(model.state_dict())
    fit(model, record, max_steps=6)
    states = [before, *record.weights]
    learned = [moved(a, b, "discriminator") for a, b in itertools.pairwise(states)]
    assert learned == [False, False, True, True, True, True]
    weights = [row["train/adversarial_weight"] for row in record.logged]
    assert weights[:4] == [0, 0, 0, 0]
    assert min(weights[4:]) > 0
    assert "train/discriminator_loss" not in record.logged[1]
    assert "train/discriminator_loss" in record.logged[2]


def test_each_side_leaves_the_other_alone():
    frozen = {"discriminator_optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0)}
    model = build(**frozen)
    before = copy.deepcopy(model.state_dict())
    fit(model)
    assert not moved(before, model.state_dict(), "discriminator")
    assert moved(before, model.state_dict(), "decoder")
    model = build(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    before = copy.deepcopy(model.state_dict())
    fit(model)
    assert moved(before, model.state_dict(), "discriminator")
    assert not any(moved(before, model.state_dict(), part) for part in ("encoder", "decoder", "quantizer.codebook"))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_two_optimizers_share_no_parameter_and_miss_none():
    model = build()
    tokenizer, discriminator = model.configure_optimizers()
    owners = [
        id(p) for optimizer in (tokenizer, discriminator) for group in optimizer.param_groups for p in group["params"]
    ]
    assert len(owners) == len(set(owners))
    assert set(owners) == {id(parameter) for parameter in model.parameters()}
    names = [name for name, _ in model.tokenizer_parameters()]
    assert not any(name.startswith("discriminator") for name in names)
    assert len(names) + len(list(model.discriminator.parameters())) == len(list(model.parameters()))


def test_accumulated_gradients_are_those_of_the_joined_batch():
    """Without the adaptive weight, which is no mean over images."""
    options = {"adversarial": {"adaptive": False, "weight": 0.3}}
    joined = build(**options).double()
    fit(joined, max_steps=2, count=16, batch_size=8, precision="64-true")
    parts = build(**options, accumulate_grad_batches=2).double()
    trainer = fit(parts, max_steps=4, count=16, batch_size=4, precision="64-true")
    assert trainer.global_step == 4
    for (name, ours), theirs in zip(parts.named_parameters(), joined.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_validation_in_the_middle_of_an_accumulation_changes_nothing():
    def run(**arguments):
        model = build(accumulate_grad_batches=4)
        fit(model, max_steps=4, count=16, **arguments)
        return model.state_dict()

    alone, validated = run(), run(val_check_interval=2, limit_val_batches=1)
    for name, value in alone.items():
        assert value.equal(validated[name]), name


def test_the_last_batch_of_an_epoch_ends_an_accumulation():
    model = build(accumulate_grad_batches=8)
    before = copy.deepcopy(model.state_dict())
    fit(model, max_steps=2)
    assert moved(before, model.state_dict(), "decoder")


def test_clipping_bounds_each_optimizers_gradient():
    def norms(**arguments):
        unit = {
            "optimizer": lambda p: torch.optim.SGD(p, lr=1.0),
            "discriminator_optimizer": lambda p: torch.optim.SGD(p, lr=1.0),
        }
        model = build(**unit, **arguments)
        before = copy.deepcopy(model)
        fit(model, max_steps=1)
        steps = {"tokenizer": [], "discriminator": []}
        for (name, old), new in zip(before.named_parameters(), model.parameters(), strict=True):
            steps["discriminator" if name.startswith("discriminator") else "tokenizer"].append(
                (new - old).detach().flatten()
            )
        return [float(torch.cat(step).norm()) for step in steps.values()]

    assert min(norms()) > 0.02
    assert norms(gradient_clip_val=0.01) == pytest.approx([0.01, 0.01], rel=1e-3)


class Steps(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        self.seen.append(trainer.global_step)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_is_a_batch_for_trainer_checkpoints_and_loggers(tmp_path, accumulate):
    steps = Steps()
    checkpoint = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    logger = CSVLogger(tmp_path, name="", version="")
    model = build(accumulate_grad_batches=accumulate)
    trainer = fit(model, steps, checkpoint, max_steps=10, count=12, logger=logger, log_every_n_steps=5)
    assert trainer.global_step == 10
    assert trainer.fit_loop.epoch_loop.total_batch_idx == 9
    assert steps.seen == list(range(1, 11))
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=4.ckpt", "step=8.ckpt"]
    logged = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    assert [row[logged[0].index("step")] for row in logged[1:]] == ["4", "9"]


def test_a_resumed_run_goes_on_counting_and_scheduling(tmp_path):
    adversarial = {"discriminator_start": 3, "start": 5, "ramp": 4, "lecam_weight": 0.1}
    whole = build(adversarial=adversarial)
    fit(whole, ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1), max_steps=8)
    resumed = build(adversarial=adversarial)
    trainer = fit(resumed, max_steps=8, ckpt_path=tmp_path / "step=4.ckpt")
    assert trainer.global_step == 8
    for name, value in whole.state_dict().items():
        assert value.equal(resumed.state_dict()[name]), name


@pytest.mark.parametrize("kind", [VQVAE, VQGAN])
def test_what_is_scheduled_per_epoch_goes_on_from_an_epochs_last_batch(tmp_path, kind):
    """A checkpoint behind the last batch of an epoch is written before the epoch ends."""

    def run(steps, *callbacks, **arguments):
        model = build(
            NSVQ,
            {"bandwidth": BandwidthSchedule(1.0, kind="exponential", decay=0.5, per="epoch")},
            kind=kind,
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5),
        )
        trainer = fit(model, *callbacks, max_steps=steps, **arguments)
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        return float(model.quantizer.codebook_loss.bandwidth), rates

    whole = run(6, ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1))
    assert run(6, ckpt_path=tmp_path / "step=2.ckpt") == whole
    assert whole[0] == 0.125


def test_the_discriminators_rate_rests_until_it_learns():
    model = build(
        adversarial={"discriminator_start": 4},
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5),
        lr_scheduler_interval="step",
    )
    trainer = fit(model, max_steps=6)
    assert [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers] == pytest.approx([0.05 / 64, 0.05 / 4])


@pytest.mark.parametrize(("interval", "halvings"), [("step", 6), ("epoch", 3)])
def test_both_schedulers_step(interval, halvings):
    model = build(
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5),
        lr_scheduler_interval=interval,
        codebook_lr_factor=4.0,
    )
    trainer = fit(model, max_steps=6)
    rates = [{group.get("name"): group["lr"] for group in optimizer.param_groups} for optimizer in trainer.optimizers]
    assert rates[0]["networks"] == pytest.approx(0.05 / 2**halvings)
    assert rates[0]["codebook"] == pytest.approx(0.2 / 2**halvings)
    assert list(rates[1].values()) == [pytest.approx(0.05 / 2**halvings)]


def test_schedules_of_the_quantizer_advance_once_a_batch_or_epoch():
    for per, halvings in (("step", 6), ("epoch", 3)):
        schedule = BandwidthSchedule(1.0, kind="exponential", decay=0.5, per=per)
        model = build(NSVQ, {"bandwidth": schedule})
        fit(model, max_steps=6, limit_val_batches=1)
        assert float(model.quantizer.codebook_loss.bandwidth) == 0.5**halvings


def test_validation_logs_what_the_vqvae_logs_and_trains_nothing():
    logged = {}
    weights = build(kind=VQVAE).state_dict()
    for kind in (VQVAE, VQGAN):
        model = build(kind=kind, reconstruction_loss="l1")
        model.load_state_dict(weights, strict=False)
        before = copy.deepcopy(model.state_dict())
        trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
        trainer.validate(model, DataLoader(images(), batch_size=4), verbose=False)
        logged[kind] = {name: float(value) for name, value in trainer.callback_metrics.items()}
        assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert logged[VQGAN] == logged[VQVAE]


def test_bfloat16_training_keeps_losses_and_weights_in_float32():
    model = build()
    record = Record()
    fit(model, record, precision="bf16-mixed", max_steps=4)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(torch.tensor(list(row.values())).isfinite().all() for row in record.logged)


def test_gradients_are_taken_outside_of_autocast():
    model = build(SimVQ)
    half = []
    model.quantizer.transform.weight.register_hook(lambda _: half.append(torch.is_autocast_enabled("cpu")))
    fit(model, precision="bf16-mixed")
    assert half == [False, False]


def test_the_same_seed_gives_the_same_run():
    def run():
        record = Record()
        fit(build(), record, max_steps=4)
        return record.logged

    assert run() == run()


class Break(Callback):
    """Breaks a part of the model before one batch."""

    def __init__(self, step, damage):
        self.step, self.damage = step, damage

    def on_train_batch_start(self, trainer, pl_module, *_):
        if trainer.global_step == self.step:
            with torch.no_grad():
                self.damage(pl_module)


DAMAGES = {
    "latents": lambda model: model.to_latents.weight.fill_(float("nan")),
    "codebook": lambda model: model.quantizer.codebook[0].fill_(float("inf")),
    "reconstruction_loss": lambda model: model.from_latents.bias.fill_(float("nan")),
    "discriminator_loss": lambda model: model.discriminator.out.bias.fill_(float("inf")),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_value_that_is_not_finite_stops_training_with_its_name_and_step(tmp_path, name):
    checkpoint = ModelCheckpoint(tmp_path, filename="sound", every_n_train_steps=1, enable_version_counter=False)
    model = build()
    with pytest.raises(FloatingPointError, match=rf"not finite at step 3: .*{name}"):
        fit(model, Break(3, DAMAGES[name]), checkpoint, max_steps=6)
    saved = torch.load(tmp_path / "sound.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_the_vqvae_stops_as_well(tmp_path):
    model = build(kind=VQVAE)
    with pytest.raises(FloatingPointError, match=r"not finite at step 2: .*reconstruction_loss"):
        fit(model, Break(2, DAMAGES["reconstruction_loss"]), max_steps=4)


@pytest.mark.parametrize("kind", [VQVAE, VQGAN])
def test_a_gradient_that_is_not_finite_stops_training_before_the_step(tmp_path, kind):
    checkpoint = ModelCheckpoint(tmp_path, filename="sound", every_n_train_steps=1, enable_version_counter=False)
    model = build(kind=kind)
    weight = next(model.encoder.parameters())
    weight.register_hook(lambda gradient: gradient * (float("nan") if model.global_step == 2 else 1.0))
    with pytest.raises(FloatingPointError, match=r"not finite at step 2: gradient of encoder\..*weight;"):
        fit(model, checkpoint, max_steps=6)
    assert torch.load(tmp_path / "sound.ckpt", weights_only=True)["global_step"] == 2
    assert all(value.isfinite().all() for value in model.state_dict().values())


class BreakAfterStep(Break):
    """Breaks a part of the model behind one batch."""

    def on_train_batch_start(self, *_):
        pass

    def on_train_batch_end(self, *arguments):
        super().on_train_batch_start(*arguments)


def test_broken_weights_never_replace_a_sound_checkpoint(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, filename="sound", every_n_train_steps=1, enable_version_counter=False)
    breaking = BreakAfterStep(3, lambda model: next(model.encoder.parameters()).fill_(float("nan")))
    with pytest.raises(FloatingPointError, match=r"not finite after step 3: encoder.*no checkpoint was written"):
        fit(build(), breaking, checkpoint, max_steps=6)
    saved = torch.load(tmp_path / "sound.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_bad_arguments_are_named():
    for option, value in (
        ("perceptual_weight", -1.0),
        ("gradient_clip_val", 0.0),
        ("accumulate_grad_batches", 0),
        ("encoder_lr_factor", -1.0),
    ):
        with pytest.raises(ValueError, match=option):
            build(**{option: value})
    with pytest.raises(ValueError, match="Plain has no parameter last_layer"):
        build(decoder=Plain())
    with pytest.raises(ValueError, match="ReduceLROnPlateau"):
        fit(build(lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau))
    with pytest.raises(ValueError, match="optimizer refuses its options"):
        fit(build(discriminator_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=-1.0)))


def test_published_weights_are_loaded_once(monkeypatch):
    loaded = []
    monkeypatch.setattr("nsvq.models.vqgan.load_published_autoencoder", lambda model, path: loaded.append(str(path)))
    model = build(pretrained="published.ckpt")
    trainer = fit(model)
    trainer.validate(model, DataLoader(images(), batch_size=4), verbose=False)
    assert loaded == ["published.ckpt"]


def test_a_loss_scaler_is_refused(monkeypatch):
    monkeypatch.setattr(Trainer, "precision", property(lambda self: "16-mixed"))
    with pytest.raises(ValueError, match=r"16-mixed.*bf16-mixed"):
        fit(build())


class Plain(nn.Module):
    in_channels = 8
