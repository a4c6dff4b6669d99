"""`--mode=embed`: writes features of images by a trained network as NumPy archives."""

import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import numpy as np

from ancor_jax import data, fewshot
from ancor_jax.config import Config
from ancor_jax.data import Split, unlabelled
from ancor_jax.data.dataset import UNKNOWN, Dataset, without_unreadable
from ancor_jax.evaluation import feature_extraction, trained_model
from ancor_jax.evaluation.trained_model import TrainedModel
from ancor_jax.runtime import atomic


def embed(config: Config, directory: pathlib.Path, images: pathlib.Path | None = None) -> list[pathlib.Path]:
    """Extracts the features of a data set, or of a folder of images, with the network of a run.

    Writes `<directory>/embeddings/train.npz` and `test.npz` for the data set of the run, the same with a hash of
    `config.data` in the name for another data set, and `<folder>-<hash of its path>.npz` for a folder, so that archives
    of other images are kept. Each has 'features' float32 [n, d], L2-normalised (the parts that
    eval.features names); 'embeddings' float32 [n, D], un-normalised, if the head has them; with a classifier
    'class_probabilities' float32 [n, C], 'predicted' int32 [n] and 'class_names' [C]; 'paths' [n] if the images are
    files; 'coarse', 'fine' int32 [n] (-1 if unknown), 'coarse_names' and 'fine_names' if the data have them.

    Args:
        config: `data` selects the images (unless `images` is given), `eval` their resizing and the features.
        directory: work directory of the run.
        images: a folder of images, with or without folders in it, instead of the data set.

    Returns:
        The files written.

    Raises:
        ConfigError, data.DataError, checkpoint.CheckpointError: no run, no images, or images of unsuitable sizes.
    """
    network = trained_model.load(directory, config.eval.checkpoint)
    parts: dict[str, tuple[Split, Dataset | None]]
    if images is not None:
        settings = feature_extraction.sized(config)
        split = readable(unlabelled.unlabelled(unlabelled.images_below(images)), config, str(images))
        parts = {output_name(images.resolve().name, os.fsencode(images.resolve())): (split, None)}
    else:
        settings = config.eval
        dataset = data.load(config.data)
        parts = {
            _name_of_split(name, config, network): (split, dataset)
            for name, split in (('train', dataset.train), ('test', dataset.test))
        }
    parts = {name: part for name, part in parts.items() if len(part[0])}
    for split, _ in parts.values():
        feature_extraction.check_sizes(split, settings)
    describer = network.extractor(settings)
    written = []
    for name, (split, whole) in parts.items():
        found = feature_extraction.extract(
            describer, network.variables, split, settings, name=f'{name} images', shown=config.train.progress
        )
        path = directory / 'embeddings' / f'{name}.npz'
        atomic.write_arrays(path, _arrays(found, network, split, whole))
        print(f'{len(split):,} images, {path.stat().st_size / 2**20:,.1f} MiB: {path}', flush=True)
        written.append(path)
    return written


def output_name(name: str, origin: bytes) -> str:
    """A name for output that is unique for each origin."""
    return f'{name}-{hashlib.sha256(origin).hexdigest()[:8]}'


def _name_of_split(name: str, config: Config, network: TrainedModel) -> str:
    """'train', or with a hash for data that the run was not trained on."""
    if _which_images(config) == _which_images(network.config):
        return name
    return output_name(name, repr(_which_images(config)).encode())


def _which_images(config: Config) -> dict[str, Any]:
    """The fields of `config.data` that select the images, without those of their reading."""
    fields = dataclasses.asdict(config.data)
    for name in ('download', 'pipeline', 'cache', 'threads', 'max_unreadable', 'manifest_outside'):
        del fields[name]
    return fields | {'dir': os.path.abspath(os.path.expanduser(config.data.dir)) if config.data.dir else ''}


def readable(split: Split, config: Config, where: str) -> Split:
    """The split without unreadable images, if the configuration allows to leave them out."""
    if not config.data.max_unreadable:
        return split
    split, bad = without_unreadable(split, config.data.max_unreadable, where)
    for text in bad:
        print(f'left out: {text}', flush=True)
    return split


def _arrays(
    found: feature_extraction.Features, network: TrainedModel, split: Split, whole: Dataset | None
) -> dict[str, Any]:
    arrays: dict[str, Any] = {'features': found.features}
    if found.embeddings is not None:
        arrays['embeddings'] = found.embeddings
    if found.class_logits is not None:
        arrays['class_probabilities'] = fewshot.calibrated(found.class_logits, 1.0)
        arrays['predicted'] = found.class_logits.argmax(axis=1).astype(np.int32)
        arrays['class_names'] = np.asarray(network.class_names)
    images = split.images
    if not isinstance(images, np.ndarray):
        arrays['paths'] = np.asarray([images.where(index) for index in range(len(split))])
    if whole is not None:
        arrays |= {'coarse': split.coarse, 'coarse_names': np.asarray(whole.coarse_names)}
        if (split.fine != UNKNOWN).any():
            arrays |= {'fine': split.fine, 'fine_names': np.asarray(whole.fine_names)}
    return arrays
