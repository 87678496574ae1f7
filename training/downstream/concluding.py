"""What it comes to: the verdict in a sentence, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from uscl_zoo import shortcuts
from uscl_zoo.errors import UsclError
from uscl_zoo.network import Network

from ..fingerprints import Prints, find_pairs
from ..frames import FrameStore, Video
from ..pairs import Purpose, stream
from .bootstrap import Score
from .contenders import RANDOM
from .metrics import Judged
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


def verdict(standing: Standing, subjects: int, whom: str, method: str) -> str:
    """How good it is, against what, and for whom not, in a sentence.

    Args:
        standing: beside linear heads.
        subjects: that it was judged on.
        whom: what they are called, `subjects` or `files`.
        method: how they were kept apart, `held-out` or `left-out`.
    """
    judged = standing.judged
    main, balanced = "macro AUROC", "balanced accuracy"
    clips = "" if len(judged) == subjects else f"{len(judged)} files of "
    good = (
        f"of {clips}{subjects} {method} {whom}, {_listed(judged.classes)} are told apart with a "
        f"{balanced} of {standing.score(balanced)} (by chance {1 / len(judged.classes):.2f}) and a "
        f"{main} of {standing.score(main)}"
    )
    own = standing.own
    others = [
        f"{called(rival.name)} {standing.score(main, rival.values).value:.3f}"
        for rival in standing.rivals
        if rival is not own
    ]
    if own is None:
        begins = f"This is a linear head on {OWN} that it began with: {good}"
        if others:
            begins += f" (heads on {', on '.join(others)})"
        return f"{begins}; {_weakest(standing)}."
    ahead = own.behind[main]
    head = f"a linear head on {OWN}"
    theirs = f"{standing.score(main, own.values).value:.3f}"
    figures = f"{theirs}, difference {signed(ahead)}"
    if others:
        figures += f"; on {', on '.join(others)}"
    if ahead.bounded and ahead.low > 0:
        text = f"{good}, and training was worth its while: {head} has a {main} of {figures}"
    elif ahead.bounded:
        worse = "is worse than" if ahead.high < 0 else "did not beat"
        text = f"training {worse} {head} ({main} {figures}): {good}"
    else:
        text = f"{good}; whether training beat {head} ({figures}), so few subjects cannot say"
    return f"{text[0].upper()}{text[1:]}; {_weakest(standing)}."


def _weakest(standing: Standing) -> str:
    """For whom it is not: the class of which most are missed."""
    judged = standing.judged
    recalls = {c: standing.score(f"recall of {c}") for c in judged.classes}
    known = {c: score for c, score in recalls.items() if np.isfinite(score.value)}
    least = min(known, key=lambda c: known[c].value)
    if known[least].value == 1:
        return "no class is missed"
    place = judged.classes.index(least)
    said = judged.predicted[(judged.target == place) & (judged.predicted != place)]
    most = judged.classes[int(np.bincount(said).argmax())]
    return f"it is worst at {least}: {known[least]} are found, the others mostly called {most}"


def signed(score: Score) -> str:
    """A difference in words."""
    text = f"{score.value:+.3f}"
    return f"{text} [{score.low:+.3f}, {score.high:+.3f}]" if score.bounded else text


def called(name: str) -> str:
    """The features of a rival in words."""
    if name == IMAGENET:
        return "ImageNet's features"
    return "random features" if name.startswith(RANDOM) else name


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


# ------------------------------------------------------------------------------ what to do next


def more_subjects(standing: Standing, trained: int, whom: str) -> list[Advice]:
    """Whether more subjects would help, by what the second half of them brought a linear head.

    Args:
        standing: beside linear heads.
        trained: subjects that it was trained on.
        whom: what they are called.
    """
    gain = standing.learns.get("macro AUROC")
    if gain is None or not np.isfinite(gain.value):
        return []
    half, told = trained // 2, f"{signed(gain)} of macro AUROC"
    if gain.bounded and gain.low > 0 and gain.value >= WORTH:
        text = (
            f"From {half} to {trained} training {whom} a linear head on {OWN} gained {told}: "
            "collect more; as many again may bring about as much."
        )
    elif gain.bounded and gain.high < WORTH:
        text = (
            f"From {half} to {trained} training {whom} a linear head on {OWN} gained {told}: "
            "more of the same kind will bring little; look at the labels, or for subjects unlike "
            "these."
        )
    else:
        text = (
            f"From {half} to {trained} training {whom} a linear head on {OWN} gained {told}, "
            "which does not say whether more will help; for a narrower interval judge on more "
            "(`holdout`, or `folds`)."
        )
    return [Advice("More subjects?", text)]


def other_start(standing: Standing) -> list[Advice]:
    """Whether to begin with something else."""
    own = standing.own
    for rival in standing.rivals:
        if rival is own or own is None:
            continue
        ahead = rival.behind["macro AUROC"]
        if ahead.bounded and ahead.high < 0:
            return [
                Advice(
                    "Another start",
                    f"A linear head on the features of {rival.name} is better than this by "
                    f"{signed(negative(ahead))}: begin with it, or leave it at that.",
                )
            ]
    return []


def negative(score: Score) -> Score:
    """The difference the other way round."""
    return Score(-score.value, -score.high, -score.low)


def errors(judged: Judged) -> list[Advice]:
    """Which classes are taken for which, most often first."""
    wrong = judged.predicted != judged.target
    if not wrong.any():
        return []
    pairs, counts = np.unique(
        np.stack([judged.target[wrong], judged.predicted[wrong]]), axis=1, return_counts=True
    )
    told = []
    for place in np.argsort(-counts, kind="stable")[:2]:
        true, said = pairs[:, place]
        own = judged.target == true
        whose = judged.subject[own & (judged.predicted == said)]
        told.append(
            f"{counts[place]} of {own.sum()} {judged.classes[true]} files, of "
            f"{len(np.unique(whose))} subjects, are taken for {judged.classes[said]}"
        )
    return [Advice("Where it errs", "; ".join(told) + ": the surest of them are pictured below.")]


def twins(store: FrameStore, videos: Sequence[Video]) -> list[Advice]:
    """Files of different subjects that show the same picture, by the middle frame of each.

    Args:
        store: of the frames.
        videos: that were trained on or judged.
    """
    videos = videos[:PRINTED]
    rows = [video.first + video.count // 2 for video in videos]
    prints = Prints.of(Image.fromarray(store.frames[row]) for row in rows)
    names = sorted({video.subject for video in videos})
    group = np.array([names.index(video.subject) for video in videos], np.int64)
    pairs = find_pairs(prints, np.arange(len(videos)), group)
    if not len(pairs):
        return []
    first, second = ([videos[i] for i in side] for side in (pairs.first, pairs.second))
    both = list(zip(first, second, strict=True))
    apart = sum(one.split != other.split for one, other in both)
    unlike = sum(one.label != other.label for one, other in both)
    one, other = both[0]
    return [
        Advice(
            "Near-duplicates",
            f"{len(both)} pairs of files of different subjects show the same picture, {unlike} of "
            f"them with different labels{f', {apart} across the split' if apart else ''} (the "
            f"most alike: {one.name} and {other.name}). Are they one subject? "
            "`uscl audit DATA` lists all; until then the figures are too good.",
        )
    ]


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
        found = shortcuts.shortcut(network, there, progress=False)
    except UsclError as error:
        return [Advice("Shortcuts", f"Not looked for: {error}.")]
    changed = sum(case.changed for case in found.cases)
    without = sum(case.blanked + case.removed > 0 for case in found.cases)
    text = (
        f"With everything outside the beam, text and calipers blanked, the answer for {changed} of "
        f"{len(found)} files becomes another class"
    )
    if not without:
        text = f"In {len(found)} files there was nothing to blank outside the beam"
    if changed > SHORTCUT * len(found):
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
        known: whether subjects are known.
        seed: of what is drawn.
    """
    whom, how = "subjects" if known else "files", "held-out"
    subjects = [len({video.subject for video in side}) for side in (trained, judged)]
    every = list({video.name: video for video in (*trained, *judged)}.values())
    advice = [
        *errors(standing.judged),
        *other_start(standing),
        *more_subjects(standing, subjects[0], whom),
        *twins(store, every),
        *by_blanking(network, judged, seed),
    ]
    return Conclusion(verdict(standing, subjects[1], whom, how), standing, tuple(advice))
