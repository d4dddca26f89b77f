"""What figures show is what was measured."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from nsvq.analysis import (
    Run,
    bandwidth_figure,
    comparison_table,
    curves_figure,
    curves_table,
    find_runs,
    html_report,
    option,
    quality_figure,
    rank_frequency_figure,
    report_parts,
    save_report_parts,
    stress_figure,
)
from nsvq.cli import main


@pytest.fixture
def two_seeds(synthetic_run):
    drift = {"drift_relative": [0.3, 0.2], "churn": [0.5, 0.4], "codebook_lag": [0.1, 0.1], "codebook_scale": [1, 2.0]}
    values = [[0.25, 0.5], [0.75, 1.0]]
    return [
        Run(synthetic_run(f"s{n}", seed=n, usage={"codebook_utilization": row}, drift=drift, psnr=[20.0, 21.0 + n]))
        for n, row in enumerate(values)
    ]


class References(HTMLParser):
    """Collects what a page fetches or leads to."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]


def lines(panel):
    return {line.get_label(): line.get_xydata().tolist() for line in panel.get_lines()}


def test_a_line_is_the_mean_over_seeds_and_a_band_is_all_of_them(two_seeds):
    figure = curves_figure(curves_table(two_seeds))
    panel = figure.axes[0]
    assert lines(panel) == {"NSVQ": [[10.0, 50.0], [20.0, 75.0]]}
    (band,) = panel.collections
    corners = band.get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == (25, 100)
    assert [one.get_title() for one in figure.axes][:3] == [
        "Codebook utilization",
        "Quantization error",
        "Encoder drift",
    ]
    assert figure.axes[2].get_yscale() == "log"


def test_codebook_sizes_are_lines_of_their_own(synthetic_run):
    runs = [Run(synthetic_run("a")), Run(synthetic_run("b", codebook_size=32))]
    assert set(lines(curves_figure(curves_table(runs), ["utilization"]).axes[0])) == {"NSVQ, K = 16", "NSVQ, K = 32"}


def test_use_of_codes_is_sorted_and_unused_codes_are_left_out(synthetic_run):
    folder = synthetic_run("a")
    np.savez(folder / "curves" / "counts_val_00000010.npz", counts=np.array([9, 9, 9]))
    np.savez(folder / "curves" / "counts_val_00000020.npz", counts=np.array([0, 1, 3]))
    figure = rank_frequency_figure([Run(folder), Run(synthetic_run("b"))], ["a", "b"])
    assert lines(figure.axes[0]) == {"a: 2 of 3": [[1.0, 0.75], [2.0, 0.25]]}


def test_quality_has_a_point_a_run(two_seeds):
    error, quality = quality_figure(comparison_table(two_seeds)).axes
    assert [points.get_offsets().tolist() for points in quality.collections] == [[[21.0, 50.0], [22.0, 100.0]]]
    assert [points.get_offsets().tolist() for points in error.collections] == [[[0.5, 50.0], [0.5, 100.0]]]


def test_bandwidths_are_drawn_where_there_are_any(two_seeds):
    curves = curves_table(two_seeds)
    assert lines(bandwidth_figure(curves).axes[0]) == {}
    curves["bandwidth"] = curves["step"] / 10.0
    assert lines(bandwidth_figure(curves).axes[0]) == {"NSVQ": [[10.0, 1.0], [20.0, 2.0]]}


@pytest.fixture
def stressed(synthetic_run):
    return [
        Run(
            synthetic_run(
                f"f{factor}s{seed}",
                seed=seed,
                usage={"codebook_utilization": [0.5 / factor + seed / 10]},
                psnr=[20.0],
                options={"encoder_lr_factor": factor},
            )
        )
        for factor in (1.0, 5.0)
        for seed in (0, 1)
    ]


def test_the_stress_test_is_drawn_over_the_factor(stressed):
    table = comparison_table(stressed)
    table["encoder_lr_factor"] = [option(run, "model.encoder_lr_factor") for run in stressed]
    panel = stress_figure(table).axes[0]
    points = panel.containers[0].lines[0].get_xydata()
    assert points.tolist() == pytest.approx(np.array([[1.0, 55.0], [5.0, 15.0]]))
    assert panel.get_xscale() == "log"


