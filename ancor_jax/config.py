"""The configuration: every field, explained once, with its default, its type and what it may be.

The defaults are the published recipe. A config file (`configs/`) changes what its experiment needs; the command line
overrides single fields with `--config.section.field=value`. `check` refuses values out of range and contradictions
before any work starts.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any, cast, get_origin, get_type_hints

from ancor_jax import models
from ancor_jax.fewshot import METHODS as CLASSIFIERS
from ancor_jax.fewshot import PROTOCOLS
from ancor_jax.methods import METHODS
from ancor_jax.training import optim

PIPELINES = ('auto', 'device', 'host')
BREEDS = ('living17', 'nonliving26', 'entity13', 'entity30')
BREEDS_SPLITS = ('good', 'bad', 'rand')
PROBES = ('linear', 'knn', 'retrieval', 'clustering', 'coarse')
JOINS = ('ensemble', 'concat', 'cascade')


class ConfigError(ValueError):
    """A field that is unknown, of the wrong type, out of range, or at odds with another."""


@dataclasses.dataclass(slots=True)
class Data:
    """Which images, with which labels."""

    name: str = ''  # 'digits', 'breeds', 'folder', 'tiered', or the name of a TFDS data set
    dir: str = ''  # where it lies; '' is the TFDS default, ~/tensorflow_datasets, for TFDS data sets and 'breeds'
    download: bool = False  # fetch and prepare it in `dir` if it is not there; cifar100 needs no TensorFlow for that
    manifest: str = ''  # of 'folder': a CSV or JSON Lines file of path, coarse, fine, split instead of the layout
    manifest_outside: bool = False  # let a manifest name images that are not below `dir` or its own folder
    test_part: float = 0.25  # of 'folder' without split folders: the part of each class that is kept for tests ...
    split_seed: int = 0  # ... and the seed of that choice
    breeds: str = 'living17'  # of 'breeds': living17, nonliving26, entity13, entity30
    breeds_split: str = ''  # good, bad, rand: train on the source's fine classes, test on the target's; '' has all
    coarse_key: str = 'coarse_label'  # TFDS feature that holds the coarse label
    fine_key: str = 'label'  # TFDS feature that holds the fine label
    fine_to_coarse: str = ''  # CSV or JSON file that gives each fine class its coarse one, in place of coarse_key
    train_split: str = 'train'  # split to train on, by its name in TFDS, or of its folder or file
    test_split: str = 'test'  # split of the few-shot episodes: images that training has not seen
    train_images: int = 0  # train on a class-balanced part of this many images; 0 is all
    pipeline: str = 'auto'  # device: images live there, all of one size; host: read and cropped anew in every epoch
    image_size: int = 0  # device: images are resized and cropped to this side; cache: their shorter side. 0 keeps them
    cache: str = ''  # of 'host': a directory that keeps the decoded images, resized to image_size, for later epochs
    threads: int = 0  # of 'host', for decoding; 0 is one a core
    max_unreadable: int = 0  # leave out up to this many images that cannot be read; finding them takes a pass over all


@dataclasses.dataclass(slots=True)
class Views:
    """The two random views of a training image, as torchvision's transforms define them."""

    size: int = 224  # side of a view, in pixels
    crop_min: float = 0.2  # random resized crop: least part of the image's area
    crop_max: float = 1.0  # and most
    flip: float = 0.5  # probability of a horizontal flip
    jitter: float = 0.8  # probability of colour jitter, of the strengths that follow
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grey: float = 0.2  # probability of turning grey
    blur: float = 0.5  # probability of Gaussian blur
    blur_min: float = 0.1  # sigma of the blur, in pixels, at least
    blur_max: float = 2.0  # and at most
    mean: tuple[float, float, float] = (0.4717, 0.4499, 0.3837)  # of the colours on a scale of 0..1; for tests too
    std: tuple[float, float, float] = (0.2600, 0.2516, 0.2575)


@dataclasses.dataclass(slots=True)
class Model:
    """The network."""

    name: str = 'resnet50'  # resnet12, resnet18, resnet34, resnet50, resnet101
    width: float = 1.0  # factor on every number of channels
    drop_rate: float = 0.1  # ResNet-12's dropout and DropBlock, reached over 40,000 steps
    drop_block_size: int = 5  # 2 for 32×32 images
    head: str = 'auto'  # seq, fork, cls, none; auto: the method's own
    embed_dim: int = 128
    mlp: bool = True  # hidden layer in the embedder
    normalize_embedding: bool = False  # the paper's text: classify the unit embedding ...
    relu_before_classifier: bool = True  # ... without ReLU ...
    classifier_bias: bool = True  # ... and without bias; the defaults are the published code
    dtype: str = 'float32'  # of the computation, float32 or bfloat16; parameters are float32
    # What is computed anew for the gradient, to save memory: none; convolutions: all of a block but its convolutions,
    # which costs little; blocks: all of it, which costs another forward pass.
    remat: str = 'none'


