"""How the penalty of a linear classifier is best chosen, by folds of the training subjects.

    python -m tests.benchmarks.penalty_rules STORE MODEL ... [--shares 1 0.25 0.1]

STORE is one of `uscl prepare` with labels, each MODEL one of the zoo. Of 5 folds by subject each is
judged by a regression on the others' frozen features, or on those of a share of their subjects. The
rules read the same inner folds: `balanced accuracy` takes the best, `within an error` the strongest
within one standard error of it (Breiman et al., 1984), `log loss` the least, classes weighted
equally.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline
from sklearn.utils.class_weight import compute_sample_weight

import uscl_zoo
from uscl_zoo.training.downstream.folds import some_subjects
from uscl_zoo.training.downstream.regression import PENALTIES, features, regression
from uscl_zoo.training.downstream.sample import Sample
from uscl_zoo.training.learning.frames import FrameStore


def chosen(known: npt.NDArray[np.float64], sample: Sample) -> dict[str, float]:
    """The penalty by each rule."""
    fewest = min(len(np.unique(sample.subject[sample.target == c])) for c in set(sample.target))
    folds = StratifiedGroupKFold(min(5, fewest), shuffle=True, random_state=0)
    right, lost = [], []
    for own, other in folds.split(known, sample.target, sample.subject):
        fits: list[Pipeline] = [
            regression(penalty).fit(known[own], sample.target[own]) for penalty in PENALTIES
        ]
        said, asked = [fit.predict_proba(known[other]) for fit in fits], sample.target[other]
        weight = compute_sample_weight("balanced", asked)
        right.append([balanced_accuracy_score(asked, one.argmax(axis=1)) for one in said])
        lost.append([log_loss(asked, one, sample_weight=weight) for one in said])
    mean = np.mean(right, axis=0)
    best = int(mean.argmax())
    error = np.std(right, axis=0, ddof=1)[best] / np.sqrt(len(right))
    places = {
        "within an error": int(np.flatnonzero(mean >= mean[best] - error)[0]),
        "balanced accuracy": best,
        "log loss": int(np.mean(lost, axis=0).argmin()),
    }
    return {rule: PENALTIES[place] for rule, place in places.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.25, 0.1])
    given = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    store = FrameStore(given.store)
    everyone = Sample.of([video for video in store.videos if video.label], store.labels)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    print("| model | share | penalty by | macro AUROC | balanced accuracy | weighted F1 | C |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in given.models:
        network = uscl_zoo.create_model(name, pretrained=True)
        known = features(network, store, everyone.rows).astype(np.float64)
        for share in given.shares:
            shape = len(everyone), len(store.labels)
            said: dict[str, npt.NDArray[np.float64]] = {}
            taken: dict[str, list[str]] = {}
            for fold, (train, test) in enumerate(
                folds.split(known, everyone.target, everyone.subject)
            ):
                if share < 1:
                    some = some_subjects(
                        everyone.target[train], everyone.subject[train], share, (0, fold)
                    )
                    train = train[np.isin(everyone.subject[train], some)]
                sample = everyone.take(train)
                for rule, penalty in chosen(known[train], sample).items():
                    fit = regression(penalty).fit(known[train], sample.target)
                    chances = said.setdefault(rule, np.zeros(shape))
                    chances[test] = fit.predict_proba(known[test])
                    taken.setdefault(rule, []).append(f"{penalty:g}")
            for rule, chances in said.items():
                target, guess = everyone.target, chances.argmax(axis=1)
                print(
                    f"| {name} | {share:g} | {rule} "
                    f"| {roc_auc_score(target, chances, multi_class='ovr'):.3f} "
                    f"| {balanced_accuracy_score(target, guess):.3f} "
                    f"| {f1_score(target, guess, average='weighted'):.3f} "
                    f"| {', '.join(taken[rule])} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
