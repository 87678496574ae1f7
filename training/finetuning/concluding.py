"""What it comes to: the verdict in a sentence, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from uscl_zoo.answers import CLASSES, LABELS, NUMBER
from uscl_zoo.classifier import shortcuts
from uscl_zoo.errors import UsclError
from uscl_zoo.network import Network

from ..downstream.bootstrap import LEAST, Score
from ..downstream.contenders import RANDOM
from ..downstream.metrics import Judged
from ..learning.frames import FrameStore, Video
from ..learning.pairs import Purpose, stream
from ..preparing.fingerprints import Prints, find_pairs
from .rivals import IMAGENET, OWN, Standing

#: Files at most that near-duplicates are looked for among, by a frame each, and that are blanked.
PRINTED, BLANKED = 4000, 16
#: Share of the files blanked whose answer moves to another class, from which on it is a warning.
SHORTCUT = 0.1
#: What half of the subjects more must have brought for more to be worth their while.
WORTH = 0.01


@dataclass(frozen=True)
class Advice:
    """Something to do, or to know.

    Attributes:
        what: it is about, in a word or two.
        text: a sentence or two.
    """

    what: str
    text: str


@dataclass(frozen=True)
class Conclusion:
    """What fine-tuning comes to.

    Attributes:
        verdict: a sentence.
        standing: beside linear heads.
        advice: what to do next.
    """

    verdict: str
    standing: Standing
    advice: tuple[Advice, ...]


def verdict(standing: Standing, subjects: int, whom: str, how: str) -> str:
    """How good it is, against what, and for whom not, in a sentence.

    Args:
        standing: beside linear heads.
        subjects: that it was judged on.
        whom: what they are called, `subjects` or `files`.
        how: they were kept apart, as `held-out`.
    """
    judged, goal = standing.judged, standing.goal
    clips = "" if len(judged) == subjects else f"{len(judged)} files of "
    good = f"of {clips}{subjects} {how} {whom}, {_good(standing)}"
    own, main = standing.own, goal.main
    others = [
        f"{called(rival.name)} {_figure(standing.score(main, rival.values).value, main)}"
        for rival in standing.rivals
        if rival is not own
    ]
    if own is None:
        begins = f"this is a linear head on the features that it began with: {good}"
        if others:
            begins += f" (heads on {', on '.join(others)})"
        return _sentence(f"{begins}; {_weakest(standing)}")
    ahead = standing.ahead(own.gap[main])
    head = f"a linear head on {OWN}"
    theirs = _figure(standing.score(main, own.values).value, main)
    figures = f"{theirs}, difference {signed(own.gap[main], main)}"
    if others:
        figures += f"; on {', on '.join(others)}"
    if ahead.bounded and ahead.low > 0:
        text = f"{good}, and training was worth its while: {head} has {_a(main)} of {figures}"
    elif ahead.bounded or standing.goal.support(main, judged) >= LEAST:
        # all resamples may say the same, as of two that make no error
        worse = "is worse than" if ahead.high < 0 else "did not beat"
        text = f"training {worse} {head} ({main} {figures}): {good}"
    else:
        text = f"{good}; whether training beat {head} ({figures}), so few subjects cannot say"
    return _sentence(f"{text}; {_weakest(standing)}{_behind(standing)}")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _a(figure: str) -> str:
    return f"an {figure}" if figure.startswith("MAE") else f"a {figure}"


def _good(standing: Standing) -> str:
    """How good it is."""
    judged, score = standing.judged, standing.score
    if standing.goal.task == NUMBER:
        knowing_nothing = np.abs(judged.target - np.median(judged.target)).mean()
        return (
            f"{judged.classes[0]} is predicted with a mean absolute error (MAE) of "
            f"{score('MAE'):.4g} (who always says their median: "
            f"{knowing_nothing:.4g}) and an R2 of {score('R2')}"
        )
    if standing.goal.task == LABELS:
        return (
            f"{listed(judged.classes)} are recognised with a mean AUROC of "
            f"{score('mean AUROC')} (by chance 0.5) and a mean F1 of {score('mean F1')}"
        )
    return (
        f"{listed(judged.classes)} are told apart with a balanced accuracy of "
        f"{score('balanced accuracy')} (by chance {1 / len(judged.classes):.2f}) and a macro AUROC "
        f"of {score('macro AUROC')}"
    )


def _weakest(standing: Standing) -> str:
    """For whom it is not: whom most are missed of."""
    judged = standing.judged
    if standing.goal.task == NUMBER:
        thirds = by_third(judged)
        worst = max(thirds, key=lambda name: thirds[name][1])
        whom, error = thirds[worst]
        return f"it errs most among the {worst} third ({whom}), by {error:.4g}"
    if standing.goal.task == LABELS:
        areas = {c: standing.score(f"AUROC of {c}") for c in judged.classes}
        known = {c: score for c, score in areas.items() if np.isfinite(score.value)}
        if not known:
            return "no label is there in some and not in others, to judge it by"
        least = min(known, key=lambda c: known[c].value)
        return f"it is worst at {least}, with an AUROC of {known[least]}"
    recalls = {c: standing.score(f"recall of {c}") for c in judged.classes}
    known = {c: score for c, score in recalls.items() if np.isfinite(score.value)}
    least = min(known, key=lambda c: known[c].value)
    if known[least].value == 1:
        return "no class is missed"
    place = judged.classes.index(least)
    said = judged.predicted[(judged.target == place) & (judged.predicted != place)]
    most = judged.classes[int(np.bincount(said).argmax())]
    return f"it is worst at {least}: {known[least]} are recognised, the others mostly called {most}"


def _behind(standing: Standing) -> str:
    """The class or label at which the linear head is surely better, though it may not be on all."""
    own, judged = standing.own, standing.judged
    kind = {CLASSES: "recall of ", LABELS: "AUROC of "}.get(standing.goal.task)
    if own is None or kind is None:
        return ""
    gaps = {c: own.gap[kind + c] for c in judged.classes}
    sure = {c: gap for c, gap in gaps.items() if gap.bounded and gap.high < 0}
    if not sure:
        return ""
    worst = min(sure, key=lambda c: sure[c].value)
    theirs = standing.score(kind + worst, own.values).value
    what = "recognises" if standing.goal.task == CLASSES else "has an AUROC of"
    return f"; of {worst} that head {what} {theirs:.3f}, difference {signed(sure[worst])}"


def by_third(judged: Judged) -> dict[str, tuple[str, float]]:
    """Of the lowest, middle and highest third of the numbers: from where to where, and the MAE."""
    truth, said = judged.target[:, 0], judged.probabilities[:, 0]
    parts = np.array_split(np.argsort(truth, kind="stable"), 3)
    return {
        name: (
            f"{truth[rows].min():.4g} to {truth[rows].max():.4g}",
            float(np.abs(said - truth)[rows].mean()),
        )
        for name, rows in zip(("lowest", "middle", "highest"), parts, strict=True)
        if len(rows)
    }


def _figure(value: float, figure: str) -> str:
    return f"{value:.4g}" if figure == "MAE" else f"{value:.3f}"


def signed(score: Score, figure: str = "") -> str:
    """A difference in words."""
    return f"{score:+.4g}" if figure == "MAE" else f"{score:+.3f}"


def called(name: str) -> str:
    """The features of a rival in words."""
    if name == IMAGENET:
        return "ImageNet's features"
    return "random features" if name.startswith(RANDOM) else name


def listed(names: Sequence[str]) -> str:
    """Names as people say them."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


