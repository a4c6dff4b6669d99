"""Inputs and outputs of the reference implementation (PyTorch, CPU, float32 unless `_f64`)."""

import pathlib

import numpy as np


def load(name: str) -> dict[str, np.ndarray]:
    """All arrays of `tests/golden/<name>.npz`, in PyTorch's layouts as stored."""
    with np.load(pathlib.Path(__file__).parent / f'{name}.npz') as arrays:
        return {key: arrays[key] for key in arrays.files}
