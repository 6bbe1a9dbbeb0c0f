"""Scores equal scikit-learn's and a hand's count."""

import numpy as np
import pytest
from sklearn import metrics

from jobs.metrics import class_scores, number_scores


def guesses(classes: int, count: int = 60, seed: int = 0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=count)
    return rng.normal(size=(count, classes)) + 1.2 * np.eye(classes)[truth], truth


@pytest.mark.parametrize("classes", [2, 4])
def test_scores_of_classes_are_scikit_learns(classes):
    logits, truth = guesses(classes)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    predicted = logits.argmax(1)
    scores = class_scores(logits, truth)
    assert scores.accuracy == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert scores.balanced_accuracy == pytest.approx(
        metrics.balanced_accuracy_score(truth, predicted)
    )
    ranked = shares[:, 1] if classes == 2 else shares
    expected = metrics.roc_auc_score(truth, ranked, multi_class="ovr")
    assert scores.auroc == pytest.approx(expected)
    counted = np.zeros((classes, classes), int)
    np.add.at(counted, (truth, predicted), 1)
    assert np.array_equal(scores.confusion, counted)


def test_sure_answers_keep_their_order_in_auroc():
    logits = np.array([[0.0, 40.0], [0.0, 50.0], [0.0, 60.0], [0.0, 70.0]])
    truth = np.array([0, 1, 0, 1])
    assert class_scores(logits, truth).auroc == 0.75


def test_a_class_nobody_has_leaves_auroc_out_and_its_row_empty():
    logits, truth = guesses(3)
    logits, truth = logits[truth < 2], truth[truth < 2]
    scores = class_scores(logits, truth)
    assert scores.auroc is None
    assert set(scores.as_metrics()) == {"accuracy", "balanced_accuracy"}
    assert scores.confusion.shape == (3, 3)
    assert scores.confusion[2].sum() == 0
    recalls = [(logits[truth == each].argmax(1) == each).mean() for each in (0, 1)]
    assert scores.balanced_accuracy == pytest.approx(np.mean(recalls))


def test_errors_of_numbers_are_counted_by_target():
    truth = np.array([[1.0, 10.0], [2.0, 30.0], [4.0, 20.0]])
    predicted = np.array([[2.0, 10.0], [2.0, 26.0], [2.0, 20.0]])
    scores = number_scores(predicted, truth, ("a", "b"))
    assert scores["a/mae"] == pytest.approx(1.0)
    assert scores["a/rmse"] == pytest.approx(np.sqrt(5 / 3))
    assert scores["b/mae"] == pytest.approx(4 / 3)
    assert scores["b/r2"] == pytest.approx(1 - 16 / 200)
    assert set(number_scores(predicted[:1], truth[:1], ("a", "b"))) == {
        "a/mae", "a/rmse", "b/mae", "b/rmse",
    }  # fmt: skip
