"""A real Trainer on two and three gloo processes against one process."""

import copy
import json

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

from nsvq.callbacks import (
    CodebookHealth,
    CodebookInitialization,
    CurvesOnDisk,
    DeadCodeReplacement,
    EncoderDrift,
    ImageQuality,
    ReconstructionGrid,
    WeightEMA,
)
from nsvq.data.base import ImageDataModule, Splits
from nsvq.data.tensor_images import TensorImages
from nsvq.losses import AdversarialLoss
from nsvq.models import VQGAN, VQVAE
from nsvq.networks import ConvDecoder, ConvEncoder, PatchDiscriminator
from nsvq.quantizers import EMAVQ, NSVQ, BandwidthSchedule, FactorizedVQ, SimVQ, TransVQ, VanillaVQ

STEPS, BATCH = 6, 4
pytestmark = pytest.mark.filterwarnings("ignore")


class PoolEnvironment(LightningEnvironment):
    """Tells Lightning that the test's processes and their group run already."""

    creates_processes_externally = True

    def global_rank(self):
        return dist.get_rank()

    def local_rank(self):
        return dist.get_rank()

    def world_size(self):
        return dist.get_world_size()


def build(kind, quantizer):
    torch.manual_seed(0)

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.05)

    networks = {"encoder": ConvEncoder([8, 8], 1), "decoder": ConvDecoder([8, 8], 1), "optimizer": sgd}
    if kind is VQGAN:
        adversarial = AdversarialLoss(discriminator_start=1, start=3, ramp=1, lecam_weight=0.1, r1_weight=0.1)
        networks |= {
            "discriminator": PatchDiscriminator(channels=8, num_layers=1),
            "adversarial": adversarial,
            "discriminator_optimizer": sgd,
            "perceptual_weight": 0.0,
            "gradient_clip_val": 1.0,
        }
    return kind(quantizer(4, 16), **networks).double()


