"""Real runs of the program in processes of their own that start at once: a server that has imported it forks them."""

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import traceback
from pathlib import Path

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

WORKER_NAME = "forked_worker"
TIMEOUT_SECONDS = 120
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["nsvq.cli.program", "nsvq.cli.trust"])


def start(words, folder, ranks=1, kill_at=None, environment=None):
    """Start `nsvq WORDS` in a folder on some ranks and return the processes.

    Output goes to `output<rank>.txt` there. `kill_at` is a place and a step, see `arm`: each rank kills itself there.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(ranks):
        variables = {"OMP_NUM_THREADS": "1", **(environment or {})}
        if ranks > 1:
            # As torchrun sets them.
            variables |= {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "GROUP_RANK": 0,
                "ROLE_RANK": rank,
                "LOCAL_WORLD_SIZE": ranks,
            }
            variables |= {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            variables |= {"TORCHELASTIC_RUN_ID": "test"}
        job = {"job": (list(map(str, words)), str(folder), rank, variables, kill_at)}
        process = CONTEXT.Process(target=runpy.run_path, args=(__file__, job, WORKER_NAME))
        process.start()
        processes.append(process)
    return processes


def wait(processes, folder):
    """Wait for processes and return their exit codes; minus the signal's number for a killed one."""
    for process in processes:
        process.join(TIMEOUT_SECONDS)
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
    if late:
        text = "\n".join(path.read_text()[-3000:] for path in sorted(Path(folder).glob("output*.txt")))
        raise AssertionError(f"{len(late)} processes did not end:\n{text}")
    return [process.exitcode for process in processes]


def run(words, folder, ranks=1, **options):
    """Run `nsvq WORDS` to its end and return the exit codes by rank."""
    return wait(start(words, folder, ranks, **options), folder)


def succeed(words, folder, ranks=1, **options):
    """Run `nsvq WORDS`, which must end with exit code 0."""
    codes = run(words, folder, ranks, **options)
    assert codes == [0] * ranks, "\n".join(
        path.read_text()[-3000:] for path in sorted(Path(folder).glob("output*.txt"))
    )


def arm(place, step):
    """Let this process kill itself at a step: behind a `batch`, in a `validation` behind it, or in a `save`."""
    from nsvq.cli import checkpoint_io
    from nsvq.models.tokenizer import Tokenizer

    def kill(trainer):
        if trainer.global_step == step and not trainer.sanity_checking:
            os.kill(os.getpid(), signal.SIGKILL)

    if place == "batch":
        Tokenizer.on_train_batch_end = lambda self, *_: kill(self.trainer)
    elif place == "validation":
        Tokenizer.on_validation_batch_start = lambda self, *_: kill(self.trainer)
    elif place == "save":

        class HalfWriter:
            @staticmethod
            def save(checkpoint, file):
                torch.save(checkpoint, file)
                if checkpoint["global_step"] == step:
                    file.truncate(file.tell() // 2)
                    os.kill(os.getpid(), signal.SIGKILL)

        checkpoint_io.torch = HalfWriter
    else:
        raise ValueError(place)


def work(words, folder, rank, variables, kill_at):
    os.chdir(folder)
    output = os.open(f"output{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update({name: str(value) for name, value in variables.items()})
    torch.set_num_threads(1)
    # What the program has by itself; a forked process would start servers of its own.
    multiprocessing.set_start_method("fork", force=True)
    # Found out at import, which was in the server.
    rank_zero_only.rank = rank
    sys.argv = [str(Path(sys.executable).with_name("nsvq")), *words]
    from nsvq.cli import main

    if kill_at is not None:
        arm(*kill_at)
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == WORKER_NAME:
    work(*job)  # noqa: F821
