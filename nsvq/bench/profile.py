"""Where search and kernel loss spend their time: `python -m nsvq.bench.profile`."""

import argparse
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from nsvq.ops import kernel_codebook_loss, nearest_codes

ROUNDS = 5
SHOWN = 8


def operator_times(run: Callable[[], object], pairs: int) -> dict[str, float]:
    """Profile a function on the CPU.

    Args:
        run: What to profile; it runs twice before, unprofiled.
        pairs: Pairs of latents and codes that it handles.

    Returns:
        Nanoseconds per pair by operator, the slowest first, and under `all` their sum.
    """
    run(), run()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(ROUNDS):
            run()
    events = profiler.key_averages()
    times = {event.key: event.self_cpu_time_total * 1e3 / ROUNDS / pairs for event in events}
    return {"all": sum(times.values())} | dict(sorted(times.items(), key=lambda item: -item[1]))


def main() -> None:
    """Print the slowest operators of the search and of each kernel's loss."""
    parser = argparse.ArgumentParser(prog="python -m nsvq.bench.profile", description=main.__doc__)
    parser.add_argument("--latents", type=int, default=4096, help="N")
    parser.add_argument("--codes", type=int, default=8192, help="K")
    parser.add_argument("--dim", type=int, default=64, help="D")
    options = parser.parse_args()
    torch.manual_seed(0)
    latents, codes = torch.randn(options.latents, options.dim), torch.randn(options.codes, options.dim)
    indices = nearest_codes(latents, codes)
    distance = (latents - codes[indices]).square().sum(dim=1).mean().item()
    runs: dict[str, Callable[[], object]] = {"search": lambda: nearest_codes(latents, codes)}
    for name, kernel, bandwidth in (
        ("gaussian", "gaussian", distance),
        ("gaussian, narrow", "gaussian", distance / 200),
        ("softmax", "softmax", distance),
        ("clamped_softmax", "clamped_softmax", distance),
    ):
        runs[name] = lambda kernel=kernel, bandwidth=bandwidth: kernel_codebook_loss(  # type: ignore[misc]
            latents, codes, kernel, bandwidth, 0.1
        )
    print(f"ns per pair; N {options.latents}, K {options.codes}, D {options.dim}, {torch.get_num_threads()} threads")
    for name, run in runs.items():
        times = operator_times(run, options.latents * options.codes)
        shown = ", ".join(f"{key} {value:.2f}" for key, value in list(times.items())[: SHOWN + 1])
        print(f"{name}: {shown}")


if __name__ == "__main__":
    main()
