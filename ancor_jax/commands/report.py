"""`--mode=report`: collects the content of the page of a run from its work directory, network and test images."""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ancor_jax import data, models, report
from ancor_jax.config import Config, Eval
from ancor_jax.data import Dataset, Split
from ancor_jax.data.dataset import limit_train
from ancor_jax.evaluation import feature_extraction, trained_model
from ancor_jax.evaluation.trained_model import TrainedModel
from ancor_jax.runtime import metrics, workdir
from ancor_jax.views import image_ops

_MOST_TRAINING_IMAGES = 4000  # instead of test images


def report_run(config: Config, directory: pathlib.Path) -> pathlib.Path:
    """Writes `<directory>/report.html`, one page that opens offline.

    Args:
        config: `data` selects the test images, `eval` their views and features.
        directory: work directory of the run.

    Raises:
        ConfigError, data.DataError, checkpoint.CheckpointError: no run, no data, or images of unsuitable sizes.
    """
    network = trained_model.load(directory, config.eval.checkpoint)
    dataset = data.load(config.data)
    feature_extraction.check_sizes(images_shown(dataset), config.eval)
    path = directory / 'report.html'
    report.write(gather(network, dataset, config), path, progress=lambda text: print(text, flush=True))
    print(f'Written to {path}', flush=True)
    return path


def images_shown(dataset: Dataset) -> Split:
    """The test images, or some of the training images if there are none."""
    if len(dataset.test):
        return dataset.test
    return limit_train(dataset, min(_MOST_TRAINING_IMAGES, len(dataset.train)), seed=0).train


def gather(network: TrainedModel, dataset: Dataset, config: Config) -> report.ReportData:
    """Collects the content of the page, see `report.ReportData`."""
    shown = config.train.progress
    test, params = images_shown(dataset), network.variables['params']
    split = 'test' if len(dataset.test) else 'training'
    seen = feature_extraction.extract(
        network.extractor(config.eval), network.variables, test, config.eval, name=f'{split} images', shown=shown
    )
    weights = None
    if seen.embeddings is not None and 'classifier' in params:
        weights = np.asarray(models.class_weights(params))
        if weights.shape[1] != seen.embeddings.shape[1]:
            weights = None
    names = {'coarse': dataset.coarse_names, 'fine': dataset.fine_names}
    logits = seen.class_logits
    order = class_order(network.class_names, names[network.trained_on])
    if order is None:
        weights = logits = None
    elif len(order):
        names[network.trained_on] = tuple(network.class_names[index] for index in order)
        weights = None if weights is None else weights[order]
        logits = None if logits is None else logits[:, order]
    images = test.images
    return report.ReportData(
        title=f'{network.title} on {dataset.name}',
        settings=settings_table(network, dataset),
        results=latest_results(network.directory),
        scalars=metrics.read_scalars(network.directory / workdir.METRICS),
        images=lambda index: np.asarray(images[index]),
        coarse=test.coarse,
        fine=test.fine if test.has_fine else None,
        coarse_names=names['coarse'],
        fine_names=names['fine'],
        features=seen.features,
        embeddings=seen.embeddings,
        class_weights=weights,
        class_logits=logits,
        heat=heat(network, test, config.eval),
        trained_on=network.trained_on,
        split=split,
    )


def class_order(of_network: Sequence[str], of_data: Sequence[str]) -> np.ndarray | None:
    """The order of the classes of a network in which those of the data come first, in their order.

    Returns:
        int [C], or [0] if they are in order; None if the data have classes that the network does not have, unless they
        come after all classes of the network.
    """
    if tuple(of_data[: len(of_network)]) == tuple(of_network):
        return np.zeros(0, np.int64)
    place = {name: index for index, name in enumerate(of_network)}
    if not set(of_data) <= set(place):
        return None
    first = [place[name] for name in of_data]
    rest = [index for index, name in enumerate(of_network) if name not in set(of_data)]
    return np.asarray(first + rest)


def settings_table(network: TrainedModel, dataset: Dataset) -> tuple[tuple[str, str], ...]:
    """The settings of the training as readable text: label and value."""
    config = network.config
    rows = [
        ('Method', f'{network.title}, seed {config.seed}'),
        ('Data', dataset.summary()),
        ('Network', f'{config.model.name}, width {config.model.width:g}, head {config.head}'),
        ('Views', f'{config.views.size}×{config.views.size} pixels'),
        ('Training', f'{config.train.epochs} epochs of batches of {config.train.batch_size}'),
        ('Optimiser', f'SGD, learning rate {config.optim.learning_rate:g}, {config.optim.schedule}'),
    ]
    seconds = workdir.training_seconds(network.directory, network.step)
    if seconds:
        rows.append(('Time', f'{seconds / 60:,.1f} minutes'))
    return tuple(rows)


def latest_results(directory: pathlib.Path) -> dict[str, Any]:
    """Of the latest evaluation, or none."""
    found = [directory / name for name in (workdir.RESULTS, workdir.EVALUATION) if (directory / name).is_file()]
    if not found:
        return {}
    results: dict[str, Any] = json.loads(max(found, key=lambda path: path.stat().st_mtime).read_text(encoding='utf-8'))
    return results


def heat(network: TrainedModel, test: Split, settings: Eval) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Indices of test images → the input images of the network, uint8 [n, H, W, 3], and their heat maps.

    The heat maps, float32 [n, h, w], are the norms of the embeddings of the cells of the last feature map, as in the
    localisation figure of the paper.
    """
    colours = network.config.views

    @jax.jit
    def norms(variables: Any, pixels: jax.Array) -> jax.Array:
        feature_map = network.model.feature_map(variables, image_ops.normalize(pixels, colours.mean, colours.std))
        return jnp.linalg.norm(models.cell_embeddings(variables['params'], feature_map), axis=-1)

    def of(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels = feature_extraction.views(test, np.asarray(indices), settings)
        return pixels, np.asarray(norms(network.variables, pixels))

    return of
