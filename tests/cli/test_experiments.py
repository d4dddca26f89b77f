"""Every file in experiments/ works; the sweeps' tests are in test_sweep.py."""

import pytest
import torch
import yaml

import nsvq.networks
from nsvq.cli import main
from nsvq.quantizers import __all__ as exported

from .conftest import EXPERIMENTS

FILES = sorted(file for file in EXPERIMENTS.rglob("*.yaml") if file.parent.name != "sweeps")
EMBEDDED = EXPERIMENTS / "quickstart.yaml"
VQGAN = EXPERIMENTS / "vqgan_tiny.yaml"
LARGE = [EXPERIMENTS / "models" / f"vqgan_f{factor}.yaml" for factor in (4, 8, 16)]
QUANTIZERS = [name for name in exported if name.endswith("VQ")]
FREE = [name for name in QUANTIZERS if name not in ("SimVQ", "TransVQ")]


def names(files):
    return [str(file.relative_to(EXPERIMENTS)) for file in files]


def resolved(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(["fit", *words, "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def words_for(file):
    """How a file of each folder is used on the command line."""
    kind = file.parent.name
    if kind in ("experiments", "celebahq", "vqgan", "published"):
        return ["--config", str(file)]
    base = ["--config", str(VQGAN if kind == "models" and file.name.startswith("vqgan") else EMBEDDED)]
    if kind in ("loggers", "methods"):
        return [*base, "--config", str(file)]
    option = {"quantizers": "--model.quantizer", "models": "--model", "data": "--data", "trainer": "--trainer"}[kind]
    return [*base, option, str(file)]


@pytest.mark.parametrize("file", FILES, ids=names(FILES))
def test_every_file_parses_and_says_how_to_run_it(file, capsys):
    header = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert any("nsvq fit" in line for line in header)
    config = resolved(capsys, *words_for(file))
    assert config["model"]["class_path"].startswith("nsvq.")


SMALL_KINDS = ("quantizers", "models", "loggers", "methods")
RUNNABLE = [
    file
    for file in FILES
    if file in (EMBEDDED, VQGAN)
    or (file.parent.name in ("quantizers", "models", "loggers", "methods") and file not in LARGE)
]
RUNNABLE += [EXPERIMENTS / "data" / "photographs.yaml", EXPERIMENTS / "trainer" / "cpu.yaml"]


@pytest.mark.parametrize("file", RUNNABLE, ids=names(RUNNABLE))
def test_files_on_embedded_data_run(file):
    assert main(["fit", *words_for(file), "--data.batch_size=2", "--trainer.fast_dev_run=1"]) == 0


@pytest.mark.parametrize("file", sorted((EXPERIMENTS / "quantizers").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_preset_runs_in_a_vqgan(file):
    words = ["--config", str(VQGAN), "--model.quantizer", str(file), "--model.quantizer.codebook_size", "32"]
    adversarial = ["--model.adversarial.discriminator_start=0", "--model.adversarial.start=1"]
    assert main(["fit", *words, *adversarial, "--data.batch_size=2", "--trainer.fast_dev_run=2"]) == 0


@pytest.mark.parametrize("file", [*LARGE, *(EXPERIMENTS / "published").glob("*.yaml")], ids=lambda file: file.stem)
def test_large_networks_fit_their_images(file, capsys):
    """The networks of large files, built without memory for their weights, take their images and give them back."""
    config = resolved(capsys, *words_for(file))
    networks = {name: config["model"]["init_args"][name] for name in ("encoder", "decoder", "quantizer")}
    with torch.device("meta"):
        encoder, decoder = (
            getattr(nsvq.networks, networks[name]["class_path"].rsplit(".", 1)[-1])(**networks[name]["init_args"])
            for name in ("encoder", "decoder")
        )
        side = networks["encoder"]["init_args"]["resolution"]
        latents = encoder(torch.empty(1, 3, side, side))
        assert decoder(latents).shape == (1, 3, side, side)
    assert latents.shape[1] == networks["quantizer"]["init_args"]["dim"]


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_quantizer_runs_by_its_name(quickstart, name):
    assert quickstart("--model.quantizer", name, "--trainer.fast_dev_run=1") == 0


@pytest.mark.parametrize("name", FREE)
def test_replacement_works_with_every_free_codebook(quickstart, name):
    replacement = [
        "--trainer.callbacks+=DeadCodeReplacement",
        "--trainer.callbacks.unused_steps=1",
        "--trainer.callbacks.every_n_steps=1",
    ]
    assert quickstart("--model.quantizer", name, *replacement, "--trainer.fast_dev_run=2") == 0


def test_no_quantizer_preset_replaces_codes():
    for file in (EXPERIMENTS / "quantizers").glob("*.yaml"):
        assert "DeadCodeReplacement" not in file.read_text()


def test_a_preset_keeps_the_experiments_sizes(capsys):
    preset = EXPERIMENTS / "quantizers" / "nsvq.yaml"
    config = resolved(capsys, "--config", str(EMBEDDED), "--model.quantizer", str(preset))
    arguments = config["model"]["init_args"]["quantizer"]["init_args"]
    assert (arguments["dim"], arguments["codebook_size"]) == (16, 512)
    assert arguments["bandwidth"]["unit"] == "winner_distance"


def test_the_comparison_differs_in_the_quantizer_only(capsys):
    def rest(*words):
        config = resolved(capsys, "--config", str(EMBEDDED), *words)
        config["model"]["init_args"].pop("quantizer")
        return config

    for name in ("nsvq", "transvq"):
        assert rest("--model.quantizer", str(EXPERIMENTS / "quantizers" / f"{name}.yaml")) == rest()


def test_interpolation_respects_overrides(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("encoder_drift:\n  init_args: {every_n_steps: '${trainer.max_steps}'}\n")
    config = resolved(capsys, "--config", str(EMBEDDED), "--config", "mine.yaml", "--trainer.max_steps=7")
    assert config["encoder_drift"]["init_args"]["every_n_steps"] == 7
