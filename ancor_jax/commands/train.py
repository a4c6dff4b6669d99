"""`--mode=train`: trains or resumes a run, then evaluates it."""

import contextlib
import dataclasses
import json
import pathlib
import time

from ancor_jax.config import Config
from ancor_jax.data.fingerprint import fingerprint
from ancor_jax.evaluation import evaluate, results, trained_model
from ancor_jax.runtime import atomic, checkpoint, checkpoint_files, distributed, ownership, provenance, workdir
from ancor_jax.training import experiment, loop
from ancor_jax.training.experiment import Run
from ancor_jax.training.step import TrainState


def train(config: Config, directory: pathlib.Path) -> results.Evaluation:
    """Trains from the latest checkpoint in the work directory, or from the start; then evaluates.

    Returns:
        The evaluation; of coarse classes if the test images have no fine labels, empty without test images.

    Raises:
        ConfigError, data.DataError: the configuration cannot be run; nothing is written.
    """
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        existed = directory.exists()
        if distributed.is_first() and existed:
            stack.enter_context(ownership.held(directory))
        run = experiment.prepare(config, directory)
        _check_same_in_all_processes(run)
        if distributed.is_first():
            if not existed:  # after the checks, so that nothing is written for a run that cannot work
                stack.enter_context(ownership.held(directory))
            _claim(run)
        distributed.wait('claimed')
        print(experiment.describe(run), flush=True)
        if config.train.on == 'features' and run.pretrained is not None and distributed.is_first():
            trained_model.store_backbone(directory, run.pretrained)
        keep = config.train.keep_checkpoints
        with checkpoint.Checkpoints(directory / workdir.CHECKPOINTS, keep) as checkpoints:
            state = loop.train_or_resume(run, checkpoints, begin)
            if config.eval.checkpoint == checkpoint.BEST:
                del state
                state = checkpoints.restore(run.abstract_state, checkpoint.BEST)
        if len(run.dataset.test):
            evaluation = _evaluate(run, state)
        else:
            print('No test images, so no evaluation.', flush=True)
            evaluation = results.Evaluation([], [])
        distributed.wait('evaluated')  # the others would consider a process that exits early as dead
    return evaluation


def _check_same_in_all_processes(run: Run) -> None:
    distributed.wait('prepared')
    shared = workdir.shared_by_processes(run.config, run.devices.size)
    distributed.check_same(json.dumps(shared).encode() + experiment.training_labels(run).tobytes())


def _claim(run: Run) -> None:
    """Assigns the work directory to this run, or checks that it belongs to it."""
    done = max(checkpoint_files.steps(run.directory / workdir.CHECKPOINTS / checkpoint.LATEST), default=0)
    classes = {'coarse': run.dataset.coarse_names, 'fine': run.dataset.fine_names}
    session = provenance.session(done, run.devices)
    workdir.claim(run.directory, run.config, run.devices.size, classes, fingerprint(run.dataset), session)
    if run.dataset.record:  # the split was drawn here: data.manifest takes this file
        atomic.write_text(run.directory / 'split.jsonl', run.dataset.record)


def _evaluate(run: Run, state: TrainState) -> results.Evaluation:
    """Evaluates, prints the tables and writes them."""
    method = run.plan.recipe.method
    evaluation = evaluate.evaluate(
        run.extract,
        experiment.variables(state),
        run.dataset,
        dataclasses.replace(run.config, eval=run.eval),
        trained_on=method.labels,
        shown=run.config.train.progress,
    )
    done = int(state.step)
    heading = f'{method.title} on {run.dataset.name}, step {done:,}'
    seconds = workdir.training_seconds(run.directory, done)
    if distributed.is_first():
        results.report(evaluation, heading, run.config, run.directory / workdir.RESULTS, step=done, seconds=seconds)
    return evaluation
