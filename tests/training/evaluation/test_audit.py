from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uscl_zoo.cli import main
from uscl_zoo.errors import CardError, DataError, DigestError, UnreadableError
from uscl_zoo.records import write_yaml
from uscl_zoo.training.evaluation.audit import audit
from uscl_zoo.training.evaluation.findings import PAGE, PAIRS, Audit, Finding
from uscl_zoo.training.learning.frames import MANIFEST, FrameStore
from uscl_zoo.training.preparing.corpus import add_corpus, read_corpus
from uscl_zoo.zoo import weights_cache
from uscl_zoo.zoo.card import Card, Source, read_card
from uscl_zoo.zoo.catalogue import packaged_cards, packaged_folder


def scene(seed: int, side: int = 160) -> Image.Image:
    """Speckle of a few sizes: no two are alike."""
    rng = np.random.default_rng(seed)
    grey = np.full((side, side), 60.0)
    for cells in (5, 20, 80):
        noise = Image.fromarray(rng.normal(0, 30, (cells, cells)).astype(np.float32))
        grey += np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(grey, 10, 255).astype(np.uint8))


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=70) if path.suffix == ".jpg" else image.save(path)


def clip(folder: Path, seeds: Sequence[int]) -> None:
    for i, seed in enumerate(seeds):
        save(scene(seed), folder / f"{folder.name}_frame{i}.png")


