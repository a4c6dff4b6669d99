"""The methods as a table of labels, losses and heads. One code path trains all of them."""

from typing import NamedTuple


class Method(NamedTuple):
    """A row of the table of methods."""

    classification: bool  # softmax cross-entropy on the class logits
    contrast: str  # 'class' | 'all_classes' | 'single' (one class-agnostic queue) | 'none'
    metric: str  # of the contrast: 'angular' | 'norm'
    labels: str  # trained on 'coarse' or 'fine' labels
    head: str  # the default head, see `models.Network`
    title: str  # in tables

    @property
    def uses_keys(self) -> bool:
        """Whether there is a target network, a second view and a queue."""
        return self.contrast != 'none'


METHODS = {
    'ancor': Method(True, 'class', 'angular', 'coarse', 'seq', 'ANCOR'),
    'ancor_no_projection': Method(True, 'class', 'norm', 'coarse', 'seq', 'ANCOR without the projection'),
    'ancor_all_classes': Method(True, 'all_classes', 'angular', 'coarse', 'seq', 'ANCOR, negatives of all classes'),
    'moco_coarse': Method(True, 'single', 'norm', 'coarse', 'seq', 'MoCo v2 + coarse labels'),
    'moco': Method(False, 'single', 'norm', 'coarse', 'none', 'MoCo v2'),
    'coarse': Method(True, 'none', 'norm', 'coarse', 'cls', 'Coarse-supervised'),
    'fine': Method(True, 'none', 'norm', 'fine', 'cls', 'Fine-supervised'),
}
