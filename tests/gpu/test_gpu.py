"""What only a GPU can show; skipped where there is none."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import nsvq.quantizers
from nsvq.cli.loading import load_run
from nsvq.ops import nearest_codes
from nsvq.quantizers import FactorizedVQ, Quantizer, SimVQ, TransVQ

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
QUANTIZERS = [
    cls
    for name in nsvq.quantizers.__all__
    if isinstance(cls := getattr(nsvq.quantizers, name), type) and issubclass(cls, Quantizer) and cls is not Quantizer
]
DIM, K = 16, 200
SMALL = ["--data.samples_per_epoch=640", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def run(quantizer, z):
    """Return what a training step computes, on the CPU in float64, and the quantizer's state after it."""
    z = z.clone().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        out = quantizer.train()(z)
    (out.loss + out.quantized.square().mean()).backward()
    gradients = {name: p.grad for name, p in quantizer.named_parameters() if p.grad is not None}
    values = {"quantized": out.quantized, "loss": out.loss, "latents' gradient": z.grad, **gradients}
    values |= {f"buffer {name}": buffer for name, buffer in quantizer.named_buffers() if buffer.is_floating_point()}
    return out.indices.cpu(), {name: value.detach().cpu().double() for name, value in values.items()}


@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("cls", QUANTIZERS)
def test_a_step_on_the_gpu_is_the_cpus_in_float64(cls, backend, precision, monkeypatch):
    monkeypatch.setenv("NSVQ_BACKEND", backend)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    quantizer = cls(dim=DIM, codebook_size=K)
    if quantizer.free_codes is not None:
        quantizer.replace_codes(torch.arange(K), torch.randn(K, quantizer.codes().shape[1]))
    z = torch.randn(8, DIM, 6, 6)
    state = {name: value.clone() for name, value in quantizer.state_dict().items()}
    indices, expected = run(quantizer.double(), z.double())
    quantizer = cls(dim=DIM, codebook_size=K)
    quantizer.load_state_dict(state)
    quantizer.cuda()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        actual_indices, actual = run(quantizer, z.cuda())
    finally:
        torch.set_float32_matmul_precision(before)
    assert (actual_indices == indices).float().mean() > 0.99
    # The transforms of codes are networks, which TF32 is allowed in.
    tolerance = 2e-2 if precision == "medium" and cls in (FactorizedVQ, SimVQ, TransVQ) else 2e-4
    if actual_indices.equal(indices):
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            largest = value.abs().max().item()
            error = (actual[name] - value).abs().max().item()
            assert error <= tolerance * largest, (name, error, largest)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_search_among_262144_codes_finds_the_nearest(backend, monkeypatch):
    monkeypatch.setenv("NSVQ_BACKEND", backend)
    torch.manual_seed(0)
    latents, codes = torch.randn(3000, 64, device="cuda"), torch.randn(262_144, 64, device="cuda")
    indices = nearest_codes(latents, codes)
    for rows in torch.arange(3000, device="cuda").split(100):
        exact = torch.cdist(
            latents[rows].double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist"
        ).square()
        gaps = exact.gather(1, indices[rows, None]).squeeze(1) - exact.amin(dim=1)
        assert (gaps <= 1e-6 * latents[rows].square().sum(dim=1)).all()


def nsvq_program(folder, *words):
    command = [sys.executable, "-c", "import sys; from nsvq.cli import main; sys.exit(main(sys.argv[1:]))", *words]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nsvq", ["--model.quantizer", EXPERIMENTS / "quantizers/nsvq.yaml"]),
        ("transvq", ["--model.quantizer", EXPERIMENTS / "quantizers/transvq.yaml"]),
        ("replacement", ["--trainer.callbacks+=DeadCodeReplacement", "--trainer.callbacks+=CodebookInitialization"]),
        ("nccl", ["--trainer", EXPERIMENTS / "trainer/ddp.yaml", "--trainer.devices=1"]),
    ],
)
def test_a_run_in_bfloat16_goes_on_and_loads_on_a_cpu(name, words, tmp_path):
    fit = ["fit", "--config", EXPERIMENTS / "quickstart.yaml", "--trainer", EXPERIMENTS / "trainer/gpu.yaml", *words]
    fit = [*map(str, fit), *SMALL, "--version=run"]
    nsvq_program(tmp_path, *fit, "--trainer.max_steps=40")
    nsvq_program(tmp_path, *fit, "--trainer.max_steps=80", "--ckpt_path=last")
    folder = tmp_path / "runs" / "quickstart" / "run"
    assert json.loads((folder / "environment.json").read_text())["train_steps"] == 80
    health = pd.read_csv(folder / "curves" / "codebook.csv")
    assert health["quantization_error"].dropna().lt(10).all()
    metrics = pd.read_csv(folder / "metrics.csv")
    assert metrics["val/psnr"].dropna().iloc[-1] > metrics["val/psnr"].dropna().iloc[0]
    model = load_run(folder)
    assert model.device.type == "cpu"
    with torch.no_grad():
        assert model.encode(torch.zeros(1, 3, 32, 32)).isfinite().all()


def test_a_vqgan_trains_on_the_gpu(tmp_path):
    words = ["fit", "--config", EXPERIMENTS / "vqgan_tiny.yaml", "--trainer", EXPERIMENTS / "trainer/gpu.yaml", *SMALL]
    words += [
        "--trainer.max_steps=40",
        "--model.adversarial.discriminator_start=0",
        "--model.adversarial.start=10",
        "--version=run",
    ]
    nsvq_program(tmp_path, *map(str, words))
    assert json.loads((tmp_path / "runs" / "vqgan_tiny" / "run" / "environment.json").read_text())["train_steps"] == 40