def test_the_report_is_one_file_and_shows_the_stress_test(stressed):
    page = html_report(report_parts(stressed), "a < b")
    assert "a &lt; b" in page
    assert page.count("data:image/png;base64,") == 4
    assert "Drift stress test" in page
    references = References()
    references.feed(page)
    assert references.found
    assert all(place.startswith("data:image/png;base64,") for place in references.found)
    text = re.sub(r'src="[^"]*"', "", page)
    for outside in ("://", "<script", "<link", "@import", "url("):
        assert outside not in text


def test_the_report_names_missing_seeds(stressed):
    page = html_report(report_parts(stressed[:3]), "t")
    assert "Mind: NSVQ, K 16, setting encoder_lr_factor=5.0 lacks seed 1" in page


def test_parts_of_the_report_are_files(stressed, tmp_path):
    files = save_report_parts(report_parts(stressed), tmp_path / "parts")
    names = {path.name for path in files}
    assert names >= {"seeds.md", "seeds.csv", "runs.csv", "curves.png", "stress.png"}
    assert all(path.is_file() for path in files)
    assert (tmp_path / "parts" / "curves.png").read_bytes().startswith(b"\x89PNG")
    head, _, *rows = (tmp_path / "parts" / "seeds.md").read_text().splitlines()
    assert head.startswith("| method | K | setting | utilization / % | quantization error |")
    assert len(rows) == len(pd.read_csv(tmp_path / "parts" / "seeds.csv")) == 2


def test_a_legend_of_many_lines_leaves_the_panels_their_height(synthetic_run):
    runs = [Run(synthetic_run(f"r{size}", codebook_size=size)) for size in range(10, 40)]
    few, many = (curves_figure(curves_table(some), ["utilization"]) for some in (runs[:2], runs))
    heights = []
    for figure in (few, many):
        figure.canvas.draw()
        heights.append(figure.axes[0].get_window_extent().height)
    assert heights[1] > 0.8 * heights[0]


def test_codebook_sizes_are_lines_of_their_own_in_the_stress_test(synthetic_run):
    runs = [
        Run(
            synthetic_run(
                f"k{size}f{factor}",
                codebook_size=size,
                usage={"codebook_utilization": [share]},
                psnr=[20.0],
                options={"encoder_lr_factor": factor},
            )
        )
        for size, share in ((16, 1.0), (512, 0.2))
        for factor in (0.1, 1.0)
    ]
    table = comparison_table(runs).assign(encoder_lr_factor=[0.1, 1.0] * 2)
    panel = stress_figure(table).axes[0]
    heights = {container.get_label(): container[0].get_ydata().tolist() for container in panel.containers}
    assert heights == {"NSVQ, K = 16": [100, 100], "NSVQ, K = 512": [20, 20]}


@pytest.mark.parametrize("label", [r"a$\foo$", "_a", "a_b^c"])
def test_labels_are_drawn_as_they_are(synthetic_run, label):
    figure = rank_frequency_figure([Run(synthetic_run("a"))], [label])
    np.savez(synthetic_run("b") / "curves" / "counts_val_00000010.npz", counts=np.array([1, 2]))
    figure = rank_frequency_figure([Run(synthetic_run("c").parent / "b")], [label])
    figure.canvas.draw()
    (text,) = figure.legends[0].get_texts()
    assert text.get_text().replace(r"\$", "$").lstrip("\N{WORD JOINER}") == f"{label}: 2 of 2"


def test_text_and_tables_of_the_report_are_escaped(synthetic_run):
    # Other seeds, so that a warning names the settings.
    runs = [Run(synthetic_run(f"<b>{n}|x", seed=n, options={"root": f"<i>{n}|</i>"})) for n in range(2)]
    page = html_report(report_parts(runs), "t")
    assert "<b>" not in page
    assert "<i>" not in page
    assert page.count("root=&lt;i&gt;0|&lt;/i&gt;") >= 3
    assert "Mind: NSVQ, K 16, setting root=&lt;i&gt;0|&lt;/i&gt; lacks seed 1" in page


