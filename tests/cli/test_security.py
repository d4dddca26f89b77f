"""No file runs code, and nothing is asked of the network unless the user asks for it."""

import ast
import hashlib
import os
import pickle
import socket
import subprocess
import sys
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import nsvq
from nsvq.cli import main
from nsvq.cli.checkpoints import check_checkpoint
from nsvq.cli.loading import load_run
from nsvq.cli.trust import refuse_remote
from nsvq.metrics import frechet_inception_distance
from nsvq.pretrained import PRETRAINED, lpips_network

from .conftest import EXPERIMENTS

PACKAGE = Path(nsvq.__file__).parent
KINDS = ["archive", "old format", "bare pickle"]
TINY = EXPERIMENTS / "vqgan_tiny.yaml"


class Attack:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture
def called(tmp_path):
    """The folder that an attack makes; no test may leave it."""
    yield tmp_path / "called"
    assert not (tmp_path / "called").exists()


def write_attack(path, folder, kind="archive"):
    content = {"state_dict": {"weight": torch.zeros(1)}, "callbacks": Attack(folder)}
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "archive")
    return path


@pytest.fixture
def attack(tmp_path, called):
    """A file in place of weights that makes a folder where it is unpickled."""
    return write_attack(tmp_path / "attack.ckpt", called)


@pytest.fixture
def pretends_to_be(attack, monkeypatch):
    """Let the attack pass for a published file: its digest has the right beginning."""

    def pretend(key):
        prefix = hashlib.sha256(attack.read_bytes()).hexdigest()[:8]
        monkeypatch.setitem(PRETRAINED, key, replace(PRETRAINED[key], sha256_prefix=prefix))
        return attack

    return pretend


