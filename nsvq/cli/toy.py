"""`nsvq toy`: the drift laboratory."""

import sys
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from nsvq.cli.messages import OneLineParser
from nsvq.toy.figures import animate, courses_figure
from nsvq.toy.laboratory import Setup, chase, names
from nsvq.toy.methods import METHODS
from nsvq.toy.motions import MOTIONS
from nsvq.toy.program import run_courses, summary


def toy(words: list[str]) -> None:
    """Run quantizers on latents that move, print how they fared and write curves, a figure and animations.

    Args:
        words: The command line behind `nsvq toy`.

    Raises:
        ValueError: If a motion or a method is unknown or a number is too small or too large.
    """
    parser = OneLineParser(prog="nsvq toy", description="Quantizers that chase moving latents, in minutes on a CPU.")
    parser.add_argument("--motions", nargs="+", help=f"{', '.join(MOTIONS)}; default: all")
    parser.add_argument("--methods", nargs="+", help=f"{', '.join(METHODS)}; default: all")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--dim", type=int, default=2, help="dimension of the latents")
    parser.add_argument("--codes", type=int, default=256, help="number of codes K")
    parser.add_argument("--steps", type=int, default=1000, help="training steps")
    parser.add_argument("--animate", nargs="*", default=[], metavar="MOTION", help="motions to write a GIF of")
    parser.add_argument("-o", "--output", type=Path, default=Path("toy"), help="folder of what it writes")
    options = parser.parse_args(words)
    motions = names(list(MOTIONS), options.motions, "motion")
    methods = names(list(METHODS), options.methods, "method")
    animated = names(list(MOTIONS), options.animate, "motion")
    for name, lowest in (("seeds", 1), ("dim", 2), ("codes", 2), ("steps", 20)):
        if getattr(options, name) < lowest:
            raise ValueError(f"--{name} must be at least {lowest}, got {getattr(options, name)}")
    if options.codes > Setup.points:
        raise ValueError(f"--codes must be at most {Setup.points}, the number of points that k-means is fitted to")
    options.output.mkdir(parents=True, exist_ok=True)
    setup = Setup(dim=options.dim, codes=options.codes, steps=options.steps, measure_every=max(options.steps // 50, 1))
    # Tensors this small are slower on several threads, and a curve depends on their number.
    torch.set_num_threads(1)
    total = len(motions) * len(methods) * options.seeds
    runs = run_courses(motions, methods, range(options.seeds), setup)
    courses = pd.concat(tqdm(runs, total=total, unit="run", leave=False, disable=not sys.stderr.isatty()))
    courses.to_csv(options.output / "courses.csv", index=False)
    table = summary(courses, setup)
    formats = dict.fromkeys(("utilization", "lowest", "worst"), "{:.1%}".format)
    formats |= {"error": "{:.6f}".format, "over_kmeans": "{:.2f}".format, "highest": "{:.2f}".format}
    print(table.to_string(index=False, formatters=formats))
    table.to_csv(options.output / "summary.csv", index=False)
    courses_figure(courses, setup.steps).savefig(options.output / "courses.png", dpi=110)
    for motion in animated:
        kept = {method: chase(method, motion, setup, keep_codes=True) for method in methods}
        animate(kept, motion, setup, options.output / f"{motion}.gif")
    written = ["courses.csv", "summary.csv", "courses.png", *(f"{motion}.gif" for motion in animated)]
    print(f"wrote {', '.join(written)} to {options.output}")
