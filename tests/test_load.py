"""The load test in its short form; `make load` runs the long one."""

from __future__ import annotations

import pytest

from tests import load


@pytest.mark.slow
def test_under_load_each_gets_its_own_and_nothing_is_left():
    report, wrong = load.run(requests=3_000, clients=32, workers=2, seed=7)
    assert not wrong, report
