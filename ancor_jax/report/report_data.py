"""What the page of a run is made of: arrays, names and numbers, wherever they come from."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class ReportData:
    """A finished run and what its network gives for N test images.

    Raises:
        ValueError: there are no test images, or lengths or labels do not fit together.
    """

    title: str  # 'ANCOR on digits'
    settings: tuple[tuple[str, str], ...]  # what was trained: label and value
    results: Mapping[str, Any]  # the content of `results.json`, see `evaluate.as_json`; empty if there is none
    scalars: Sequence[Mapping[str, float]]  # the lines of `metrics.jsonl`
    images: Callable[[int], np.ndarray]  # index of a test image → uint8 [H, W, 3]; sizes may differ
    coarse: np.ndarray  # int32 [N]
    fine: np.ndarray | None  # int32 [N]; None where not all of them are known
    coarse_names: tuple[str, ...]
    fine_names: tuple[str, ...]  # may be empty where `fine` is None
    features: np.ndarray  # float32 [N, d], L2-normalised
    embeddings: np.ndarray | None  # float32 [N, D], un-normalised; None if the head has none
    class_weights: np.ndarray | None  # float32 [C, D], rows of the classifier; None without one, or one of other width
    class_logits: np.ndarray | None  # float32 [N, C]
    # Indices [n] → (uint8 [n, H, W, 3] as the network sees them, float32 [n, h, w] norm of the embedding of each cell
    # of the last feature map).
    heat: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None
    trained_on: str = 'coarse'  # or 'fine': what the classes C are
    split: str = 'test'  # or 'training', where there are no test images: what the N images are called

    def __post_init__(self) -> None:
        number = len(self.coarse)
        if not number:
            raise ValueError('there are no test images, and the report is about them; add some to the data set.')
        for name in ('fine', 'features', 'embeddings', 'class_logits'):
            array = getattr(self, name)
            if array is not None and len(array) != number:
                raise ValueError(f'{name} has {len(array)} rows and coarse has {number}; give one for each test image.')
        for name in ('coarse', 'fine') if self.fine is not None else ('coarse',):
            labels, names = getattr(self, name), getattr(self, f'{name}_names')
            if labels.min() < 0 or labels.max() >= len(names):
                raise ValueError(
                    f'{name} labels run from {labels.min()} to {labels.max()} and there are {len(names)} names; '
                    f'name every class, and leave out images without a {name} label.'
                )
        if self.trained_on not in ('coarse', 'fine'):
            raise ValueError(f"trained_on is 'coarse' or 'fine', and is {self.trained_on!r}.")

    @property
    def level(self) -> str:
        """'fine', or 'coarse' where the fine labels are unknown: the finest known labels."""
        return 'coarse' if self.fine is None else 'fine'

    @property
    def labels(self) -> np.ndarray:
        """int32 [N]: the finest known labels."""
        return self.coarse if self.fine is None else self.fine

    @property
    def names(self) -> tuple[str, ...]:
        """Of `labels`."""
        return self.coarse_names if self.fine is None else self.fine_names

    @property
    def classes(self) -> np.ndarray | None:
        """int32 [N]: the class, among the C that were trained on, of each test image; None where unknown."""
        return self.coarse if self.trained_on == 'coarse' else self.fine

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of `classes`."""
        return self.coarse_names if self.trained_on == 'coarse' else self.fine_names

    def full_name(self, index: int) -> str:
        """'tench (fish)', or 'fish' where the fine class of the image is unknown."""
        coarse = self.coarse_names[self.coarse[index]]
        return coarse if self.fine is None else f'{self.fine_names[self.fine[index]]} ({coarse})'

    @property
    def vectors(self) -> np.ndarray:
        """float32 [N, D]: the embeddings, or the features where there are none."""
        return self.features if self.embeddings is None else self.embeddings

    @property
    def weights(self) -> np.ndarray | None:
        """float32 [C, D]: the class weights, where they are vectors in the space of the embeddings."""
        return None if self.embeddings is None else self.class_weights
