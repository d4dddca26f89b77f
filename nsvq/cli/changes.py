"""What a run would do differently from the one whose checkpoint it goes on from."""

from collections.abc import Iterator, Mapping
from typing import Any

from nsvq.analysis.configuration import flat_options

# These change how long, where and how visibly a run works, not what it computes.
FREE = (
    "accelerator devices num_nodes strategy plugins max_steps min_steps max_epochs min_epochs max_time logger "
    "log_every_n_steps enable_progress_bar enable_model_summary profiler default_root_dir"
)
FREE_OPTIONS = (
    *(f"trainer.{name}" for name in FREE.split()),
    "data.num_workers",
    *("checkpoint", "ckpt_path", "weights_only", "runs_dir", "experiment", "version", "allow_changes", "init_from"),
)
BATCH_SIZE = "data.batch_size"


def refuse_changes(
    before: Mapping[str, Any], after: Mapping[str, Any], processes: tuple[int, int], allow: bool = False
) -> None:
    """Refuse to go on with other options than those a checkpoint was made with.

    Args:
        before: The configuration that the checkpoint was made with.
        after: The present one.
        processes: See `changed_options`.
        allow: Whether the user allows changes.

    Raises:
        ValueError: If an option differs that changes what the run computes; it names each. An optimizer of another
            class is refused always: it cannot take up the former one's state.
    """
    changed = changed_options(before, after, processes)
    if allow:
        optimizers = [option for option in changed if option.split()[0].endswith("optimizer.class_path")]
        if optimizers:
            listed = ", ".join(optimizers)
            raise ValueError(f"another optimizer cannot take up the former one's state: {listed}; use --init_from")
    elif changed:
        raise ValueError(
            f"the checkpoint was made with other options: {', '.join(changed)}; give the former ones, or "
            "--allow_changes to go on with these, or --init_from in place of --ckpt_path to begin a new run with its "
            "weights"
        )


def changed_options(before: Mapping[str, Any], after: Mapping[str, Any], processes: tuple[int, int]) -> list[str]:
    """List the options that differ between two configurations and change what a run computes.

    Args:
        before: The former configuration.
        after: The present one.
        processes: The number of processes then and now: where batches are divided among more of them, `batch_size`
            may shrink.

    Returns:
        `name former → present` for each.
    """
    old, new = dict(_options(before)), dict(_options(after))
    if (old.get(BATCH_SIZE) or 0) * processes[0] == (new.get(BATCH_SIZE) or 0) * processes[1]:
        old[BATCH_SIZE] = new.get(BATCH_SIZE)
    names = [*old, *(name for name in new if name not in old)]
    return [f"{name} {_shown(old, name)} → {_shown(new, name)}" for name in names if old.get(name) != new.get(name)]


def _options(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every option that counts."""
    return (
        (name, value)
        for name, value in flat_options(config)
        if not any(name == free or name.startswith(f"{free}.") for free in FREE_OPTIONS)
    )


def _shown(options: dict[str, Any], name: str) -> str:
    return str(options[name]) if name in options else "(none)"
