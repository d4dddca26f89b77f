"""The weight average: its values, where it is used, and what a checkpoint holds of it."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from nsvq.callbacks import WeightEMA

DECAY = 0.3  # The warm-up's shares are 2/11, 3/12, 4/13 > 0.3 and so on.
IMAGES = torch.randn(8, 4, generator=torch.Generator().manual_seed(5))  # Four batches of two.


class Watched(LightningModule):
    """Two layers, a normalisation with buffers, a frozen weight and a critic; remembers what it was run with."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.fixed = nn.Parameter(torch.ones(4), requires_grad=False)
        self.decoder = nn.Linear(4, 4)
        self.critic = nn.Linear(4, 1)
        self.losses, self.validated = [], []

    def tokenizer_parameters(self):
        return ((name, value) for name, value in self.named_parameters() if not name.startswith("critic"))

    def forward(self, batch):
        return self.decoder(self.norm(self.encoder(batch)) * self.fixed)

    def training_step(self, batch, batch_idx):
        output = self(batch)
        loss = (output - batch).square().mean() + self.critic(output).mean().square()
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        self.validated.append(weights(self))
        self.log("val/loss", (self(batch) - batch).square().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


class Foreign(Watched):
    """Names no tokenizer."""

    tokenizer_parameters = property()


class Live(Callback):
    """Notes the weights after each batch."""

    def __init__(self):
        self.weights = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.append(weights(pl_module))


class Failure(Callback):
    """Fails inside validation."""

    def on_validation_batch_end(self, trainer, *_):
        if not trainer.sanity_checking:
            raise RuntimeError("stop here")


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def averaged_names(module):
    return [name for name, _ in module.named_parameters() if name.split(".")[0] in ("encoder", "norm", "decoder")]


def average_by_hand(course, names):
    average = {name: course[0][name].double() for name in names}
    for update, present in enumerate(course[1:], 1):
        share = min(DECAY, (1 + update) / (10 + update))
        average = {name: share * average[name] + (1 - share) * present[name] for name in names}
    return average


@pytest.fixture
def run(fit, tmp_path):
    """Fit a module without shuffling; return it and the checkpoint of its end."""

    def run(callbacks, module=None, epochs=2, **arguments):
        torch.manual_seed(3)
        module = module or Watched()
        trainer = fit(module, IMAGES, IMAGES, callbacks, max_epochs=epochs, num_sanity_val_steps=0, **arguments)
        path = tmp_path / "end.ckpt"
        trainer.save_checkpoint(path)
        return module, torch.load(path, weights_only=True)

    return run


def test_the_average_equals_one_by_hand(run):
    live = Live()
    module, checkpoint = run([WeightEMA(DECAY), live])
    names = averaged_names(module)
    assert len(live.weights) == 8
    assert checkpoint["weight_ema"]["updates"] == 7
    assert list(checkpoint["weight_ema"]["average"]) == names
    for name, value in average_by_hand(live.weights, names).items():
        torch.testing.assert_close(checkpoint["state_dict"][name], value.float())
    # Only the average differs from the live weights: the critic, the frozen weight and the buffers are those.
    rest = checkpoint["state_dict"].keys() - set(names)
    assert {"critic.weight", "fixed", "norm.running_mean", "norm.num_batches_tracked"} <= rest
    assert all(torch.equal(checkpoint["state_dict"][name], live.weights[-1][name]) for name in rest)
    assert same(checkpoint["weight_ema"]["live_weights"], {name: live.weights[-1][name] for name in names})


def test_a_foreign_module_is_averaged_whole(run):
    module, checkpoint = run([WeightEMA(DECAY)], Foreign())
    trained = [name for name, value in module.named_parameters() if value.requires_grad]
    assert list(checkpoint["weight_ema"]["average"]) == trained


def test_validation_uses_the_average_and_training_does_not_notice(run):
    plain, _ = run([], epochs=3)
    live = Live()
    module, checkpoint = run([WeightEMA(DECAY), live], epochs=3)
    assert module.losses == plain.losses
    assert same(weights(module), weights(plain))
    assert same(weights(module), live.weights[-1])
    for epoch in range(3):
        validated = module.validated[4 * epoch]
        for name, value in average_by_hand(live.weights[: 4 * epoch + 4], averaged_names(module)).items():
            torch.testing.assert_close(validated[name], value.float())
            assert not torch.equal(validated[name], live.weights[4 * epoch + 3][name])
        assert torch.equal(validated["norm.running_mean"], live.weights[4 * epoch + 3]["norm.running_mean"])
    assert same(module.validated[-1], checkpoint["state_dict"])


def test_the_sanity_check_is_left_alone(fit):
    module = Watched()
    before = weights(module)
    fit(module, IMAGES, IMAGES, [WeightEMA(DECAY)], num_sanity_val_steps=1)
    assert same(module.validated[0], before)


def test_the_average_starts_behind_the_first_batch_and_follows_steps(run):
    live = Live()
    _, checkpoint = run([WeightEMA(0.0), live], epochs=1, accumulate_grad_batches=2)
    assert checkpoint["weight_ema"]["updates"] == 2
    assert same(checkpoint["state_dict"], live.weights[-1])


def test_a_failing_validation_leaves_the_live_weights(fit):
    module, live = Watched(), Live()
    with pytest.raises(RuntimeError, match="stop here"):
        fit(module, IMAGES, IMAGES, [WeightEMA(DECAY), live, Failure()])
    assert same(weights(module), live.weights[-1])


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_resumed_fit_is_the_uninterrupted_one(run, tmp_path, precision):
    whole, expected = run([WeightEMA(DECAY)], precision=precision)
    first, _ = run([WeightEMA(DECAY)], epochs=1, precision=precision)
    (tmp_path / "end.ckpt").rename(tmp_path / "first.ckpt")
    second, checkpoint = run([WeightEMA(DECAY)], ckpt_path=tmp_path / "first.ckpt", precision=precision)
    assert first.losses + second.losses == whole.losses
    assert same(weights(second), weights(whole))
    assert same(checkpoint["state_dict"], expected["state_dict"])
    for part in ("average", "live_weights"):
        assert same(checkpoint["weight_ema"][part], expected["weight_ema"][part])


@pytest.mark.parametrize(
    ("precision", "weight", "average"),
    [
        ("32-true", torch.float32, torch.float32),
        ("bf16-true", torch.bfloat16, torch.float32),
        ("64-true", torch.float64, torch.float64),
    ],
)
def test_the_average_is_wide_and_its_weights_have_the_modules_type(run, precision, weight, average):
    _, checkpoint = run([WeightEMA(DECAY)], precision=precision)
    for name, value in checkpoint["weight_ema"]["average"].items():
        assert (checkpoint["state_dict"][name].dtype, value.dtype) == (weight, average)
        assert torch.equal(checkpoint["state_dict"][name], value.to(weight))
        # Equal types: a file holds the numbers once.
        assert (checkpoint["state_dict"][name].data_ptr() == value.data_ptr()) == (weight == average)


def test_a_checkpoint_without_an_average_starts_one(run, tmp_path):
    run([], epochs=1)
    (tmp_path / "end.ckpt").rename(tmp_path / "plain.ckpt")
    live = Live()
    module, checkpoint = run([WeightEMA(DECAY), live], ckpt_path=tmp_path / "plain.ckpt")
    assert checkpoint["weight_ema"]["updates"] == 3
    for name, value in average_by_hand(live.weights, averaged_names(module)).items():
        torch.testing.assert_close(checkpoint["state_dict"][name], value.float())


def test_a_second_fit_starts_its_own_average(run):
    callback = WeightEMA(DECAY)
    run([callback])
    again, first = run([callback])
    _, fresh = run([WeightEMA(DECAY)])
    assert same(first["state_dict"], fresh["state_dict"])
    assert again.losses


def test_checkpoints_of_validation_hold_both(run, tmp_path):
    live = Live()
    saving = ModelCheckpoint(tmp_path / "best", monitor="val/loss", save_top_k=-1, filename="{epoch}")
    module, _ = run([saving, WeightEMA(DECAY), live], enable_checkpointing=True)
    for epoch in range(2):
        checkpoint = torch.load(tmp_path / "best" / f"epoch={epoch}.ckpt", weights_only=True)
        assert same(checkpoint["state_dict"], module.validated[4 * epoch])
        kept = checkpoint["weight_ema"]["live_weights"]
        assert same(kept, {name: live.weights[4 * epoch + 3][name] for name in kept})


@pytest.mark.parametrize("attached", [True, False])
def test_validating_a_checkpoint_uses_its_average(run, fit, tmp_path, attached):
    module, checkpoint = run([WeightEMA(DECAY)])
    callback = WeightEMA(DECAY)
    trainer = fit(Watched(), IMAGES, IMAGES, [callback] if attached else [], max_epochs=1)
    loader = torch.utils.data.DataLoader(IMAGES, batch_size=2)
    loaded = Watched()
    logged = trainer.validate(loaded, loader, ckpt_path=tmp_path / "end.ckpt", verbose=False)[0]
    assert same(loaded.validated[0], checkpoint["state_dict"])
    assert same(weights(loaded), checkpoint["state_dict"])
    assert logged["val/loss"] == pytest.approx(
        sum((part - evaluated(checkpoint, part)).square().mean().item() for part in IMAGES.split(2)) / 4
    )
    assert not same(weights(module), checkpoint["state_dict"])


def evaluated(checkpoint, batch):
    module = Watched().eval()
    module.load_state_dict(checkpoint["state_dict"])
    with torch.no_grad():
        return module(batch)


def test_what_cannot_work_is_refused(fit, tmp_path):
    for decay in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"decay must be at least 0 and below 1, got {decay}"):
            WeightEMA(decay)
    saving = ModelCheckpoint(tmp_path / "weights", save_weights_only=True)
    with pytest.raises(ValueError, match="weight averaging needs whole checkpoints"):
        fit(Watched(), IMAGES, IMAGES, [WeightEMA(), saving], enable_checkpointing=True)
