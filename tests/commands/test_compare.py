"""Comparison of finished runs: paired differences, and refusal of what cannot be paired."""

import csv
import json

import numpy as np
import pytest

from ancor_jax import fewshot
from ancor_jax.commands import compare
from ancor_jax.config import ConfigError
from tests.helpers import EPISODES, evaluated_run


def test_pairing_finds_what_the_intervals_of_each_run_hide(tmp_path):
    one, two = evaluated_run(tmp_path / 'one', 0.0, 1), evaluated_run(tmp_path / 'two', 0.01, 2)
    text = compare.compare([tmp_path / 'one', tmp_path / 'two'], tmp_path / 'out')
    assert f'{EPISODES} episodes' in text
    assert '| run | 5-way 1-shot, lr |' in text
    with (tmp_path / 'out' / 'comparison.csv').open() as file:
        first, second = csv.DictReader(file)
    assert (first['run'], first['difference']) == ('one', '')
    mean, interval = fewshot.mean_and_interval(two - one)
    np.testing.assert_allclose(float(second['difference']), 100 * mean, atol=1e-4)
    np.testing.assert_allclose(float(second['difference_interval_95']), 100 * interval, atol=1e-4)
    assert float(second['difference_interval_95']) < 0.25 < 1 < float(second['interval_95'])
    assert f'| two | {100 * mean:.2f} ± {100 * interval:.2f} |' in text
    assert (tmp_path / 'out' / 'comparison.md').read_text() == text


def test_directories_of_one_name_keep_their_paths(tmp_path):
    for parent in 'ab':
        evaluated_run(tmp_path / parent / 'run', 0.0, ord(parent))
    text = compare.compare([tmp_path / 'a' / 'run', tmp_path / 'b' / 'run'], tmp_path / 'out')
    assert str(tmp_path / 'b' / 'run') in text


@pytest.mark.parametrize(('changes', 'field'), [({'seed': 3}, 'eval.seed=3'), ({'queries': 5}, 'eval.queries=5')])
def test_other_episodes_cannot_be_paired(tmp_path, changes, field):
    evaluated_run(tmp_path / 'one', 0.0, 1)
    evaluated_run(tmp_path / 'two', 0.0, 2, **changes)
    with pytest.raises(ConfigError, match=f'{field} and .*cannot be paired'):
        compare.compare([tmp_path / 'one', tmp_path / 'two'], tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_what_is_missing_is_named(tmp_path):
    evaluated_run(tmp_path / 'one', 0.0, 1)
    with pytest.raises(ConfigError, match='two work directories or more'):
        compare.compare([tmp_path / 'one'], tmp_path / 'out')
    with pytest.raises(ConfigError, match=r'nothing has no readable results\.json'):
        compare.compare([tmp_path / 'one', tmp_path / 'nothing'], tmp_path / 'out')
    evaluated_run(tmp_path / 'two', 0.0, 1)
    stored = json.loads((tmp_path / 'two' / 'results.json').read_text())
    stored['results'][0]['classifier'] = 'knn'
    (tmp_path / 'two' / 'results.json').write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match='no protocol and classifier in common'):
        compare.compare([tmp_path / 'one', tmp_path / 'two'], tmp_path / 'out')
