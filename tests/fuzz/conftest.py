import tempfile

import pytest
from hypothesis import HealthCheck, configuration, settings

# Hypothesis writes while tests are collected, by default into the working tree.
HOME = tempfile.TemporaryDirectory(prefix="hypothesis")
configuration.set_hypothesis_home_dir(HOME.name)


def examples(number):
    """Hypothesis draws this many examples, the same in every run."""
    return settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NSVQ_RUN_FOLDER", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return tmp_path
