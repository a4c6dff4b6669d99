"""Arguments before the flags are parsed: names of configurations, stored runs, fields, paths."""

import json
import pathlib

import pytest

from ancor_jax import config
from ancor_jax.runtime import arguments
from ancor_jax.runtime.arguments import ArgumentError
from tests.helpers import ROOT, small

DIGITS = f'--config={ROOT}/configs/digits_coarse.py'


def complete(*given):
    return arguments.complete(['program', *given], stored=['eval'], without=['compare'])[1:]


@pytest.mark.parametrize(
    ('given', 'completed'),
    [
        (['--config=digits_coarse'], [DIGITS]),
        (['--config', 'digits_coarse'], [DIGITS]),
        (['-config=digits_coarse'], [DIGITS]),
        (['--config=cifar100_coarse:cpu'], [f'--config={ROOT}/configs/cifar100_coarse.py:cpu']),
        ([f'--config={ROOT}/main.py:a:b'], [f'--config={ROOT}/main.py:a:b']),
        (['--config.seed=1', '--config=digits_coarse'], [DIGITS, '--config.seed=1']),
        (['--config=digits_coarse', '--config.seed', '1'], [DIGITS, '--config.seed=1']),
        (['--config=digits_coarse', '--noconfig.data.download'], [DIGITS, '--noconfig.data.download']),
        (['--config=digits_coarse', '--config.data.download', 'x'], [DIGITS, '--config.data.download', 'x']),
        (['--config=digits_coarse', '--config.eval.ways=0x5'], [DIGITS, '--config.eval.ways=0x5']),
        (['--config=digits_coarse', "--config.eval.probes[0]='knn'"], [DIGITS, "--config.eval.probes[0]='knn'"]),
        (['--config=tiered_coarse', '--config=digits_coarse'], [DIGITS]),
        (['--mode=eval', '--workdir=DIR'], [f'--config={ROOT}/configs/run.py:DIR', '--mode=eval', '--workdir=DIR']),
        (['--mode=eval', '--workdir=DIR', '--config=digits_coarse'], [DIGITS, '--mode=eval', '--workdir=DIR']),
        (['--mode=train', '--workdir=DIR'], ['--mode=train', '--workdir=DIR']),
        (['--mode=compare', '--workdir=DIR'], ['--mode=compare', '--workdir=DIR']),
        (['--', '--config=digits_coarse'], ['--', '--config=digits_coarse']),
        (['surplus'], ['surplus']),
        ([], []),
    ],
)
def test_arguments_are_completed(given, completed):
    assert complete(*given) == completed


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (['--config=digit_coarse'], r'no configuration .digit_coarse.; name one of .* Did you mean digits_coarse\?'),
        (['--config=elsewhere/digits_coarse.py'], 'no config file .*; --config=digits_coarse finds'),
        (['--config=nothing.py'], r"no config file 'nothing.py'\.$"),
        (['--config.seed=1'], r'--config.seed=1 changes a field .* none is given; add --config=NAME\.'),
        (['--mode=eval', '--config.seed=1'], 'add --config=NAME, or --workdir=DIR of a run'),
        (['--mode=compare', '--config.seed=1'], 'takes no configuration; remove --config.seed=1'),
    ],
)
def test_a_configuration_that_is_not_there_gets_a_sentence(given, message):
    with pytest.raises(ArgumentError, match=message):
        complete(*given)


