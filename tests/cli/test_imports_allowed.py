"""A configuration names classes of a few packages and of the modules that the command line allows, and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonargparse._common import check_import_path

from nsvq.cli import main
from nsvq.cli.loading import load_run
from nsvq.cli.trust import check_class_paths, limit_imports, take_allowed_modules

PACKAGE = """
from pathlib import Path
import torch
from nsvq.quantizers import VanillaVQ

(Path(__file__).parent / "imported").touch()


class MyVQ(VanillaVQ):
    pass


def sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


load = torch.hub.load
"""
FUNCTION_CALL = (
    "--trainer.callbacks={class_path: lightning.pytorch.callbacks.LambdaCallback, init_args: {on_fit_start: "
    "{class_path: torch.utils.collect_env.run, init_args: {command: touch called}}}}"
)

LAMBDA = "lightning.pytorch.callbacks.LambdaCallback"
FUNCTION_NAME = (
    f"--trainer.callbacks={{class_path: {LAMBDA}, init_args: {{on_fit_start: torch.utils.collect_env.run}}}}"
)
SCHEDULER = "{class_path: torch.optim.lr_scheduler.LambdaLR, init_args: {lr_lambda: torch.utils.collect_env.run}}"
LAUNCH_CONFIG = "{min_nodes: 1, max_nodes: 1, nproc_per_node: 1, rdzv_backend: c10d, rdzv_endpoint: 'localhost:0'}"
LAUNCHER = (
    f"--trainer.callbacks={{class_path: {LAMBDA}, init_args: {{on_fit_start: {{class_path: "
    f"torch.distributed.launcher.api.elastic_launch, init_args: {{config: {LAUNCH_CONFIG}, entrypoint: touch}}}}}}}}"
)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write a package into the working folder, which cannot be imported from there unless it is allowed.

    A class lives on in this process, so each test that imports a package gives it a name of its own.
    """
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])

    def write(name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
        (tmp_path / name / "parts.py").write_text(PACKAGE)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--model", "os.system"], ["model: os.system is not imported"]),
        (["--model.quantizer", "torch.os.system"], ["quantizer: torch.os.system, which is posix.system, is not"]),
        (["--model.encoder", "{class_path: torchvision.models.resnet18}"], ["torchvision.models.resnet18 is refused"]),
        (["--model={class_path: nsvq.cli.loading.load_run, init_args: {folder: x}}"], ["load_run is refused"]),
        ([FUNCTION_CALL], ["torch.utils.collect_env.run is refused"]),
        ([FUNCTION_NAME], ["torch.utils.collect_env.run is refused"]),
        (["--model.lr_scheduler", SCHEDULER], ["torch.utils.collect_env.run is refused"]),
        ([LAUNCHER], ["torch.distributed.launcher.elastic_launch is refused"]),
        (["--allow_module=shown_pkg", "--model.quantizer=shown_pkg.parts.Path"], ["which is pathlib.Path, is not"]),
    ],
)
def test_what_a_configuration_may_not_name_is_refused(refusal, experiments, tmp_path, package, words, parts):
    package("shown_pkg")
    line = refusal("fit", "--config", str(experiments / "quickstart.yaml"), *words, "--trainer.fast_dev_run=1")
    for part in parts:
        assert part in line
    assert "classes of nsvq, torch, torchvision, torchmetrics and lightning; --allow_module my_pkg on the" in line
    assert not (tmp_path / "called").exists()


def test_a_module_that_is_not_allowed_is_not_even_imported(refusal, experiments, tmp_path, package, monkeypatch):
    folder = package("refused_pkg")
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--allow_module=refused_pkg.other", "--model.optimizer", "refused_pkg.parts.sgd"]
    line = refusal("fit", "--config", str(experiments / "quickstart.yaml"), *words)
    assert "optimizer: refused_pkg.parts.sgd is not imported" in line
    assert not (folder / "imported").exists()


def test_an_allowed_package_of_the_working_folder_is_used_and_its_run_can_be_run_again(
    quickstart, refusal, tmp_path, package
):
    assert not (package("my_pkg") / "imported").exists()
    mine = ["--model.quantizer=my_pkg.parts.MyVQ", "--model.optimizer=my_pkg.parts.sgd", "--trainer.max_steps=1"]
    assert quickstart("--allow_module=my_pkg", "--version=a", *mine) == 0
    folder = tmp_path / "runs" / "quickstart" / "a"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["init_args"]["quantizer"]["class_path"] == "my_pkg.parts.MyVQ"
    assert "--allow_module=my_pkg" in json.loads((folder / "environment.json").read_text())["command"]
    assert "my_pkg.parts.MyVQ is not imported" in refusal("fit", "--config", str(folder / "config.yaml"))
    assert main(["--allow_module", "my_pkg", "fit", "--config", str(folder / "config.yaml")]) == 0

    assert type(load_run(folder, allow_modules=["my_pkg"]).quantizer).__name__ == "MyVQ"
    with pytest.raises(ValueError, match=r"config\.yaml: .*my_pkg\.parts\.\w+ is not imported"):
        load_run(folder)


