import pandas as pd
import pytest

from nsvq.bench.growth import fit_exponent, growth_table
from nsvq.bench.quantizers import COLUMNS as QUANTIZER_COLUMNS
from nsvq.bench.report import markdown_table
from nsvq.bench.targets import targets_table
from nsvq.bench.timing import repeat, spread, take_turns
from nsvq.bench.training import COLUMNS as TRAINING_COLUMNS

NAN = float("nan")


def quantizers(*rows):
    table = pd.DataFrame(rows, columns=["contender", "N", "K", "D", "seconds", "peak_MB"])
    return table.assign(device="cpu").reindex(columns=QUANTIZER_COLUMNS)


def training(*rows):
    return (
        pd.DataFrame(rows, columns=["model", "quantizer", "ratio"])
        .assign(device="cpu")
        .reindex(columns=TRAINING_COLUMNS)
    )


def test_a_power_law_gives_back_its_exponent():
    sizes = [1_024, 8_192, 65_536]
    assert fit_exponent(sizes, [3e-5 * size**1.25 for size in sizes]) == pytest.approx(1.25)


def test_growth_is_fitted_along_one_size_while_the_others_are_held():
    rows = [("A", n, k, 64, 1e-6 * n**0.5 * k**0.9, 1.0) for n in (4_096, 16_384) for k in (1_024, 8_192, 65_536)]
    rows.append(("A", 4_096, 262_144, 64, NAN, 1.0))
    table = growth_table(quantizers(*rows))
    over_k = table[(table["grows_with"] == "K") & (table["held"] == "N=4096 D=64")].iloc[0]
    assert over_k["exponent"] == pytest.approx(0.9)
    assert (over_k["points"], over_k["largest"]) == (3, 65_536)
    assert table.loc[table["grows_with"] == "N", "exponent"].tolist() == pytest.approx([0.5] * 3)
    assert "D" not in set(table["grows_with"])


def test_goals_are_compared_and_what_did_not_run_is_said():
    table = targets_table(
        quantizers(
            ("VanillaVQ", 4_096, 8_192, 64, 1.0, 10.0),
            ("NSVQ gaussian", 4_096, 8_192, 64, 2.0, 20.0),
            ("autograd NSVQ", 4_096, 8_192, 64, 6.0, 500.0),
            ("NSVQ gaussian", 16_384, 65_536, 64, NAN, 1_500.0),
            ("autograd NSVQ", 4_096, 65_536, 64, NAN, NAN),
        ),
        training(("VQVAE", "NSVQ", 1.05), ("VQVAE", "TransVQ", 1.3), ("VQGAN", "NSVQ", 9.0)),
    ).set_index("target")
    reached = table["reached"].to_dict()
    assert reached["time of NSVQ over VanillaVQ at K=8,192"] == "yes"
    assert reached["time of NSVQ over VanillaVQ at K=65,536"] == "not measured"
    assert reached["time of autograd NSVQ over NSVQ at K=8,192"] == "no"
    assert reached["memory of NSVQ over autograd NSVQ at K=8,192"] == "yes"
    assert table.loc["memory of NSVQ at N=16,384 K=65,536 / GB", "measured"] == 1.5
    assert reached["memory of NSVQ at N=16,384 K=65,536 / GB"] == "no"
    assert reached["time of a VQVAE step, NSVQ over VanillaVQ"] == "yes"
    assert reached["time of a VQVAE step, TransVQ over VanillaVQ"] == "no"


def test_missing_numbers_become_dashes():
    text = markdown_table(pd.DataFrame({"contender": ["A"], "K": [65_536], "seconds": [NAN], "ratio": [2.0]}))
    assert text.splitlines()[-1] == "| A | 65,536 | – | 2.00 |"


def test_a_fast_measure_is_repeated_and_gives_its_median():
    values = iter([0.1, 0.3, 0.2, 0.9])
    assert repeat(lambda: next(values), 0.6) == pytest.approx(0.2)
    assert repeat(lambda: next(values), 0.0) == 0.9


def test_turns_alternate_for_three_rounds_though_the_time_is_over():
    order = []

    def turn(name):
        order.append(name)
        return float(len(order))

    results = take_turns({name: lambda name=name: turn(name) for name in "ab"}, seconds=0)
    assert order == list("ababab")
    assert results == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert spread(results["a"]) == (3, 2, 4, 3)
