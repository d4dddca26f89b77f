import copy
import pickle

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from nsvq.models import VQGAN, VQVAE
from nsvq.networks import ConvDecoder, ConvEncoder
from nsvq.quantizers import SimVQ, TransVQ

DIM, SIZE = 6, 20


@pytest.fixture(params=[SimVQ, TransVQ])
def quantizer(request):
    return request.param(DIM, SIZE, initial_scale=1.0)


@pytest.fixture
def transforms(quantizer):
    """How often the codebook was transformed: the length of this list."""
    calls = []
    quantizer.transform.register_forward_hook(lambda *_: calls.append(1))
    return calls


def latents():
    return torch.randn(2, DIM, 3, 3)


def fresh(quantizer):
    twin = copy.deepcopy(quantizer).train()
    return twin.codebook.detach()


def test_a_training_forward_transforms_once(quantizer, transforms):
    quantizer.train()(latents())
    transforms.clear()
    for step in range(1, 4):
        quantizer(latents()).loss.backward()
        assert len(transforms) == step


def test_evaluation_transforms_once(quantizer, transforms):
    quantizer.eval()
    with torch.no_grad():
        output = quantizer(latents())
        quantizer(latents())
        looked_up = quantizer.lookup(output.indices)
        quantizer.search_space(latents())
    assert len(transforms) == 1
    torch.testing.assert_close(looked_up, output.quantized)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "change",
    [
        lambda q: [p.mul_(2) for p in q.transform.parameters()],
        lambda q: [p.copy_(torch.randn_like(p)) for p in q.transform.parameters()],
        lambda q: q.frozen_codebook.add_(1),
        lambda q: q.load_state_dict(type(q)(DIM, SIZE).state_dict()),
        lambda q: q.double(),
    ],
)
def test_evaluation_follows_every_change_of_the_weights(quantizer, change, mode):
    quantizer.eval()
    with mode():
        before = quantizer.codebook
        change(quantizer)
        after = quantizer.codebook
    assert not after.to(before.dtype).equal(before)
    torch.testing.assert_close(after, fresh(quantizer))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_train_and_eval_forget_the_codebook_even_where_no_counter_saw_a_change(quantizer, mode):
    quantizer.eval()
    with torch.no_grad():
        quantizer(latents())
        for parameter in quantizer.transform.parameters():
            parameter.data.mul_(2)
        getattr(quantizer, mode)()
        quantizer.eval()
        torch.testing.assert_close(quantizer.codebook, fresh(quantizer))


def test_a_step_between_two_evaluations_is_seen(quantizer):
    with torch.no_grad():
        before = quantizer.eval().codebook
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.1)
    quantizer.train()(latents()).loss.backward()
    optimizer.step()
    with torch.no_grad():
        after = quantizer.eval().codebook
    assert not after.equal(before)
    torch.testing.assert_close(after, fresh(quantizer))


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}])
def test_training_in_evaluation_mode_is_seen(quantizer, options):
    quantizer.eval()
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.1, **options)
    for _ in range(3):
        optimizer.zero_grad()
        quantizer(latents()).loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch.testing.assert_close(quantizer.codebook, fresh(quantizer))


def test_a_weight_that_becomes_another_tensor_is_seen(quantizer):
    quantizer.eval()
    with torch.no_grad():
        quantizer(latents())
        for parameter in quantizer.transform.parameters():
            parameter.data = torch.randn_like(parameter)
        torch.testing.assert_close(quantizer.codebook, fresh(quantizer))


def test_copies_and_files_hold_no_transformed_codebook(quantizer):
    before = len(pickle.dumps(quantizer.eval()))
    with torch.no_grad():
        quantizer(latents())
    assert len(pickle.dumps(quantizer)) == before
    assert set(quantizer.state_dict()) == set(type(quantizer)(DIM, SIZE).state_dict())


def test_evaluation_with_gradients_reaches_the_transform(quantizer):
    quantizer.eval()
    with torch.no_grad():
        quantizer(latents())
    quantizer(latents()).loss.backward()
    assert all(p.grad is not None for p in quantizer.transform.parameters())


@pytest.mark.parametrize("model_class", [VQVAE, VQGAN])
def test_a_training_step_of_a_model_transforms_once(quantizer, transforms, model_class, tmp_path):
    networks = {
        "encoder": ConvEncoder(channels=[8], num_residual_layers=0),
        "decoder": ConvDecoder(channels=[8], num_residual_layers=0),
    }
    model = model_class(quantizer, **networks, **({"perceptual_weight": 0.0} if model_class is VQGAN else {}))
    per_batch = []

    class Count(pl.Callback):
        def on_train_batch_start(self, *_):
            transforms.clear()

        def on_train_batch_end(self, *_):
            per_batch.append(len(transforms))

    images = DataLoader(torch.rand(6, 3, 32, 32) * 2 - 1, batch_size=2)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[Count()],
    )  # fmt: skip
    trainer.fit(model, images)
    # The first batch also measures the codes' scale.
    assert per_batch == [2, 1, 1]
