"""Makes tests/golden/torch_files: tiny files of `torch.save` in both formats, and what they hold. Needs torch.

python tests/golden/make_torch_files.py
"""

import argparse
import collections
import pathlib

import numpy as np
import torch

out = pathlib.Path(__file__).parent / 'torch_files'
out.mkdir(exist_ok=True)
generator = torch.Generator().manual_seed(0)


def save(content, name):
    torch.save(content, out / f'{name}_new.pth')
    torch.save(content, out / f'{name}_legacy.pth', _use_new_zipfile_serialization=False)


# --- dtypes, strides, shared storages, and what else a checkpoint has -----------------------------------------------

base = torch.randn(4, 6, generator=generator)
state = collections.OrderedDict(
    weight=base,
    transposed=base.t(),  # strides that are not those of a fresh array
    part=base[1:3, ::2],
    shared=base.view(-1)[:5],
    expanded=base[:1].expand(3, 6),
    half=torch.randn(3, generator=generator).half(),
    bfloat=torch.randn(3, generator=generator).bfloat16(),
    double=torch.randn(2, generator=generator, dtype=torch.float64),
    count=torch.tensor(7),
    small=torch.tensor([-3, 5], dtype=torch.int8),
    mask=torch.tensor([True, False, True]),
    nothing=torch.zeros(0, 4),
)
save(
    {
        'epoch': 3,
        'arch': 'tiny',
        'state_dict': state,
        'optimizer': {'lr': 0.1, 'state': [1, 2]},
        'parameter': torch.nn.Parameter(torch.full((2, 3), 0.5)),
        'best_accs': [0.0, np.float64(0.25)],
        'args': argparse.Namespace(lr=0.03, dtype=torch.float32, size=torch.Size((2, 3)), device=torch.device('cpu')),
    },
    'tensors',
)
expected = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
np.savez(out / 'tensors.npz', **{name: value.numpy() for name, value in expected.items()})

# --- a checkpoint of the reference's form: two encoders, a queue, SGD with momentum ---------------------------------


class Encoder(torch.nn.Module):
    def __init__(self, head):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 4, 3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(4)
        self.fc = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), head)

    def forward(self, images):
        x = self.fc[:2](self.bn1(self.conv1(images)).mean((2, 3)))
        return self.fc[2].fc2(self.fc[2].fc1(x))


class Reference(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder_q = Encoder(torch.nn.ModuleDict({'fc1': torch.nn.Linear(4, 4), 'fc2': torch.nn.Linear(4, 2)}))
        self.encoder_k = Encoder(torch.nn.Linear(4, 4))
        self.register_buffer('queue', torch.randn(2, 4, 5, generator=generator))
        self.register_buffer('queue_ptr', torch.tensor([3, 1]))


torch.manual_seed(0)
model = torch.nn.Sequential(collections.OrderedDict(module=Reference()))  # names as DistributedDataParallel has them
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
for _ in range(2):
    optimizer.zero_grad()
    model.module.encoder_q(torch.randn(5, 3, 6, 6, generator=generator)).square().sum().backward()
    optimizer.step()
content = {
    'epoch': 2,
    'arch': 'resnet12forcifar',
    'state_dict': model.state_dict(),
    'optimizer': optimizer.state_dict(),
    'best_accs': [0.0, np.float64(0.25)],
}
save(content, 'reference')
momentum = {
    f'momentum.{name}': optimizer.state[value]['momentum_buffer']
    for name, value in model.named_parameters()
    if value in optimizer.state
}
np.savez(out / 'reference.npz', **{name: value.numpy() for name, value in {**model.state_dict(), **momentum}.items()})
