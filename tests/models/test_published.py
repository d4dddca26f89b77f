"""Loading published autoencoders: weights to the bit, foreign classes without their code, clear refusals."""

import copy
import os
import pickle
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from nsvq.models import VQVAE
from nsvq.models.published import load_published_autoencoder
from nsvq.networks import ConvEncoder, LDMDecoder, LDMEncoder
from nsvq.quantizers import EMAVQ, NSVQ, FactorizedVQ, SimVQ, TransVQ, VanillaVQ

DIM, K = 4, 16
NETWORKS = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "resolution": 8, "z_channels": 3}
PUBLISHED_NAMES = {"to_latents": "quant_conv", "from_latents": "post_quant_conv"}
FOREIGN = "pytorch_lightning.callbacks.model_checkpoint"
ALL_QUANTIZERS = [VanillaVQ, NSVQ, EMAVQ, FactorizedVQ, SimVQ, TransVQ]
WITH_A_FREE_CODEBOOK = [VanillaVQ, NSVQ, EMAVQ]


class Autoencoder(nn.Module):
    def __init__(self, quantizer, **networks):
        super().__init__()
        self.encoder = LDMEncoder(**(NETWORKS | networks))
        self.decoder = LDMDecoder(**(NETWORKS | networks))
        self.quantizer = quantizer
        self.to_latents = nn.Conv2d(self.encoder.out_channels, quantizer.dim, 1)
        self.from_latents = nn.Conv2d(quantizer.dim, self.decoder.in_channels, 1)


def build(quantizer=VanillaVQ, **options):
    return Autoencoder(quantizer(DIM, K, **options))


def published_weights(seed=7):
    """Return a state dict of published names with values that no initialisation gives."""
    source = build()
    weights = {}
    for part in ("encoder", "decoder", "to_latents", "from_latents"):
        state = getattr(source, part).state_dict()
        weights |= {f"{PUBLISHED_NAMES.get(part, part)}.{name}": value for name, value in state.items()}
    weights["quantize.embedding.weight"] = source.quantizer.codebook.detach()
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator) for name, value in weights.items()}


def assert_networks_loaded(model, weights):
    count = 0
    for part in ("encoder", "decoder", "to_latents", "from_latents"):
        for name, value in getattr(model, part).state_dict().items():
            assert torch.equal(value, weights[f"{PUBLISHED_NAMES.get(part, part)}.{name}"]), name
            count += 1
    assert count == len(weights) - 1


def save(path, content):
    torch.save(content, path)
    return path


@pytest.fixture
def foreign_class(monkeypatch):
    """Put a class of a module that is not there into scope while a file is written."""
    module = types.ModuleType(FOREIGN)
    # Its pickles name this module, whatever else of that package is installed.
    monkeypatch.setitem(sys.modules, FOREIGN, module)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": FOREIGN})
    return module.ModelCheckpoint


