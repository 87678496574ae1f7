"""What weights have seen: by name, address, file and picture."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import make_card
from PIL import Image

from uscl_zoo.training.downstream.seen import Material, addresses, same_name, seen_by
from uscl_zoo.training.learning.frames import FrameStore, Video
from uscl_zoo.training.preparing.corpus import write_corpus
from uscl_zoo.training.preparing.fingerprints import Prints, find_known
from uscl_zoo.training.preparing.labels import Annotation
from uscl_zoo.training.preparing.parts import Sampling
from uscl_zoo.training.preparing.prepare import prepare
from uscl_zoo.zoo.card import Card, Source, Training


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("BUS-BRA", "BUS-BRA breast ultrasound", True),
        ("busbra", "BUS-BRA breast ultrasound", True),
        ("BUS BRA", "bus-bra", True),
        ("POCUS", "POCUS lung ultrasound", True),
        ("US-4", "Lung images of US-4", True),
        ("COVID_BLUES", "COVID-BLUES lung ultrasound", True),
        ("my breast images", "my breast images", True),
        ("US", "BUS-BRA breast ultrasound", False),
        ("US", "US-4", False),
        ("BUS", "BUS-BRA", False),
        ("Breast ultrasound", "BUSI breast ultrasound", False),
        ("BUSI breast ultrasound", "BUS-BRA breast ultrasound", False),
        ("liver", "AUL, Annotated Ultrasound Liver images", False),
        ("4", "US-4", False),
        ("COVID-19 lung ultrasound", "COVID-BLUES lung ultrasound", False),
    ],
)
def test_names_of_one_data_set(one: str, other: str, same: bool) -> None:
    assert same_name(one, other) is same
    assert same_name(other, one) is same


def test_addresses_in_one_spelling() -> None:
    doi = {"10.5281/zenodo.8231412"}
    assert addresses("https://doi.org/10.5281/ZENODO.8231412.") == doi
    assert addresses("Zenodo 8231412") == addresses("https://zenodo.org/records/8231412") == doi
    assert addresses("Gómez-Flores et al., doi 10.1002/mp.16812, 2024") == {"10.1002/mp.16812"}
    page = {"github.com/ninawie/covid-blues"}
    assert addresses("https://github.com/NinaWie/COVID-BLUES/") == page
    assert addresses("see http://www.github.com/NinaWie/COVID-BLUES.git") == page
    # a host alone is that of many
    assert addresses("https://github.com/", "Data in Brief 28:104863, 2020") == set()


def taken(folder: Path, pictures: dict[str, Path], size: int) -> FrameStore:
    """A store of pictures, each its own subject."""
    return prepare(
        pictures,
        folder,
        lambda name: Annotation(name.partition(".")[0], "any"),
        sampling=Sampling(size=size),
        holdout=0,
        workers=1,
        progress=False,
    ).store


def trained_on(store: FrameStore, folder: Path, *held: str, name: str = "Seen before") -> Card:
    """A card beside the corpus of a store."""
    source = Source(name, None, None, 1, 1, 1, {}, {})
    training = Training(method="uscl", sources=(source,), held_out_subjects=held)
    corpus = write_corpus(folder, "resnet18_uscl.trial", store, store.videos)
    return make_card(training=training, corpus=corpus)


@pytest.fixture(scope="module")
def breast(data: Path) -> list[Path]:
    with (data / "open" / "table.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["source"] == "BUS-BRA"]
    return [data / "open" / row["file"] for row in rows[:80]]


def test_pictures_saved_anew_are_recognised_and_others_are_not(
    breast: list[Path], data: Path, tmp_path: Path
) -> None:
    known = taken(tmp_path / "known", {path.name: path for path in breast[:40]}, 256)
    card = trained_on(known, tmp_path)
    anew: dict[str, Path] = {}
    (tmp_path / "anew").mkdir()
    for i, path in enumerate(breast[:40]):
        image = Image.open(path).convert("L")
        kind = ("png", "half.jpg", "twice.png", "mirrored.png")[i % 4]
        if kind == "half.jpg":
            image = image.resize((image.width // 2, image.height // 2))
        if kind == "twice.png":
            image = image.resize((image.width * 2, image.height * 2))
        if kind == "mirrored.png":
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        name = f"{i:03}.{kind}"
        image.save(tmp_path / "anew" / name)
        anew[name] = tmp_path / "anew" / name
    # another forty of the same data set, and forty of another
    other = {path.name: path for path in breast[40:]}
    other |= {f"{p.parent.name}-{p.name}": p for p in sorted((data / "busi").glob("*/*1.jpg"))[:40]}
    judged = taken(tmp_path / "judged", anew | other, 224)
    same = tuple(video for video in judged.videos if video.name in anew)
    rest = tuple(video for video in judged.videos if video.name in other)
    seen = seen_by(card, Material.of(("Mine",), (), judged, same), tmp_path)
    assert seen.leaks and seen.words == "in corpus (40 of 40 files, 40 by picture alone)"
    seen = seen_by(card, Material.of(("Mine",), (), judged, rest), tmp_path)
    assert not seen.leaks and seen.words == "not in corpus"
    both = Material.of(("Seen-before images",), (), judged, tuple(judged.videos))
    told = f"in corpus (40 of {len(both.digests)} files, 40 by picture alone, by name)"
    assert seen_by(card, both, tmp_path).words == told


def test_held_out_subjects_of_a_store_are_not_what_was_trained_on(
    breast: list[Path], tmp_path: Path
) -> None:
    store = taken(tmp_path / "store", {path.name: path for path in breast[:20]}, 64)
    held = {video.subject for video in store.videos[::2]}
    parted = store.holding_out(held)
    training = Training(
        method="uscl",
        sources=(Source("BUS-BRA", None, None, 1, 1, 1, {}, {}),),
        held_out_subjects=tuple(sorted(held)),
    )
    corpus = write_corpus(tmp_path, "resnet18_uscl.trial", parted, parted.select("train"))
    card = make_card(training=training, corpus=corpus)

    def told(videos: list[Video]) -> tuple[str, bool]:
        material = Material.of(("BUS-BRA breast ultrasound",), (), parted, tuple(videos))
        seen = seen_by(card, material, tmp_path)
        return seen.words, seen.leaks

    assert told([*parted.select("heldout")]) == ("in corpus, but none of these subjects", False)
    # as a whole it is in the corpus, and by how much
    assert told([*parted.videos]) == ("in corpus (10 of 20 files, by name)", True)


def test_without_fingerprints_names_and_addresses_have_to_do(
    breast: list[Path], tmp_path: Path
) -> None:
    store = taken(tmp_path / "store", {path.name: path for path in breast[:2]}, 64)
    source = Source("A", "https://zenodo.org/records/8231412", None, 1, 1, 1, {}, {})
    card = make_card(training=Training(method="uscl", sources=(source,)))
    texts = ("https://doi.org/10.5281/zenodo.8231412",)
    seen = seen_by(card, Material.of(("B",), texts, store, tuple(store.videos)))
    assert (seen.words, seen.leaks) == ("in corpus (by address)", True)
    seen = seen_by(card, Material.of(("B",), (), store, tuple(store.videos)))
    assert (seen.words, seen.leaks) == ("not on its card, which has no fingerprints", False)


def test_a_corpus_of_thousands_is_searched_in_seconds() -> None:
    rng = np.random.default_rng(0)
    known = rng.integers(0, 256, (8500, 32), np.uint8)
    asked = rng.integers(0, 256, (2000, 32), np.uint8)
    asked[::2] = known[:1000]
    prints = Prints(asked, np.empty((0, 64, 64), np.float16))
    began = time.process_time()
    found = find_known(prints, np.arange(2000), known, np.arange(8500))
    assert time.process_time() - began < 30
    assert sorted(found.first.tolist()) == list(range(0, 2000, 2))
