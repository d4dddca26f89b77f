import itertools

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader

from nsvq.callbacks import EncoderFreeze
from nsvq.losses import AdversarialLoss
from nsvq.models import VQGAN, VQVAE
from nsvq.networks import ConvDecoder, ConvEncoder, PatchDiscriminator
from nsvq.quantizers import VanillaVQ

SMALL = {"channels": [4], "num_residual_layers": 1}
PARTS = ("encoder.", "to_latents.")


def models():
    parts = {"quantizer": VanillaVQ(2, 8), "encoder": ConvEncoder(**SMALL), "decoder": ConvDecoder(**SMALL)}
    return {
        # Momentum and weight decay would go on to move what has no gradient of its own.
        "vqvae": lambda: VQVAE(**parts, optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)),
        "vqgan": lambda: VQGAN(
            **parts,
            perceptual_weight=0.0,
            discriminator=PatchDiscriminator(channels=4, num_layers=1),
            adversarial=AdversarialLoss(start=0),
        ),
    }


@pytest.mark.parametrize("name", ["vqvae", "vqgan"])
@pytest.mark.parametrize("from_step", [0, 2])
def test_the_encoder_stands_still_from_a_step_on_and_the_rest_moves(tmp_path, name, from_step):
    seed_everything(0)
    model = models()[name]()
    states = [{key: value.clone() for key, value in model.state_dict().items()}]
    model.on_train_batch_end = lambda *_: states.append({k: v.clone() for k, v in model.state_dict().items()})
    images = DataLoader(torch.rand(8, 3, 8, 8) * 2 - 1, batch_size=2)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        max_steps=4, accelerator="cpu", default_root_dir=tmp_path, callbacks=[EncoderFreeze(from_step)], **options
    )
    trainer.fit(model, images)
    assert len(states) == 5
    for step, (before, after) in enumerate(itertools.pairwise(states)):
        moved = {key for key, value in after.items() if value.is_floating_point() and not value.equal(before[key])}
        encoder = {key for key in moved if key.startswith(PARTS)}
        assert bool(encoder) == (step < from_step)
        assert any(key.startswith("decoder.") for key in moved)


def test_a_module_without_an_encoder_group_is_refused(tmp_path):
    class Plain(LightningModule):
        def configure_optimizers(self):
            return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)

        def training_step(self, batch, batch_idx):
            return None

    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, callbacks=[EncoderFreeze()], default_root_dir=tmp_path
    )
    with pytest.raises(TypeError, match="no optimizer of Plain has a parameter group named encoder to freeze"):
        trainer.fit(Plain(), DataLoader(torch.zeros(2, 1)))


def test_a_step_below_0_is_refused():
    with pytest.raises(ValueError, match="from_step must be at least 0, got -1"):
        EncoderFreeze(-1)