@dataclasses.dataclass(slots=True)
class Contrast:
    """The contrastive loss and its target network; unused by the supervised methods."""

    temperature: float = 0.2
    queue_size: int = 65536  # keys of each coarse class
    queue_dtype: str = 'float32'  # or bfloat16: half the memory
    target_momentum: float = 0.999  # of the target network's moving average


@dataclasses.dataclass(slots=True)
class Optim:
    """SGD and its learning rate."""

    learning_rate: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 1e-4  # on every parameter
    schedule: str = 'cosine_restarts'  # as published; cosine (to zero); steps
    cycles: int = 10  # restarts of cosine_restarts
    warmup_epochs: int = 0  # linear, for cosine and steps
    milestones: tuple[int, ...] = (120, 160)  # epochs of steps
    decay: float = 0.1  # factor of steps


@dataclasses.dataclass(slots=True)
class Train:
    """Length and layout of the training."""

    epochs: int = 200
    batch_size: int = 256  # over all devices
    batch_norm_groups: int = 0  # 0: statistics for each device; 1: synchronised; G: ghost groups, any devices
    devices: int = 0  # use this many; 0 is all (or as many as divide the ghost groups)
    steps_per_dispatch: int = 0  # steps that one call to the device runs; 0: 20 on accelerators, 1 on CPU
    log_steps: int = 20  # steps between lines of metrics
    tensorboard: bool = True  # write TensorBoard scalars beside metrics.jsonl
    progress: bool = True  # a progress bar at a terminal, plain lines elsewhere
    checkpoint_epochs: int = 1  # epochs between checkpoints


@dataclasses.dataclass(slots=True)
class Cluster:
    """Which of several processes of one run this is; as it stands, the only one."""

    detect: bool = False  # as Slurm, Open MPI, Kubernetes or a TPU pod tells each process that it has started
    coordinator: str = ''  # or by hand: HOST:PORT of the first,
    processes: int = 0  # how many there are,
    process: int = -1  # and which of them this is, from 0

    @property
    def several(self) -> bool:
        """Whether there are other processes to join."""
        return self.detect or bool(self.coordinator)


@dataclasses.dataclass(slots=True)
class Eval:
    """Few-shot evaluation."""

    protocols: tuple[str, ...] = (
        PROTOCOLS  # nway: `ways` of all fine classes; allway: all; intra: inside one coarse class
    )
    classifiers: tuple[str, ...] = ('lr',)  # of lr, nn, cosine, knn
    ways: int = 5
    shots: int = 1
    queries: int = 15  # a class
    episodes: int = 1000
    seed: int = 0  # fixes the episodes
    features: str = 'backbone'  # or embedding: the head's output
    checkpoint: str = 'latest'  # or best, by the periodic validation
    support_copies: int = 5  # augmented copies of each support image
    support_flip: bool = True  # they flip at random ...
    support_padding: int = 0  # ... and shift at random by this many zero-padded pixels
    resize: int = 0  # shorter side of a test image; 0 leaves it
    crop: int = 0  # centre crop after it (random crop for supports); 0 leaves it
    batch_size: int = 256  # images a pass when extracting features
    every_epochs: int = 10  # periodic few-shot validation during training; 0 is none
    validation_episodes: int = 200  # of it, 5-way with the cosine classifier
    # Further figures after the episodes: linear and knn learn the fine classes from all training images, retrieval and
    # clustering look at the test images alone, coarse is the accuracy of the class logits.
    probes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()  # two work directories to evaluate together, with --mode=eval
    join: tuple[str, ...] = JOINS  # how: ensemble of probabilities, concat of features, cascade from coarse to fine


@dataclasses.dataclass(slots=True)
class Config:
    """One experiment."""

    method: str = 'ancor'  # a name in methods.py: ancor, ancor_no_projection, moco, coarse, fine, ...
    seed: int = 0  # of initialisation, order, augmentation
    profile: tuple[int, ...] = ()  # (first, last): a trace of these steps of this session, in <workdir>/profile
    data: Data = dataclasses.field(default_factory=Data)
    views: Views = dataclasses.field(default_factory=Views)
    model: Model = dataclasses.field(default_factory=Model)
    contrast: Contrast = dataclasses.field(default_factory=Contrast)
    optim: Optim = dataclasses.field(default_factory=Optim)
    train: Train = dataclasses.field(default_factory=Train)
    cluster: Cluster = dataclasses.field(default_factory=Cluster)
    eval: Eval = dataclasses.field(default_factory=Eval)

    @property
    def head(self) -> str:
        """The head of the model, 'auto' resolved."""
        return METHODS[self.method].head if self.model.head == 'auto' else self.model.head


