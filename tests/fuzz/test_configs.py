"""Whatever a configuration holds, the command line ends well or with one line that says why not."""

import copy

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nsvq.cli import main

from .conftest import examples

CONFIG = {
    "seed_everything": 0,
    "trainer": {
        "max_steps": 1,
        "limit_val_batches": 1,
        "log_every_n_steps": 1,
        "gradient_clip_val": 1.0,
        "precision": "32-true",
        "callbacks": [{"class_path": "DeadCodeReplacement", "init_args": {"unused_steps": 1, "every_n_steps": 1}}],
    },
    "model": {
        "class_path": "VQVAE",
        "init_args": {
            "encoder": {"class_path": "ConvEncoder", "init_args": {"channels": [4], "num_residual_layers": 1}},
            "decoder": {"class_path": "ConvDecoder", "init_args": {"channels": [4], "num_residual_layers": 1}},
            "quantizer": {
                "class_path": "NSVQ",
                "init_args": {
                    "dim": 2,
                    "codebook_size": 4,
                    "bandwidth": {"initial": 1.0, "kind": "exponential", "decay": 0.9, "per": "step"},
                    "initial_scale": 1.0,
                },
            },
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001}},
            "reconstruction_loss": "mse",
            "codebook_lr_factor": 10.0,
        },
    },
    "data": {
        "class_path": "EmbeddedPhotographs",
        "init_args": {"batch_size": 2, "size": 8, "tile": 64, "samples_per_epoch": 4, "seed": 0},
    },
    "checkpoint": {"every_n_train_steps": 1},
    "encoder_drift": {"class_path": "EncoderDrift", "init_args": {"every_n_steps": 1, "num_images": 2}},
    "image_quality": None,
    "experiment": "fuzz",
}
STRINGS = [
    "",
    " ",
    "null",
    "-1",
    "é",
    "\0",
    "x" * 3000,
    "/etc/passwd",
    "none.yaml",
    "os.system",
    "torch.os.system",
    "torch.hub.load",
    "torch.nn.Linear",
    "nsvq.quantizers.Nothing",
    "VQVAE",
    "NSVQ",
    "a.b.c",
    "...",
    "${trainer.max_steps}",
    "${nothing}",
    "${",
    "${oc.env:NSVQ_NOTHING}",
    "[1, 2",
    "{a: b}",
    "!!python/object/apply:os.system ['true']",
]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 3, 2**63, -(2**63), 10**30]),
    st.sampled_from([0.5, -1.5, 0.0, 1e308, 1e-308, float("nan"), float("inf"), -float("inf")]),
    st.sampled_from(STRINGS),
)
keys = st.sampled_from(["class_path", "init_args", "dict_kwargs", "dim", "lr", "nothing", "", "a.b", "__path__"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=4
)


def places(tree):
    """List the way to every value of a tree."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [(), *((key, *rest) for key, value in inner for rest in places(value))]


PLACES = places(CONFIG)[1:]


@st.composite
def broken_configs(draw):
    config = copy.deepcopy(CONFIG)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(PLACES))
        parent = config
        for key in way:
            known = (
                key in parent if isinstance(parent, dict) else isinstance(parent, list) and key in range(len(parent))
            )
            parent = parent[key] if known else None
        if not isinstance(parent, dict | list):
            continue
        change = draw(st.sampled_from(["replace", "replace", "remove", "add", "wrap"]))
        if change == "add" and isinstance(parent, dict):
            parent[draw(keys)] = draw(values)
        elif change == "remove" and isinstance(parent, dict):
            parent.pop(last, None)
        elif change == "wrap" and isinstance(parent, dict) and last in parent:
            parent[last] = [parent[last]]
        elif isinstance(parent, dict) or last in range(len(parent)):
            parent[last] = draw(values)
    return yaml.safe_dump(config, allow_unicode=True).encode()


def ends_in_order(capsys, content, folder):
    (folder / "config.yaml").write_bytes(content)
    capsys.readouterr()
    words = ["--trainer.fast_dev_run=1", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    try:
        code = main(["fit", "--config", "config.yaml", *words])
    except SystemExit as stop:
        code = stop.code
    errors = capsys.readouterr().err.splitlines()
    refusals = [line for line in errors if line.startswith("nsvq: error: ")]
    assert (code, len(refusals)) in {(0, 0), (2, 1)}, errors
    assert not any("Traceback" in line for line in errors)
    assert all(len(line) > len("nsvq: error: ") + 3 for line in refusals)


@examples(6)
@given(broken_configs())
def test_a_broken_configuration_runs_or_is_refused(capsys, tmp_path, content):
    ends_in_order(capsys, content, tmp_path)


@pytest.mark.slow
@examples(150)
@given(broken_configs())
def test_many_broken_configurations_run_or_are_refused(capsys, tmp_path, content):
    ends_in_order(capsys, content, tmp_path)


@st.composite
def broken_texts(draw):
    text = bytearray(yaml.safe_dump(CONFIG).encode())
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(text) - 1))
        text[place : place + draw(st.integers(0, 4))] = draw(
            st.one_of(
                st.text(max_size=3).map(str.encode),
                st.sampled_from([b"&a ", b"*a", b"!x ", b"\t", b"- ", b": ", b"{", b"]", b"'"]),
            )
        )
    return bytes(text)


@pytest.mark.slow
@examples(100)
@given(broken_texts())
def test_many_broken_texts_run_or_are_refused(capsys, tmp_path, content):
    ends_in_order(capsys, content, tmp_path)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS = {
    "aliases that unfold a thousand millionfold": (
        BOMB,
        "config.yaml: Problems parsing config: more than 10000 values",
    ),
    "a call": ("model: !!python/object/apply:os.mkdir [called]", "tag"),
    "a tag that does not fit": ("experiment: !!timestamp x", "config.yaml: Problems parsing config: a value does not"),
    "Latin-1": (b"experiment: \xe9", "config.yaml is not UTF-8 text"),
    "no group": ("checkpoint: null", "checkpoint must hold options by their names, got None"),
    "null for a number": ("trainer: {max_steps: null}", "trainer.max_steps: expected int, got null"),
    "a list for a class": ("model: {init_args: {encoder: [1]}}", "encoder: expected a class"),
    "an unknown interpolation": ("trainer: {max_steps: '${nothing}'}", "trainer.max_steps: Interpolation key"),
    "too large a codebook": (
        "model: {init_args: {quantizer: {class_path: VanillaVQ, init_args: {dim: 2, codebook_size: 100000000000000}}}}",
        "not enough memory for 800000000000000 bytes",
    ),
}
MORE_TEXTS = {
    "an alias of itself": ("model: &a {class_path: VQVAE, init_args: *a}", "stands inside"),
    "a deep nest": ("trainer: " + "[" * 200 + "]" * 200, "nested more than 50 deep"),
    # PyYAML from 6.0.4 on has a limit of its own.
    "a deeper nest": ("trainer: " + "[" * 3000 + "]" * 3000, "nest"),
    "another tag that does not fit": ("experiment: !!int ''", "a value does not fit its tag"),
    "a third one": ("trainer: {max_steps: !!int abc}", "a value does not fit its tag"),
    "an endless number": (f"seed_everything: {'9' * 5000}", "a value does not fit its tag"),
    "a name": ("model: !!python/name:os.system", "tag"),
    "UTF-16": ("experiment: a".encode("utf-16"), "config.yaml is not UTF-8 text"),
    "a null character": ("experiment: \0", "control characters"),
    "an escaped null character": ('runs_dir: "\\0"', "holds a null character"),
    "nothing": ("", "Unexpected config"),
    "a list": ("[1, 2]", "Unexpected config"),
    "two documents": ("experiment: a\n---\nexperiment: b", "single document"),
    "a list as key": ("? [1, 2]\n: 3", "unhashable"),
    "half an interpolation": ("experiment: '${'", "experiment: "),
    "an impossible seed": ("seed_everything: -1", "seed_everything: -1 is not in bounds"),
    "a long name": (f"ckpt_path: {'x' * 3000}", "File name too long"),
}


@pytest.mark.parametrize(
    ("content", "part"),
    [*TEXTS.values(), *(pytest.param(*text, marks=pytest.mark.slow) for text in MORE_TEXTS.values())],
    ids=[*TEXTS, *MORE_TEXTS],
)
def test_a_text_that_cannot_be_a_configuration_is_refused(capsys, tmp_path, content, part):
    (tmp_path / "sound.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", "sound.yaml", "--config", "config.yaml", "--trainer.log_every_n_steps=1"])
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nsvq: error: ")]
    assert part in line
    assert not (tmp_path / "called").exists()
