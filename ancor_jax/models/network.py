"""A backbone with one of the heads of `guybuk/ANCOR`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ancor_jax.models.layers import torch_linear

HEADS = ('seq', 'fork', 'cls', 'none')


class Outputs(NamedTuple):
    """The outputs of a network for N images, float32; outputs that the head does not have are None."""

    features: jax.Array  # [N, d], the backbone's
    hidden: Any  # [N, h] jax.Array, the embedder's hidden layer
    embedding: Any  # [N, D] jax.Array, un-normalised unless the network normalises it
    class_logits: Any  # [N, C] jax.Array


class Network(nn.Module):
    """Backbone B, embedder E and coarse classifier C.

    Heads: 'seq': e = E(B(x)), logits = C(relu(e)); 'fork': embedding and logits both from E's hidden layer; 'cls':
    logits from the hidden layer, no embedding; 'none': embedding only. Parameters: 'backbone', 'hidden' (E's first),
    'embedding' (E's last), 'classifier'. The head computes in float32.

    Attributes:
        backbone: images [N, H, W, 3], train, step → feature map [N, h, w, d].
        head: one of `HEADS`.
        num_classes: C.
        embed_dim: D.
        mlp: whether E has a hidden layer (with ReLU).
        hidden_dim: width of the hidden layer; 0 is the width d of the features.
        normalize_embedding: whether the embedding is a unit vector, as in the paper (with the next two off).
        relu_before_classifier: of 'seq'.
        classifier_bias: whether C has a bias.
        frozen: paths of modules that compute as in evaluation also in training, by running statistics that stay as they
            are and without dropout: 'backbone', or parts of it as 'backbone/stage1'.

    Raises:
        ValueError: an unknown head.
    """

    backbone: nn.Module
    head: str
    num_classes: int
    embed_dim: int = 128
    mlp: bool = True
    hidden_dim: int = 0
    normalize_embedding: bool = False
    relu_before_classifier: bool = True
    classifier_bias: bool = True
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise ValueError(f'head must be one of {", ".join(HEADS)}, and is {self.head!r}.')
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, step: jax.Array | int = 0, classify: bool = True) -> Outputs:
        """All outputs of the head. Without `classify`, the classifier and its parameters are not used.

        Args:
            images: [N, H, W, 3], normalised.
            train: batch statistics and dropout (rng 'dropout'), or running statistics.
            step: training steps done, for DropBlock's schedule.
            classify: whether to compute class logits.
        """
        with nn.intercept_methods(_in_evaluation(self.frozen)):
            feature_map = self.backbone(images, train=train, step=jnp.asarray(step, jnp.int32))
        features = jnp.mean(feature_map.astype(jnp.float32), axis=(1, 2))
        hidden = features
        if self.mlp:
            hidden = nn.relu(torch_linear(self.hidden_dim or features.shape[-1], name='hidden')(features))
        embedding = None
        if self.head != 'cls':
            embedding = torch_linear(self.embed_dim, name='embedding')(hidden)
            if self.normalize_embedding:
                squared = jnp.sum(embedding * embedding, axis=-1, keepdims=True)
                embedding = embedding * jax.lax.rsqrt(jnp.maximum(squared, 1e-12))  # safe gradient at zero
        if self.head == 'none' or not classify:
            return Outputs(features, hidden if self.mlp else None, embedding, None)
        classified = hidden if self.head != 'seq' or embedding is None else embedding
        if self.head == 'seq' and self.relu_before_classifier:
            classified = nn.relu(classified)
        classifier = torch_linear(self.num_classes, use_bias=self.classifier_bias, name='classifier')
        return Outputs(features, hidden if self.mlp else None, embedding, classifier(classified))

    def embed(self, images: jax.Array, *, train: bool, step: jax.Array | int = 0) -> jax.Array:
        """Only the embedding [N, D], from parameters without the classifier: the pass of the target network."""
        return self(images, train=train, step=step, classify=False).embedding

    @nn.nowrap
    def feature_map(self, variables: Any, images: jax.Array) -> jax.Array:
        """The feature map [N, h, w, d] of the backbone with running statistics, before the average over space."""
        backbone = {name: tree['backbone'] for name, tree in variables.items()}
        feature_map: Any = self.backbone.apply(backbone, images, train=False, step=jnp.int32(0))
        return feature_map.astype(jnp.float32)

    @nn.nowrap
    def features(self, variables: Any, images: jax.Array) -> jax.Array:
        """The features [N, d] of the backbone with running statistics; `variables` needs only the backbone."""
        return jnp.mean(self.feature_map(variables, images), axis=(1, 2))


def _in_evaluation(frozen: tuple[str, ...]) -> Callable[..., Any]:
    """An interceptor that calls the modules at these paths with train=False."""

    def call(function: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if kwargs.get('train') and '/'.join(context.module.path) in frozen:
            kwargs = kwargs | {'train': False}
        return function(*args, **kwargs)

    return call


def class_weights(params: Any) -> jax.Array:
    """The rows W [C, D] of the coarse classifier, from the parameters of a network."""
    return params['classifier']['kernel'].T


def cell_embeddings(params: Any, feature_map: jax.Array) -> jax.Array:
    """The embedder applied to each cell of a feature map, for heat maps: [N, h, w, d] → [N, h, w, D].

    If the head has no embedding, it returns the hidden layer, and without a hidden layer the map itself.
    """
    cells = feature_map
    if 'hidden' in params:
        cells = nn.relu(cells @ params['hidden']['kernel'] + params['hidden']['bias'][None, None, None])
    if 'embedding' in params:
        cells = cells @ params['embedding']['kernel'] + params['embedding']['bias'][None, None, None]
    return cells