# ------------------------------------------------------------------------------ what to do next


def more_subjects(
    standing: Standing, trained: int, whom: str, crossed: bool = False
) -> list[Advice]:
    """Whether more subjects would help, by what the second half of them brought a linear head.

    Args:
        standing: beside linear heads.
        trained: subjects that each head was fitted on.
        whom: what they are called.
        crossed: whether all subjects were judged already, by a cross-validation.
    """
    main = standing.goal.main
    if main not in standing.learns or not np.isfinite(standing.learns[main].value):
        return []
    gain = standing.ahead(standing.learns[main])
    half, gained = trained // 2, f"{signed(gain, main)} of {main}"
    # what is not worth collecting for: a hundredth, or of an error a twentieth
    worth = WORTH if standing.goal.rises else 5 * WORTH * abs(standing.values[main][0])
    if gain.bounded and gain.low > 0 and gain.value >= worth:
        text = (
            f"From {half} to {trained} training {whom} a linear head on {OWN} gained {gained}: "
            "collect more; as many again may bring about as much."
        )
    elif gain.bounded and gain.high < worth:
        text = (
            f"From {half} to {trained} training {whom} a linear head on {OWN} gained {gained}: "
            "more of the same kind will bring little; look at the labels, or for subjects unlike "
            "these."
        )
    else:
        text = (
            f"From {half} to {trained} training {whom} a linear head on {OWN} gained {gained}, "
            "which does not say whether more will help"
            + ("." if crossed else "; for a narrower interval judge on more (`holdout`, `folds`).")
        )
    return [Advice("More subjects?", text)]


