"""Which network a file holds: its family, and what stands before its names.

Training scripts wrap a network: what torchvision calls 'layer1.0.conv1.weight', MoCo calls
'module.encoder_q.layer1.0.conv1.weight'. A family is known by a name that its networks have; the prefix is what stands
before that name.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from ancor_jax.pretrained.naming import WeightsError

# Family → patterns of a name that its networks have.
FAMILIES = {
    'resnet': (r'layer1\.0\.conv\d\.weight', r'4\.0\.conv\d\.weight'),  # the second where children have numbers
    'efficientnet_lite': (r'_blocks\.0\._depthwise_conv\.weight', r'blocks\.0\.0\.conv_dw\.weight'),
    'vit': (r'patch_embed\.proj\.weight',),
    'convnext': (
        r'stages\.0\.blocks\.0\.conv_dw\.weight',
        r'stages\.0\.0\.dwconv\.weight',
        r'features\.1\.0\.block\.0\.weight',
    ),
}
# NumPy archives have slashes in their names; their importers know what stands before them.
_ARCHIVE = re.compile(r'(.*/)?embedding/kernel')

# Prefix → who writes it, for explanations. Any other prefix is as good.
WRITERS = {
    'module.encoder_q.': 'MoCo v1, MoCo v2 and the reference implementation of ANCOR',
    'module.base_encoder.': 'MoCo v3',
    'module.encoder.': 'SimSiam, SupCon',
    'module.backbone.': 'Barlow Twins, VICReg, DINO',
    'module.': 'DistributedDataParallel, SwAV',
    'backbone.': 'solo-learn, lightly, DINO',
    'encoder.': 'older solo-learn',
    'model.': 'PyTorch Lightning',
    '_orig_mod.': 'torch.compile',
    'online_network.': 'BYOL',
}
# Of the two networks of a method the one not to take, by a part of its prefix.
SECOND = {
    *('encoder_k', 'momentum_encoder', 'momentum_backbone', 'backbone_momentum', 'encoder_momentum'),
    *('target_network', 'target_encoder', 'target_backbone'),
    *('student', 'student_backbone'),  # its teacher is the average to use
}


class Detection(NamedTuple):
    """What a file holds.

    Attributes:
        family: a key of `FAMILIES`, or the name of a network of it.
        prefix: of the network's names.
        reason: one sentence that says why.
    """

    family: str
    prefix: str
    reason: str


def detect(names: Iterable[str], where: str = 'the file') -> Detection:
    """The network of a file.

    Args:
        names: of the tensors.
        where: names the file in messages.

    Raises:
        WeightsError: no network of a known family, or several.
    """
    names = list(names)
    if any(_ARCHIVE.fullmatch(name) for name in names):
        return Detection('vit', '', f'{where} has an embedding/kernel, as Flax writes vision transformers.')
    found: dict[tuple[str, str], str] = {}  # (family, prefix) → the name that shows it
    for family, patterns in FAMILIES.items():
        pattern = re.compile(rf'(|.*\.)(?:{"|".join(patterns)})')
        for name in names:
            if match := pattern.fullmatch(name):
                found.setdefault((family, match[1]), name)
    first = {key: name for key, name in found.items() if not SECOND.intersection(key[1].split('.'))}
    taken = first or found
    if not taken:
        raise WeightsError(
            f'{where} hold no network of a known family ({", ".join(FAMILIES)}); its names are {_some(names)}.'
        )
    if len(taken) > 1:
        networks = ', '.join(f'a {family} as {prefix}*' for family, prefix in sorted(taken))
        raise WeightsError(f'{where} hold several networks, {networks}; save the one to use in a file of its own.')
    (family, prefix), name = next(iter(taken.items()))
    reason = f'{where} have {name}'
    if prefix in WRITERS:
        reason += f'; {prefix}* is written by {WRITERS[prefix]}'
    others = sorted(prefix for _, prefix in found.keys() - taken.keys())
    if others:
        reason += f'; {", ".join(f"{other}*" for other in others)} is the second network of the method'
    return Detection(family, prefix, f'{reason}.')


def unwrap(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The tensors whose names have the prefix, by what follows it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _some(names: list[str]) -> str:
    return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
