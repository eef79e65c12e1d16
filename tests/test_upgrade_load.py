"""Reloads, upgrades and kills under load in their short form; `make upgrades` runs the long one."""

from __future__ import annotations

import pytest

from tests import upgrade_load


@pytest.mark.slow
def test_no_request_is_lost_but_those_of_killed_workers():
    report, lost = upgrade_load.run(requests=1_500)
    assert not lost, report
