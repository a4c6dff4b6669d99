"""The configuration of a stored run, to change fields of it for another evaluation of its network.

    python main.py --mode=eval --workdir=runs/DIR --config.eval.shots=5
    python main.py --mode=eval --config=configs/run.py:runs/DIR --config.eval.shots=5

Both are the same: without `--config`, the modes after training take this configuration.
"""

import pathlib

from ml_collections import ConfigDict

from ancor_jax.config import experiments
from ancor_jax.runtime import workdir


def get_config(directory: str) -> ConfigDict:
    return experiments.as_config_dict(workdir.stored_config(pathlib.Path(directory)))
