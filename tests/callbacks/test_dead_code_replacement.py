"""Dead-code replacement: which codes are replaced, by what, and what is reset."""

import copy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from nsvq.callbacks import DeadCodeReplacement, EncoderDrift
from nsvq.distributed import rank, world_size
from nsvq.quantizers import EMAVQ, FactorizedVQ, SimVQ, VanillaVQ

K = 8
USED, DEAD = [0, 1], [2, 3, 4, 5, 6, 7]
# Code k lies at (k, 0, 0). The first batch selects every code, the later ones 0 and 1 only.
FIRST = [k + 0.1 for k in range(K)]
LATER = [0.2, 0.3, 0.4, 0.1, 1.2, 1.3, 1.4, 1.1]


def placed(quantizer):
    """Give a quantizer of free codes the vectors (k, 0, 0)."""
    quantizer.free_codes.data.copy_(torch.stack([torch.arange(K), *2 * [torch.zeros(K)]], dim=1))
    if isinstance(quantizer, EMAVQ):
        quantizer.latent_sums.copy_(quantizer.codebook)
    return quantizer


@pytest.fixture
def train(foreign, fit, spell):
    """Train with Adam for some steps of eight tokens each; return the module and its trainer."""

    def train(*callbacks, quantizer=VanillaVQ, steps=3, first=FIRST, validation=LATER, **arguments):
        module = foreign(placed(quantizer(3, K)), optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3))
        images = spell([*first, *9 * LATER])
        arguments = {"batch_size": K, "max_steps": steps, "limit_val_batches": 0} | arguments
        return module, fit(module, images, spell(validation), list(callbacks), **arguments)

    return train


def is_row_of(vectors, rows):
    return (vectors[:, None] == rows[None]).all(dim=2).any(dim=1)


def moments(module, trainer):
    state = trainer.optimizers[0].state[module.quantizer.codebook]
    return state["exp_avg"], state["exp_avg_sq"]


def test_unused_codes_become_latents_of_the_batch_and_used_ones_stay(train, spell):
    plain, _ = train()
    module, trainer = train(DeadCodeReplacement(unused_steps=2, every_n_steps=1))
    codes = module.quantizer.codebook.detach()
    assert trainer.callback_metrics["train/replaced_codes"] == len(DEAD)
    assert codes[USED].equal(plain.quantizer.codebook[USED])
    latents = spell(LATER)[:, :, 0, 0] + module.offsets[-1]
    assert is_row_of(codes[DEAD], latents).all()
    assert len(codes[DEAD].unique(dim=0)) > 1


def test_nothing_is_replaced_before_the_stated_steps_or_between_two_looks(train):
    for callback, quiet_steps in ((DeadCodeReplacement(2, 1), 2), (DeadCodeReplacement(4, 2), 5)):
        plain, _ = train(steps=quiet_steps)
        module, trainer = train(copy.deepcopy(callback), steps=quiet_steps)
        assert module.quantizer.codebook.equal(plain.quantizer.codebook)
        assert trainer.callback_metrics["train/replaced_codes"] == 0
        _, trainer = train(callback, steps=quiet_steps + 1)
        assert trainer.callback_metrics["train/replaced_codes"] == len(DEAD)


def test_only_the_dead_rows_of_adams_moments_are_zeroed(train):
    plain_module, plain_trainer = train()
    module, trainer = train(DeadCodeReplacement(unused_steps=2, every_n_steps=1))
    for ours, plain in zip(moments(module, trainer), moments(plain_module, plain_trainer), strict=True):
        assert (plain[DEAD].norm(dim=1) > 0).all()
        assert (ours[DEAD] == 0).all()
        assert ours[USED].equal(plain[USED])
        assert (ours[USED].norm(dim=1) > 0).all()


