"""`--mode=report`: what the page of a run shows, gathered from its work directory, its network and its test images."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ancor_jax import data, models, report
from ancor_jax.config import Config, ConfigError, Eval
from ancor_jax.data import Dataset
from ancor_jax.evaluation import feature_extraction, trained_model
from ancor_jax.evaluation.trained_model import TrainedModel
from ancor_jax.runtime import metrics, workdir
from ancor_jax.views import image_ops


def report_run(config: Config, directory: pathlib.Path) -> pathlib.Path:
    """Writes `<directory>/report.html`, one page that opens without a network.

    Args:
        config: `data` says which test images are shown, `eval` how they are seen.
        directory: work directory of the run.

    Raises:
        ConfigError, data.DataError, checkpoint.CheckpointError: no run, or no test images with fine labels.
    """
    network = trained_model.load(directory, config.eval.checkpoint)
    dataset = data.load(config.data)
    if not dataset.test.has_fine:
        raise ConfigError(f'{dataset.name} has no test images with fine labels, which the report is about.')
    feature_extraction.check_sizes(dataset.test, config.eval)
    path = directory / 'report.html'
    report.write(gather(network, dataset, config), path, progress=lambda text: print(text, flush=True))
    print(f'Written to {path}', flush=True)
    return path


def gather(network: TrainedModel, dataset: Dataset, config: Config) -> report.ReportData:
    """Everything that the page shows, see `report.ReportData`."""
    shown = config.train.progress
    test, params = dataset.test, network.variables['params']
    seen = feature_extraction.extract(
        network.extractor(config.eval), network.variables, test, config.eval, name='test images', shown=shown
    )
    weights = None
    if seen.embeddings is not None and 'classifier' in params:
        weights = np.asarray(models.class_weights(params))
        if weights.shape[1] != seen.embeddings.shape[1]:
            weights = None
    images = test.images
    return report.ReportData(
        title=f'{network.title} on {dataset.name}',
        settings=settings_table(network, dataset),
        results=_results(network.directory),
        scalars=metrics.read_scalars(network.directory / workdir.METRICS),
        images=lambda index: np.asarray(images[index]),
        coarse=test.coarse,
        fine=test.fine,
        coarse_names=dataset.coarse_names,
        fine_names=dataset.fine_names,
        features=seen.features,
        embeddings=seen.embeddings,
        class_weights=weights,
        class_logits=seen.class_logits,
        heat=heat(network, dataset, config.eval),
        trained_on=network.trained_on,
    )


def settings_table(network: TrainedModel, dataset: Dataset) -> tuple[tuple[str, str], ...]:
    """What was trained, for people: label and value."""
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


def _results(directory: pathlib.Path) -> dict[str, Any]:
    """Of the latest evaluation, or none."""
    found = [directory / name for name in (workdir.RESULTS, workdir.EVALUATION) if (directory / name).is_file()]
    if not found:
        return {}
    results: dict[str, Any] = json.loads(max(found, key=lambda path: path.stat().st_mtime).read_text(encoding='utf-8'))
    return results


def heat(
    network: TrainedModel, dataset: Dataset, settings: Eval
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Indices of test images → the images as the network sees them, uint8 [n, H, W, 3], and where it looks.

    The heat float32 [n, h, w] is the norm of the embedding of each cell of the last feature map, as in the paper's
    localisation pictures.
    """
    colours = network.config.views

    @jax.jit
    def norms(variables: Any, pixels: jax.Array) -> jax.Array:
        feature_map = network.model.feature_map(variables, image_ops.normalize(pixels, colours.mean, colours.std))
        return jnp.linalg.norm(models.cell_embeddings(variables['params'], feature_map), axis=-1)

    def of(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels = feature_extraction.views(dataset.test, np.asarray(indices), settings)
        return pixels, np.asarray(norms(network.variables, pixels))

    return of