def other_start(standing: Standing) -> list[Advice]:
    """Whether to begin with something else."""
    own = standing.own
    for rival in standing.rivals:
        if rival is own or own is None:
            continue
        main = standing.goal.main
        ahead = standing.ahead(rival.gap[main])
        if ahead.bounded and ahead.high < 0:
            worse = Score(-ahead.value, -ahead.high, -ahead.low)
            return [
                Advice(
                    "Another start",
                    f"A linear head on the features of {rival.name} is better than this by "
                    f"{signed(worse, main)} of {main}: begin with it, or leave it at that.",
                )
            ]
    return []


def errors(standing: Standing) -> list[Advice]:
    """Where it errs most."""
    judged, task = standing.judged, standing.goal.task
    text = {CLASSES: _confused, LABELS: _mislabelled, NUMBER: _misjudged}[task](judged)
    return [Advice("Where it errs", text)] if text else []


def _confused(judged: Judged) -> str:
    """Which classes are taken for which, most often first."""
    wrong = judged.predicted != judged.target
    if not wrong.any():
        return ""
    pairs, counts = np.unique(
        np.stack([judged.target[wrong], judged.predicted[wrong]]), axis=1, return_counts=True
    )
    mistakes = []
    for place in np.argsort(-counts, kind="stable")[:2]:
        true, said = pairs[:, place]
        own = judged.target == true
        whose = judged.subject[own & (judged.predicted == said)]
        mistakes.append(
            f"{counts[place]} of {own.sum()} {judged.classes[true]} files, of "
            f"{len(np.unique(whose))} subjects, are taken for {judged.classes[said]}"
        )
    return "; ".join(mistakes) + ": the surest of them are pictured below."


def _mislabelled(judged: Judged) -> str:
    """What is missed and said wrongly of the label with most errors."""
    said = judged.probabilities >= 0.5 if judged.said is None else judged.said
    missed = ((judged.target == 1) & ~said).sum(axis=0)
    wrongly = ((judged.target == 0) & said).sum(axis=0)
    place = int((missed + wrongly).argmax())
    if not missed[place] + wrongly[place]:
        return ""
    there = int((judged.target[:, place] == 1).sum())
    absent = int((judged.target[:, place] == 0).sum())
    return (
        f"{judged.classes[place]} is missed in {missed[place]} of {there} files that have it, and "
        f"said of {wrongly[place]} of {absent} that have not."
    )


def _misjudged(judged: Judged) -> str:
    """By how much, and which way, among high and low numbers."""
    truth, said = judged.target[:, 0], judged.probabilities[:, 0]
    if len(truth) < 3 or np.ptp(truth) == 0:
        return ""
    slope = float(np.polyfit(truth, said - truth, 1)[0])
    drawn = ""
    if slope < -0.2:
        drawn = (
            f" What is high is judged too low and what is low too high (the error falls by "
            f"{-slope:.2f} for each unit more): it falls back on the mean."
        )
    farthest = int(np.abs(said - truth).argmax())
    return (
        f"The farthest off is {said[farthest]:.4g} where {truth[farthest]:.4g} is right; the "
        f"largest errors are pictured below.{drawn}"
    )


