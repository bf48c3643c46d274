"""What a judge found about samples: whether they are of the class that was asked for, and as varied as the data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Judgement:
    """What a judge found.

    Args:
        judge: who judged, for notes: `SVC(gamma=0.001), fitted on real digits`.
        class_agreement: share of samples given the class that was asked for, in [0, 1].
        class_agreement_real: the same for real held-out images and their labels: the judge's own accuracy.
        diversity_ratio: mean over classes of `diversity_by_class`.
        agreement_by_class: class -> share.
        diversity_by_class: class -> D_c(samples) / D_c(real); classes with fewer than two samples are left out.
        num_samples: judged.
    """

    judge: str
    class_agreement: float
    class_agreement_real: float
    diversity_ratio: float
    agreement_by_class: dict[int, float]
    diversity_by_class: dict[int, float]
    num_samples: int
