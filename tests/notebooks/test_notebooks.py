"""The notebooks: stripped, thin, and executed on runs of the real program."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
NAMES = ["compare_quantizers", "drift_curves", "toy_drift"]
RUNNER = Path(__file__).parent / "run_cells.py"
IMPORTED = {"nsvq.analysis", "nsvq.toy", "numpy", "pandas", "matplotlib", "IPython.display"}
FIT = """
import json, sys
from nsvq.cli import main
for words in json.loads(sys.argv[1]):
    main(words)
"""
SMALL = [
    "--data.batch_size=2",
    "--data.samples_per_epoch=8",
    "--trainer.max_steps=10",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--encoder_drift.every_n_steps=2",
    "--encoder_drift.num_images=2",
    "--reconstructions=null",
]


def environment(**variables):
    """This process's variables without those that notebooks and runs read."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NSVQ_") and key != "LOCAL_RANK"}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "MPLBACKEND": "Agg"} | variables


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Two methods × two seeds, 10 steps each."""
    folder = tmp_path_factory.mktemp("notebook_runs")
    variables = environment(TORCH_HOME=str(folder / "torch_home"))
    experiments = ROOT / "experiments"
    fits = [
        [
            "fit",
            f"--config={experiments / 'quickstart.yaml'}",
            f"--config={experiments / 'methods' / method}.yaml",
            f"--seed_everything={seed}",
            "--experiment=methods",
            f"--version={method}-{seed}",
            *SMALL,
        ]
        for method in ("vanilla", "nsvq")
        for seed in (0, 1)
    ]
    words = [sys.executable, "-c", FIT, json.dumps(fits)]
    result = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder / "runs" / "methods"


@pytest.fixture
def execute(tmp_path):
    """Run a notebook in a copy of its folder; return what its cells show."""

    def run(path, **variables):
        copy = tmp_path / "notebooks"
        shutil.copytree(path.parent, copy)
        words = [sys.executable, str(RUNNER), path.name]
        result = subprocess.run(words, cwd=copy, env=environment(**variables), capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        lines = [line for line in result.stdout.splitlines() if line.startswith('{"cell": ')]
        return [json.loads(line) for line in lines], result.stderr

    return run


def path_of(name):
    return NOTEBOOKS / f"{name}.ipynb"


def read(name):
    return json.loads(path_of(name).read_text(encoding="utf-8"))


def code(name):
    """The code cells as syntax trees."""
    cells = [cell for cell in read(name)["cells"] if cell["cell_type"] == "code"]
    return [ast.parse("".join(cell["source"]).replace("%matplotlib inline\n", "")) for cell in cells]


def tables(shown):
    """What cells show as tables, by their column names."""
    return [re.findall(r"<th>([^<]+)</th>", one["html"].split("</thead>")[0]) for one in shown if "html" in one]


def test_these_are_all_the_notebooks():
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_valid_and_stripped(name):
    notebook = read(name)
    assert set(notebook) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["kernelspec"] == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell_id) for cell_id in ids)
    markdown = [cell for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(markdown) + len(cells) == len(ids)
    assert all(set(cell) == {"cell_type", "id", "metadata", "source"} for cell in markdown)
    keys = {"cell_type", "execution_count", "id", "metadata", "outputs", "source"}
    assert all(set(cell) == keys for cell in cells)
    assert [cell["id"] for cell in cells if cell["outputs"] or cell["execution_count"] is not None] == []
    assert cells[0]["metadata"] == {"tags": ["parameters"]}
    assert all(cell["metadata"] == {} for cell in [*markdown, *cells[1:]])
    assert all("".join(cell["source"]).strip() for cell in notebook["cells"])


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_calls_the_package_and_defines_nothing(name):
    trees = code(name)
    nodes = [node for tree in trees for node in ast.walk(tree)]
    guarded = {node for tree in trees for part in tree.body if isinstance(part, ast.Try) for node in ast.walk(part)}
    for node in nodes:
        assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda)
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        for module in modules:
            inside = any(f"{module}.".startswith(f"{allowed}.") for allowed in IMPORTED)
            assert inside or module in sys.stdlib_module_names, f"{name} imports {module}"
            assert node in guarded or not module.startswith("IPython"), f"{name} needs {module}"


@pytest.mark.parametrize("name", ["compare_quantizers", "drift_curves"])
def test_a_notebook_of_runs_shows_them(name, execute, runs):
    shown, errors = execute(path_of(name), NSVQ_RUNS=str(runs))
    assert "MissingSeedsWarning" not in errors
    figures = [one for one in shown if "panels" in one]
    assert [one["panels"] for one in figures] == {"drift_curves": [6], "compare_quantizers": [2, 1]}[name]
    assert [one for one in figures if one["empty_panels"]] == []
    for columns in tables(shown):
        assert "quantization_error" in columns or "utilization" not in columns
    text = "".join(one.get("html", "") for one in shown)
    assert text.count("quantization_error") >= 2
    assert "missing" in text
    assert "positive" in text
    if name == "drift_curves":
        assert Image.open(runs / "drift_curves.png").size[0] > 1000


def test_missing_seeds_are_named(execute, runs, tmp_path):
    fewer = tmp_path / "fewer"
    shutil.copytree(runs, fewer, ignore=shutil.ignore_patterns("nsvq-1"))
    _, errors = execute(path_of("compare_quantizers"), NSVQ_RUNS=str(fewer))
    assert re.search(r"MissingSeedsWarning: NSVQ, K 512.* lacks seed 1", errors)


def test_the_laboratory_shows_its_courses(execute, tmp_path):
    shown, _ = execute(path_of("toy_drift"), NSVQ_TOY_STEPS="20", NSVQ_TOY_SEEDS="1", NSVQ_TOY_CODES="32")
    (figure,) = [one for one in shown if "panels" in one]
    assert (figure["panels"], figure["empty_panels"]) == (4, 0)
    (columns,) = tables(shown)
    assert {"utilization", "error", "over_kmeans"} <= set(columns)
    gif = tmp_path / "runs" / "toy" / "translate.gif"
    assert Image.open(gif).n_frames == 21
    assert "translate.gif" in shown[-1]["text"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\nx / 0", "cell 2 of broken.ipynb: ZeroDivisionError"),
        ("import nsvq_not_there", "cell 2 of broken.ipynb: ModuleNotFoundError"),
        ("f(", "cell 2 of broken.ipynb: SyntaxError"),
        ("raise SystemExit(0)", "cell 2 of broken.ipynb: SystemExit"),
        ("class Shown:\n    def _repr_html_(self):\n        return 1 / 0\nShown()", "broken.ipynb: ZeroDivisionError"),
    ],
)
def test_a_cell_that_raises_fails_with_its_number(execute, tmp_path, source, message):
    folder = tmp_path / "broken"
    folder.mkdir()
    cells = [{"cell_type": "markdown", "source": ["text"]}, {"cell_type": "code", "source": source.splitlines(True)}]
    (folder / "broken.ipynb").write_text(json.dumps({"cells": cells}))
    with pytest.raises(AssertionError, match=message):
        execute(folder / "broken.ipynb")
