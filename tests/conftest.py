"""Fixtures of all tests: a fixed seed, two gloo processes that any test can call, random pretrained weights."""

import functools
import hashlib
import io
import multiprocessing
import os
import pickle
import runpy
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from importlib.util import module_from_spec, spec_from_file_location
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist

TIMEOUT_SECONDS = 60
WORKER_NAME = "rank_pool_worker"


class RankPool:
    """Processes of one gloo group, kept alive between calls because importing torch takes seconds.

    Args:
        folder: Where the processes meet; an empty folder.
        size: Number of processes.
    """

    def __init__(self, folder: Path, size: int = 2) -> None:
        self.folder = folder
        self.size = size
        self.starts = 0
        self.processes: list[multiprocessing.process.BaseProcess] = []
        self.connections: list[Connection] = []

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call a module-level function of a test file in every process; return the results by rank."""
        if not self.processes:
            self._start()
        job = pickle.dumps((function.__code__.co_filename, function.__name__, arguments))
        for connection in self.connections:
            connection.send_bytes(job)
        results: dict[int, Any] = {}
        while len(results) < self.size:
            waiting = [c for rank, c in enumerate(self.connections) if rank not in results]
            ready = wait(waiting, timeout=TIMEOUT_SECONDS)
            if not ready:
                self.close()
                pytest.fail(f"a rank did not answer within {TIMEOUT_SECONDS} s")
            for connection in ready:
                succeeded, result = pickle.loads(connection.recv_bytes())
                rank = self.connections.index(connection)
                if not succeeded:
                    self.close()
                    pytest.fail(f"rank {rank} failed:\n{result}")
                results[rank] = result
        return [results[rank] for rank in range(self.size)]

    def close(self) -> None:
        """End the processes; a later call starts fresh ones."""
        for process in self.processes:
            process.terminate()
            process.join()
        self.processes, self.connections = [], []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.starts += 1
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            setup = {"worker_setup": (rank, self.size, str(self.folder / f"store{self.starts}"), theirs)}
            process = context.Process(target=runpy.run_path, args=(__file__, setup, WORKER_NAME), daemon=True)
            process.start()
            self.processes.append(process)
            self.connections.append(ours)


def serve(rank: int, size: int, store: str, connection: Connection) -> None:
    """Join the group and answer calls until the pool ends this process."""
    torch.set_num_threads(1)
    # Lightning seeds distributed processes with it anew; an earlier test may have left it.
    os.environ.pop("PL_GLOBAL_SEED", None)
    timeout = timedelta(seconds=TIMEOUT_SECONDS / 2)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timeout)
    modules: dict[str, ModuleType] = {}
    while True:
        path, name, arguments = pickle.loads(connection.recv_bytes())
        try:
            if path not in modules:
                spec = spec_from_file_location(f"{WORKER_NAME}_{len(modules)}", path)
                modules[path] = module_from_spec(spec)
                spec.loader.exec_module(modules[path])
            answer = (True, getattr(modules[path], name)(*arguments))
        except Exception:
            answer = (False, traceback.format_exc())
        connection.send_bytes(pickle.dumps(answer))


@pytest.fixture(scope="session")
def rank_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    """Two gloo processes: `rank_pool.run(function, *arguments)` returns both ranks' results."""
    pool = RankPool(tmp_path_factory.mktemp("ranks"))
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def rank_pool_of_three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    """Three gloo processes, see `rank_pool`."""
    pool = RankPool(tmp_path_factory.mktemp("three_ranks"), size=3)
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Give every test the same random numbers, whatever ran before it."""
    torch.manual_seed(0)


def random_state(key: str) -> dict[str, torch.Tensor]:
    """Return random weights with the published names: `features.*` of VGG or AlexNet, all of FID's Inception."""
    with torch.device("meta"):
        if key == "inception":
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

            class Unloaded(FeatureExtractorInceptionV3):
                def load_state_dict(self, *_: Any, **__: Any) -> None:
                    pass

            empty = io.BytesIO()
            torch.save({}, empty)
            empty.seek(0)
            names = Unloaded("inception", ["2048"], feature_extractor_weights_path=empty).state_dict()
        else:
            from torchvision.models import alexnet, vgg16

            network = {"alex": alexnet, "vgg": vgg16}[key]()
            names = {name: value for name, value in network.state_dict().items() if name.startswith("features.")}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, value in names.items():
        if value.ndim > 1:
            # He's gain, so that signals reach the last layer.
            state[name] = torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
        else:
            fill = float(name.endswith(("bn.weight", "running_var")))
            state[name] = torch.full(value.shape, fill, dtype=value.dtype)
    return state


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Random weights with the published names, each made once: `random_weights("vgg")` returns the file."""
    folder = tmp_path_factory.mktemp("random_weights")

    @functools.cache
    def make(key: str) -> Path:
        path = folder / f"{key}.pth"
        torch.save(random_state(key), path)
        return path

    return make


@pytest.fixture
def fake_hub(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    random_weights: Callable[[str], Path],
) -> Callable[..., Path]:
    """A hub cache of this test's own, which `nsvq.pretrained` takes for the machine's.

    It is empty at first. `fake_hub("vgg", "alex", "inception")` puts random weights there under the published names, so
    that the real code finds, checks and loads them, and returns the folder. They are links: replace, never write them.
    """
    from nsvq.pretrained import PRETRAINED

    home = tmp_path_factory.mktemp("torch_home")
    monkeypatch.setenv("TORCH_HOME", str(home))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.delenv("NSVQ_WEIGHTS_DIR", raising=False)
    folder = home / "hub" / "checkpoints"

    def put(*keys: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for key in keys:
            path = random_weights(key)
            prefix = _sha256(path)[:8]
            monkeypatch.setitem(PRETRAINED, key, replace(PRETRAINED[key], sha256_prefix=prefix))
            (folder / PRETRAINED[key].name).symlink_to(path)
        return folder

    return put


@functools.cache
def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == WORKER_NAME:
    serve(*worker_setup)  # type: ignore[name-defined] # noqa: F821
