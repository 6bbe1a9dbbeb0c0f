"""How good predictions are, by scikit-learn's definitions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Scores of a classifier on images it has not seen in training."""

    accuracy: float
    balanced_accuracy: float
    auroc: float | None
    """Area under the ROC curve, one class against the rest, mean; None if a class is absent."""
    confusion: NDArray[np.int64]
    """[true class, predicted class], counts."""

    def as_metrics(self) -> dict[str, float]:
        """The scores by name; what could not be computed is left out."""
        named = {
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "auroc": self.auroc,
        }
        return {name: value for name, value in named.items() if value is not None}


def class_scores(logits: NDArray[np.float64], truth: NDArray[np.int64]) -> ClassScores:
    """Scores of logits [images, classes] against class indices [images]."""
    num_classes = logits.shape[1]
    predicted = logits.argmax(axis=1)
    present = np.unique(truth)
    recalls = [float((predicted[truth == each] == each).mean()) for each in present]
    return ClassScores(
        accuracy=float((predicted == truth).mean()),
        balanced_accuracy=float(np.mean(recalls)),
        auroc=_auroc(logits, truth) if len(present) == num_classes > 1 else None,
        confusion=metrics.confusion_matrix(truth, predicted, labels=np.arange(num_classes)),
    )


def _auroc(logits: NDArray[np.float64], truth: NDArray[np.int64]) -> float:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = shifted / shifted.sum(axis=1, keepdims=True)
    if shares.shape[1] == 2:
        # the difference keeps an order that rounding to probabilities near 1 would lose
        return float(metrics.roc_auc_score(truth, logits[:, 1] - logits[:, 0]))
    return float(metrics.roc_auc_score(truth, shares, multi_class="ovr"))


def number_scores(
    predicted: NDArray[np.float64], truth: NDArray[np.float64], names: tuple[str, ...]
) -> dict[str, float]:
    """Mean absolute error, root mean squared error (units of the target) and R^2, by target."""
    scores: dict[str, float] = {}
    for column, name in enumerate(names):
        pair = truth[:, column], predicted[:, column]
        scores[f"{name}/mae"] = float(metrics.mean_absolute_error(*pair))
        scores[f"{name}/rmse"] = float(metrics.root_mean_squared_error(*pair))
        if len(truth) > 1:
            scores[f"{name}/r2"] = float(metrics.r2_score(*pair))
    return scores
