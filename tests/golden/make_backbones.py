"""Writes backbones.npz: what timm's networks give for weights and images that follow the rule of `weights`.

Run as `python -m tests.golden.make_backbones`, with torch and timm. Stored are names and shapes of each state_dict, as
JSON, and features; weights and images are made again from their names.
"""

import json
import pathlib
from collections.abc import Mapping

import numpy as np

from tests.golden import weights

PATH = pathlib.Path(__file__).with_name('backbones.npz')
# Case → images: (number, height, width) each.
IMAGES = {
    'vit': ((2, 64, 64), (2, 96, 48)),  # the second of another size than that of the position embedding
    'dinov2': ((2, 70, 70), (2, 56, 98)),
    'convnext': ((2, 96, 70),),
    'efficientnet_lite0': ((2, 75, 50),),
}


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A value of the rule; factors of LayerScale are large enough to see every block."""
    if name.endswith('gamma'):
        return weights.values(name, shape, 0.3, 0.6)
    return weights.parameter(name, shape)


def state_dict(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Values for the names of a state_dict; counters of batches are zero."""
    return {name: tensor(name, tuple(shape)) if shape else np.zeros((), np.int64) for name, shape in shapes.items()}


def images(number: int, height: int, width: int) -> np.ndarray:
    """float32 [N, H, W, 3], corners of larger squares."""
    side = -(-max(height, width) // 4) * 4
    return weights.images(f'images{side}', number, side).transpose(0, 2, 3, 1)[:, :height, :width]


def main() -> None:
    import timm
    import torch
    from timm.models import convnext, vision_transformer

    small = {'embed_dim': 384, 'depth': 2, 'num_heads': 6, 'num_classes': 0, 'dynamic_img_size': True}
    networks = {
        'vit': vision_transformer.VisionTransformer(img_size=64, patch_size=16, **small),
        'dinov2': vision_transformer.VisionTransformer(
            img_size=70, patch_size=14, reg_tokens=4, no_embed_class=True, init_values=1e-5, **small
        ),
        'convnext': convnext.ConvNeXt(depths=(1, 2, 1, 1), dims=(16, 24, 32, 48), num_classes=0),
        'efficientnet_lite0': timm.create_model('tf_efficientnet_lite0', num_classes=0),
    }
    stored = {}
    for name, network in networks.items():
        shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
        network.load_state_dict({key: torch.from_numpy(value) for key, value in state_dict(shapes).items()})
        network.eval()
        stored[f'{name}.shapes'] = np.array(json.dumps(shapes))
        for number, size in enumerate(IMAGES[name]):
            batch = torch.from_numpy(np.ascontiguousarray(images(*size).transpose(0, 3, 1, 2)))
            with torch.no_grad():
                output = network.forward_features(batch)
                if name in ('vit', 'dinov2'):  # class token and mean of the patches
                    first = 1 + network.num_reg_tokens
                    output = torch.cat([output[:, 0], output[:, first:].mean(1)], -1)
                else:
                    output = network.forward_head(output, pre_logits=True)
            stored[f'{name}.features{number}'] = output.numpy()
            print(name, size, list(output.shape), f'root mean square {float(output.square().mean().sqrt()):.3f}')
    np.savez_compressed(PATH, **stored)


if __name__ == '__main__':
    main()
