"""The Triton kernels, on a GPU or else in Triton's interpreter, and their compilation for an H100 without one."""

import importlib
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

NAMES = ("tiles", "search", "kernel_loss")
WEIGHT = {"gaussian": 0.5, "clamped_softmax": 0.3, "softmax": 0.1}
KERNELS = tuple(WEIGHT)
BANDWIDTHS = [1e-8, 1e-3, 0.1, 1.0, 30.0, 1e4]
SHAPES = [(1, 1, 1), (1, 40, 3), (33, 1, 4), (33, 70, 1), (50, 129, 3), (40, 100, 16), (40, 65, 64), (20, 40, 100)]
SHAPES += [(20, 33, 256)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def belongs(name):
    return (name.split(".")[0] == "triton" and not name.startswith("triton._C")) or name.startswith("nsvq.ops.triton_")


@pytest.fixture(scope="module")
def ops():
    """The modules, without a GPU imported with the interpreter on.

    Triton too is imported anew then, because its own library functions are decorated.
    """
    import nsvq.ops

    if DEVICE == "cuda":
        yield SimpleNamespace(**{name: importlib.import_module(f"nsvq.ops.triton_{name}") for name in NAMES})
        return

    before = {name: sys.modules.pop(name) for name in list(sys.modules) if belongs(name)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield SimpleNamespace(**{name: importlib.import_module(f"nsvq.ops.triton_{name}") for name in NAMES})
    for name in list(sys.modules):
        if belongs(name):
            del sys.modules[name]
    sys.modules.update(before)
    for name in NAMES:
        vars(nsvq.ops).pop(f"triton_{name}", None)
        if f"nsvq.ops.triton_{name}" in before:
            setattr(nsvq.ops, f"triton_{name}", before[f"nsvq.ops.triton_{name}"])


@pytest.fixture(autouse=True)
def default_device():
    with torch.device(DEVICE):
        yield


@pytest.fixture
def small_tiles(ops, monkeypatch):
    monkeypatch.setattr(ops.kernel_loss, "sweep_tiles", lambda *_: ops.kernel_loss.SweepTiles(32, 32, 16, 4, 1))
    monkeypatch.setattr(ops.search, "search_tiles", lambda *_: ops.search.SearchTiles(32, 32, 16, 4, 1))


def squared_distances(latents, codes):
    return (latents.double()[:, None] - codes.double()[None]).square().sum(dim=2)


def lowest_nearest(distances):
    return distances.eq(distances.amin(dim=1, keepdim=True)).int().argmax(dim=1)


def exact_duplicates(k, d):
    """Give codes, each twice, of mean 0, and latents, all of few digits.

    No product or sum of them is rounded, whereas the interpreter's products may round equal columns differently.
    """
    unique = torch.randint(-8, 9, (k, d)) / 4
    return torch.randint(-8, 9, (50, d)) / 4, torch.cat([unique, -unique, unique.flip(0), -unique])


def brute_force(latents, codes, kernel, bandwidth, neighbor_weight):
    distances = squared_distances(latents, codes)
    scaled = -distances / bandwidth
    if kernel == "gaussian":
        weights = neighbor_weight * scaled.exp()
    else:
        weights = neighbor_weight * scaled.softmax(dim=1)
        if kernel == "clamped_softmax":
            weights = (weights * len(codes)).clamp(max=1)
    winners = lowest_nearest(distances)
    weights[torch.arange(len(latents)), winners] = 1
    weighted = codes.double() * weights.sum(dim=0)[:, None] - weights.T @ latents.double()
    return (weights * distances).sum() / latents.numel(), 2 * weighted / latents.numel(), winners


def check(ops, latents, codes, kernel, bandwidth, gradient_tolerance=1e-5):
    sweep = ops.kernel_loss.kernel_sweep(latents, codes, kernel, bandwidth, WEIGHT[kernel])
    loss, gradient, winners = brute_force(latents, codes, kernel, float(bandwidth), WEIGHT[kernel])
    assert sweep.loss.dtype == sweep.gradient.dtype == sweep.winner_distance.dtype == torch.float32
    assert sweep.indices.equal(winners)
    torch.testing.assert_close(sweep.loss.double(), loss, rtol=1e-5, atol=0)
    largest = gradient.abs().max().item()
    torch.testing.assert_close(sweep.gradient.double(), gradient, rtol=0, atol=gradient_tolerance * largest)
    expected = (latents - codes[winners]).square().sum(dim=1).mean()
    torch.testing.assert_close(sweep.winner_distance, expected, rtol=1e-5, atol=0)
    return sweep


@pytest.mark.parametrize(("n", "k", "d"), [*SHAPES, (300, 700, 40), (129, 1000, 37)])
def test_search_equals_brute_force(ops, n, k, d):
    latents, codes = torch.randn(n, d), torch.randn(k, d)
    indices = ops.search.search(latents, codes)
    assert indices.dtype == torch.int64
    assert indices.equal(squared_distances(latents, codes).argmin(dim=1))


def test_search_in_every_split_of_the_codes(ops, monkeypatch):
    latents, codes = torch.randn(41, 20), torch.randn(150, 20)
    expected = squared_distances(latents, codes).argmin(dim=1)
    for programs in (1, 5, 1000):
        monkeypatch.setattr(ops.tiles, "PROGRAMS", programs)
        for tiles in ((16, 16, 16, 4, 1), (32, 64, 32, 4, 1), (64, 16, 16, 4, 2)):
            assert ops.search.search(latents, codes, tiles=ops.search.SearchTiles(*tiles)).equal(expected)


def test_a_latent_far_from_all_codes_keeps_the_digits_of_their_differences(ops):
    codes = torch.randn(100, 8)
    latents = torch.zeros(50, 8)
    latents[:, 0] = 1e4 * torch.randn(50)
    distances = squared_distances(latents, codes)
    indices = ops.search.search(latents, codes)
    excess = distances.gather(1, indices[:, None])[:, 0] - distances.amin(dim=1)
    assert (excess <= 1e-6 * latents.norm(dim=1) * codes.norm(dim=1).max()).all()


@pytest.mark.parametrize(("k", "d"), [(2, 37), (13, 1), (13, 37)])
def test_equally_near_codes_go_to_the_lowest_index(ops, small_tiles, k, d):
    latents, codes = exact_duplicates(k, d)
    expected = lowest_nearest(squared_distances(latents, codes))
    assert ops.search.search(latents, codes).equal(expected)
    for kernel in ("gaussian", "softmax"):
        assert ops.kernel_loss.kernel_sweep(latents, codes, kernel, 1.0, 0.5).indices.equal(expected)


def test_equal_vectors_have_equal_norms(ops):
    assert ops.tiles.half_norms(torch.randn(1, 37).expand(200, 37).contiguous()).unique().numel() == 1


@pytest.mark.parametrize("offset", [1e3, -1e3])
def test_an_offset_of_both_sides_costs_no_digits(ops, small_tiles, offset):
    latents, codes = torch.randn(60, 5) + offset, torch.randn(37, 5) + offset
    assert ops.search.search(latents, codes).equal(squared_distances(latents, codes).argmin(dim=1))
    for kernel in KERNELS:
        check(ops, latents, codes, kernel, 1.0)


def test_packed_scores_order_by_score_then_by_falling_index_and_unpack(ops):
    import triton
    from triton import language as tl

    @triton.jit
    def pack_all(scores, indices, packed, size: tl.constexpr):
        places = tl.arange(0, size)
        tl.store(packed + places, pack(tl.load(scores + places), tl.load(indices + places)))  # noqa: F821

    scores = torch.tensor([-math.inf, -1e30, -2.0, -1e-40, 0.0, 1e-40, 3.0, 3.0])
    indices = torch.tensor([0, 2**31 - 1, 5, 1, 7, 2, 9, 8], dtype=torch.int32)
    packed = torch.empty(8, dtype=torch.int64)
    pack_all.fn.__globals__.update(pack=ops.tiles.pack, tl=tl)
    pack_all[(1,)](scores, indices, packed, 8)
    assert packed.diff().gt(0).all()
    unpacked_scores, unpacked_indices = ops.tiles.unpack(packed)
    assert unpacked_scores.equal(scores)
    assert unpacked_indices.equal(indices.long())


@pytest.mark.parametrize("bandwidth", BANDWIDTHS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_sweep_equals_brute_force_for_every_bandwidth(ops, small_tiles, kernel, bandwidth):
    check(ops, torch.randn(60, 5), torch.randn(37, 5), kernel, bandwidth)


@pytest.mark.parametrize(("n", "k", "d"), SHAPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_sweep_equals_brute_force_for_every_shape(ops, kernel, n, k, d):
    latents, codes = torch.randn(n, d), torch.randn(k, d)
    check(ops, latents, codes, kernel, torch.tensor(0.5 * d))


@pytest.mark.parametrize("guess", ["first", "random", "none"])
def test_a_wrong_guess_of_the_winners_changes_nothing(ops, small_tiles, monkeypatch, guess):
    exact = ops.search.search_scores
    guesses = {"first": torch.zeros, "random": lambda n, **_: torch.randint(37, (n,)), "none": None}[guess]

    def wrong(latents, codes, precision, *rest):
        scores, indices, sums = exact(latents, codes, precision, *rest)
        if precision == "tf32" and guesses:
            indices = guesses(len(latents), dtype=torch.int64)
        return scores, indices, sums

    monkeypatch.setattr(ops.kernel_loss, "search_scores", wrong)
    latents, codes = torch.randn(60, 5), torch.randn(37, 5)
    for bandwidth in (1e-8, 0.1, 30.0):
        check(ops, latents, codes, "gaussian", bandwidth)
    check(ops, latents + 1e3, codes + 1e3, "gaussian", 1.0, 2e-5)
    codes = torch.randn(37, 5)
    sweep = ops.kernel_loss.kernel_sweep(codes + 0, codes, "gaussian", 1e-8, 0.5)
    assert sweep.indices.equal(torch.arange(37))
    assert 0 <= sweep.loss < 1e-6


@pytest.mark.parametrize("tiles", [(16, 16, 16, 4, 1), (32, 64, 64, 4, 1), (64, 16, 32, 4, 1)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_tile_sizes_and_splits_change_only_the_rounding(ops, monkeypatch, kernel, tiles):
    latents, codes = torch.randn(60, 40), torch.randn(37, 40)
    arguments = (latents, codes, kernel, 20.0, WEIGHT[kernel])
    expected = ops.kernel_loss.kernel_sweep(*arguments)
    for programs in (1, 6):
        monkeypatch.setattr(ops.tiles, "PROGRAMS", programs)
        sweep = ops.kernel_loss.kernel_sweep(*arguments, tiles=ops.kernel_loss.SweepTiles(*tiles))
        assert sweep.indices.equal(expected.indices)
        torch.testing.assert_close(sweep.loss, expected.loss, rtol=1e-6, atol=0)
        largest = expected.gradient.abs().max().item()
        torch.testing.assert_close(sweep.gradient, expected.gradient, rtol=0, atol=2e-6 * largest)


@pytest.mark.parametrize("kernel", KERNELS)
def test_two_calls_agree_bit_for_bit(ops, small_tiles, kernel):
    latents, codes = torch.randn(40, 5), torch.randn(40, 5)
    first, second = (ops.kernel_loss.kernel_sweep(latents, codes, kernel, 1.0, 0.3) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bandwidth", [1e-3, 1e4])
def test_latents_close_to_far_flung_codes_keep_the_digits_of_their_distance(ops, small_tiles, kernel, bandwidth):
    codes = 5 * torch.randn(37, 64)
    check(ops, codes + 1e-4 * torch.randn(37, 64), codes, kernel, bandwidth)


@pytest.mark.parametrize("kernel", KERNELS)
def test_latents_on_their_codes_give_no_winner_loss(ops, small_tiles, kernel):
    codes = torch.randn(37, 5)
    sweep = ops.kernel_loss.kernel_sweep(codes + 0, codes, kernel, 1e-8, WEIGHT[kernel])
    assert sweep.winner_distance == 0
    assert sweep.indices.equal(torch.arange(37))
    assert 0 <= sweep.loss < 1e-6


@pytest.mark.parametrize("kernel", KERNELS)
def test_duplicates_of_the_winner_keep_their_kernel_weight(ops, small_tiles, kernel):
    check(ops, *exact_duplicates(8, 5), kernel, 1.0)


def test_all_latents_may_have_one_winner(ops, small_tiles):
    codes = torch.cat([torch.zeros(1, 5), 10 + torch.randn(36, 5)])
    check(ops, torch.randn(100, 5), codes, "gaussian", 1.0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_latents_give_a_zero_loss_and_gradient(ops, kernel):
    sweep = ops.kernel_loss.kernel_sweep(torch.randn(0, 5), torch.randn(7, 5), kernel, 1.0, 0.5)
    assert sweep.loss == sweep.winner_distance == 0
    assert sweep.indices.shape == ops.search.search(torch.randn(0, 5), torch.randn(7, 5)).shape == (0,)
    assert sweep.gradient.shape == (7, 5)
    assert not sweep.gradient.any()


def test_what_the_kernels_cannot_take_is_refused(ops):
    latents, codes = torch.randn(3, 5), torch.randn(7, 5)
    with pytest.raises(ValueError, match=r"'cauchy'.*gaussian, clamped_softmax, softmax"):
        ops.kernel_loss.kernel_sweep(latents, codes, "cauchy", 1.0, 0.5)
    with pytest.raises(ValueError, match=r"257.*at most 256"):
        ops.kernel_loss.kernel_sweep(torch.randn(3, 257), torch.randn(7, 257), "softmax", 1.0, 0.5)
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(7, 5\)"):
        ops.search.search(latents[:, :4], codes)
    with pytest.raises(ValueError, match=r"\(0, 5\)"):
        ops.search.search(latents, codes[:0])
    with pytest.raises(ValueError, match="float64"):
        ops.search.search(latents.double(), codes)


COMPILE = """
import re, subprocess, sys, tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from nsvq.ops import triton_kernel_loss as loss, triton_search as search, triton_tiles as tiles

try:
    triton.knobs.nvidia.ptxas.path, triton.knobs.nvidia.cuobjdump.path
except Exception as error:
    sys.exit(f"SKIP {error}")

TYPES = dict(left_out="*i32", best="*i64", order="*i64", starts="*i64", factor="fp32", negligible="fp32")
TYPES |= dict.fromkeys(["n", "k", "d", "split_tiles"], "i32")

def resources(kernel, warps, stages, **constants):
    signature = {n: "constexpr" if n in constants else TYPES.get(n, "*fp32") for n in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(signature)
               if signature[n][0] == "*" or (n == "d" and d % 16 == 0)}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants.items()}, aligned)
    options = dict(num_warps=warps, num_stages=stages)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = map(int, re.search(r"REG:(\\d+) STACK:(\\d+)", usage).groups())
    print(kernel.__name__, registers, stack, compiled.metadata.shared, constants)

precision, d = sys.argv[1], int(sys.argv[2])
block_d = triton.next_power_of_2(d)
t = search.search_tiles(d, precision)
for softmax in (False, True):
    resources(search.search_kernel, t.warps, t.stages, softmax=softmax, block_n=t.rows, block_k=t.codes,
              chunk=t.chunk, precision=precision)
t = loss.sweep_tiles(d, precision)
for gaussian in (False, True):
    resources(loss.sweep_kernel, t.warps, t.stages, gaussian=gaussian, clamped=not gaussian, block_n=t.rows,
              block_k=t.codes, block_d=block_d, chunk=min(t.chunk, block_d), precision=precision)
resources(loss.segment_kernel, 4, 1, block_n=4096 // block_d, block_d=block_d)
resources(tiles.half_norm_kernel, 4, 3, block_n=64, chunk=32)
"""
H100_SHARED_BYTES = 227 * 1024
FEW_SPILLED_BYTES = 64


@pytest.mark.parametrize(
    ("precision", "d"),
    [
        pytest.param(precision, d, marks=[] if (precision, d) == ("ieee", 64) else pytest.mark.slow)
        for precision in ("ieee", "tf32x3", "tf32")
        for d in (16, 64, 100, 128, 250, 256)
    ],
)
def test_kernels_compile_for_an_h100_and_fit_its_registers_and_shared_memory(tmp_path, precision, d):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    script = tmp_path / "compile.py"
    script.write_text(COMPILE)
    command = [sys.executable, str(script), precision, str(d)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    if result.stderr.startswith("SKIP"):
        pytest.skip(result.stderr)
    assert result.returncode == 0, result.stderr
    lines = [line.split(maxsplit=4) for line in result.stdout.splitlines()]
    assert len(lines) == 6
    for kernel, _, stack, shared, constants in lines:
        assert int(stack) <= FEW_SPILLED_BYTES, (kernel, constants)
        assert int(shared) <= H100_SHARED_BYTES, (kernel, constants)
