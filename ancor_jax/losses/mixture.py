"""SCGM: a mixture of subclasses, each with a mean on the sphere, of which the coarse classes consist.

Its parameters are the class means μʸ [C, D] and the subclass means μᶻ [S, D]. The E-step gives every training sample a
subclass (`log_joint`, then `ancor_jax.losses.sinkhorn`); the losses are those of the M-step.

Source: Ni et al., "Superclass-Conditional Gaussian Mixture Model for Learning Fine-Grained Embeddings", ICLR 2022, and
its code `nijingchao/SCGM`. Shapes: N samples, D dimensions, C coarse classes, S subclasses.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ancor_jax.losses import checks, devices
from ancor_jax.losses.contrastive import Contrast, class_contrast
from ancor_jax.losses.projection import l2_normalize
from ancor_jax.losses.queue import Queue
from ancor_jax.losses.shapes import ClassWeights, Embeddings, Keys, Labels, Logits, SubclassMeans
from ancor_jax.losses.total import cross_entropy


class MixtureLoss(NamedTuple):
    """The terms of a mixture's loss, each [N]; training minimises `total`."""

    total: jax.Array
    classification: jax.Array  # t_x: the coarse class, given the sample
    subclass: jax.Array  # t_z: the subclass, given the sample
    class_of_subclass: jax.Array  # t_y: the coarse class, given the subclass
    contrast: Contrast | None


def scgm_loss(
    embedding: Embeddings,
    class_means: ClassWeights,
    subclass_means: SubclassMeans,
    labels: Labels,
    subclass: Labels,
    *,
    temperature: float | jax.Array = 0.1,
    weight: float | jax.Array = 0.5,
    learned: bool = True,
) -> MixtureLoss:
    """SCGM-G: t_x + α (t_z + t_y), three cross-entropies of a sample x, its subclass z and its coarse class y.

    - t_x = CE(relu(x̂) μʸᵀ, y), where μʸ is not normalised;
    - t_z = CE(x̂ μ̂ᶻᵀ / τ, z) over the subclasses of all classes;
    - t_y = CE(μ̂ᶻ_z μ̂ʸᵀ, y).

    Args:
        embedding: [N, D], un-normalised.
        class_means: [C, D] μʸ, the kernel of a classifier without a bias.
        subclass_means: [S, D] μᶻ.
        labels: int [N] coarse labels in [0, C).
        subclass: int [N] in [0, S), from the E-step.
        temperature: τ, positive.
        weight: α.
        learned: let the gradient of t_z reach μᶻ, and that of t_y μᶻ and μʸ. The published SCGM-A stops both, so that
            its subclass means keep their random directions: False reproduces it.

    Returns:
        MixtureLoss of [N] terms; train on `total.mean()`.

    Raises:
        ValueError: shapes that do not fit together, or a temperature that is not positive.

    Example:
        >>> import jax
        >>> from ancor_jax import losses
        >>> embedding, classes, subclasses = (jax.random.normal(jax.random.key(n), (n, 8)) for n in (4, 3, 6))
        >>> labels, subclass = jax.numpy.asarray([0, 2, 2, 1]), jax.numpy.asarray([5, 0, 1, 3])
        >>> losses.scgm_loss(embedding, classes, subclasses, labels, subclass).total.shape
        (4,)
    """
    embedding, class_means, subclass_means = _check(embedding, class_means, subclass_means)
    labels = checks.integers('labels', labels, embedding.shape[0], 'embedding')
    subclass = checks.integers('subclass', subclass, embedding.shape[0], 'embedding')
    options = checks.temperature(temperature), checks.scalar('weight', weight, *_WEIGHT)

    def losses(
        embedding: jax.Array,
        class_means: jax.Array,
        subclass_means: jax.Array,
        labels: jax.Array,
        subclass: jax.Array,
        temperature: float | jax.Array,
        weight: float | jax.Array,
    ) -> MixtureLoss:
        unit, classes, subclasses = map(l2_normalize, (embedding, class_means, subclass_means))
        if not learned:
            classes, subclasses = jax.lax.stop_gradient((classes, subclasses))
        classification = cross_entropy(_product(jax.nn.relu(unit), class_means), labels)
        of_sample = cross_entropy(_product(unit, subclasses) / temperature, subclass)
        of_subclass = cross_entropy(_product(subclasses[subclass], classes), labels)
        total = classification + weight * (of_sample + of_subclass)
        return MixtureLoss(total, classification, of_sample, of_subclass, None)

    per_sample = P(devices.spec(embedding)[0])
    specs = MixtureLoss._make([*[per_sample] * 4, None])
    return devices.partition_by_compiler(
        losses, specs, embedding, class_means, subclass_means, labels, subclass, *options
    )


