"""Makes tests/golden/torch_files: tiny files of `torch.save` in both formats, and what they hold. Needs torch.

python tests/golden/make_torch_files.py
"""

import collections
import pathlib

import numpy as np
import torch

out = pathlib.Path(__file__).parent / 'torch_files'
out.mkdir(exist_ok=True)
generator = torch.Generator().manual_seed(0)
base = torch.randn(4, 6, generator=generator)
state = collections.OrderedDict(
    weight=base,
    transposed=base.t(),  # strides that are not those of a fresh array
    part=base[1:3, ::2],
    shared=base.view(-1)[:5],
    half=torch.randn(3, generator=generator).half(),
    bfloat=torch.randn(3, generator=generator).bfloat16(),
    count=torch.tensor(7),
)
checkpoint = {
    'epoch': 3,
    'arch': 'tiny',
    'state_dict': state,
    'optimizer': {'lr': 0.1, 'state': [1, 2]},
    'parameter': torch.nn.Parameter(torch.full((2, 3), 0.5)),
}
torch.save(checkpoint, out / 'new.pth')
torch.save(checkpoint, out / 'legacy.pth', _use_new_zipfile_serialization=False)
expected = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
np.savez(out / 'expected.npz', **{name: value.numpy() for name, value in expected.items()})
