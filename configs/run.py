"""The configuration of a finished run, to change fields of it for another look at its network.

    python main.py --mode=eval --config=configs/run.py:runs/DIR --workdir=runs/DIR --config.eval.shots=5

Without changes, `--workdir=runs/DIR` alone does the same.
"""

import pathlib

from ml_collections import ConfigDict

from ancor_jax.config import experiments
from ancor_jax.runtime import workdir


def get_config(directory: str) -> ConfigDict:
    return experiments.as_config_dict(workdir.stored_config(pathlib.Path(directory)))
