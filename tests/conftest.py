"""Fixtures of all tests: a fixed seed, and two gloo processes that any test can call."""

import multiprocessing
import pickle
import runpy
import traceback
from collections.abc import Callable, Iterator
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


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Give every test the same random numbers, whatever ran before it."""
    torch.manual_seed(0)


if __name__ == WORKER_NAME:
    serve(*worker_setup)  # type: ignore[name-defined] # noqa: F821