def train(kind, quantizer, *callbacks, find_unused=True):
    """Train on this process's share of every batch and return the final state and what was logged."""
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    images = torch.rand(STEPS, BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    share = images.chunk(ranks, dim=1)[rank].flatten(0, 1).double()
    arguments = {"plugins": PoolEnvironment(), "devices": ranks} if ranks > 1 else {}
    strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=find_unused) if ranks > 1 else "auto"
    trainer = Trainer(
        accelerator="cpu",
        strategy=strategy,
        precision="64-true",
        max_steps=STEPS,
        logger=False,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        barebones=False,
        **arguments,
    )
    model = build(kind, quantizer)
    # The group outlives the trainer, whose strategy would end it.
    end, dist.destroy_process_group = dist.destroy_process_group, lambda: None
    try:
        trainer.fit(model, DataLoader(share, batch_size=BATCH // ranks))
    finally:
        dist.destroy_process_group = end
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {name: value.clone() for name, value in model.state_dict().items()}, logged, trainer.global_step


class Grey(nn.Module):
    """Features of an image: its mean level per channel."""

    num_features = 3

    def forward(self, images):
        return images.double().mean(dim=(2, 3))


class Patterns(ImageDataModule):
    """Random images, mirrored at random in training; what remains of 50 fills no global batch."""

    def make_splits(self):
        images = (torch.rand(63, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 255).to(torch.uint8)
        names = [f"{number:02d}" for number in range(63)]
        val = TensorImages(images[50:], names[50:])
        return Splits(TensorImages(images[:50], names[:50], horizontal_flip=True), val, val)


class Indices(Callback):
    """Keeps the indices of every training step."""

    def __init__(self):
        self.seen = []

    def on_fit_start(self, trainer, pl_module):
        pl_module.quantizer.register_forward_hook(
            lambda quantizer, _, output: self.seen.append(output.indices) if quantizer.training else None
        )


RELATIVE = BandwidthSchedule(0.5, kind="exponential", decay=0.9, unit="winner_distance")
QUANTIZERS = {
    "VanillaVQ": (VanillaVQ, {}),
    "EMAVQ": (EMAVQ, {"decay": 0.9}),
    "FactorizedVQ": (FactorizedVQ, {"code_dim": 3}),
    "SimVQ": (SimVQ, {"initial_scale": 1.0}),
    "NSVQ": (NSVQ, {"kernel": "clamped_softmax", "bandwidth": RELATIVE, "neighbor_weight": 0.5}),
    "TransVQ": (TransVQ, {"width": 8, "initial_scale": 1.0}),
}


def whole_model(kind, name):
    torch.manual_seed(0)

    def adam(parameters):
        return torch.optim.Adam(parameters, lr=2e-3)

    networks = {"encoder": ConvEncoder([8, 8], 1), "decoder": ConvDecoder([8, 8], 1), "optimizer": adam}
    if kind is VQGAN:
        networks |= {
            "discriminator": PatchDiscriminator(channels=8, num_layers=1),
            "adversarial": AdversarialLoss(discriminator_start=2, start=5, ramp=3, lecam_weight=0.1, r1_weight=0.1),
            "discriminator_optimizer": adam,
            "perceptual_weight": 0.0,
            "gradient_clip_val": 1.0,
        }
    quantizer, options = QUANTIZERS[name]
    return kind(quantizer(4, 32, **options), **networks)


def whole_run(kind, name, folder):
    """Train 20 steps of 12 images in float64, watched by everything there is; return what came of it."""
    model = whole_model(kind, name)
    indices = Indices()
    callbacks = [
        indices,
        CodebookHealth(train_window=3),
        EncoderDrift(every_n_steps=2, num_images=5),
        CurvesOnDisk(),
        ReconstructionGrid(2),
        ImageQuality(every_n_epochs=1, fid_extractor=Grey(), lpips=[], ms_ssim=True, ms_ssim_betas=[0.5]),
        WeightEMA(0.5),
    ]
    if model.quantizer.free_codes is not None:
        callbacks += [CodebookInitialization(num_batches=2), DeadCodeReplacement(2, every_n_steps=2)]
    logger = CSVLogger(folder, name="", version="")
    trainer = fit(model, callbacks, precision="64-true", max_steps=20, log_every_n_steps=1, logger=logger)
    state = {part: value.clone() for part, value in model.state_dict().items()}
    optimizers = [optimizer.state_dict()["state"] for optimizer in trainer.optimizers]
    return state, optimizers, torch.stack(indices.seen)


def fit(model, callbacks, **options):
    """Train on batches of 12, in whatever processes there are."""
    trainer = Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        gradient_clip_val=1.0 if model.automatic_optimization else None,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        **{"logger": False, **distributed_arguments(), **options},
    )
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    # The group outlives the trainer, whose strategy would end it.
    end, dist.destroy_process_group = dist.destroy_process_group, lambda: None
    try:
        trainer.fit(model, datamodule=Patterns(batch_size=12 // ranks))
    finally:
        dist.destroy_process_group = end
    return trainer


def distributed_arguments():
    if not dist.is_initialized():
        return {}
    strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)
    return {"plugins": PoolEnvironment(), "devices": dist.get_world_size(), "strategy": strategy}


def assert_whole_run_equals_one_process(pool, kind, name, folder):
    ranks = pool.run(whole_run, kind, name, folder / "several")
    state, optimizers, indices = whole_run(kind, name, folder / "one")
    for other in ranks[1:]:
        torch.testing.assert_close(other[:2], ranks[0][:2], rtol=0, atol=0)
    # The images of a global batch are dealt out in turn.
    assert torch.stack([rank[2] for rank in ranks], dim=2).flatten(1, 2).equal(indices)
    torch.testing.assert_close(ranks[0][0], state, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ranks[0][1], optimizers, rtol=1e-8, atol=1e-12)
    for file in ("metrics.csv", "curves/codebook.csv", "curves/drift.csv"):
        one, several = (pd.read_csv(folder / part / file) for part in ("one", "several"))
        # Image measures add up in float32.
        pd.testing.assert_frame_equal(several.filter(regex="psnr|ssim"), one.filter(regex="psnr|ssim"), rtol=1e-6)
        rest = [column for column in one if not column.endswith(("psnr", "ssim"))]
        pd.testing.assert_frame_equal(several[rest], one[rest], rtol=1e-8, atol=1e-11)
    records = [json.loads((folder / part / "results.json").read_text()) for part in ("one", "several")]
    assert records[0]["metrics"] == pytest.approx(records[1]["metrics"], rel=1e-6)
    assert records[1]["metrics"]["tokens"] == 13 * 16
    start = whole_model(kind, name).state_dict()
    for part in ("encoder", "decoder", "quantizer") + (("discriminator",) if kind is VQGAN else ()):
        assert any(not state[key].equal(start[key].to(state[key])) for key in start if key.startswith(part)), part


# One of each pair in every run of the tests; the whole matrix is slow.
REPRESENTATIVE = [(VQVAE, "NSVQ", 2), (VQGAN, "EMAVQ", 2)]
MATRIX = [(kind, name, size) for kind in (VQVAE, VQGAN) for name in QUANTIZERS for size in (2, 3)]


@pytest.mark.parametrize(("kind", "name", "size"), REPRESENTATIVE)
def test_a_whole_run_of_two_processes_is_that_of_one(rank_pool, tmp_path, kind, name, size):
    assert_whole_run_equals_one_process(rank_pool, kind, name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name", "size"), [case for case in MATRIX if case not in REPRESENTATIVE])
def test_every_whole_run_of_several_processes_is_that_of_one(request, tmp_path, kind, name, size):
    pool = request.getfixturevalue("rank_pool" if size == 2 else "rank_pool_of_three")
    assert_whole_run_equals_one_process(pool, kind, name, tmp_path)


COLLECTIVES = ["all_reduce", "broadcast", "all_gather", "reduce", "barrier"]
COLLECTIVES += ["all_gather_object", "broadcast_object_list"]


class Gradients(Callback):
    """Keeps the gradients that the first optimizer steps take."""

    def __init__(self):
        self.seen = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for name, parameter in pl_module.named_parameters():
            if parameter.grad is not None:
                self.seen.setdefault(name, parameter.grad.clone())


def one_step(kind, name):
    """Train one step in float32; return loss, gradients, indices, and what the quantizer keeps without a gradient."""
    model, gradients, indices = whole_model(kind, name), Gradients(), Indices()
    if kind is VQGAN:
        model.adversarial = AdversarialLoss()
    trainer = fit(model, [gradients, indices], max_steps=1, limit_val_batches=0)
    logged = {part: value for part, value in trainer.callback_metrics.items() if part.startswith("train/")}
    kept = {part: value for part, value in model.quantizer.named_buffers() if value.is_floating_point()}
    return {**logged, **gradients.seen, **kept}, indices.seen[0]


@pytest.mark.parametrize("kind", [VQVAE, VQGAN])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_step_in_float32_is_that_of_one_process(rank_pool, kind, name):
    ranks = rank_pool.run(one_step, kind, name)
    values, indices = one_step(kind, name)
    assert torch.stack([rank[1] for rank in ranks], dim=1).flatten(0, 1).equal(indices)
    for part, value in values.items():
        assert ranks[0][0][part].equal(ranks[1][0][part]), part
        error = (ranks[0][0][part] - value).abs().max()
        assert error <= 1e-5 * value.abs().max(), part


def communicated(kind, name):
    """Train four steps and return what this process exchanged in each: the collective and its bytes."""
    steps, originals = [[]], {collective: getattr(dist, collective) for collective in COLLECTIVES}

    class Mark(Callback):
        def on_train_batch_end(self, *_):
            steps.append([])

    def watched(collective):
        def call(*arguments, **options):
            tensor = arguments[0] if arguments and isinstance(arguments[0], torch.Tensor) else None
            steps[-1].append((collective, 0 if tensor is None else tensor.numel() * tensor.element_size()))
            return originals[collective](*arguments, **options)

        return call

    for collective in COLLECTIVES:
        setattr(dist, collective, watched(collective))
    try:
        model = whole_model(kind, name)
        callbacks = [CodebookHealth(), WeightEMA(), Mark()]
        if model.quantizer.free_codes is not None:
            callbacks.insert(0, DeadCodeReplacement(2, every_n_steps=2))
        fit(model, callbacks, max_steps=6, limit_val_batches=0)
    finally:
        for collective, original in originals.items():
            setattr(dist, collective, original)
    return steps[1:6]


FLOAT, DOUBLE, INT = 4, 8, 4
# What a step exchanges because of the quantizer: EMA's counts and sums, the mean winner distance.
OWN = {"EMAVQ": [32 * (4 + 1) * FLOAT], "NSVQ": [2 * DOUBLE]}


@pytest.mark.parametrize(("kind", "name"), [(VQVAE, name) for name in QUANTIZERS] + [(VQGAN, "NSVQ")])
def test_a_step_exchanges_what_it_should_whatever_the_data(rank_pool, kind, name):
    first, second = rank_pool.run(communicated, kind, name)
    assert first == second
    model = whole_model(kind, name)
    tensors = (*model.quantizer.named_parameters(), *model.quantizer.named_buffers())
    watched = 1 + sum(tensor.is_floating_point() for _, tensor in tensors)
    losses = 3 if name == "EMAVQ" else 4
    expected = [watched * INT, *OWN.get(name, [])]
    if kind is VQGAN:
        last_layer = 2 * model.decoder.last_layer.numel() * FLOAT
        lecam = 2 * FLOAT
        # Loss, adversarial loss and weight, discriminator's loss and two mean logits.
        expected += [last_layer, lecam, (losses + 5) * DOUBLE]
    else:
        expected += [losses * DOUBLE]
    # Lightning's own question whether rank 0 was asked to stop.
    expected = [("broadcast", 8), *(("all_reduce", count) for count in expected)]
    size, dim = model.quantizer.codebook_size, model.quantizer.search_space(torch.zeros(1, 4, 1, 1))[1].shape[1]
    replacing = [("all_reduce", count) for count in (size * 8, 2 * 8, size * dim * FLOAT)]
    for step, exchanged in enumerate(first[1:], start=3):
        looks = model.quantizer.free_codes is not None and step % 2 == 0
        assert exchanged == expected + (replacing if looks else []), step


def evaluate(folder):
    """Validate on this process's share of 13 images and return the record of rank 0 and every rank's numbers."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    arguments = {"plugins": PoolEnvironment(), "devices": ranks} if ranks > 1 else {}
    trainer = Trainer(
        accelerator="cpu",
        strategy=DDPStrategy(process_group_backend="gloo") if ranks > 1 else "auto",
        logger=CSVLogger(folder, name="", version=""),
        callbacks=[CodebookHealth(), ImageQuality(fid_extractor=Grey(), lpips=[])],
        enable_progress_bar=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        **arguments,
    )
    end, dist.destroy_process_group = dist.destroy_process_group, lambda: None
    try:
        trainer.validate(build(VQGAN, VanillaVQ).float(), datamodule=Patterns(batch_size=3), verbose=False)
    finally:
        dist.destroy_process_group = end
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_two_processes_evaluate_every_image_once(rank_pool, tmp_path):
    first, second = rank_pool.run(evaluate, tmp_path / "two")
    one = evaluate(tmp_path / "one")
    assert set(first) == set(one)
    assert {"val/psnr", "val/ssim", "val/fid_smoke", "val/quantization_error"} <= set(one)
    for name, value in one.items():
        assert first[name] == second[name] == pytest.approx(value, rel=1e-5), name
    assert one["val/tokens"] == 13 * 16
    records = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert [record["images"] for record in records] == [13, 13]


class BreakOneRank(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 2 and dist.get_rank() == 1:
            batch.fill_(float("nan"))


def train_with_damage(kind):
    try:
        train(kind, VanillaVQ, BreakOneRank())
    except FloatingPointError as error:
        return str(error)
    return "nothing happened"


@pytest.mark.parametrize("kind", [VQVAE, VQGAN])
def test_a_nan_on_one_process_stops_both_with_the_same_message(rank_pool, kind):
    first, second = rank_pool.run(train_with_damage, kind)
    assert first == second
    assert first.startswith("not finite at step 2: latents")


def train_without_unused():
    try:
        train(VQGAN, VanillaVQ, find_unused=False)
    except ValueError as error:
        return str(error)
    return "nothing happened"


def test_the_strategy_that_cannot_train_two_losses_is_refused(rank_pool):
    for message in rank_pool.run(train_without_unused):
        assert "--trainer.strategy ddp_find_unused_parameters_true" in message


def test_the_test_models_differ_from_their_start():
    """Equal weights would prove nothing if nothing moved."""
    start = copy.deepcopy(build(VQGAN, VanillaVQ).state_dict())
    state, *_ = train(VQGAN, VanillaVQ)
    for part in ("encoder", "decoder", "quantizer", "discriminator"):
        assert any(not state[name].equal(start[name]) for name in start if name.startswith(part)), part