def from_mapping(values: Mapping[str, Any]) -> Config:
    """A Config of nested mappings (an ml_collections ConfigDict, or JSON), checked.

    Raises:
        ConfigError: see `check`; also an unknown field or a value of the wrong type, by its full name.
    """
    config = _build(Config, values, '')
    check(config)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Nested dicts, for JSON and for ml_collections."""
    return dataclasses.asdict(config)


def check(config: Config) -> None:
    """Refuses what cannot work.

    Raises:
        ConfigError: one sentence: which field, what it is, what it may be.
    """
    _one_of('method', config.method, METHODS)
    if not config.data.name:
        raise ConfigError("data.name is empty; name a data set: 'digits', or one of TFDS.")
    _one_of('model.head', config.model.head, ('auto', *models.HEADS))
    _one_of('model.name', config.model.name, models.NAMES)
    for name, dtype in [
        ('model.dtype', config.model.dtype),
        ('contrast.queue_dtype', config.contrast.queue_dtype),
    ]:
        _one_of(name, dtype, ('float32', 'bfloat16'))
    _one_of('model.remat', config.model.remat, models.REMAT)
    _one_of('data.pipeline', config.data.pipeline, PIPELINES)
    _one_of('data.breeds', config.data.breeds, BREEDS)
    if config.data.breeds_split:
        _one_of('data.breeds_split', config.data.breeds_split, BREEDS_SPLITS)
    _one_of('optim.schedule', config.optim.schedule, optim.SCHEDULES)
    _one_of('eval.features', config.eval.features, ('backbone', 'embedding'))
    _one_of('eval.checkpoint', config.eval.checkpoint, ('latest', 'best'))
    for protocol in config.eval.protocols:
        _one_of('eval.protocols', protocol, PROTOCOLS)
    for classifier in config.eval.classifiers:
        _one_of('eval.classifiers', classifier, CLASSIFIERS)
    for probe in config.eval.probes:
        _one_of('eval.probes', probe, PROBES)
    for join in config.eval.join:
        _one_of('eval.join', join, JOINS)
    if len(config.eval.models) not in (0, 2):
        raise ConfigError(
            f'eval.models takes two work directories, and has {len(config.eval.models)}: '
            "--config.eval.models=\"('DIR','DIR')\"."
        )
    if not config.eval.protocols or not config.eval.classifiers:
        raise ConfigError('eval.protocols and eval.classifiers must name at least one each.')
    _check_numbers(config)
    _check_contradictions(config)
    _check_cluster(config.cluster)


def _check_numbers(config: Config) -> None:
    positive = [
        ('views.size', config.views.size),
        ('model.width', config.model.width),
        ('model.embed_dim', config.model.embed_dim),
        ('model.drop_block_size', config.model.drop_block_size),
        ('contrast.temperature', config.contrast.temperature),
        ('contrast.queue_size', config.contrast.queue_size),
        ('optim.learning_rate', config.optim.learning_rate),
        ('optim.cycles', config.optim.cycles),
        ('optim.decay', config.optim.decay),
        ('train.epochs', config.train.epochs),
        ('train.batch_size', config.train.batch_size),
        ('train.log_steps', config.train.log_steps),
        ('train.checkpoint_epochs', config.train.checkpoint_epochs),
        ('eval.shots', config.eval.shots),
        ('eval.queries', config.eval.queries),
        ('eval.support_copies', config.eval.support_copies),
        ('eval.batch_size', config.eval.batch_size),
        ('views.blur_min', config.views.blur_min),
    ]
    for name, value in positive:
        if not 0 < value < math.inf:
            raise ConfigError(f'{name} must be greater than 0, and is {value}.')
    not_negative = [
        ('seed', config.seed),
        ('eval.seed', config.eval.seed),
        ('data.image_size', config.data.image_size),
        ('data.train_images', config.data.train_images),
        ('data.threads', config.data.threads),
        ('data.max_unreadable', config.data.max_unreadable),
        ('data.split_seed', config.data.split_seed),
        ('optim.weight_decay', config.optim.weight_decay),
        ('optim.warmup_epochs', config.optim.warmup_epochs),
        ('train.batch_norm_groups', config.train.batch_norm_groups),
        ('train.devices', config.train.devices),
        ('train.steps_per_dispatch', config.train.steps_per_dispatch),
        ('eval.support_padding', config.eval.support_padding),
        ('eval.resize', config.eval.resize),
        ('eval.crop', config.eval.crop),
        ('eval.every_epochs', config.eval.every_epochs),
        ('views.brightness', config.views.brightness),
        ('views.contrast', config.views.contrast),
        ('views.saturation', config.views.saturation),
    ]
    for name, value in not_negative:
        if not 0 <= value < math.inf:
            raise ConfigError(f'{name} must not be negative, and is {value}.')
    fractions = [
        ('views.flip', config.views.flip),
        ('views.jitter', config.views.jitter),
        ('views.grey', config.views.grey),
        ('views.blur', config.views.blur),
        ('contrast.target_momentum', config.contrast.target_momentum),
    ]
    for name, value in fractions:
        if not 0 <= value <= 1:
            raise ConfigError(f'{name} must lie in 0..1, and is {value}.')
    for name, value in [
        ('model.drop_rate', config.model.drop_rate),
        ('optim.momentum', config.optim.momentum),
        ('data.test_part', config.data.test_part),
    ]:
        if not 0 <= value < 1:
            raise ConfigError(f'{name} must lie in 0..1 and below 1, and is {value}.')
    counts = [
        ('eval.ways', config.eval.ways),
        ('eval.episodes', config.eval.episodes),  # an interval needs two
        ('eval.validation_episodes', config.eval.validation_episodes),
    ]
    for name, count in counts:
        if count < 2:
            raise ConfigError(f'{name} must be at least 2, and is {count}.')
    if not 0 <= config.views.hue <= 0.5:
        raise ConfigError(f'views.hue must lie in 0..0.5 (half the colour circle), and is {config.views.hue}.')
    for name, values in [('views.mean', config.views.mean), ('views.std', config.views.std)]:
        if len(values) != 3:
            raise ConfigError(f'{name} must be three numbers, one a colour, and is {values}.')
    if min(config.views.std) <= 0:
        raise ConfigError(f'views.std must be greater than 0, and is {config.views.std}.')


def _check_contradictions(config: Config) -> None:
    if config.profile and (len(config.profile) != 2 or not 0 <= config.profile[0] < config.profile[1]):
        raise ConfigError(f'profile is the first step of a trace and the one after its last, and is {config.profile}.')
    if config.eval.models and config.eval.join == ('ensemble',) and 'lr' not in config.eval.classifiers:
        raise ConfigError("eval.join='ensemble' takes probabilities, which 'lr' alone has; add it to eval.classifiers.")
    method, head = METHODS[config.method], config.head
    if method.classification and head == 'none':
        raise ConfigError(f"method={config.method} classifies, and model.head='none' has no class logits; use 'auto'.")
    if method.uses_keys and head == 'cls':
        raise ConfigError(f"method={config.method} contrasts, and model.head='cls' has no embedding; use 'auto'.")
    if config.eval.features == 'embedding' and head == 'cls':
        raise ConfigError("eval.features='embedding', and model.head='cls' has no embedding; use 'backbone'.")
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
            f'cluster.detect asks the cluster and cluster.coordinator={cluster.coordinator} tells; set one of them.'
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


def _one_of(name: str, value: str, allowed: Any) -> None:
    if value not in allowed:
        raise ConfigError(f'{name} must be one of {", ".join(allowed)}, and is {value!r}.{_suggestion(value, allowed)}')


def _suggestion(value: str, allowed: Any) -> str:
    close = difflib.get_close_matches(str(value), list(allowed), n=1)
    return f' Did you mean {close[0]!r}?' if close else ''


def _build(section: type, values: Mapping[str, Any], prefix: str) -> Any:
    types = get_type_hints(section)
    for name in values:
        if name not in types:
            raise ConfigError(f'{prefix}{name} is not a field of the configuration.{_suggestion(name, types)}')
    built = {}
    for name, value in values.items():
        kind = types[name]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping) and not hasattr(value, 'items'):
                raise ConfigError(f'{prefix}{name} must be a section of fields, and is {value!r}.')
            built[name] = _build(cast(type, kind), dict(value.items()), f'{prefix}{name}.')
        else:
            built[name] = _convert(value, kind, f'{prefix}{name}')
    return section(**built)


def _convert(value: Any, kind: Any, name: str) -> Any:
    if get_origin(kind) is tuple:
        if isinstance(value, (tuple, list)):
            item = kind.__args__[0]
            return tuple(_convert(v, item, name) for v in value)
        raise ConfigError(f'{name} must be a tuple, and is {value!r}.')
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, kind):
        raise ConfigError(f'{name} must be of type {kind.__name__}, and is {value!r}.')
    return value