def ancor_scgm_loss(
    embedding: Embeddings,
    key: Embeddings,
    queue: Keys | Queue,
    class_means: ClassWeights,
    subclass_means: SubclassMeans,
    labels: Labels,
    subclass: Labels,
    *,
    temperature: float | jax.Array = 0.1,
    contrast_temperature: float | jax.Array = 0.2,
    metric: str = 'angular',
    weight: float | jax.Array = 0.5,
    learned: bool = True,
    axis_name: str | None = None,
) -> MixtureLoss:
    """SCGM-A: the loss of `scgm_loss` and ANCOR's contrast within the coarse class, projected around its mean.

    Args:
        embedding: [N, D], un-normalised.
        key: [N, D] embeddings of the other views by the target network.
        queue: [C, K, D] earlier keys of each coarse class, or the `Queue` that holds them.
        contrast_temperature: T of the contrast, as in `class_contrast`.
        metric: of the contrast.
        axis_name: mesh axis over which samples and queue are split; None if one device has them all.

    The other arguments, result and errors are those of `scgm_loss`.

    Example:
        >>> import jax
        >>> from ancor_jax import losses
        >>> embedding, classes, subclasses = (jax.random.normal(jax.random.key(n), (n, 8)) for n in (4, 3, 6))
        >>> queue = losses.queue.init(jax.random.key(0), num_classes=3, size=16, dim=8)
        >>> labels, subclass = jax.numpy.asarray([0, 2, 2, 1]), jax.numpy.asarray([5, 0, 1, 3])
        >>> loss = losses.ancor_scgm_loss(embedding, -embedding, queue, classes, subclasses, labels, subclass)
        >>> loss.total.shape, loss.contrast.loss.shape
        ((4,), (4,))
    """
    mixture = scgm_loss(
        embedding,
        class_means,
        subclass_means,
        labels,
        subclass,
        temperature=temperature,
        weight=weight,
        learned=learned,
    )
    within = class_contrast(
        embedding,
        key,
        queue,
        labels,
        class_means,
        temperature=contrast_temperature,
        metric=metric,
        axis_name=axis_name,
    )
    return mixture._replace(total=mixture.total + within.loss, contrast=within)


def log_joint(
    embedding: Embeddings,
    class_means: ClassWeights,
    subclass_means: SubclassMeans,
    labels: Labels,
    *,
    temperature: float | jax.Array = 0.1,
) -> Logits:
    """log p(z, y | x) = log softmax_z(x̂ μ̂ᶻᵀ / τ) + log softmax_y(μ̂ᶻ_z μ̂ʸᵀ) at the sample's class y: [N, S].

    The E-step assigns subclasses by it (`sinkhorn.assign`). The second factor alone ties a subclass to a class. The
    arguments are those of `scgm_loss`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from ancor_jax import losses
        >>> embedding, classes, subclasses = (jax.random.normal(jax.random.key(n), (n, 8)) for n in (4, 3, 6))
        >>> joint = [losses.log_joint(embedding, classes, subclasses, jnp.full(4, label)) for label in range(3)]
        >>> [round(float(total), 3) for total in jnp.exp(jnp.stack(joint)).sum(axis=(0, 2))]  # over all z and y
        [1.0, 1.0, 1.0, 1.0]
    """
    embedding, class_means, subclass_means = _check(embedding, class_means, subclass_means)
    labels = checks.integers('labels', labels, embedding.shape[0], 'embedding')

    def joint(
        embedding: jax.Array,
        class_means: jax.Array,
        subclass_means: jax.Array,
        labels: jax.Array,
        temperature: float | jax.Array,
    ) -> jax.Array:
        unit, classes, subclasses = map(l2_normalize, (embedding, class_means, subclass_means))
        of_sample = jax.nn.log_softmax(_product(unit, subclasses) / temperature)
        of_subclass = jax.nn.log_softmax(_product(subclasses, classes))  # [S, C]
        return of_sample + of_subclass.T[labels]

    specs = P(devices.spec(embedding)[0], None)
    return devices.partition_by_compiler(
        joint, specs, embedding, class_means, subclass_means, labels, checks.temperature(temperature)
    )


_WEIGHT = (lambda number: 0 <= number < float('inf'), 'a number that is not negative, such as 0.5')


def _product(rows: jax.Array, means: jax.Array) -> jax.Array:
    return jnp.dot(rows, means.T, precision='highest')


def _check(
    embedding: jax.Array, class_means: jax.Array, subclass_means: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The three, checked, in the precision of the embedding."""
    embedding = checks.embeddings('embedding', embedding)
    means = []
    for name, value, rows in (('class_means', class_means, 'C'), ('subclass_means', subclass_means, 'S')):
        value = checks.array(name, value)
        if value.ndim != 2 or value.shape[1] != embedding.shape[1] or not value.size:
            raise ValueError(
                f'{name} must be [{rows}, {embedding.shape[1]}] to fit the embedding, and are {list(value.shape)}.'
            )
        means.append(value.astype(embedding.dtype))
    return embedding, means[0], means[1]
