"""`--mode=train`: trains a run, or resumes it, then evaluates it."""

import json
import pathlib
import time

from ancor_jax.config import Config
from ancor_jax.evaluation import evaluate, results
from ancor_jax.runtime import atomic, checkpoint, distributed, workdir
from ancor_jax.training import experiment, loop
from ancor_jax.training.experiment import Run
from ancor_jax.training.step import TrainState


def train(config: Config, directory: pathlib.Path) -> results.Evaluation:
    """Trains from the latest checkpoint in the work directory, or from the start, to the end; then evaluates.

    Returns:
        The evaluation; empty where no test images have fine labels.

    Raises:
        ConfigError, data.DataError: the configuration cannot be run; nothing has been written then.
    """
    begin = time.monotonic()
    run = experiment.prepare(config, directory)
    _claim(run)
    print(experiment.describe(run), flush=True)
    with checkpoint.Checkpoints(directory / workdir.CHECKPOINTS) as checkpoints:
        state = loop.train_or_resume(run, checkpoints, begin)
        if config.eval.checkpoint == checkpoint.BEST:
            del state
            state = checkpoints.restore(run.abstract_state, checkpoint.BEST)
    if run.dataset.test.has_fine:
        evaluation = _evaluate(run, state)
    else:
        print('No test images with fine labels, so no few-shot evaluation.', flush=True)
        evaluation = results.Evaluation([], [])
    distributed.wait('evaluated')  # the others would take a process that left early for dead
    return evaluation


def _claim(run: Run) -> None:
    """Makes the work directory this run's own, or checks that it is already."""
    latest = run.directory / workdir.CHECKPOINTS / checkpoint.LATEST
    begun = any(path.name.isdigit() for path in latest.glob('*'))
    classes = {'coarse': run.dataset.coarse_names, 'fine': run.dataset.fine_names}
    distributed.wait('prepared')
    shared = workdir.shared_by_processes(run.config, run.devices.size)
    distributed.check_same(json.dumps(shared).encode() + experiment.training_labels(run).tobytes())
    if distributed.is_first():
        workdir.claim(run.directory, run.config, run.devices.size, classes, begun)
        if run.dataset.record:  # the split was drawn here: data.manifest takes this file
            atomic.write_text(run.directory / 'split.jsonl', run.dataset.record)
    distributed.wait('claimed')


def _evaluate(run: Run, state: TrainState) -> results.Evaluation:
    """Evaluates, prints the tables and writes them."""
    method = run.plan.recipe.method
    evaluation = evaluate.evaluate(
        run.extract,
        experiment.variables(state),
        run.dataset,
        run.config,
        trained_on=method.labels,
        shown=run.config.train.progress,
    )
    done = int(state.step)
    heading = f'{method.title} on {run.dataset.name}, step {done:,}'
    seconds = workdir.training_seconds(run.directory, done)
    if distributed.is_first():
        results.report(evaluation, heading, run.config, run.directory / workdir.RESULTS, step=done, seconds=seconds)
    return evaluation
