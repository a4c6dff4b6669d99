"""The blocks of a backbone, from first to last, by the names of its variables.

Freezing and layer-wise learning rates use this table. An entry is what stands before the first block (the stem), a
block, or what follows the last one:

    resnet12             stage1 .. stage4: 4 entries, there is no stem
    resnet18 .. 101      conv1 and bn1; stage1_block0, stage1_block1, ...: 9, 17, 17 and 34 entries
    efficientnet_lite0   stem_conv and stem_bn; block0 .. block15; head_conv and head_bn: 18 entries
    vit, dinov2          patch_embedding, class_token, positions and registers; block0, ...; norm: depth + 2 entries
    convnext             stem_conv and stem_norm; stage0_block0, ...; norm: 2 more than there are blocks; the layers
                         that reduce the map before a stage belong to the first block of the stage
"""

import itertools
from collections.abc import Collection

_STEM = (
    *('conv1', 'bn1', 'stem_conv', 'stem_bn', 'stem_norm'),
    *('patch_embedding', 'class_token', 'positions', 'registers'),
)
_LAST = ('norm', 'head_conv', 'head_bn')


def blocks(names: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """The names at the top of a backbone's parameters, grouped into blocks, first to last.

    Raises:
        ValueError: a name is of no backbone in the table.
    """
    ordered = sorted(names, key=lambda name: (_place(name), name))
    return tuple(tuple(group) for _, group in itertools.groupby(ordered, _place))


def _place(name: str) -> tuple[int, int, int]:
    """Where a name stands: before, in or after the blocks; stage; number."""
    if name in _STEM:
        return 0, 0, 0
    if name in _LAST:
        return 2, 0, 0
    first, _, rest = name.partition('_')
    kind = first.rstrip('0123456789')
    number = int(first.removeprefix(kind) or -1)
    if number >= 0 and kind == 'block' and not rest:
        return 1, 0, number
    if number >= 0 and kind == 'reduce' and rest in ('norm', 'conv'):
        return 1, number, 0
    if number >= 0 and kind == 'stage':
        within = rest.removeprefix('block')
        if not rest or (within != rest and within.isdecimal()):
            return 1, number, int(within or 0)
    raise ValueError(f'{name!r} is in no block of a backbone of models/registry.py.')
