import pytest
import yaml

from nsvq.cli.yaml_limits import MAX_DEPTH, MAX_VALUES, limited, require_limited

from .conftest import EXPERIMENTS


@pytest.mark.parametrize("file", sorted(EXPERIMENTS.rglob("*.yaml")), ids=lambda file: file.stem)
def test_every_experiment_is_far_from_the_limits(file):
    text = file.read_text()
    assert limited(yaml.safe_load)("\n---\n".join([text])) == yaml.safe_load(text)


def test_values_are_counted_with_their_aliases_written_out():
    ten = "a: &a [0, 1, 2, 3, 4, 5, 6, 7, 8]\n"
    hundred = ten + "b: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\n"
    require_limited(hundred + f"c: [{', '.join(['*b'] * (MAX_VALUES // 101 - 3))}]")
    with pytest.raises(yaml.YAMLError, match=f"more than {MAX_VALUES} values"):
        require_limited(hundred + f"c: [{', '.join(['*b'] * (MAX_VALUES // 101 + 1))}]")
    with pytest.raises(yaml.YAMLError, match=f"more than {MAX_VALUES} values"):
        require_limited(f"[{'0, ' * MAX_VALUES}0]")


def test_depth_is_limited():
    require_limited("[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2))
    with pytest.raises(yaml.YAMLError, match=f"nested more than {MAX_DEPTH} deep"):
        require_limited("[" * MAX_DEPTH + "]" * MAX_DEPTH)


@pytest.mark.parametrize("text", ["&a [*a]", "a: &a {b: *a}", "&a [[0], {c: [*a]}]"])
def test_what_holds_itself_is_refused(text):
    with pytest.raises(yaml.YAMLError, match="stands inside what it is an alias of"):
        require_limited(text)


@pytest.mark.parametrize("text", ["", "3", "a: &x 1\nb: *x", "a: &a {b: 1}\nc: {<<: *a, d: 2}", "&a [1]\n---\n[2]"])
def test_plain_texts_pass(text):
    require_limited(text)
