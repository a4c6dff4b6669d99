"""The training step in PyTorch, which `benchmarks.train_step` measures. It imports torch, so import it late.

The networks have the layers and the initial parameters of this project, so both implementations give the same losses.
There is one batch-norm group. The contrast processes the queue class by class, which is faster than the masked product
of the reference.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def conv(kernel: np.ndarray, stride: int = 1) -> nn.Conv2d:
    """From a flax kernel [h, w, in, out]."""
    side, _, inputs, outputs = kernel.shape
    layer = nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, bias=False)
    layer.weight.data.copy_(torch.from_numpy(np.array(kernel.transpose(3, 2, 0, 1))))
    return layer


def linear(params: Mapping[str, np.ndarray]) -> nn.Linear:
    """From a flax kernel [in, out] and a bias."""
    layer = nn.Linear(*params['kernel'].shape)
    layer.weight.data.copy_(torch.from_numpy(np.array(params['kernel'].T)))
    layer.bias.data.copy_(torch.from_numpy(np.array(params['bias'])))
    return layer


class DropBlock(nn.Module):
    """Drops blocks of activations, at its final rate."""

    def __init__(self, rate: float, block: int) -> None:
        super().__init__()
        self.rate, self.block = rate, block

    def forward(self, x: Any) -> Any:
        size, block = x.shape[-1], min(self.block, x.shape[-1])
        starts = size - block + 1
        gamma = self.rate / block**2 * (size / starts) ** 2
        margin = (block - 1,) * 4
        chosen = functional.pad((torch.rand(*x.shape[:2], starts, starts, device=x.device) < gamma).float(), margin)
        kept = 1 - functional.max_pool2d(chosen, block, 1)
        return x * (kept * (kept.numel() / kept.sum())).to(x.dtype)


class ResNet12Block(nn.Module):
    def __init__(self, params: Mapping[str, Any], drop: nn.Module) -> None:
        super().__init__()
        kernels = [params[f'conv{number}']['kernel'] for number in (1, 2, 3)]
        self.convs = nn.ModuleList(map(conv, kernels))
        self.norms = nn.ModuleList(nn.BatchNorm2d(kernel.shape[-1]) for kernel in kernels)
        self.shortcut = conv(params['shortcut_conv']['kernel'])
        self.shortcut_norm = nn.BatchNorm2d(kernels[0].shape[-1])
        self.drop = drop

    def forward(self, x: Any) -> Any:
        y = x
        for number, (layer, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(layer(y))
            y = functional.leaky_relu(y, 0.1) if number < 2 else y
        y = functional.leaky_relu(y + self.shortcut_norm(self.shortcut(x)), 0.1)
        return self.drop(functional.max_pool2d(y, 2))


class ResidualBlock(nn.Module):
    def __init__(self, params: Mapping[str, Any], stride: int) -> None:
        super().__init__()
        kernels = [params[f'conv{number}']['kernel'] for number in (1, 2, 3) if f'conv{number}' in params]
        strided = 1 if len(kernels) == 3 else 0  # a bottleneck strides in its 3×3 convolution
        self.convs = nn.ModuleList(
            conv(kernel, stride if number == strided else 1) for number, kernel in enumerate(kernels)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(kernel.shape[-1]) for kernel in kernels)
        self.shortcut: nn.Module = nn.Identity()
        if 'shortcut_conv' in params:
            shortcut = conv(params['shortcut_conv']['kernel'], stride)
            self.shortcut = nn.Sequential(shortcut, nn.BatchNorm2d(shortcut.out_channels))

    def forward(self, x: Any) -> Any:
        y = x
        for number, (layer, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(layer(y))
            y = functional.relu(y) if number + 1 < len(self.convs) else y
        return functional.relu(y + self.shortcut(x))


def backbone(params: Mapping[str, Any], drop_rate: float, drop_block_size: int) -> nn.Sequential:
    """ResNet-12 or a larger ResNet, depending on the parameters."""
    if 'conv1' not in params:
        blocks = [
            ResNet12Block(
                params[f'stage{stage}'],
                nn.Dropout(drop_rate) if stage < 3 else DropBlock(drop_rate, drop_block_size),
            )
            for stage in (1, 2, 3, 4)
        ]
        return nn.Sequential(*blocks)
    first = conv(params['conv1']['kernel'], 2)
    layers = [first, nn.BatchNorm2d(first.out_channels), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for stage in (1, 2, 3, 4):
        names = [name for name in params if name.startswith(f'stage{stage}_block')]
        for name in sorted(names, key=lambda name: int(name.rpartition('block')[2])):
            layers.append(ResidualBlock(params[name], 2 if stage > 1 and name.endswith('block0') else 1))
    return nn.Sequential(*layers)


class Network(nn.Module):
    """Backbone, embedder and the coarse classifier on the embedding (without classifier: the target network)."""

    def __init__(self, params: Mapping[str, Any], drop_rate: float, drop_block_size: int) -> None:
        super().__init__()
        self.backbone = backbone(params['backbone'], drop_rate, drop_block_size)
        self.hidden, self.embedding = linear(params['hidden']), linear(params['embedding'])
        self.classifier = linear(params['classifier']) if 'classifier' in params else None

    def forward(self, images: Any) -> tuple[Any, Any]:
        hidden = functional.relu(self.hidden(self.backbone(images).mean((2, 3))))
        embedding = self.embedding(hidden)
        return embedding, None if self.classifier is None else self.classifier(functional.relu(embedding))


def angular(x: Any, weight: Any) -> Any:
    """The angular projection."""
    return functional.normalize(functional.normalize(x, dim=-1) - functional.normalize(weight, dim=-1), dim=-1)


def contrast(query: Any, key: Any, queue: Any, labels: Any, class_weights: Any, temperature: float) -> Any:
    """Mean loss against the queue of the class of each query; the class weights receive no gradient."""
    class_weights = class_weights.detach()
    own = class_weights[labels]
    query, key = angular(query, own), angular(key, own)
    counts = torch.bincount(labels, minlength=len(queue)).tolist()
    parts = torch.split(torch.argsort(labels), counts)
    losses = []
    for keys, weight, rows in zip(queue, class_weights, parts, strict=True):
        if len(rows):
            negatives = query[rows] @ angular(keys, weight).T
            positives = (query[rows] * key[rows]).sum(1, keepdim=True)
            logits = torch.cat([positives, negatives], dim=1) / temperature
            losses.append(-functional.log_softmax(logits, dim=1)[:, 0].sum())
    return torch.stack(losses).sum() / len(query)


class Trainer:
    """The state of training and its step."""

    def __init__(
        self,
        params: Mapping[str, Any],
        queue: np.ndarray,
        *,
        drop_rate: float,
        drop_block_size: int,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        target_momentum: float,
        temperature: float,
        bfloat16: bool,
        compiled: bool,
    ) -> None:
        self.device = 'cuda' if torch.cuda.is_available() else 'cpu'
        torch.set_float32_matmul_precision('high')  # as XLA: float32 may be TF32 on a GPU
        torch.backends.cudnn.benchmark = True
        place = {'device': self.device, 'memory_format': torch.channels_last}
        self.online = Network(params, drop_rate, drop_block_size).to(**place)  # type: ignore[call-overload]
        without = {name: tree for name, tree in params.items() if name != 'classifier'}
        self.target = Network(without, drop_rate, drop_block_size).to(**place)  # type: ignore[call-overload]
        online = dict(self.online.named_parameters()) | dict(self.online.named_buffers())
        target = dict(self.target.named_parameters()) | dict(self.target.named_buffers())
        self.target_tensors = [tensor for tensor in target.values() if tensor.is_floating_point()]
        self.online_tensors = [online[name] for name, tensor in target.items() if tensor.is_floating_point()]
        self.queue = torch.from_numpy(np.array(queue)).to(self.device)
        self.pointers = torch.zeros(len(queue), dtype=torch.long, device=self.device)
        self.optimizer = torch.optim.SGD(
            self.online.parameters(), learning_rate, momentum=momentum, weight_decay=weight_decay
        )
        self.target_momentum, self.temperature = target_momentum, temperature
        self.autocast = torch.autocast(self.device, torch.bfloat16, enabled=bfloat16)
        wrap: Callable[[Any], Any] = torch.compile if compiled else lambda function: function
        self.query_pass, self.key_pass = wrap(self.online), wrap(self.target)

    def put(self, images: np.ndarray) -> Any:
        """NHWC images as input of the step: logically NCHW, in memory NHWC."""
        return torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)

    def labels(self, labels: np.ndarray) -> Any:
        return torch.from_numpy(labels).long().to(self.device)

    def step(self, query_images: Any, key_images: Any, labels: Any) -> Any:
        """One step. Returns the loss without waiting for it."""
        with torch.no_grad():  # the target follows the parameters before this step
            torch._foreach_lerp_(self.target_tensors, self.online_tensors, 1 - self.target_momentum)
        with self.autocast:
            query, logits = self.query_pass(query_images)
            with torch.no_grad():
                key, _ = self.key_pass(key_images)
        query, logits, key = query.float(), logits.float(), key.float()
        weights = self.online.classifier.weight  # type: ignore[union-attr]
        loss = functional.cross_entropy(logits, labels) + contrast(
            query, key, self.queue, labels, weights, self.temperature
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.enqueue(functional.normalize(key, dim=1), labels)
        return loss.detach()

    def enqueue(self, keys: Any, labels: Any) -> None:
        member = functional.one_hot(labels, len(self.queue))
        rank = member.cumsum(0)[torch.arange(len(labels), device=self.device), labels] - 1
        self.queue[labels, (self.pointers[labels] + rank) % self.queue.shape[1]] = keys
        self.pointers = (self.pointers + member.sum(0)) % self.queue.shape[1]

    def wait(self) -> None:
        if self.device == 'cuda':
            torch.cuda.synchronize()
