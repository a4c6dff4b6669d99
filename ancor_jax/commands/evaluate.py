"""`--mode=eval`: evaluates a checkpoint of a run, or two networks together."""

import json
import pathlib

from ancor_jax import data
from ancor_jax.config import Config, ConfigError
from ancor_jax.data import Dataset
from ancor_jax.evaluation import results, trained_model
from ancor_jax.evaluation.evaluate import check, evaluate, evaluate_joined, left_out
from ancor_jax.evaluation.results import Evaluation
from ancor_jax.runtime import atomic, workdir


def evaluate_run(config: Config, directory: pathlib.Path) -> Evaluation:
    """Evaluates a checkpoint of a work directory and writes `evaluation.json` there.

    Args:
        config: of the evaluation; its data may differ from those of the training.
        directory: of the run.

    Raises:
        ConfigError: the directory contains no run, or a run with another model than `config`; or the data cannot be
            evaluated. Without fine labels, the coarse classes are evaluated.
        checkpoint.CheckpointError: there is no such checkpoint.
    """
    network = trained_model.load(directory, config.eval.checkpoint)
    workdir.check_same(directory, workdir.identity(config, 1), afterwards=True)
    dataset = _evaluation_data(config)
    extract = network.extractor(config.eval)
    trained_on, names = network.trained_on, network.class_names
    evaluation = evaluate(
        extract, network.variables, dataset, config, trained_on=trained_on, names=names, shown=config.train.progress
    )
    has_coarse_probe = 'coarse' in config.eval.probes or not dataset.test.has_fine
    if has_coarse_probe and names and (note := left_out(dataset, trained_on, names)):
        print(note, flush=True)
    seconds = workdir.training_seconds(directory, network.step)
    heading = f'{network.title} on {dataset.name}'
    results.report(evaluation, heading, config, directory / workdir.EVALUATION, step=network.step, seconds=seconds)
    return evaluation


def evaluate_joined_runs(config: Config, directory: pathlib.Path) -> dict[str, Evaluation]:
    """Evaluates the two networks of `config.eval.models` together, each way of joining in a separate directory.

    Args:
        config: of the evaluation.
        directory: `<directory>/<join>/results.json` is written, with a `config.json`, so that
            `--mode=compare` can compare it with single runs.

    Raises:
        ConfigError: not two models, or a cascade whose first model has no class logits; and as `evaluate_run`.
    """
    first, second = (trained_model.load(pathlib.Path(name), config.eval.checkpoint) for name in config.eval.models)
    if 'cascade' in config.eval.join and not first.class_names:
        raise ConfigError(
            f'a cascade asks the first model for coarse classes, and {first.directory} was trained without them; name '
            'the models in the other order, or leave cascade out of eval.join.'
        )
    dataset = _evaluation_data(config)
    networks = [(network.extractor(config.eval), network.variables) for network in (first, second)]
    evaluations = {}
    for join, evaluation in evaluate_joined(networks, dataset, config, shown=config.train.progress):
        here = directory / join
        here.mkdir(parents=True, exist_ok=True)
        atomic.write_text(here / workdir.CONFIG, json.dumps(workdir.identity(config, 1), indent=1))
        heading = f'{join.capitalize()} of {first.title} and {second.title} on {dataset.name}'
        results.report(evaluation, heading, config, here / workdir.RESULTS, step=second.step, seconds=0.0)
        evaluations[join] = evaluation
    return evaluations


def _evaluation_data(config: Config) -> Dataset:
    dataset = data.load(config.data)
    if not len(dataset.test):
        raise ConfigError(
            f'{dataset.name} has no test images, and evaluation is of images that training has not seen; add them as '
            'val/COARSE/ or val/COARSE/FINE/ folders, or in the manifest.'
        )
    if config.eval.models and not dataset.test.has_fine:
        raise ConfigError(
            f'{dataset.name} has no test images with fine labels, which the episodes of two networks together need; '
            'add them as val/COARSE/FINE/ folders, or in the manifest.'
        )
    check(dataset, config)
    return dataset
