"""What a recipe says about judging latents."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ProbeOptions:
    probes: list[str] = field(default_factory=lambda: ["svm", "random_forest", "xgboost"])
    """Classifiers to fit: ridge, lda, knn, svm, svm_rbf, logistic_regression, nystroem, decision_tree, random_forest,
    xgboost, mlp; [all] stands for all of them."""
    folds: int = 10
    """A classifier's setting is chosen by so many stratified folds of the training clips; 0: by the validation split,
    or by a tenth of the training clips if there is none."""
    labelled: float = 1.0
    """Share of each class's training labels that probes may use, whatever clips.labelled hid from training."""
    teacher: bool = True
    """Judge what the cache holds of the teacher too: how good a student's latents could be."""
    budget: str = ""
    """How long it may take, like 10min: classifiers that would take longer are chosen by a hold-out instead of folds,
    or left out. Empty: no bound."""