@pytest.mark.slow
def test_the_installed_command_imports_from_the_working_folder_what_is_allowed(experiments, package):
    package("my_pkg")
    words = ["fit", "--config", str(experiments / "quickstart.yaml"), "--model.quantizer=my_pkg.parts.MyVQ"]
    command = [str(Path(sys.executable).parent / "nsvq"), *words, "--data.batch_size=2", "--trainer.fast_dev_run=1"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (refused.returncode, "my_pkg.parts.MyVQ is not imported" in refused.stderr) == (2, True)
    assert subprocess.run([*command, "--allow_module", "my_pkg"], check=False).returncode == 0


def test_a_function_of_an_allowed_module_is_called_and_one_that_it_only_shows_is_not(tmp_path, package, monkeypatch):
    package("showing_pkg")
    monkeypatch.syspath_prepend(tmp_path)
    check_class_paths({"class_path": "showing_pkg.parts.sgd"}, ["showing_pkg"])
    with pytest.raises(ValueError, match=r"showing_pkg\.parts\.load is refused"):
        check_class_paths({"class_path": "showing_pkg.parts.load"}, ["showing_pkg"])
    quantizer = {"class_path": "nsvq.quantizers.VanillaVQ"}
    check_class_paths({"model": {"class_path": "nsvq.models.VQVAE", "init_args": {"parts": [quantizer]}}})
    check_class_paths({"class_path": "torch.hub.load"}, ["torch.hub"])
    with pytest.raises(ValueError, match=r"torch\.hub\.load is refused"):
        check_class_paths([{"a": ({"class_path": "torch.hub.load"},)}])
    with pytest.raises(ValueError, match=r"os\.system is refused"):
        check_class_paths({"class_path": "torch.os.system"}, ["torch"])


@pytest.mark.parametrize(
    "name",
    [
        "torch.nn.GELU",
        "torch.optim.AdamW",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "torch.optim.lr_scheduler.ReduceLROnPlateau",
        "torchvision.models.ResNet",
        "torchmetrics.image.PeakSignalNoiseRatio",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.demos.boring_classes.BoringDataModule",
        "lightning.pytorch.loggers.WandbLogger",
        "lightning.pytorch.profilers.SimpleProfiler",
        "lightning.pytorch.strategies.DDPStrategy",
        "lightning.pytorch.strategies.FSDPStrategy",
        "lightning.pytorch.accelerators.CUDAAccelerator",
        "lightning.pytorch.plugins.MixedPrecision",
        "lightning.pytorch.plugins.TorchSyncBatchNorm",
        "lightning.fabric.plugins.TorchCheckpointIO",
        "lightning.fabric.plugins.environments.SLURMEnvironment",
        "nsvq.quantizers.BandwidthSchedule",
    ],
)
def test_what_a_run_is_made_of_can_be_named(name):
    check_class_paths({"class_path": name})


def test_what_one_call_allows_the_next_does_not(package):
    package("my_pkg")
    limit_imports(["my_pkg.parts"])
    check_import_path("my_pkg.parts.MyVQ")
    limit_imports()
    with pytest.raises(ValueError, match="not allowed"):
        check_import_path("my_pkg.parts.MyVQ")
    limit_imports(["my_pkg"])
    check_import_path("my_pkg.parts.MyVQ")


def test_a_configuration_file_allows_nothing(refusal, experiments):
    Path("mine.yaml").write_text("allow_module: [os]")
    line = refusal("fit", "--config", str(experiments / "quickstart.yaml"), "--config", "mine.yaml")
    assert "allow_module stands in a configuration file: --allow_module is for the command line alone" in line


@pytest.mark.parametrize(
    ("module", "part"),
    [
        ("nopkg", "no such module"),
        ("__main__", "no such module"),
        ("a/b", "no such module"),
        ("", "no such module"),
        ("jsonargparse", "it decides"),
    ],
)
def test_a_module_that_cannot_be_allowed_is_refused(refusal, module, part):
    assert part in refusal("fit", "--allow_module", module)


def test_the_option_is_found_wherever_it_stands():
    words = ["--allow_module", "a", "fit", "--config", "x", "--allow_module=b.c", "--trainer.max_steps=-1", "-1"]
    assert take_allowed_modules(words) == (["a", "b.c"], ["fit", "--config", "x", "--trainer.max_steps=-1", "-1"])