def test_the_report_of_the_program_compares_with_the_reference(synthetic_run, capsys, tmp_path):
    quantizers = {"a": "nsvq.quantizers.EMAVQ", "b": "nsvq.quantizers.VanillaVQ"}
    folder = next(synthetic_run(name, quantizer=path).parent for name, path in quantizers.items())
    synthetic_run("c", quantizer="nsvq.quantizers.VanillaVQ", seed=0, options={"root": "a|b"})
    page, parts = tmp_path / "out" / "page.html", tmp_path / "parts"
    main(["report", str(folder), str(folder / "a"), "-o", str(page), "--parts", str(parts)])
    assert "page: 2 runs" in page.read_text()
    assert f"wrote {parts / 'seeds.md'}" in capsys.readouterr().out
    assert "\\|" in (parts / "runs.md").read_text()
    assert "nan" not in (parts / "runs.md").read_text()
    for name, reference in (("VanillaVQ", []), ("EMAVQ", ["--reference=EMAVQ"])):
        synthetic_run(f"d{name}", quantizer="nsvq.quantizers.EMAVQ", options={"root": "a|b"})
        main(["report", str(folder), "-o", str(page), *reference])
        assert f"Difference to {name} on equal seeds" in page.read_text()
        (folder / f"d{name}" / "config.yaml").unlink()
    with pytest.raises(SystemExit):
        main(["report", str(folder), "-o", str(page), "--reference=NSVQ"])
    assert "no run of NSVQ to compare with; methods: EMAVQ, VanillaVQ" in capsys.readouterr().err


DAMAGED = {
    "environment.json": ["", "[1]", "{"],
    "metrics.csv": ['step,a\n1,"2\n'],
    "curves/counts_val_00000010.npz": ["", "PK", "x"],
    "curves/snapshot_00000010.npz": ["", "PK\x03\x04 cut", "x"],
}


@pytest.mark.parametrize(("name", "content"), [(name, content) for name in DAMAGED for content in DAMAGED[name]])
def test_a_damaged_file_is_named(synthetic_run, tmp_path, capsys, name, content):
    path = synthetic_run("a") / name
    path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        main(["report", str(synthetic_run("b").parent), "-o", str(tmp_path / "page.html")])
    assert stop.value.code == 2
    assert f"{path} is damaged (" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["metrics.csv", "curves/codebook.csv", "curves/drift.csv"])
@pytest.mark.parametrize(
    "content", ["", "\n", "step,split,codebook_utilization,quantization_error,churn,drift_relative\n"]
)
def test_a_run_that_has_just_begun_keeps_no_other_from_the_report(synthetic_run, tmp_path, name, content):
    drift = {"drift_relative": [0.3, 0.2], "churn": [0.5, 0.4]}
    synthetic_run("a", drift=drift, psnr=[20.0, 21.0])
    (synthetic_run("b", seed=1, drift=drift) / name).write_text(content)
    main(["report", str(synthetic_run("c", seed=2, drift=drift).parent), "-o", str(tmp_path / "page.html")])
    assert "Mind: NSVQ, K 16 lacks seed" in (tmp_path / "page.html").read_text()


def test_a_configuration_that_was_cut_is_no_run(synthetic_run):
    folder = synthetic_run("a")
    text = (synthetic_run("b") / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("codebook_size: 16", "size: 16"))
    assert [run.name for run in find_runs([folder.parent])] == ["b"]


def test_an_encoder_that_never_moves_is_drawn(synthetic_run, recwarn):
    run = Run(synthetic_run("a", drift={"drift_relative": [0.0, 0.0], "churn": [0.5, 0.4]}))
    curves_figure(curves_table([run])).canvas.draw()
    assert [str(warning.message) for warning in recwarn if "positive" in str(warning.message)] == []
