"""Which room imports which: holds the table of the README's architecture section."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nsvq

PACKAGE = Path(nsvq.__file__).parent
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
ROOT = "__init__"
EVERYTHING = None
ALLOWED_ROOMS = {
    ROOT: set(),
    "ops": set(),
    "networks": set(),
    "distributed": set(),
    "quantizers": {"ops", "distributed"},
    "pretrained": {"distributed"},
    "losses": {"pretrained", "distributed"},
    "metrics": {"pretrained", "distributed"},
    "models": {"quantizers", "networks", "losses", "metrics", "pretrained", "distributed"},
    "callbacks": {"metrics", "pretrained", "distributed"},
    "data": {"distributed"},
    "analysis": set(),
    "sweeps": {"analysis"},
    "toy": {"quantizers", "ops", "metrics", "models", "analysis"},
    "bench": {"quantizers", "ops", "metrics", "models", "analysis", "networks", "losses"},
    "cli": EVERYTHING,
    "__main__": EVERYTHING,
}
ALLOWED_PACKAGES = {ROOT: set(), "ops": {"torch", "triton"}, "networks": {"torch"}}
# These import torch, which takes seconds.
FORBIDDEN_PACKAGES = {
    room: {"torch", "torchvision", "torchmetrics", "lightning", "pytorch_lightning"} for room in ("analysis", "sweeps")
}


def imported_modules(source, package):
    """Return the dotted names that a module of `package` imports, wherever in the file."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names += [f"{module}.{alias.name}" for alias in node.names] if module == "nsvq" else [module]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names += [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
    return names


def violations(source, path):
    room = path.parts[0].removesuffix(".py")
    if room not in ALLOWED_ROOMS:
        return [f"{path}: {room} is no room of the architecture"]
    wrong = []
    for name in imported_modules(source, ["nsvq", *path.parts[:-1]]):
        top, _, rest = name.partition(".")
        if top == "nsvq":
            target = rest.partition(".")[0]
            if target in {"", "__version__", room} or ALLOWED_ROOMS[room] is EVERYTHING:
                continue
            if target not in ALLOWED_ROOMS[room]:
                wrong.append(f"{path} imports {name}")
        elif top not in sys.stdlib_module_names and (
            top not in ALLOWED_PACKAGES.get(room, {top}) or top in FORBIDDEN_PACKAGES.get(room, set())
        ):
            wrong.append(f"{path} imports {name}")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_file_imports_only_what_its_room_may(path):
    assert violations((PACKAGE / path).read_text(), path) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ops/search.py", "from nsvq.quantizers import NSVQ"),
        ("ops/search.py", "import numpy"),
        ("ops/search.py", "from nsvq import distributed"),
        ("ops/search.py", "from .. import distributed"),
        ("ops/search.py", "from ..distributed import rank"),
        ("networks/conv.py", "import torchvision.ops"),
        ("networks/conv.py", "def f():\n    import triton"),
        ("quantizers/nsvq.py", "from nsvq.metrics.usage import Usage"),
        ("callbacks/health.py", "from nsvq.models import VQVAE"),
        ("callbacks/health.py", "if TYPE_CHECKING:\n    import nsvq.quantizers.base"),
        ("callbacks/health.py", "importlib.import_module('nsvq.models')"),
        ("analysis/read.py", "import torch"),
        ("sweeps/run.py", "from lightning.pytorch import Trainer"),
        ("data/base.py", "from nsvq.cli import main"),
        ("__init__.py", "import torch"),
        ("__init__.py", "from nsvq.quantizers import NSVQ"),
        ("utils/helpers.py", ""),
        ("utils.py", ""),
    ],
)
def test_a_forbidden_import_is_seen(path, source):
    assert violations(source, Path(path))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "ops/search.py",
            "import math\nimport torch\nimport triton\nfrom nsvq.ops.blocks import slices\nfrom . import x",
        ),
        ("quantizers/nsvq.py", "from nsvq.ops import nearest_codes\nfrom nsvq import distributed\nimport numpy"),
        ("cli.py", "from nsvq import models, data\nimport nsvq.callbacks\nfrom lightning import Trainer"),
        ("analysis/read.py", "import pandas\nfrom nsvq import __version__"),
    ],
)
def test_an_allowed_import_passes(path, source):
    assert violations(source, Path(path)) == []


@pytest.mark.parametrize(
    ("module", "light_of"),
    [
        ("nsvq", ["torch", "numpy", "lightning"]),
        ("nsvq.analysis", ["torch", "lightning", "wandb"]),
        ("nsvq.sweeps", ["torch", "lightning"]),
    ],
)
def test_light_rooms_stay_light_at_run_time(module, light_of):
    if not (PACKAGE.parent / Path(*module.split("."), "__init__.py")).exists():
        pytest.skip(f"{module} is not written yet")
    code = f"import sys, {module}; print([name for name in {light_of} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.returncode) == ("[]", 0), result.stderr