@pytest.mark.parametrize(
    ('field', 'message'),
    [
        ('epochs=3', r"no field 'epochs'. Did you mean --config.train.epochs\?"),
        ('data.epochs=3', r'Did you mean --config.train.epochs\?'),
        ('train.epoch=3', r'Did you mean --config.train.epochs\?'),
        ('model.widht=3', r'Did you mean --config.model.width\?'),
        ('trian.epochs=3', r'Did you mean --config.train.epochs\?'),
        ('learning_rat=3', r'Did you mean --config.optim.learning_rate\?'),
        ('batch_size=3', r'Did you mean --config.train.batch_size or --config.eval.batch_size\?'),
        ('zzzzzz=3', r"no field 'zzzzzz'\.$"),
        ('train=3', "'train' is a section; change one of its fields"),
        ('train.epochs=many', "train.epochs must be a whole number, and is 'many'"),
        ('train.epochs=1.5', 'train.epochs must be a whole number'),
        ('train.epochs=', "train.epochs must be a whole number, and is ''"),
        ('optim.learning_rate=fast', 'optim.learning_rate must be a number'),
        ('data.download=maybe', 'data.download must be true or false'),
    ],
)
def test_a_slip_in_a_field_gets_a_sentence_and_the_flag_that_is_meant(field, message):
    with pytest.raises(ArgumentError, match=message):
        complete('--config=digits_coarse', f'--config.{field}')


def test_every_field_is_accepted_with_its_default_value():
    fields = [(name, value) for name, value, _ in config.fields(config.Config())]
    given = [f'--config.{name}={value}' for name, value in fields]
    assert complete('--config=digits_coarse', *given) == [DIGITS, *given]
    assert {'train.epochs', 'method'} < {name for name, _ in fields}


def test_advice_about_fields_is_accepted():
    with pytest.raises(ArgumentError) as error:
        complete('--config=digits_coarse', '--config.batch_size=3')
    advised = [word.rstrip('?') for word in str(error.value).split() if word.startswith('--config.')]
    assert complete('--config=digits_coarse', *(f'{flag}=3' for flag in advised))[1:] == [f'{f}=3' for f in advised]


def test_paths_have_home_and_variables_replaced(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('RUNS', '~/runs')
    assert arguments.expand('$RUNS/one') == f'{tmp_path}/runs/one'
    assert complete('--mode=eval', '--workdir=$RUNS/one')[0] == f'--config={ROOT}/configs/run.py:{tmp_path}/runs/one'
    assert complete('--config=run:~/one') == [f'--config={ROOT}/configs/run.py:{tmp_path}/one']
    (tmp_path / 'own.py').touch()
    assert complete('--config=~/own.py') == [f'--config={tmp_path}/own.py']
    settings = small(data__dir='~/images', eval__models=('$RUNS/a', 'b'))
    arguments.expand_fields(settings)
    assert settings.data.dir == f'{tmp_path}/images'
    assert settings.eval.models == (f'{tmp_path}/runs/a', 'b')


def test_fields_of_paths_are_fields():
    assert set(arguments.PATH_FIELDS) <= {name for name, _, _ in config.fields(config.Config())}


def test_an_installed_package_has_its_own_folder_of_configurations(monkeypatch, tmp_path):
    package = tmp_path / 'site-packages' / 'ancor_jax'
    (package / 'configs').mkdir(parents=True)
    (package / 'configs' / 'one.py').touch()
    (tmp_path / 'site-packages' / 'configs').mkdir()  # of another project
    monkeypatch.setattr(arguments.ancor_jax, '__file__', str(package / '__init__.py'))
    assert arguments.config_folder() == package / 'configs'
    assert arguments.config_names() == ['one']
    assert arguments.installation() == "pip install 'ancor_jax[train,report]'"


def test_a_checkout_is_installed_from_its_requirements():
    assert arguments.installation() == f'pip install -r {ROOT}/requirements.txt'


def test_every_configuration_has_a_name():
    assert 'digits_coarse' in arguments.config_names()
    assert 'run' not in arguments.config_names()
    for name in arguments.config_names():
        assert pathlib.Path(arguments.config_path(name)).is_file()


def test_a_stored_run_gives_its_configuration(tmp_path):
    from configs import run

    (tmp_path / 'config.json').write_text(json.dumps(config.to_dict(small(seed=7))))
    assert config.from_mapping(run.get_config(str(tmp_path))) == small(seed=7)
