"""Configurations: every file builds, every mistake gets one sentence before any work starts."""

import copy
import importlib
import pathlib

import pytest

from ancor_jax import config as configuration
from ancor_jax.config import Config, ConfigError, constraints
from ancor_jax.config.experiments import as_config_dict

FILES = sorted(path.stem for path in (pathlib.Path(__file__).parent.parent / 'configs').glob('[a-z]*_*.py'))


def digits() -> Config:
    return importlib.import_module('configs.digits_coarse').experiment()


@pytest.mark.parametrize('name', FILES)
def test_every_file_gives_a_valid_configuration(name):
    experiment = importlib.import_module(f'configs.{name}')
    settings = configuration.from_mapping(experiment.get_config())
    assert settings == experiment.experiment()


def test_files_are_there():
    assert {'digits_coarse', 'cifar100_coarse', 'imagenet_coarse'} <= set(FILES)


def test_variants():
    cifar = importlib.import_module('configs.cifar100_coarse')
    assert cifar.experiment('cpu').model.width < cifar.experiment().model.width
    with pytest.raises(ConfigError, match='variants'):
        cifar.experiment('gpu')


def changed(field: str, value: object) -> dict:
    values = copy.deepcopy(configuration.to_dict(digits()))
    *sections, name = field.split('.')
    target = values
    for section in sections:
        target = target[section]
    target[name] = value
    return values


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('method', 'ancorr', "method must be one of .* Did you mean 'ancor'?"),
        ('model.nmae', 'resnet12', "model.nmae is not a field .* Did you mean 'name'?"),
        ('model.name', 'resnet21', "model.name must be one of .* Did you mean 'resnet"),
        ('model', 3, 'model must be a section'),
        ('train.epochs', '10', 'train.epochs must be of type int'),
        ('train.epochs', True, 'train.epochs must be of type int'),
        ('train.epochs', 0, 'train.epochs must be greater than 0'),
        ('optim.weight_decay', -1.0, 'optim.weight_decay must not be negative'),
        ('views.flip', 1.5, r'views.flip must lie in 0\.\.1'),
        ('views.hue', 0.7, 'views.hue must lie'),
        ('views.mean', (0.5,), 'views.mean must be three numbers'),
        ('views.std', (0.5, 0.0, 0.5), 'views.std must be greater than 0'),
        ('views.crop_min', 1.5, 'crop_min'),
        ('views.blur_min', 3.0, 'views.blur_min=3.0 is above'),
        ('data.name', '', 'data.name is empty'),
        ('model.head', 'none', 'has no class logits'),
        ('model.head', 'cls', 'has no embedding'),
        ('eval.protocols', (), 'at least one'),
        ('eval.protocols', ('6way',), 'eval.protocols must be one of'),
        ('eval.classifiers', ('svm',), 'eval.classifiers must be one of'),
        ('eval.classifiers', 'lr', 'eval.classifiers must be a tuple'),
        ('eval.ways', 1, 'eval.ways must be at least 2'),
        ('eval.episodes', 1, 'eval.episodes must be at least 2'),
        ('seed', -1, 'seed must not be negative'),
        ('model.drop_rate', 1.0, 'model.drop_rate must lie'),
        ('optim.learning_rate', float('nan'), 'optim.learning_rate must be greater than 0'),
        ('optim.warmup_epochs', 30, 'leaves none'),
        ('eval.resize', 10, None),
        ('optim.learning_rate', 1, None),
    ],
)
def test_each_mistake_gets_one_sentence(field, value, message):
    values = changed(field, value)
    if message is None:
        assert configuration.from_mapping(values)
        return
    with pytest.raises(ConfigError, match=message) as error:
        configuration.from_mapping(values)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'method': 'coarse', 'eval.features': 'embedding'}, "head='cls' has no embedding"),
        ({'eval.crop': 12, 'eval.resize': 10, 'eval.support_padding': 0}, 'is larger than eval.resize'),
        ({'eval.crop': 12, 'eval.support_padding': 2}, 'two ways to shift'),
        ({'eval.checkpoint': 'best', 'eval.every_epochs': 0}, 'needs the periodic validation'),
        ({'optim.schedule': 'cosine_restarts', 'optim.warmup_epochs': 1}, 'warmup_epochs goes with'),
        ({'optim.nesterov': True, 'optim.name': 'lamb'}, 'has no Nesterov form'),
        ({'optim.nesterov': True, 'optim.momentum': 0.0}, 'nesterov=True needs momentum'),
        ({'optim.freeze': '2'}, 'would keep random weights; name pretrained ones'),
        ({'optim.freeze': 'backbone', 'model.init': 'x', 'optim.layer_decay': 0.5}, 'leaves no block'),
        ({'optim.freeze': '2', 'model.init': 'x', 'train.on': 'features'}, 'trains the head alone'),
        ({'optim.freeze': 'head'}, "optim.freeze must be 'backbone', a number greater than 0, or ''"),
        ({'optim.freeze': '0'}, "optim.freeze must be 'backbone', a number greater than 0, or ''"),
        ({'optim.layer_decay': 1.5}, 'optim.layer_decay must lie in 0..1'),
        ({'model.small_stem': True, 'model.name': 'resnet12'}, 'small_stem=True is for resnet18'),
        ({'model.pooling': 'both', 'model.name': 'resnet18'}, "pooling='both' is for vision transformers"),
        ({'model.pooling': 'max', 'model.name': 'vit_ti16'}, 'model.pooling must be one of class, mean, both'),
        ({'optim.name': 'adam'}, 'optim.name must be one of sgd, adamw, lars, lamb.*Did you mean'),
        ({'optim.clip_norm': -1.0}, 'optim.clip_norm must not be negative'),
        ({'optim.schedule': 'steps', 'optim.milestones': (25, 20)}, 'must ascend'),
        ({'optim.schedule': 'steps', 'optim.milestones': (20, 120)}, 'reach past train.epochs=30'),
        ({'cluster.coordinator': 'host', 'cluster.processes': 2, 'cluster.process': 0}, 'must be HOST:PORT'),
        ({'cluster.coordinator': 'host:1'}, 'needs cluster.processes'),
        ({'cluster.coordinator': 'host:1', 'cluster.processes': 2, 'cluster.process': 2}, 'they are 2 and 2'),
        ({'cluster.coordinator': 'host:1', 'cluster.processes': 2, 'cluster.process': -1}, 'they are 2 and -1'),
        ({'cluster.processes': 2}, 'go with cluster.coordinator'),
        ({'cluster.process': 0}, 'go with cluster.coordinator'),
        (
            {'cluster.detect': True, 'cluster.coordinator': 'host:1', 'cluster.processes': 2, 'cluster.process': 0},
            'set one of them',
        ),
    ],
)
def test_contradictions(changes, message):
    settings = digits()
    for field, value in changes.items():
        *sections, name = field.split('.')
        target = settings
        for section in sections:
            target = getattr(target, section)
        setattr(target, name, value)
    with pytest.raises(ConfigError, match=message):
        configuration.check(settings)


def test_a_config_file_cannot_invent_fields():
    settings = digits()
    with pytest.raises(AttributeError):
        settings.train.epoch = 3


def test_config_dict_is_typed_and_round_trips():
    values = as_config_dict(digits())
    with pytest.raises(TypeError):
        values.train.epochs = 'many'
    assert configuration.from_mapping(values) == digits()


def test_constraints_of_two_kinds_are_never_taken_for_each_other():
    """`Annotated[float, x]` and `Annotated[float, y]` are one cached type if x equals y."""
    assert constraints.Above(0) != constraints.AtLeast(0)
    assert constraints.AtLeast(0) == constraints.AtLeast(0)