def twins(store: FrameStore, trained: Sequence[Video], judged: Sequence[Video]) -> list[Advice]:
    """Files of different subjects that show the same picture, by the middle frame of each.

    Args:
        store: of the frames.
        trained: videos that were trained on.
        judged: videos that it was judged on, which may be the same in a cross-validation.
    """
    videos = list({video.name: video for video in (*judged, *trained)}.values())[:PRINTED]
    rows = [video.first + video.count // 2 for video in videos]
    prints = Prints.of(Image.fromarray(store.frames[row]) for row in rows)
    names = sorted({video.subject for video in videos})
    group = np.array([names.index(video.subject) for video in videos], np.int64)
    pairs = find_pairs(prints, np.arange(len(videos)), group)
    if not len(pairs):
        return []
    both = [(videos[i], videos[j]) for i, j in zip(pairs.first, pairs.second, strict=True)]
    sides = {video.name for video in trained}, {video.name for video in judged}
    # a model that has seen the picture of a file that it is judged on
    apart = sum(
        (one.name in sides[0] and other.name in sides[1])
        or (one.name in sides[1] and other.name in sides[0])
        for one, other in both
    )
    unlike = sum(one.label != other.label for one, other in both)
    one, other = both[0]
    text = (
        f"{len(both)} pairs of files of different subjects show the same picture, {unlike} of them "
        f"with different labels, {apart} with one trained on and the other judged (the most alike: "
        f"{one.name} and {other.name}). Are they one subject? `uscl audit DATA` lists all"
    )
    if apart:
        text += "; until then the figures are too good"
    return [Advice("Near-duplicates", f"{text}.")]


def by_blanking(network: Network, videos: Sequence[Video], seed: int) -> list[Advice]:
    """Whether answers hang on what is not ultrasound, by blanking it in some files.

    Args:
        network: the trained one, with its answers.
        videos: that it was judged on.
        seed: of which are taken.
    """
    order = stream(seed, 1, Purpose.VIDEOS).permutation(len(videos))[:BLANKED]
    files = [Path(videos[i].source) for i in order]
    there = [file for file in files if file.exists()]
    if not there:
        return [Advice("Shortcuts", "Not looked for: the files are no longer where they were.")]
    try:
        blanking = shortcuts.shortcut(network, there, progress=False)
    except UsclError as error:
        return [Advice("Shortcuts", f"Not looked for: {error}.")]
    changed = sum(case.changed for case in blanking.cases)
    moved = float(np.median([case.moved for case in blanking.cases]))
    blanked = "With everything outside the beam, text and calipers blanked"
    if not any(case.blanked + case.removed > 0 for case in blanking.cases):
        return [Advice("Shortcuts", f"In {len(blanking)} files there was nothing to blank.")]
    if network.answers is not None and network.answers.task == NUMBER:
        text = f"{blanked}, the number for {len(blanking)} files moves by {moved:.4g} (median)"
        much = moved > network.answers.spread / 2
    else:
        text = f"{blanked}, the answer for {changed} of {len(blanking)} files becomes another"
        much = changed > SHORTCUT * len(blanking)
    if much:
        text += (
            ": it may go by what is not ultrasound. `uscl shortcut MODEL FILES` shows where; "
            "training on a store that `uscl prepare` cleaned takes it away"
        )
    return [Advice("Shortcuts", f"{text}.")]


def conclude(
    standing: Standing,
    store: FrameStore,
    trained: Sequence[Video],
    judged: Sequence[Video],
    network: Network,
    *,
    fitted: int,
    known: bool,
    seed: int,
) -> Conclusion:
    """The verdict, and what to do next.

    Args:
        standing: beside linear heads.
        store: of the frames.
        trained: videos that were trained on.
        judged: videos that it was judged on, which may be the same in a cross-validation.
        network: the trained one, with its answers.
        fitted: subjects that a linear head was fitted on; the mean over folds.
        known: whether subjects are known.
        seed: of what is drawn.
    """
    whom = "subjects" if known else "files"
    crossed = bool({video.name for video in trained} & {video.name for video in judged})
    how, subjects = "left-out" if crossed else "held-out", len({v.subject for v in judged})
    advice = [
        *errors(standing),
        *other_start(standing),
        *more_subjects(standing, fitted, whom, crossed),
        *twins(store, trained, judged),
        *by_blanking(network, judged, seed),
    ]
    return Conclusion(verdict(standing, subjects, whom, how), standing, tuple(advice))
