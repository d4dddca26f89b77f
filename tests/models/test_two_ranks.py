"""A real Trainer on two gloo processes against one process."""

import copy
import json

import pytest
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

from nsvq.callbacks import CodebookHealth, ImageQuality
from nsvq.data.base import ImageDataModule, Splits
from nsvq.data.tensor_images import TensorImages
from nsvq.losses import AdversarialLoss
from nsvq.models import VQGAN, VQVAE
from nsvq.networks import ConvDecoder, ConvEncoder, PatchDiscriminator
from nsvq.quantizers import EMAVQ, NSVQ, TransVQ, VanillaVQ

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


@pytest.mark.parametrize("kind", [VQVAE, VQGAN])
@pytest.mark.parametrize("quantizer", [VanillaVQ, EMAVQ, NSVQ, TransVQ])
def test_two_processes_give_the_weights_of_one(rank_pool, kind, quantizer):
    first, second = rank_pool.run(train, kind, quantizer)
    state, logged, steps = train(kind, quantizer)
    assert first[2] == second[2] == steps == STEPS
    for name, value in state.items():
        assert first[0][name].equal(second[0][name]), name
        torch.testing.assert_close(first[0][name], value, rtol=1e-9, atol=1e-12, msg=name)
    if kind is VQGAN:
        assert logged["train/adversarial_weight"] > 0
        assert first[1]["train/adversarial_weight"] == pytest.approx(logged["train/adversarial_weight"], rel=1e-9)


def communicated(kind):
    """Train and return how often, and in which sizes, this process joined a reduction of ours in each step."""
    steps, reduce = [[]], dist.all_reduce

    class Mark(Callback):
        def on_train_batch_end(self, *_):
            steps.append([])

    def watched(tensor, *arguments, **options):
        steps[-1].append(tensor.numel())
        return reduce(tensor, *arguments, **options)

    dist.all_reduce = watched
    try:
        train(kind, VanillaVQ, Mark())
    finally:
        dist.all_reduce = reduce
    return steps[:STEPS]


def test_communication_does_not_depend_on_the_tokenizers_adversarial_start(rank_pool):
    """The discriminator learns from step 1 (LeCAM, its own checks), the tokenizer feels it from step 3."""
    first, second = rank_pool.run(communicated, VQGAN)
    assert first == second
    assert all(step == first[1] for step in first[1:])
    last_layer = build(VQGAN, VanillaVQ).decoder.last_layer.numel()
    assert all(step.count(2 * last_layer) == 1 for step in first)


class Grey(nn.Module):
    """Features of an image: its mean level per channel."""

    num_features = 3

    def forward(self, images):
        return images.double().mean(dim=(2, 3))


class Patterns(ImageDataModule):
    def make_splits(self):
        images = torch.rand(13, 3, 16, 16, generator=torch.Generator().manual_seed(2))
        dataset = TensorImages((images * 255).to(torch.uint8), [f"{number:02d}" for number in range(13)])
        return Splits(dataset, dataset, dataset)


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
