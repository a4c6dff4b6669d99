"""The configuration: its fields, and checks that reject invalid values before a run starts."""

from ancor_jax.config.build import check, fields, from_mapping, to_dict
from ancor_jax.config.constraints import ConfigError
from ancor_jax.config.fields import (
    BREEDS,
    BREEDS_SPLITS,
    JOINS,
    OPTIMIZERS,
    PIPELINES,
    SCHEDULES,
    Cluster,
    Config,
    Contrast,
    Data,
    Eval,
    Model,
    Optim,
    Train,
    Views,
)

__all__ = [
    'BREEDS',
    'BREEDS_SPLITS',
    'JOINS',
    'OPTIMIZERS',
    'PIPELINES',
    'SCHEDULES',
    'Cluster',
    'Config',
    'ConfigError',
    'Contrast',
    'Data',
    'Eval',
    'Model',
    'Optim',
    'Train',
    'Views',
    'check',
    'fields',
    'from_mapping',
    'to_dict',
]
