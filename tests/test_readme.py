"""Tables of the README are those that the project's commands wrote."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLES = re.findall(r"<!-- (\w+) -->\n(.*?)<!-- end -->", README, re.DOTALL)


def test_there_are_tables():
    assert {name for name, _ in TABLES} == {"methods", "frozen_encoder", "released_encoder"}


@pytest.mark.parametrize(("name", "table"), TABLES, ids=[name for name, _ in TABLES])
def test_a_table_over_seeds_is_that_of_the_report(name, table):
    assert table == (ROOT / "experiments" / "results" / name / "seeds.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(((?!https?:|#)[^)]+)\)", README))))
def test_what_the_readme_links_to_is_there(path):
    assert (ROOT / path).exists()
