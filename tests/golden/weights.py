"""The rule that filled the reference's networks: every value from an integer hash, so that no framework rounds it."""

import zlib

import numpy as np


def uniform(name: str, n: int) -> np.ndarray:
    """n float64 in [0, 1): a 32-bit integer hash of the flat index and the CRC of the name."""
    with np.errstate(over='ignore'):
        x = np.arange(n, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(zlib.crc32(name.encode()))
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x7FEB352D)
        x ^= x >> np.uint32(15)
        x *= np.uint32(0x846CA68B)
        x ^= x >> np.uint32(16)
    return x.astype(np.float64) / 2.0**32


def values(name: str, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    """float32 in [low, high), in C order of PyTorch's layout."""
    count = int(np.prod(shape, dtype=np.int64))
    return (low + (high - low) * uniform(name, count)).astype(np.float32).reshape(shape)


def parameter(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of the state_dict entry `name` of PyTorch shape `shape`."""
    last = name.rsplit('.', 1)[-1]
    if last == 'running_mean':
        return values(name, shape, -0.1, 0.1)
    if last == 'running_var':
        return values(name, shape, 0.8, 1.2)
    if len(shape) in (2, 4):  # linear: ±1/√fan_in; convolution: of standard deviation √(2/fan_in)
        bound = float(np.sqrt((6.0 if len(shape) == 4 else 1.0) / np.prod(shape[1:])))
        return values(name, shape, -bound, bound)
    if last == 'weight':  # of batch norm; small at the end of a residual branch
        return values(name, shape, 0.1, 0.3) if '.bn3.' in name else values(name, shape, 0.5, 1.0)
    return values(name, shape, -0.1, 0.1)


def images(name: str, n: int, size: int) -> np.ndarray:
    """float32 [n, 3, size, size] with structure on three scales; size is a multiple of 4."""
    coarse = (-1.5 + 3.0 * uniform(f'{name}.coarse', n * 3 * 16)).reshape(n, 3, 4, 4)
    coarse = coarse.repeat(size // 4, axis=2).repeat(size // 4, axis=3)
    fine = (-0.5 + 1.0 * uniform(f'{name}.fine', n * 3 * size * size)).reshape(n, 3, size, size)
    offset = (-1.0 + 2.0 * uniform(f'{name}.offset', n * 3)).reshape(n, 3, 1, 1)
    return (coarse + fine + offset).astype(np.float32)
