"""Fixtures of the tests of losses."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked():
    """Without the checks of annotations, for input that the functions refuse themselves or take from NumPy."""
    jaxtyping.config.update('jaxtyping_disable', True)
    yield
    jaxtyping.config.update('jaxtyping_disable', False)
