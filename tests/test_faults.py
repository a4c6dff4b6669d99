"""The quick version of `python -m faults.run`."""

import pytest

from faults import run


@pytest.mark.slow
def test_kills_and_signals_do_not_change_the_end_of_a_run(tmp_path):
    assert run.run(tmp_path, kills=3, terms=2) == []
