import os

import pytest
from hypothesis import HealthCheck, configuration, settings


def examples(number):
    """Hypothesis draws this many examples, the same in every run."""
    return settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


@pytest.fixture(autouse=True, scope="session")
def hypothesis_home(tmp_path_factory):
    """What Hypothesis keeps between runs lies outside the working tree."""
    configuration.set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("NSVQ_RUN_FOLDER", "LOCAL_RANK"):
        os.environ.pop(name, None)
    return tmp_path
