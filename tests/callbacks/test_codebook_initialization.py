"""Data-dependent initialisation: from which latents, when, and the same on any number of processes."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, IterableDataset

from nsvq.callbacks import CodebookInitialization, CurvesOnDisk, DeadCodeReplacement, EncoderDrift, WeightEMA
from nsvq.data import EmbeddedPhotographs
from nsvq.losses import AdversarialLoss
from nsvq.models import VQGAN, VQVAE
from nsvq.networks import ConvDecoder, ConvEncoder, PatchDiscriminator
from nsvq.quantizers import EMAVQ, NSVQ, FactorizedVQ, SimVQ, TransVQ, VanillaVQ

K = 8
TRAIN = [float(number) for number in range(24)]
VALIDATION = [100.0 + number for number in range(8)]
pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


@pytest.fixture
def train(foreign, fit, spell):
    """Train on batches of four tokens whose first channels are TRAIN; nothing moves the codes of a VanillaVQ."""

    def train(*callbacks, kind=foreign, quantizer=None, images=None, **arguments):
        module = kind(quantizer or VanillaVQ(3, K), dropout=0.5)
        images = spell(TRAIN) if images is None else images
        arguments = {"batch_size": 4, "max_steps": 3, "limit_val_batches": 0} | arguments
        validation = DataLoader(spell(VALIDATION), 4) if not isinstance(images, torch.Tensor) else spell(VALIDATION)
        fit(module, images, validation, list(callbacks), **arguments)
        return module

    return train


def first_channels(module):
    return sorted(module.quantizer.codebook[:, 0].tolist())


def test_samples_are_distinct_latents_of_the_first_batches_in_evaluation_mode(train):
    numbers = first_channels(train(CodebookInitialization("samples", num_batches=3)))
    assert set(numbers) <= set(TRAIN[:12])
    assert len(set(numbers)) == K
    # Two batches hold as many latents as there are codes, and dropout would double or drop them.
    assert first_channels(train(CodebookInitialization("samples", num_batches=2))) == TRAIN[:8]


def test_kmeans_leaves_a_smaller_error_than_the_samples_it_starts_from(train, spell):
    latents, errors = spell(TRAIN)[:, :, 0, 0], []
    for method in ("samples", "kmeans"):
        codes = train(CodebookInitialization(method, num_batches=6)).quantizer.codebook
        errors.append(torch.cdist(latents, codes).amin(dim=1).square().sum())
    assert errors[1] < 0.7 * errors[0]


def test_codes_depend_on_the_seed(train):
    first, again, other = (
        first_channels(train(CodebookInitialization("samples", num_batches=6, seed=seed))) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_the_sanity_check_sees_the_random_codes_and_gives_none(train):
    seen = []

    class Watch(Callback):
        def on_sanity_check_end(self, trainer, pl_module):
            seen.append(pl_module.quantizer.codebook.detach().clone())

    quantizer = VanillaVQ(3, K)
    random_codes = quantizer.codebook.detach().clone()
    callbacks = [CodebookInitialization("samples", num_batches=2), Watch()]
    module = train(*callbacks, quantizer=quantizer, num_sanity_val_steps=2, limit_val_batches=2)
    assert seen[0].equal(random_codes)
    assert first_channels(module) == TRAIN[:8]


def test_a_resumed_run_keeps_its_codes(train, spell, tmp_path):
    def fit(*callbacks, folder, **arguments):
        checkpoint = ModelCheckpoint(tmp_path / folder, save_last=True)
        return first_channels(train(*callbacks, checkpoint, enable_checkpointing=True, **arguments))

    def callback():
        return CodebookInitialization("samples", num_batches=2)

    others = spell([50 + number for number in TRAIN])
    for folder, first in (("with", [callback()]), ("without", [])):
        before = fit(*first, folder=folder)
        path = tmp_path / folder / "last.ckpt"
        state = torch.load(path, weights_only=True)["callbacks"].get("CodebookInitialization")
        assert state == ({"done": True} if first else None)
        assert fit(callback(), folder="resumed", images=others, max_steps=5, ckpt_path=path) == before


def test_a_second_fit_of_the_same_callback_keeps_the_codes(train, spell):
    callback = CodebookInitialization("samples", num_batches=2)
    module = train(callback)
    assert first_channels(train(callback, quantizer=module.quantizer, images=spell(VALIDATION))) == TRAIN[:8]


def loader(images, **options):
    return DataLoader(images, batch_size=4, shuffle=True, **options)


LOADERS = {
    "global random state": {},
    "own generator": {"generator": 3},
    "workers": {"num_workers": 2, "generator": 3},
    "persistent workers": {"num_workers": 2, "persistent_workers": True, "generator": 3},
}


@pytest.mark.parametrize("options", LOADERS.values(), ids=LOADERS)
def test_training_data_and_random_state_are_as_without_it(train, spell, options):
    runs = []
    for callbacks in ([], [CodebookInitialization(num_batches=2)]):
        torch.manual_seed(5)
        quantizer = VanillaVQ(3, K)
        if "generator" in options:
            options = options | {"generator": torch.Generator().manual_seed(3)}
        module = train(*callbacks, quantizer=quantizer, images=loader(spell(TRAIN), **options), max_steps=8)
        runs.append((torch.stack(module.trained), module.modes, torch.get_rng_state()))
    (plain, plain_modes, plain_state), (images, modes, state) = runs
    assert images.equal(plain)
    assert modes == plain_modes
    assert state.equal(plain_state)


@pytest.mark.parametrize("workers", [0, 2])
def test_it_encodes_the_batches_that_training_starts_with(foreign, workers):
    runs = []
    for callbacks in ([], [CodebookInitialization(num_batches=3)]):
        seed_everything(1, verbose=False)
        module = foreign(VanillaVQ(3, K))
        data = EmbeddedPhotographs(batch_size=2, size=8, samples_per_epoch=8, num_workers=workers)
        trainer = Trainer(
            accelerator="cpu",
            callbacks=callbacks,
            max_steps=6,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(module, data)
        runs.append(module)
    plain, watched = runs
    assert torch.stack(watched.trained).equal(torch.stack(plain.trained))
    assert torch.stack(watched.encoded_in_eval).equal(torch.stack(plain.trained[:3]))
    assert not plain.encoded_in_eval


def test_latents_are_made_in_the_trainers_precision(foreign, train):
    class Watched(foreign):
        autocast = ()

        def encode(self, images):
            self.autocast += ((self.training, torch.is_autocast_enabled("cpu")),)
            return super().encode(images)

    module = train(CodebookInitialization(num_batches=2), kind=Watched, precision="bf16-mixed")
    assert module.autocast[:3] == ((False, True), (False, True), (True, True))


class FirstCodes(Callback):
    """Keeps the codes, and the latents of the first three batches, as they are compared before the first step."""

    def on_train_epoch_start(self, trainer, pl_module):
        latents = torch.tensor([[number, 0.0, 0.0] for number in TRAIN[:12]])
        self.latents, self.codes = (side.detach().clone() for side in pl_module.quantizer.search_space(latents))


@pytest.mark.parametrize("make", [VanillaVQ, NSVQ, EMAVQ, FactorizedVQ])
def test_it_works_with_every_quantizer_of_free_codes(train, make):
    train(CodebookInitialization("samples", num_batches=3), first := FirstCodes(), quantizer=make(3, K))
    gaps = torch.cdist(first.codes, first.latents, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)
    assert (gaps < 1e-5).all()


def test_replacement_drift_and_averages_see_the_fitted_codes(train, rows, spell):
    callbacks = [
        CodebookInitialization("samples", num_batches=2),
        DeadCodeReplacement(unused_steps=3, every_n_steps=1),
        EncoderDrift(every_n_steps=1),
        CurvesOnDisk(),
        average := WeightEMA(0.5),
    ]
    module = train(*callbacks, images=spell(TRAIN[:8] * 3), max_steps=2, limit_val_batches=1)
    assert [row["codebook_shift"] for row in rows("drift")] == [0, 0]
    assert average._average["quantizer.codebook"].equal(module.quantizer.codebook)


def test_quantizers_without_free_codes_are_refused_before_anything_is_read(train):
    for quantizer in (SimVQ(3, K), TransVQ(3, K, width=8)):
        with pytest.raises(TypeError, match=f"needs free code vectors, and {type(quantizer).__name__}"):
            train(CodebookInitialization(), quantizer=quantizer, num_sanity_val_steps=0)


def test_codes_that_came_with_weights_are_replaced_too(train):
    quantizer = VanillaVQ(3, K)
    quantizer.initialize_codes(torch.ones(K, 3))
    train(CodebookInitialization("samples", num_batches=2), quantizer=quantizer, max_steps=1)
    assert len(quantizer.codebook.unique(dim=0)) > 1


def test_too_few_latents_are_refused_with_the_number_of_batches_that_suffices(train):
    message = "100 codes need as many latents to start from, and 6 training batches give 24: num_batches must be at "
    with pytest.raises(ValueError, match=f"{message}least 25, and an epoch has 6 batches"):
        train(CodebookInitialization(num_batches=16), quantizer=VanillaVQ(3, 100))
    with pytest.raises(ValueError, match="and 1 training batches give 4: num_batches must be at least 2,"):
        train(CodebookInitialization(num_batches=1))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.zeros(8, 3, 4, 4))


def test_loaders_that_cannot_be_read_ahead_are_refused(train, spell):
    for images in (DataLoader(Stream(), 4), DataLoader(spell(TRAIN)[:, None], None), [DataLoader(spell(TRAIN), 4)]):
        with pytest.raises(TypeError, match="needs one DataLoader with a batch sampler"):
            train(CodebookInitialization(), images=images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "random"}, "method must be kmeans or samples, got 'random'"),
        ({"num_batches": 0}, "num_batches must be at least 1, got 0"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CodebookInitialization(**arguments)


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
    networks = {"encoder": ConvEncoder([8, 8], 1), "decoder": ConvDecoder([8, 8], 1)}
    if kind is VQGAN:
        adversarial = AdversarialLoss(discriminator_start=1, start=1, ramp=1)
        discriminator = PatchDiscriminator(channels=8, num_layers=1)
        networks |= {"discriminator": discriminator, "adversarial": adversarial, "perceptual_weight": 0.0}
    return kind(quantizer(4, 32), **networks)


def start_codes_and_end(kind, quantizer, method):
    """Train on this process's share of six patches a step; return the first step's codes and the final state."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    arguments = {"plugins": PoolEnvironment(), "devices": ranks} if ranks > 1 else {}
    strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=True) if ranks > 1 else "auto"
    codes = []

    class Watch(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            codes.append(pl_module.quantizer.free_codes.detach().clone())

    trainer = Trainer(
        accelerator="cpu",
        strategy=strategy,
        precision="64-true",
        max_steps=3,
        limit_val_batches=0,
        logger=False,
        callbacks=[CodebookInitialization(method, 2), DeadCodeReplacement(2, 1), Watch()],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        **arguments,
    )
    model = build(kind, quantizer)
    # The group outlives the trainer, whose strategy would end it.
    end, dist.destroy_process_group = dist.destroy_process_group, lambda: None
    try:
        trainer.fit(model, EmbeddedPhotographs(6 // ranks, size=8, samples_per_epoch=24))
    finally:
        dist.destroy_process_group = end
    return codes[0], {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ranks", ["rank_pool", "rank_pool_of_three"])
@pytest.mark.parametrize(
    ("kind", "quantizer", "method"),
    [(VQVAE, EMAVQ, "kmeans"), (VQGAN, VanillaVQ, "kmeans"), (VQVAE, FactorizedVQ, "samples")],
)
def test_several_processes_give_the_codes_and_weights_of_one(request, ranks, kind, quantizer, method):
    results = request.getfixturevalue(ranks).run(start_codes_and_end, kind, quantizer, method)
    codes, state = start_codes_and_end(kind, quantizer, method)
    torch.testing.assert_close(results[0][0], codes, rtol=1e-9, atol=1e-12)
    for name, value in state.items():
        assert all(result[1][name].equal(results[0][1][name]) for result in results), name
        torch.testing.assert_close(results[0][1][name], value, rtol=1e-9, atol=1e-12, msg=name)
    assert codes.norm(dim=1).min() > 1e-3
    assert len(F.normalize(codes, dim=1).unique(dim=0)) == 32


def test_the_command_line_fits_the_codes_and_refuses_too_few_latents_in_one_line(
    pytestconfig, tmp_path, monkeypatch, capsys
):
    # The ranks above read this file too, and would wait for these.
    import pandas as pd

    from nsvq.cli import main

    monkeypatch.chdir(tmp_path)
    words = [
        "fit",
        f"--config={pytestconfig.rootpath / 'experiments' / 'quickstart.yaml'}",
        "--data.batch_size=2",
        "--data.samples_per_epoch=8",
        "--trainer.max_steps=2",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.limit_val_batches=2",
        "--encoder_drift.num_images=2",
        "--codebook_health.train_window=1",
        "--version=run",
        "--trainer.callbacks+=CodebookInitialization",
        "--trainer.callbacks.num_batches=1",
    ]
    main([*words, "--model.quantizer.codebook_size=64"])
    usage = pd.read_csv("runs/quickstart/run/curves/codebook.csv")
    assert usage["codebook_utilization"].iloc[0] > 0.5
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*words, "--version=refused"])
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nsvq")]
    assert lines == [
        "nsvq: error: 512 codes need as many latents to start from, and 1 training batches give 128: num_batches must "
        "be at least 4, and an epoch has 4 batches"
    ]