def test_every_weight_of_a_lightning_checkpoint_is_loaded(tmp_path, monkeypatch, foreign_class):
    weights = published_weights()
    callback = foreign_class()
    callback.monitor = "val/rec_loss"
    content = {
        "epoch": 3,
        "callbacks": {foreign_class: {"best_model_score": numpy.float64(0.5), "object": callback}},
        "state_dict": weights | {"loss.discriminator.main.0.weight": torch.ones(3), "model_ema.decay": torch.ones(())},
    }
    path = save(tmp_path / "last.ckpt", content)
    monkeypatch.delitem(sys.modules, FOREIGN)
    assert f"{FOREIGN}.ModelCheckpoint" in torch.serialization.get_unsafe_globals_in_checkpoint(path)
    allowed = set(torch.serialization.get_safe_globals())
    model = build()
    load_published_autoencoder(model, str(path))
    assert_networks_loaded(model, weights)
    assert torch.equal(model.quantizer.codebook, weights["quantize.embedding.weight"])
    assert FOREIGN not in sys.modules
    assert set(torch.serialization.get_safe_globals()) == allowed


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bare_state_dict_is_loaded(tmp_path, zipped):
    weights = published_weights()
    torch.save(weights, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    model = build()
    load_published_autoencoder(model, tmp_path / "model.pth")
    assert_networks_loaded(model, weights)


def test_the_first_stage_of_a_latent_diffusion_model_is_loaded(tmp_path):
    weights = published_weights()
    state = {f"first_stage_model.{name}": value for name, value in weights.items()}
    state |= {"model.diffusion_model.out.2.weight": torch.ones(2), "encoder.of_something_else": torch.ones(2)}
    model = build()
    load_published_autoencoder(model, save(tmp_path / "model.ckpt", {"state_dict": state}))
    assert_networks_loaded(model, weights)
    assert torch.equal(model.quantizer.codebook, weights["quantize.embedding.weight"])


def test_a_vqvae_reconstructs_with_the_published_weights(tmp_path):
    path = save(tmp_path / "model.ckpt", published_weights())
    models = [VQVAE(VanillaVQ(DIM, K), LDMEncoder(**NETWORKS), LDMDecoder(**NETWORKS)).eval() for _ in range(2)]
    images = torch.randn(2, 3, 8, 8)
    assert not torch.equal(models[0](images)[0], models[1](images)[0])
    for model in models:
        load_published_autoencoder(model, path)
    assert torch.equal(models[0](images)[0], models[1](images)[0])


def test_vq_f4_has_55_million_parameters():
    # Latent diffusion's VQ-f4: 55.32 million with the codebook, without the training loss.
    with torch.device("meta"):
        model = Autoencoder(VanillaVQ(3, 8192), ch=128, ch_mult=(1, 2, 4), num_res_blocks=2, resolution=256)
    assert sum(parameter.numel() for parameter in model.parameters()) == 55_322_782


@pytest.mark.parametrize("quantizer", WITH_A_FREE_CODEBOOK)
def test_a_loaded_codebook_stays_at_its_scale(tmp_path, quantizer):
    weights = published_weights()
    model = build(quantizer, initial_scale=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_published_autoencoder(model, save(tmp_path / "model.ckpt", weights))
    codebook = weights["quantize.embedding.weight"]
    assert torch.equal(model.quantizer.codebook, codebook)
    if quantizer is EMAVQ:
        assert torch.equal(model.quantizer.latent_sums, codebook)
        model.quantizer.decay = 1.0
    model.quantizer(torch.randn(2, DIM, 8, 8))
    assert torch.allclose(model.quantizer.codebook, codebook, rtol=1e-3)


@pytest.mark.parametrize("quantizer", [each for each in ALL_QUANTIZERS if each not in WITH_A_FREE_CODEBOOK])
def test_other_quantizers_keep_their_codes_and_say_so(tmp_path, quantizer):
    weights = published_weights()
    # The same shape as the codebook, but searched on the unit sphere.
    model = build(quantizer, **({"code_dim": DIM} if quantizer is FactorizedVQ else {}))
    before = copy.deepcopy(model.quantizer.state_dict())
    with pytest.warns(UserWarning, match=f"codebook of .*model.ckpt is left out: {quantizer.__name__} keeps"):
        load_published_autoencoder(model, save(tmp_path / "model.ckpt", weights))
    assert_networks_loaded(model, weights)
    assert all(torch.equal(value, before[name]) for name, value in model.quantizer.state_dict().items())


class RunsACommand:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("place", ["beside the weights", "among the weights", "as the file"])
@pytest.mark.parametrize("function", [os.system, subprocess.call, eval, exec], ids=lambda f: f.__name__)
def test_code_in_a_checkpoint_does_not_run(tmp_path, function, place):
    trace = tmp_path / "trace"
    code = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    command = (code,) if function in (eval, exec) else (["touch", str(trace)],)
    if function is os.system:
        command = (f"touch {trace}",)
    attack = RunsACommand(function, *command)
    weights = published_weights()
    content = {
        "beside the weights": {"state_dict": weights, "callbacks": {"a": attack}},
        "among the weights": {"state_dict": weights | {"quant_conv.bias": attack}},
        "as the file": attack,
    }[place]
    path = save(tmp_path / "model.ckpt", content)
    model = build()
    before = copy.deepcopy(model.state_dict())
    if place == "beside the weights" and function is not os.system:
        load_published_autoencoder(model, path)
        assert_networks_loaded(model, weights)
    else:
        with pytest.raises(ValueError, match=r"not safe to load|quant_conv\.bias is missing|holds no state_dict"):
            load_published_autoencoder(model, path)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not trace.exists()
    # The attack works where a file is trusted, otherwise this test would show nothing.
    torch.load(path, weights_only=False)
    assert trace.exists()


def test_a_pickle_that_is_no_checkpoint_does_not_run(tmp_path):
    trace = tmp_path / "trace"
    path = tmp_path / "model.ckpt"
    path.write_bytes(pickle.dumps(RunsACommand(os.system, f"touch {trace}"), protocol=2))
    with pytest.raises(ValueError, match="cannot be read"):
        load_published_autoencoder(build(), path)
    assert not trace.exists()


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "nothing.ckpt", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"checkpoint {path} does not exist"):
            load_published_autoencoder(build(), path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    whole = save(tmp_path / "whole.ckpt", published_weights()).read_bytes()
    damaged = {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"<html>not found</html>"}
    for name, content in damaged.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"checkpoint {path} cannot be read"):
            load_published_autoencoder(build(), path)


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"state_dict": [1]}, {"epoch": 3}, [1, 2], torch.ones(2)])
def test_a_file_without_weights_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match="holds no state_dict"):
        load_published_autoencoder(build(), save(tmp_path / "model.ckpt", content))