def names(found: Audit) -> list[tuple[str, str, str, tuple[str, ...]]]:
    return [(f.first.name, f.second.name, f.how, f.across) for f in found.findings]


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Ten scenes in two classes; one in both, one twice in one, one mirrored."""
    folder = tmp_path / "classes"
    for i in range(10):
        save(scene(i), folder / "ab"[i % 2] / f"{i}.png")
    save(scene(0).resize((200, 140)), folder / "b" / "again.jpg")
    save(scene(1).crop((2, 2, 158, 158)), folder / "b" / "cropped.png")
    save(scene(2).transpose(Image.Transpose.FLIP_LEFT_RIGHT), folder / "a" / "turned.png")
    return folder


def test_copies_are_found_within_and_across_classes(classes: Path) -> None:
    found = audit([str(classes)], progress=False)
    assert names(found) == [
        ("a/0.png", "b/again.jpg", "same picture", ("classes",)),
        ("a/2.png", "a/turned.png", "mirrored picture", ()),
        ("b/1.png", "b/cropped.png", "same picture", ()),
    ]
    assert found.leaks


def test_a_copy_of_the_file_is_called_one(classes: Path) -> None:
    shutil.copy(classes / "a" / "4.png", classes / "b" / "copy.png")
    first = audit([str(classes)], progress=False).findings[0]
    assert (first.first.name, first.second.name, first.how) == (
        "a/4.png",
        "b/copy.png",
        "same file",
    )
    assert first.correlation == pytest.approx(1, abs=1e-3)


def test_what_one_subject_has_is_told_only_across_classes(classes: Path) -> None:
    # a digit is the subject; `again`, `cropped` and `turned` are one each
    found = audit([str(classes)], subject_pattern=r"(\d|[act]\w+)\.", progress=False)
    assert names(found)[0][3] == ("classes", "subjects")
    (classes / "b" / "cropped.png").rename(classes / "b" / "x1.png")
    of_one = audit([str(classes)], subject_pattern=r"(\d|[act]\w+)\.", progress=False)
    assert len(of_one.findings) == len(found.findings) - 1


def test_videos_are_paired_once_with_their_best_frames(tmp_path: Path) -> None:
    clip(tmp_path / "v" / "a" / "one", [0, 1, 2, 2, 3])
    clip(tmp_path / "v" / "a" / "two", [9, 8, 2, 3])
    clip(tmp_path / "v" / "b" / "three", [20, 21, 22])
    save(scene(30), tmp_path / "v" / "b" / "still.png")
    (finding,) = audit([str(tmp_path / "v")], progress=False).findings
    assert {finding.first.name, finding.second.name} == {"a/one", "a/two"}
    assert (finding.first.name, *finding.frames) in {
        ("a/one", 2, 2),
        ("a/one", 3, 2),
        ("a/one", 4, 3),
    }


def test_data_sets_are_compared_with_each_other(classes: Path, tmp_path: Path) -> None:
    save(scene(7), tmp_path / "other" / "x.bmp")
    save(scene(99), tmp_path / "other" / "y.jpg")
    found = audit([str(classes), str(tmp_path / "other")], progress=False)
    assert ("b/7.png", "x.bmp", "same picture", ("data sets",)) in names(found)
    assert not any("y.jpg" in row for row in names(found))


def test_pictures_without_texture_are_no_pairs(tmp_path: Path) -> None:
    for i in range(4):
        save(Image.new("L", (64, 64), 80 * (i % 2)), tmp_path / "flat" / f"{i}{'x' * i}.png")
    assert not audit([str(tmp_path / "flat")], progress=False).findings


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(classes: Path) -> None:
    (classes / "a" / "broken.png").write_bytes(b"no image")
    found = audit([str(classes)], progress=False)
    assert len(found.findings) == 3
    assert [Path(source).name for source, _ in found.skipped] == ["broken.png"]
    assert "broken.png" in str(found)


def test_subjects_and_pictures_across_a_split_are_found(
    small_store: FrameStore, tmp_path: Path
) -> None:
    assert not audit([str(small_store.folder)], progress=False).torn
    copy = tmp_path / "store"
    shutil.copytree(small_store.folder, copy)
    victim = next(video for video in small_store.videos if video.split == "train")
    other = next(video for video in small_store.videos if video.split == "heldout")
    text = (copy / MANIFEST).read_text().splitlines()
    moved = [
        line.replace(f",{other.subject},", f",{victim.subject},", 1)
        if line.startswith(other.name)
        else line
        for line in text
    ]
    (copy / MANIFEST).write_text("\n".join(moved) + "\n")
    found = audit([str(copy)], progress=False)
    assert found.torn == (("store", victim.subject, "heldout, train"),)
    assert found.leaks


# ------------------------------------------------------------------------------ the corpus


@pytest.fixture
def trained(
    installed: Callable[..., Card], home: Path, small_store: FrameStore
) -> tuple[Card, Path]:
    """A card of weights that were trained on the small store, with its fingerprints."""
    card = installed()
    counts = small_store.summary(small_store.select("train"))
    source = Source("Clips", None, None, **counts)
    held = tuple(small_store.description["held_out_subjects"])
    path = home / ".uscl_zoo" / f"{card.name}.yaml"
    training = replace(card.training, sources=(source,), held_out_subjects=held, recipe={})
    write_yaml(path, replace(card, training=training))
    return add_corpus(path, small_store), path


def test_the_corpus_tells_what_was_trained_on_and_nothing_else(
    trained: tuple[Card, Path], small_store: FrameStore, clips: Path, tmp_path: Path
) -> None:
    card, path = trained
    assert card.corpus is not None
    corpus = read_corpus(path.with_name(card.corpus.file))
    train = small_store.select("train")
    assert len(corpus.digests) == len(train)
    assert len(corpus.hashes) == sum(video.count for video in train)
    content = path.with_name(card.corpus.file).read_bytes()
    assert not any(video.name.encode() in content for video in train)
    # the raw files, without a split: what was trained on is a leak
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "all").symlink_to(clips)
    found = audit([str(tmp_path / "raw"), card.name], progress=False)
    seen = {f.first.name.split("/")[-1] for f in found.findings if "corpus" in f.across}
    assert {video.name.split("/")[-1] for video in train} <= seen
    # the store knows that they were
    own = audit([str(small_store.folder), str(path)], progress=False)
    assert all(f.first.split == "train" for f in own.findings if f.how == "same file")
    assert not any("corpus" in f.across for f in own.findings if f.first.split == "train")


def test_a_corpus_of_other_data_is_refused(trained: tuple[Card, Path], tmp_path: Path) -> None:
    card, path = trained
    file = path.with_name(card.corpus.file if card.corpus else "")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DigestError, match="is not the file that the card"):
        weights_cache.corpus_of(card)
    with pytest.raises(CardError, match="are no fingerprints"):
        read_corpus(path)
    file.unlink()
    assert weights_cache.corpus_of(card) is None
    save(scene(0), tmp_path / "mine" / "x.png")
    with pytest.raises(DataError, match="no fingerprints of what it was trained on"):
        audit([str(tmp_path / "mine"), card.name], progress=False)


def test_fetching_carries_the_corpus_along(trained: tuple[Card, Path], tmp_path: Path) -> None:
    card, _ = trained
    weights_cache.fetch(card, tmp_path / "stick")
    assert card.corpus is not None
    assert (tmp_path / "stick" / card.corpus.file).stat().st_size == card.corpus.bytes
    carried = weights_cache.corpus_of(card, tmp_path / "stick")
    assert carried == tmp_path / "stick" / card.corpus.file


@pytest.mark.parametrize("name", [n for n, c in packaged_cards().items() if c.corpus is not None])
def test_the_bundled_weights_say_what_they_have_seen(name: str) -> None:
    card = packaged_cards()[name]
    file = weights_cache.corpus_of(card)
    assert file is not None
    assert file.parent == packaged_folder()
    # a digest of 64 bytes a video, and half that a picture
    videos = sum(source.videos or 0 for source in card.training.sources)
    assert file.stat().st_size < 1000 * videos
    assert len(read_corpus(file).digests) == videos
    assert read_card(packaged_folder() / f"{name}.yaml").corpus == card.corpus


# ------------------------------------------------------------------------------ BUSI, the command


def test_busi_has_one_image_under_two_labels(data: Path, tmp_path: Path) -> None:
    found = audit([f"busi:{data / 'busi'}"], progress=False)
    across = {(f.first.name, f.second.name): f for f in found.findings if f.across}
    twins: Finding = across["benign/benign_433.jpg", "malignant/malignant_145.jpg"]
    assert (twins.how, twins.across) == ("same file", ("classes",))
    assert len(across) == 9
    assert all("classes" in f.across for f in across.values())
    # looked at one by one, none of them a mistake: docs/audit.md
    assert len(found.findings) == 198


def test_the_command_reports_and_fails_when_asked(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: object) -> int:
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as error:
            return int(error.code or 0)
        return 0

    assert call("audit", classes, "-o", tmp_path / "report") == 0
    said = capsys.readouterr().out
    assert "1 pairs across classes" in said
    assert "a/0.png (a) = b/again.jpg (b)" in said
    page = (tmp_path / "report" / PAGE).read_text()
    assert len(re.findall("data:image/jpeg;base64,", page)) == 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    with (tmp_path / "report" / PAIRS).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["across"] for row in rows] == ["classes", "", ""]
    assert rows[0]["second_label"] == "b"
    assert call("audit", classes, "--fail") == 1
    (classes / "b" / "again.jpg").unlink()
    assert call("audit", classes, "--fail") == 0


def test_wrong_arguments_are_told(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="no such file, folder or card"):
        audit(["nothing"], progress=False)
    with pytest.raises(DataError, match="only cards were given"):
        audit(["resnet18_uscl.pocus"], progress=False)
    with pytest.raises(DataError, match="`label_column` is missing"):
        (tmp_path / "t.csv").write_text("Filename\nx.png\n")
        audit([str(tmp_path / "t.csv")], progress=False)