def test_the_running_sums_of_an_ema_codebook_are_reset(train):
    module, _ = train(DeadCodeReplacement(unused_steps=2, every_n_steps=1), quantizer=EMAVQ)
    quantizer = module.quantizer
    assert (quantizer.cluster_sizes[DEAD] == 1).all()
    assert quantizer.latent_sums[DEAD].equal(quantizer.codebook[DEAD])
    assert (quantizer.cluster_sizes[USED] > 1).all()


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_dead_codes_become_active_codes_plus_small_noise(train, noise):
    callback = DeadCodeReplacement(unused_steps=2, every_n_steps=1, source="active", noise=noise)
    codes = train(callback)[0].quantizer.codebook.detach()
    distances = torch.cdist(codes[DEAD], codes[USED]).amin(dim=1)
    if noise:
        # Before the replacement the codes' standard deviation along the first axis is 2.3, elsewhere next to nothing.
        assert 0 < distances.min() <= distances.max() < 4 * noise * 2.3
    else:
        assert is_row_of(codes[DEAD], codes[USED]).all()


def test_vectors_are_latents_of_the_search_space():
    quantizer, latents = FactorizedVQ(dim=3, codebook_size=K, code_dim=2), torch.randn(2, 3)
    before = quantizer.code_vectors.detach().clone()
    look_twice(quantizer, latents, DeadCodeReplacement(unused_steps=2, every_n_steps=2))
    replaced = (quantizer.code_vectors != before).any(dim=1)
    assert replaced.sum() >= K - 2
    searched, codes = quantizer.search_space(latents)
    assert (torch.cdist(codes[replaced], searched).amin(dim=1) < 1e-6).all()
    lengths = quantizer.code_vectors.detach().norm(dim=1)
    torch.testing.assert_close(lengths[replaced], before.norm(dim=1).mean().expand(int(replaced.sum())))


@pytest.mark.parametrize("drift_first", [True, False])
def test_the_probe_of_another_callback_is_no_use_of_a_code(train, drift_first):
    callbacks = [DeadCodeReplacement(unused_steps=2, every_n_steps=1), EncoderDrift(every_n_steps=1)]
    plain, _ = train(copy.deepcopy(callbacks[0]))
    module, _ = train(*(callbacks[::-1] if drift_first else callbacks), validation=DEAD)
    assert module.quantizer.codebook.equal(plain.quantizer.codebook)


def test_the_global_random_state_is_untouched(train):
    torch.manual_seed(5)
    train()
    state = torch.get_rng_state()
    torch.manual_seed(5)
    train(DeadCodeReplacement(unused_steps=1, every_n_steps=1))
    assert torch.get_rng_state().equal(state)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_counters_survive_a_checkpoint(train, tmp_path):
    def callbacks():
        return [DeadCodeReplacement(unused_steps=4, every_n_steps=2), ModelCheckpoint(tmp_path, save_last=True)]

    train(*callbacks(), steps=4, enable_checkpointing=True)
    resumed = {"steps": 6, "enable_checkpointing": True, "ckpt_path": tmp_path / "last.ckpt"}
    _, trainer = train(*callbacks(), first=LATER, **resumed)
    assert trainer.callback_metrics["train/replaced_codes"] == len(DEAD)