@pytest.mark.parametrize("kind", KINDS)
def test_the_attack_is_one(tmp_path, kind):
    with suppress(Exception):
        torch.load(write_attack(tmp_path / "attack.ckpt", tmp_path / "made", kind), weights_only=False)
    assert (tmp_path / "made").is_dir()


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_with_code_is_refused_in_every_format(tmp_path, called, kind):
    path = write_attack(tmp_path / "attack.ckpt", called, kind)
    with pytest.raises(ValueError, match=r"attack\.ckpt cannot be read"):
        check_checkpoint(path, torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("words", "config"),
    [
        (["fit", "--ckpt_path"], "quickstart.yaml"),
        (["validate", "--ckpt_path"], "quickstart.yaml"),
        (["fit", "--init_from"], "quickstart.yaml"),
        (["fit", "--model.pretrained"], "vqgan_tiny.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_checkpoint_with_code_is_refused(refusal, attack, called, words, config):
    line = refusal(words[0], "--config", str(EXPERIMENTS / config), "--data.batch_size=2", words[1], str(attack))
    assert f"checkpoint {attack} cannot be read" in line


def test_a_checkpoint_that_gets_code_after_it_was_checked_is_refused(quickstart, attack, called, monkeypatch):
    monkeypatch.setattr("nsvq.cli.program.check_checkpoint", lambda path, model: {})
    for check in ("refuse_averaged_weights", "require_training_state"):
        monkeypatch.setattr(f"nsvq.cli.program.{check}", lambda *_: None)
    with pytest.raises(Exception, match="Weights only load failed"):
        quickstart("--ckpt_path", str(attack), "--trainer.max_steps=1")


def test_a_run_whose_checkpoint_has_code_is_not_loaded(quickstart, attack, called):
    quickstart("--trainer.max_steps=1", "--version=a")
    attack.replace("runs/quickstart/a/checkpoints/last.ckpt")
    with pytest.raises(ValueError, match=r"last\.ckpt cannot be read"):
        load_run("runs/quickstart/a")


def test_the_perceptual_loss_refuses_weights_with_code(refusal, pretends_to_be, called):
    words = ["--model.perceptual_weight=1", "--model.vgg_path", str(pretends_to_be("vgg")), "--data.batch_size=2"]
    line = refusal("fit", "--config", str(TINY), "--trainer.fast_dev_run=1", *words)
    assert "attack.ckpt cannot be read" in line


@pytest.mark.parametrize(("key", "others"), [("inception", "lpips=[]"), ("alex", "fid=false")])
def test_image_quality_refuses_weights_with_code(refusal, pretends_to_be, called, key, others):
    quality = [f"--image_quality.weights={{{key}: {pretends_to_be(key)}}}", f"--image_quality.{others}"]
    words = ["--data.batch_size=2", "--data.samples_per_epoch=4", *quality]
    line = refusal("validate", "--config", str(EXPERIMENTS / "quickstart.yaml"), *words)
    assert "attack.ckpt cannot be read" in line


def test_a_class_of_an_allowed_package_unpickles_nothing_either(refusal, attack, called):
    options = f"init_args: {{feature_extractor_weights_path: {attack}}}"
    metric = f"--model.encoder={{class_path: torchmetrics.image.FrechetInceptionDistance, {options}}}"
    line = refusal("fit", "--config", str(EXPERIMENTS / "quickstart.yaml"), metric, "--trainer.fast_dev_run=1")
    assert "Weights only load failed" in line


def test_networks_are_built_from_weights_alone_in_python_too(attack, called):
    with pytest.raises(ValueError, match=r"attack\.ckpt cannot be read"):
        frechet_inception_distance(attack)
    with pytest.raises(ValueError, match=r"attack\.ckpt cannot be read"):
        lpips_network("vgg", attack)


@pytest.mark.parametrize(
    ("command", "option", "url"),
    [
        ("fit", "--init_from", "https://example.org/a.ckpt"),
        ("validate", "--ckpt_path", "s3://bucket/a.ckpt"),
    ],
)
def test_a_checkpoint_on_another_machine_is_refused(refusal, command, option, url):
    line = refusal(command, "--config", str(EXPERIMENTS / "quickstart.yaml"), option, url)
    assert line == f"checkpoint {url} is not a local file: download it and give its path"


@pytest.mark.parametrize(
    ("checkpoint", "remote"),
    [("http://a/b.ckpt", True), ("HTTPS://a", True), ("registry:a", True), ("C:/a.ckpt", False), ("a/b:c.ckpt", False)],
)
def test_a_scheme_makes_a_checkpoint_remote(checkpoint, remote):
    with pytest.raises(ValueError, match="not a local file") if remote else nullcontext():
        refuse_remote(checkpoint)


def test_loading_code_cannot_be_asked_for(refusal):
    line = refusal("fit", "--config", str(EXPERIMENTS / "quickstart.yaml"), "--weights_only=false")
    assert line == "weights_only cannot be false: a checkpoint's code is never run"


def test_nothing_in_the_package_loads_more_than_weights():
    unpicklers = ("pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "torch.hub.load", "eval", "exec")
    loads = 0
    for path in PACKAGE.rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name, where = ast.unparse(call.func), f"{path}:{call.lineno}"
            options = {word.arg: ast.unparse(word.value) for word in call.keywords}
            if name in ("torch.load", "torch.hub.load_state_dict_from_url"):
                loads += 1
                assert options.get("weights_only") == "True", where
            assert name not in unpicklers, where
            assert "load_from_checkpoint" not in name, where
            assert options.get("allow_pickle") in (None, "False"), where
    assert loads


def test_training_evaluation_and_comparison_ask_nothing_of_the_network(quickstart, monkeypatch):
    asked = []

    def refuse(*arguments, **_):
        asked.append(arguments)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    assert quickstart("--version=a", "--trainer.max_steps=1") == 0
    assert quickstart("--ckpt_path=runs/quickstart/a/checkpoints/last.ckpt", command="validate") == 0
    assert main(["compare", "runs", "--output", "."]) == 0
    assert asked == []
    with pytest.raises(OSError, match="no network here"):
        socket.create_connection(("192.0.2.1", 80))
    assert len(asked) == 1


OFFLINE = """
import sys

asked = []
LOCAL = ("localhost", "127.0.0.1", "::1", "", None)


def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        address = (arguments[0],)
    else:
        return
    if isinstance(address, tuple) and address[0] not in LOCAL:
        asked.append((event, address))
        raise OSError(f"no network here: {event} {address}")


sys.addaudithook(watch)

from nsvq.cli import main

config, options = sys.argv[1], sys.argv[2:]
run = "runs/quickstart/a"
assert main(["fit", "--config", config, "--version=a", "--trainer.max_steps=2", *options]) == 0
assert main(["validate", "--config", f"{run}/config.yaml", "--ckpt_path", f"{run}/checkpoints/last.ckpt"]) == 0
assert main(["compare", "runs", "--output", "."]) == 0
assert asked == [], asked

import socket

try:
    socket.create_connection(("192.0.2.1", 80), timeout=0.1)
except OSError:
    print("asked", len(asked))
"""
SMALL = [
    "--data.batch_size=2",
    "--data.samples_per_epoch=4",
    "--trainer.limit_val_batches=2",
    "--encoder_drift.num_images=2",
]


@pytest.mark.slow
@pytest.mark.parametrize("loggers", [[], ["loggers/wandb.yaml"]], ids=str)
def test_a_process_of_its_own_asks_nothing_of_the_network_from_its_first_import_on(tmp_path, loggers):
    words = [str(EXPERIMENTS / "quickstart.yaml"), *SMALL, "--trainer.enable_progress_bar=false"]
    for logger in loggers:
        words += ["--config", str(EXPERIMENTS / logger)]
    result = subprocess.run([sys.executable, "-c", OFFLINE, *words], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    # The script's own attempt at the end was seen.
    assert "asked 1" in result.stdout.splitlines()
