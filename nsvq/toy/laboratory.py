"""Quantizers that chase moving latents, measured."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from nsvq.quantizers import Quantizer
from nsvq.toy.methods import EPOCH_STEPS, METHODS
from nsvq.toy.motions import MOTIONS, progress_at, sample_ring

REPLACE_EVERY = 10
UNUSED_STEPS = 100
EVALUATION_SEED = 2**31
"""Evaluation points are the same for all seeds and methods."""


@dataclass(frozen=True)
class Setup:
    """What all contenders share.

    Attributes:
        dim: Dimension of the latents.
        codes: Number of codes K.
        steps: Training steps.
        batch: Latents a step.
        points: Latents that utilization and error are measured on.
        measure_every: Steps between measurements.
    """

    dim: int = 2
    codes: int = 256
    steps: int = 1000
    batch: int = 256
    points: int = 4096
    measure_every: int = 20


@dataclass
class Course:
    """How a method fared.

    Attributes:
        steps: Steps of the measurements.
        utilization: Share of the codes that is nearest to an evaluation point.
        error: Quantization error, mean ‖u − c‖² / s², with the s² of that moment.
        codes: Code vectors, each shape (K, dim); empty unless they were asked for.
        used: Which codes are used, each shape (K,).
    """

    steps: list[int] = field(default_factory=list)
    utilization: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    codes: list[np.ndarray] = field(default_factory=list)
    used: list[np.ndarray] = field(default_factory=list)


def chase(method: str, motion: str, setup: Setup, seed: int = 0, keep_codes: bool = False) -> Course:
    """Train a quantizer on latents whose distribution moves.

    Args:
        method: One of `METHODS`.
        motion: One of `MOTIONS`.
        setup: What all methods share.
        seed: Seed of the quantizer and of the latents.
        keep_codes: Whether the course holds the code vectors.

    Returns:
        The course, measured at step 0, then every `measure_every` steps, and at the last.
    """
    torch.manual_seed(seed)
    contender = METHODS[method]
    quantizer = contender.build(setup.dim, setup.codes).train()
    parameters = [parameter for parameter in quantizer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=contender.lr) if parameters else None
    generator = torch.Generator().manual_seed(seed)
    points = sample_ring(setup.points, setup.dim, torch.Generator().manual_seed(EVALUATION_SEED))
    unused = torch.zeros(setup.codes, dtype=torch.int64)
    course = Course()
    for step in range(setup.steps + 1):
        if step % setup.measure_every == 0 or step == setup.steps:
            _measure(course, quantizer, MOTIONS[motion](points, progress_at(step, setup.steps)), step, keep_codes)
        if step == setup.steps:
            break
        latents = MOTIONS[motion](sample_ring(setup.batch, setup.dim, generator), progress_at(step, setup.steps))
        indices = _train(quantizer, optimizer, latents)
        if (step + 1) % EPOCH_STEPS == 0:
            quantizer.on_epoch_end()
        if contender.replacement:
            unused += 1
            unused[indices] = 0
            _replace(quantizer, optimizer, latents, unused, step, generator)
    return course


def _train(quantizer: Quantizer, optimizer: torch.optim.Optimizer | None, latents: Tensor) -> Tensor:
    output = quantizer(latents.T[None])
    if optimizer is not None:
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    indices: Tensor = output.indices
    return indices.flatten()


def _replace(
    quantizer: Quantizer,
    optimizer: torch.optim.Optimizer | None,
    latents: Tensor,
    unused: Tensor,
    step: int,
    generator: torch.Generator,
) -> None:
    dead = (unused >= UNUSED_STEPS).nonzero().flatten()
    if (step + 1) % REPLACE_EVERY or not len(dead):
        return
    chosen = torch.randint(len(latents), (len(dead),), generator=generator)
    quantizer.replace_codes(dead, latents[chosen])
    unused[dead] = 0
    free = quantizer.free_codes
    if optimizer is not None and free is not None:
        for value in optimizer.state[free].values():
            if value.shape == free.shape:
                value[dead] = 0


@torch.no_grad()
def _measure(course: Course, quantizer: Quantizer, points: Tensor, step: int, keep_codes: bool) -> None:
    training = quantizer.training
    quantizer.eval()
    indices = quantizer(points.T[None]).indices.flatten()
    latents, codes = quantizer.search_space(points.T[None])
    quantizer.train(training)
    used = torch.zeros(len(codes), dtype=torch.bool)
    used[indices] = True
    spread = (latents - latents.mean(dim=0)).square().sum(dim=1).mean()
    course.steps.append(step)
    course.utilization.append(float(used.double().mean()))
    course.error.append(float((latents - codes[indices]).square().sum(dim=1).mean() / spread))
    if keep_codes:
        course.codes.append(quantizer.codebook.detach().clone().numpy())
        course.used.append(used.numpy())


def kmeans_error(motion: str, setup: Setup, step: int) -> float:
    """Return the quantization error that k-means reaches: scikit-learn's, the best of ten starts.

    Args:
        motion: One of `MOTIONS`.
        setup: The number of codes, of points and of steps.
        step: The moment.

    Returns:
        Error on the evaluation points, which it is fitted to, mean ‖u − c‖² / s².
    """
    points = sample_ring(setup.points, setup.dim, torch.Generator().manual_seed(EVALUATION_SEED))
    latents = MOTIONS[motion](points, progress_at(step, setup.steps)).double().numpy()
    fitted = KMeans(setup.codes, n_init=10, random_state=0).fit(latents)
    return float(fitted.inertia_ / np.square(latents - latents.mean(axis=0)).sum())


def names(known: Sequence[str], given: Sequence[str] | None, what: str) -> list[str]:
    """Return names after a check.

    Args:
        known: What there is.
        given: What was asked for; None takes all.
        what: What the names are of, for the message.

    Raises:
        ValueError: If a name is unknown.
    """
    unknown = [name for name in given or () if name not in known]
    if unknown:
        raise ValueError(f"unknown {what} {', '.join(map(repr, unknown))}; known: {', '.join(known)}")
    return list(known if given is None else dict.fromkeys(given))