def refusal(tmp_path, model, weights):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="belongs to another model") as caught:
        load_published_autoencoder(model, save(tmp_path / "model.ckpt", weights))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return str(caught.value).partition("another model: ")[2]


def test_missing_unknown_and_misshaped_weights_are_refused(tmp_path):
    weights = published_weights()
    del weights["quant_conv.bias"]
    assert refusal(tmp_path, build(), weights) == "quant_conv.bias is missing"
    weights = published_weights() | {"decoder.mid.attn_2.q.bias": torch.ones(64)}
    assert refusal(tmp_path, build(), weights) == "decoder.mid.attn_2.q.bias is not in the model"
    weights = published_weights() | {"encoder.norm_out.bias": torch.ones(32)}
    assert refusal(tmp_path, build(), weights) == "encoder.norm_out.bias has shape (32,) where the model has (64,)"


def test_three_differences_are_listed_and_the_rest_counted(tmp_path):
    model = build()
    model.encoder = ConvEncoder([8], 0)
    message = refusal(tmp_path, model, published_weights())
    assert message.startswith("encoder.layers.0.weight is missing; encoder.layers.0.bias is missing; ")
    count = len(model.encoder.state_dict()) + len(LDMEncoder(**NETWORKS).state_dict())
    assert message.endswith(f", and {count - 3} more")


def test_a_codebook_of_another_size_is_refused(tmp_path):
    message = "quantize.embedding.weight has shape (16, 4) where the model has (8, 4)"
    for quantizer in WITH_A_FREE_CODEBOOK:
        assert refusal(tmp_path, Autoencoder(quantizer(DIM, 8)), published_weights()) == message


def test_a_checkpoint_without_a_codebook_is_refused_where_one_is_taken(tmp_path):
    weights = published_weights()
    del weights["quantize.embedding.weight"]
    assert refusal(tmp_path, build(), weights) == "quantize.embedding.weight is missing"


def test_a_relative_path_is_taken(tmp_path, monkeypatch):
    save(tmp_path / "model.ckpt", published_weights())
    monkeypatch.chdir(tmp_path)
    load_published_autoencoder(build(), Path("model.ckpt"))
