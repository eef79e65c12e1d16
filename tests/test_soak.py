"""The hour of trouble in its short form; `make soak` runs the long one."""

from __future__ import annotations

import subprocess

import pytest

from tests import soak
from tests.support import missing, need


@pytest.mark.slow
def test_what_goes_wrong_is_explained_and_leaves_nothing(tmp_path):
    need("php-cgi", "prlimit")
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], capture_output=True, check=False).returncode:
        missing("the right to mount")
    subprocess.run(["umount", tmp_path], check=True)
    report, wrong = soak.run(seconds=1)
    assert not wrong, report
