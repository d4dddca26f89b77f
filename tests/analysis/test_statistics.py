"""Statistics over seeds and correlations, against scipy and closed forms."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nsvq.analysis import (
    MissingSeedsWarning,
    Run,
    correlation_table,
    curves_table,
    format_differences,
    format_means,
    paired_differences,
    partial_spearman,
    run_settings,
    run_variants,
    seed_means,
)
from nsvq.analysis.configuration import Configuration

TABLE = pd.DataFrame(
    [
        ("a", 16, 0, 1.0),
        ("a", 16, 1, 2.0),
        ("a", 16, 2, 4.5),
        ("b", 16, 0, 3.0),
        ("b", 16, 2, 5.0),
        ("a", 32, 0, 7.0),
        ("b", 32, 0, 6.0),
    ],
    columns=["method", "K", "seed", "psnr"],
)


def test_a_mean_has_students_interval_and_missing_seeds_are_named():
    with pytest.warns(MissingSeedsWarning) as caught:
        means = seed_means(TABLE, ["psnr"]).set_index(["method", "K"])
    assert "b, K 16 lacks seed 1; a, K 32 lacks seed 1, 2; b, K 32 lacks seed 1, 2" in str(caught[0].message)
    row, numbers = means.loc[("a", 16)], np.array([1.0, 2.0, 4.5])
    low, high = stats.t.interval(0.95, 2, loc=numbers.mean(), scale=stats.sem(numbers))
    assert row["mean"] == pytest.approx(2.5)
    assert (row["low"], row["high"]) == pytest.approx((low, high))
    assert (row["spread"], row["seeds"], row["missing"]) == (3.5, 3, "")
    assert means.loc[("b", 16), "missing"] == "1"
    assert math.isnan(means.loc[("a", 32), "low"])


@pytest.mark.filterwarnings("ignore::nsvq.analysis.MissingSeedsWarning")
def test_means_and_differences_are_laid_out_with_half_of_their_interval():
    table = TABLE.assign(utilization=[0.5, 0.75, 1.0, 0.9, 1.0, 0.25, 1.0], same="")
    means = format_means(seed_means(table, ["utilization", "psnr"], ["method", "K", "same"]), ["method", "K", "same"])
    assert list(means.columns) == ["method", "K", "utilization / %", "PSNR / dB", "seeds"]
    half = 100 * stats.t.ppf(0.975, 2) * stats.sem([0.5, 0.75, 1.0])
    assert means.iloc[0].tolist() == ["a", 16, f"75.0 ± {half:.1f}", "2.50 ± 4.48", "3"]
    assert means.iloc[2].tolist() == ["a", 32, "25.0", "7.00", "1"]
    differences = format_differences(paired_differences(table, ["psnr"], "a"), ["method", "K"])
    assert differences.to_numpy().tolist() == [["b", 16, "+1.25 ± 9.53 (2/2)"], ["b", 32, "-1.00 (0/1)"]]


def test_equal_seeds_everywhere_are_no_reason_to_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seed_means(TABLE[TABLE["seed"] == 0], ["psnr"])


def test_methods_are_compared_on_the_seeds_that_both_have():
    differences = paired_differences(TABLE, ["psnr"], "a").set_index("K")
    low, high = stats.t.interval(0.95, 1, loc=1.25, scale=stats.sem([2.0, 0.5]))
    assert differences.loc[16, ["difference", "positive", "seeds"]].tolist() == [1.25, 2, 2]
    assert tuple(differences.loc[16, ["low", "high"]]) == pytest.approx((low, high))
    assert differences.loc[32, ["difference", "positive", "seeds"]].tolist() == [-1.0, 0, 1]
    with pytest.raises(ValueError, match="no run of c to compare with; methods: a, b"):
        paired_differences(TABLE, ["psnr"], "c")


def test_several_runs_of_one_seed_are_refused():
    twice = pd.concat([TABLE, TABLE.iloc[:1]])
    with pytest.raises(ValueError, match="a, K 16 has several runs of seed 0"):
        seed_means(twice, ["psnr"])
    with pytest.raises(ValueError, match="K 16, a has several runs of seed 0"):
        paired_differences(twice, ["psnr"], "b")


def test_the_partial_correlation_is_that_of_the_residuals():
    generator = np.random.default_rng(0)
    control = generator.normal(size=50)
    x, y = control + generator.normal(size=50), np.exp(control) + generator.normal(size=50)
    ranks = [stats.rankdata(numbers) for numbers in (x, y, control)]
    residuals = [part - np.polyval(np.polyfit(ranks[2], part, 1), ranks[2]) for part in ranks[:2]]
    assert partial_spearman(x, y, control) == pytest.approx(np.corrcoef(*residuals)[0, 1])
    assert math.isnan(partial_spearman(control**3, y, control))


def test_a_common_trend_is_no_partial_correlation(synthetic_run):
    generator = np.random.default_rng(1)
    steps = np.arange(200)
    trend = {"drift_relative": 1000 - 3 * steps + generator.normal(0, 60, 200), "churn": generator.normal(size=200)}
    usage = {"codebook_utilization": steps / 200, "dead_code_fraction": 1 - steps / 250 + generator.normal(0, 0.1, 200)}
    usage["quantization_error"] = trend["churn"]
    table = correlation_table(curves_table([Run(synthetic_run("a", usage=usage, drift=trend))]))
    table = table.set_index(["measure", "target"])
    together = table.loc[("drift_relative", "dead_code_fraction")]
    assert together["within"] > 0.8
    assert abs(together["partial"]) < 0.2
    assert table.loc[("churn", "quantization_error"), "partial"] == pytest.approx(1)
    assert together["runs"] == 1
    assert math.isnan(together["across"])


def test_across_runs_the_last_values_count(synthetic_run):
    runs = [
        Run(synthetic_run(f"r{n}", seed=n, usage={"dead_code_fraction": [0.9, d]}, drift={"churn": [0.5, c]}))
        for n, (d, c) in enumerate([(0.1, 1.0), (0.2, 3.0), (0.3, 2.0), (0.4, 4.0), (0.5, 5.0)])
    ]
    row = correlation_table(curves_table(runs), ["churn"], ["dead_code_fraction"]).iloc[0]
    # Of the 120 orders of five the same one and four with two neighbors exchanged are as close, and as many reversed.
    assert (row["across"], row["across_p"]) == pytest.approx((0.9, 10 / 120))


def test_across_many_runs_the_p_value_is_that_of_the_approximation_for_many(synthetic_run):
    numbers = np.random.default_rng(1).normal(size=(2, 40))
    numbers[1] += 0.3 * numbers[0]
    rows = {"run": range(40), "step": 10, "churn": numbers[0], "dead_code_fraction": numbers[1]}
    row = correlation_table(pd.DataFrame(rows), ["churn"], ["dead_code_fraction"]).iloc[0]
    expected = stats.spearmanr(*numbers)
    assert row["across"] == pytest.approx(expected.statistic)
    assert row["across_p"] == pytest.approx(expected.pvalue, abs=0.02)
    assert 0.001 < row["across_p"] < 0.9


def test_curves_join_what_was_measured_at_a_step(synthetic_run):
    folder = synthetic_run("a", seed=3, drift={"churn": [0.1, 0.2, 0.3]}, psnr=[20.0, 21.0])
    table = curves_table([Run(folder)])
    assert table["step"].tolist() == [10, 20, 30]
    assert table["utilization"].tolist()[:2] == [0.25, 0.5]
    assert table["churn"].tolist() == [0.1, 0.2, 0.3]
    assert table["psnr"].tolist()[:2] == [20.0, 21.0]
    assert math.isnan(table["psnr"].iloc[2])
    assert set(table["method"]) == {"NSVQ"}
    assert set(table["seed"]) == {3}


def test_names_tell_variants_and_settings(synthetic_run):
    runs = [
        Run(synthetic_run("a", kernel="gaussian", options={"encoder_lr_factor": 1.0})),
        Run(synthetic_run("b", kernel="softmax", options={"encoder_lr_factor": 5.0})),
        Run(synthetic_run("c", quantizer="nsvq.quantizers.EMAVQ", options={"encoder_lr_factor": 5.0})),
    ]
    assert run_variants(runs) == ["NSVQ (kernel=gaussian)", "NSVQ (kernel=softmax)", "EMAVQ"]
    assert run_settings(runs) == ["encoder_lr_factor=1.0", "encoder_lr_factor=5.0", "encoder_lr_factor=5.0"]
    assert run_variants(runs[1:]) == ["NSVQ", "EMAVQ"]
    assert run_settings(runs[1:]) == ["", ""]


def test_a_seed_that_measured_nothing_is_missing_and_a_run_that_ended_early_is_named():
    table = pd.DataFrame(
        {
            "method": ["a"] * 3 + ["b"] * 3,
            "K": 16,
            "seed": [0, 1, None] * 2,
            "step": [200, 40, 200] * 2,
            "psnr": [20.0, 21.0, np.nan, 20.0, 21.0, 22.0],
            "ssim": [0.5, 0.5, 0.5, np.nan, 0.5, 0.5],
        }
    )
    with pytest.warns(MissingSeedsWarning) as caught:
        means = seed_means(table, ["psnr", "ssim"])
    text = str(caught[0].message)
    assert "a, K 16 lacks seed none of psnr; a, K 16 ended early: seed 1 at step 40 of 200; " in text
    assert "b, K 16 lacks seed 0 of ssim" in text
    assert means["missing"].tolist() == ["none", "", "", "0"]
    assert format_means(means, ["method", "K"])["seeds"].tolist() == ["2–3", "2–3"]


def test_nothing_to_compare_has_no_differences():
    nothing = paired_differences(TABLE[:1], ["psnr"], "a")
    assert len(format_differences(nothing, ["method", "K"])) == 0


def test_settings_are_named_by_as_much_as_tells_them_apart(synthetic_run):
    encoder, decoder, both = (
        Run(synthetic_run(name, options={"encoder": {"lr": a}, "decoder": {"lr": b}}))
        for name, a, b in (("a", 1, 1), ("b", 2, 1), ("c", 1, 2))
    )
    assert run_settings([encoder, decoder]) == ["lr=1", "lr=2"]
    assert run_settings([encoder, decoder, both]) == [
        "decoder.lr=1, encoder.lr=1",
        "decoder.lr=1, encoder.lr=2",
        "decoder.lr=2, encoder.lr=1",
    ]


def test_options_of_a_callback_of_the_method_are_told_where_they_differ():
    def configured(every):
        replacement = {"class_path": "nsvq.callbacks.DeadCodeReplacement", "init_args": {"every_n_steps": every}}
        quantizer = {"class_path": "VanillaVQ", "init_args": {"codebook_size": 4}}
        return Configuration(
            {"trainer": {"callbacks": [replacement]}, "model": {"init_args": {"quantizer": quantizer}}}
        )

    runs = [configured(10), configured(50), Configuration({**configured(10).config, "trainer": {}})]
    method = "VanillaVQ + replacement"
    assert run_variants(runs) == [f"{method} (every_n_steps=10)", f"{method} (every_n_steps=50)", "VanillaVQ"]
    assert run_variants(runs[1:]) == [method, "VanillaVQ"]
    assert run_settings(runs) == ["", "", ""]