def test_quantizers_without_free_codes_are_refused(foreign, fit, spell):
    for quantizer in (SimVQ(3, K), None):
        with pytest.raises(TypeError, match="needs free code vectors, and S"):
            fit(foreign(quantizer), spell(FIRST), spell(LATER), [DeadCodeReplacement()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be at least 1"),
        ({"unused_steps": 15}, "multiple of every_n_steps=10"),
        ({"unused_steps": 0}, "unused_steps must be"),
        ({"source": "dead"}, "source must be latent or active, got 'dead'"),
        ({"noise": -1.0}, "noise must be at least 0"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DeadCodeReplacement(**arguments)


def look_twice(quantizer, latents, callback):
    """Run the callback for two steps in which nothing learns."""
    module = SimpleNamespace(quantizer=quantizer, device=torch.device("cpu"), training=True, log=lambda *_: None)
    trainer = SimpleNamespace(global_step=0, optimizers=[])
    callback.on_train_start(trainer, module)
    for trainer.global_step in (1, 2):
        callback.on_train_batch_start(trainer, module)
        quantizer(latents)
        callback.on_train_batch_end(trainer, module)


def replace_on_this_rank(source, codes, batch):
    """Deal a batch out in turn, as loaders do, and replace what it does not use; return the codes of every rank."""
    quantizer = VanillaVQ(dim=codes.shape[1], codebook_size=len(codes))
    quantizer.codebook.data.copy_(codes)
    callback = DeadCodeReplacement(unused_steps=2, every_n_steps=2, source=source, noise=0.01)
    look_twice(quantizer, batch[rank() :: world_size()], callback)
    return quantizer.codebook.detach()


@pytest.fixture(params=["rank_pool", "rank_pool_of_three"])
def ranks(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("source", ["latent", "active"])
@pytest.mark.parametrize("images", [6, 7])
def test_several_ranks_set_the_codes_that_one_process_sets(ranks, source, images):
    # Code 0 is used by the even images, code 1 by the odd ones; the other thirty are dead.
    codes = torch.cat([torch.tensor([[0.0, 0.0], [10.0, 0.0]]), torch.full((30, 2), 1e3)])
    batch = torch.randn(images, 2, 3)
    batch[1::2, 0] += 10
    expected = replace_on_this_rank(source, codes, batch)
    for result in ranks.run(replace_on_this_rank, source, codes, batch):
        assert result.equal(expected)
    assert expected[:2].equal(codes[:2])
    assert {bool(row[0] > 5) for row in expected[2:]} == {True, False}
    assert len(expected.unique(dim=0)) > 10


def count_on_this_rank(choices, state, steps):
    """Go on from a state with a step of each rank's choices; return the next state and the codes."""
    quantizer = placed(VanillaVQ(3, K))
    callback = DeadCodeReplacement(unused_steps=4, every_n_steps=2, source="active", noise=0.0)
    if state is not None:
        callback.load_state_dict(copy.deepcopy(state))
    module = SimpleNamespace(quantizer=quantizer, device=torch.device("cpu"), training=True, log=lambda *_: None)
    trainer = SimpleNamespace(global_step=steps[0] - 1, optimizers=[])
    callback.on_train_start(trainer, module)
    for trainer.global_step in steps:
        callback.on_train_batch_start(trainer, module)
        quantizer(torch.tensor([[float(k), 0.0, 0.0] for k in choices[rank() :: world_size()]]))
        callback.on_train_batch_end(trainer, module)
    return callback.state_dict(), quantizer.codebook.detach()


def test_what_is_saved_is_the_sum_of_all_ranks_and_goes_on_with_any_number_of_them(rank_pool, rank_pool_of_three):
    first, then = [0, 1, 2, 3, 4, 0], [0, 1, 0, 1, 0, 1]
    saved, _ = count_on_this_rank(first, None, [1])
    assert saved["counts"].tolist() == [2, 1, 1, 1, 1, 0, 0, 0]
    uninterrupted, codes = count_on_this_rank(then, saved, [2, 3, 4, 5])
    assert uninterrupted["counts"].tolist() == [3, 3, *6 * [0]]
    assert uninterrupted["unused"].tolist() == [0, 0, 2, 2, 2, 0, 0, 0]
    assert is_row_of(codes[5:], codes[:2]).all()
    between_looks, _ = count_on_this_rank(then, saved, [3])
    assert between_looks["counts"].tolist() == [5, 4, 1, 1, 1, 0, 0, 0]
    for pool in (rank_pool, rank_pool_of_three):
        for state, _ in pool.run(count_on_this_rank, first, None, [1]):
            assert {name: value.tolist() for name, value in state.items()} == {
                name: value.tolist() for name, value in saved.items()
            }
        for state, _ in pool.run(count_on_this_rank, then, saved, [3]):
            assert all(value.equal(between_looks[name]) for name, value in state.items())
        for state, replaced in pool.run(count_on_this_rank, then, saved, [2, 3, 4, 5]):
            assert all(value.equal(uninterrupted[name]) for name, value in state.items())
            assert replaced.equal(codes)
