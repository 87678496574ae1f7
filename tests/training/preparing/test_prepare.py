from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
from conftest import SUBJECT, TINTS, draw_clip, files_of, write_clip
from PIL import Image
from stores import SLOWLY, content, run

from uscl_zoo.cli import main
from uscl_zoo.errors import DataError, UnreadableError
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.preparing.labels import Annotation, from_name, read_table
from uscl_zoo.training.preparing.parts import Sampling
from uscl_zoo.training.preparing.prepare import prepare
from uscl_zoo.training.preparing.sources import CorpusPlan, Source, load_corpus

# ------------------------------------------------------------------------------- what is stored


def test_frames_are_those_of_the_videos_resized(small_store: FrameStore, clips: Path) -> None:
    assert small_store.frames.shape[1:] == (32, 32, 3)
    for video in small_store.videos:
        files = sorted((clips / video.name).iterdir())
        assert video.count == len(files)
        for i, file in enumerate(files):
            expected = Image.open(file).resize((32, 32), Image.Resampling.BILINEAR)
            assert np.array_equal(small_store.frames[video.first + i], np.asarray(expected))


def test_the_manifest_says_whose_frames_they_are(small_store: FrameStore, clips: Path) -> None:
    for video in small_store.videos:
        assert video.label == video.name.split("-")[0]
        assert video.subject == video.name.split("-s")[1][:2]
        assert video.source == str(clips / video.name)


def test_held_out_subjects_are_never_trained_on(small_store: FrameStore) -> None:
    train, held = small_store.select("train"), small_store.select("heldout")
    assert not {v.subject for v in train} & {v.subject for v in held}
    # a third of three subjects of each class, two videos each
    assert Counter(v.label for v in held) == dict.fromkeys(TINTS, 2)
    assert small_store.description["held_out_subjects"] == sorted({v.subject for v in held})


def test_us4s_folders(tmp_path: Path) -> None:
    prefixes = ("Cov", "Reg", "Rb3", "F1", "Ali")
    for i, prefix in enumerate(prefixes):
        folder = tmp_path / "us4" / f"{prefix}-clip {i}_mp4"
        folder.mkdir(parents=True)
        for number, frame in enumerate(draw_clip(i, 11, (90, 90, 90))):
            Image.fromarray(frame).save(folder / f"{folder.name}_frame{number}.jpg")
    report = run(
        tmp_path / "us4",
        tmp_path / "store",
        annotate=lambda name: from_name(name, "us4"),
        holdout=0,
    )
    labels = {v.name.split("-")[0]: v.label for v in report.store.videos}
    assert labels == {
        "Cov": "diseased lung",
        "Reg": "normal lung",
        "Rb3": "Rb3",
        "F1": "F1",
        "Ali": "normal lung",
    }
    assert [v.count for v in report.store.videos] == [11] * 5
    first = report.store.videos[0]
    # in the order of their numbers: frame10 comes last
    last = Image.open(tmp_path / "us4" / first.name / f"{first.name}_frame10.jpg")
    expected = last.resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(report.store.frames[first.first + 10], np.asarray(expected))


US4_TREE = {
    "Butterfly": ("Reg-a", "Cov-b"),
    "CLUST": ("Rb1-c", "Rb5-d"),
    "Liver Fibrosis": ("F0_e", "F4_f"),
    "COVID19-LUSMS": ("Ali-g", "Bli-h", "Ple-i", "Oth-j"),
}


@pytest.mark.parametrize(
    ("scheme", "labels"),
    [
        ("us4", ("F0", "F4", "Rb1", "Rb5", "diseased lung", "normal lung")),
        ("us4-butterfly", ("Cov", "Reg")),
        ("us4-clust", ("Rb1", "Rb5")),
        ("us4-fibrosis", ("F0", "F4")),
        ("us4-lusms", ("Ali", "Bli", "Oth", "Ple")),
    ],
)
def test_sub_datasets_of_us4_in_folders_of_their_own(
    tmp_path: Path, scheme: str, labels: tuple[str, ...]
) -> None:
    for subset, names in US4_TREE.items():
        for i, name in enumerate(names):
            folder = tmp_path / "US-4" / subset / f"{name}_mp4"
            folder.mkdir(parents=True)
            # of the last there is a single frame, which makes no clip
            for number, frame in enumerate(draw_clip(i, 1 if name == "Oth-j" else 3, (90,) * 3)):
                Image.fromarray(frame).save(folder / f"{name}_mp4_frame{number}.jpg")
    store = run(
        tmp_path / "US-4", tmp_path / "store", annotate=lambda n: from_name(n, scheme), holdout=0
    ).store
    assert len(store.videos) == 10
    assert store.labels == labels
    assert sorted(v.count for v in store.videos) == [1] + [3] * 9
    for video in store.videos:
        subset, clip = video.name.split("/")[:2]
        assert clip.removesuffix("_mp4") in US4_TREE[subset]
        own = re.split("[-_]", clip)[0]
        if scheme != "us4":
            assert video.label == (own if own in labels else None)


def test_videos_without_a_row_are_kept_unlabelled(clips: Path, tmp_path: Path) -> None:
    def annotate(name: str) -> Annotation | None:
        return None if name.startswith("Reg") else from_name(name, subject_pattern=SUBJECT)

    report = run(clips, tmp_path / "store", annotate=annotate)
    assert len(report.unannotated) == 6
    unlabelled = [v for v in report.store.videos if v.name in report.unannotated]
    assert {v.label for v in unlabelled} == {None}
    assert [v.subject for v in unlabelled] == [v.name for v in unlabelled]


def test_the_seed_chooses_whom_to_hold_out(clips: Path, tmp_path: Path) -> None:
    held = {
        tuple(run(clips, tmp_path / str(seed), seed=seed).store.description["held_out_subjects"])
        for seed in range(4)
    }
    assert len(held) > 1


# ----------------------------------------------------------------------------- the same bytes


def test_two_into_one_store(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One works and the other says so: they would write over each other's frames."""
    arguments = [str(clips), str(tmp_path / "a"), SUBJECT, "2"]
    with subprocess.Popen([sys.executable, "-c", SLOWLY, *arguments]) as process:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "a").glob("parts/[0-9a-f]*.json")):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(SystemExit) as stopped:
            main(["prepare", str(clips), "-o", str(tmp_path / "a"), "--overwrite"])
        process.send_signal(signal.SIGCONT)
        assert process.wait() == 0
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"uscl: {tmp_path / 'a'}: another process is writing there")
    run(clips, tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert FrameStore(tmp_path / "a").frames.any(axis=(1, 2, 3)).all()


def test_a_finished_store_is_returned_as_it_is(clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "store")
    stamps = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "store").iterdir()}
    assert run(clips, tmp_path / "store").reused == 18
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "store").iterdir()} == stamps


@pytest.mark.parametrize(
    "change",
    [{"sampling": Sampling(size=48)}, {"seed": 1}, {"holdout": 0.5}, {"annotate": from_name}],
)
def test_another_store_is_not_overwritten_unasked(
    clips: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    run(clips, tmp_path / "store")
    before = content(tmp_path / "store")
    with pytest.raises(DataError, match=r"store: holds a store of other .* `overwrite=True`"):
        run(clips, tmp_path / "store", **change)
    assert content(tmp_path / "store") == before
    run(clips, tmp_path / "store", overwrite=True, **change)
    assert content(tmp_path / "store") != before


def test_a_damaged_store_is_replaced_when_asked(clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "store")
    before = content(tmp_path / "store")
    (tmp_path / "store" / "frames.npy").write_bytes(b"torn")
    with pytest.raises(UnreadableError, match=r"damaged store .* `overwrite=True`"):
        run(clips, tmp_path / "store")
    run(clips, tmp_path / "store", overwrite=True)
    assert content(tmp_path / "store") == before


# ------------------------------------------------------------------------ what cannot be read


def test_strict_refuses_the_undecodable(own_clips: Path, tmp_path: Path) -> None:
    (own_clips / "Cov-s00-torn.mp4").write_bytes(b"\x00" * 100)
    for _ in range(2):
        with pytest.raises(UnreadableError, match=r"^1 sources cannot .*Cov-s00-torn\.mp4"):
            run(own_clips, tmp_path / "store", strict=True)
    run(own_clips, tmp_path / "store")
    with pytest.raises(UnreadableError, match="`strict=True`"):
        run(own_clips, tmp_path / "store", strict=True)


def test_nothing_decodable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "Cov-s1.mp4").write_bytes(b"\x00" * 100)
    with pytest.raises(UnreadableError, match=r"none of 1 sources can be decoded.*Cov-s1\.mp4"):
        run(tmp_path / "videos", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_refusal_leaves_the_store_that_is_to_be_replaced(
    clips: Path, own_clips: Path, tmp_path: Path
) -> None:
    run(clips, tmp_path / "store")
    before = content(tmp_path / "store")
    for clip in own_clips.iterdir():
        shutil.rmtree(clip)
        (own_clips / f"{clip.name}.mp4").write_bytes(bytes(100))
    with pytest.raises(UnreadableError, match="none of 18 sources can be decoded"):
        run(own_clips, tmp_path / "store", overwrite=True)
    assert content(tmp_path / "store") == before and run(clips, tmp_path / "store").reused == 18


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "notes.txt").write_text("none")
    with pytest.raises(DataError, match=f"^{tmp_path / 'videos'}: "):
        run(tmp_path / "videos", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_labels_are_checked_before_anything_is_decoded(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"label 'Pneu' is not among the declared classes"):
        run(clips, tmp_path / "store", classes=["Cov", "Reg"])
    assert not (tmp_path / "store").exists()
    report = run(clips, tmp_path / "store", classes=["Cov", "Reg"], unlabelled=["pneu"])
    assert report.store.labels == ("Cov", "Reg")


# --------------------------------------------------------------------------- names of sources


def test_a_video_named_twice_is_one_video(clips: Path, tmp_path: Path) -> None:
    one = next(clips.iterdir())
    report = run([clips, one, clips], tmp_path / "store")
    assert len(report.store.videos) == 18


def test_two_videos_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        for i in range(2):
            write_clip(tmp_path / folder / f"Cov-s{i}_mp4", draw_clip(i, 2, (90, 90, 90)))
    with pytest.raises(DataError, match=r"would both be named 'Cov-s0_mp4'.*common folder"):
        run([tmp_path / "a", tmp_path / "b"], tmp_path / "store")
    assert len(run(tmp_path, tmp_path / "store").store.videos) == 4


def test_the_current_folder_has_a_name(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = sorted(clips.iterdir())[0]
    monkeypatch.chdir(one)
    assert [v.name for v in run(Path(), tmp_path / "store").store.videos] == [one.name]


# --------------------------------------------------------------------------------- real videos

#: Of every container, two of one patient among them.
REAL = (
    "convex/Cov-Atlas-Day+1.gif",
    "convex/Cov-Atlas-Day+2.gif",
    "convex/Reg_pat4Image_140024.mpeg",
    "convex/Reg_Avi_Video_004.mp4",
    "convex/Pneu_northumbria_0409_set6_vid5.avi",
    "convex/Cov_combatting_Image3.mp4",
)


def read_pocus(data: Path) -> Any:
    return read_table(
        data / "pocus" / "dataset_metadata.csv", "Filename", "Label", "Patient ID / Name", "License"
    )


def test_pocus_videos_with_their_table(data: Path, tmp_path: Path) -> None:
    videos = [data / "pocus" / "videos" / name for name in REAL]
    report = run(videos, tmp_path / "store", annotate=read_pocus(data))
    assert not report.skipped
    assert not report.unannotated
    by_name = {v.name: v for v in report.store.videos}
    assert len(by_name) == len(REAL)
    for name, video in by_name.items():
        expected = {"cov": "covid-19", "reg": "regular", "pneu": "bacterial pneumonia"}
        assert (video.label or "").casefold() == expected[name.split("-")[0].split("_")[0].lower()]
        times = report.store.times[video.first : video.first + video.count]
        assert times[0] == 0
        # three frames a second, so no two are closer than a third less a frame
        assert video.count > 1
        assert np.diff(times).min() > 0.2
        assert video.count == pytest.approx(3 * times[-1] + 1, abs=2)


@pytest.mark.slow
def test_the_whole_of_pocus(data: Path, tmp_path: Path) -> None:
    report = run(data / "pocus" / "videos", tmp_path / "store", annotate=read_pocus(data))
    store = report.store
    assert len(store.videos) == 131
    assert not report.skipped
    assert {v.licence for v in store.videos} >= {"CC BY-NC-SA 4.0"}
    train, held = store.select("train"), store.select("heldout")
    assert not {v.subject for v in train} & {v.subject for v in held}
    for label in store.labels:
        subjects = {v.subject for v in store.videos if v.label == label}
        assert label in {v.label for v in train}
        # a subject of several labels counts for one of them
        if len(subjects) > 2:
            assert label in {v.label for v in held}
    assert json.loads((tmp_path / "store" / "store.json").read_text())["videos"] == 131


@pytest.mark.parametrize("frames", [4, 8])
def test_a_full_disk_is_an_error_and_leaves_no_store(
    clips: Path, tmp_path: Path, frames: int
) -> None:
    """Room for some parts, or for all of them and not for the store."""
    output = tmp_path / "store"
    name = re.escape(str(output)) + (r"/frames\.npy" if frames == 8 else r"/parts/\w+\.u8")
    told = f"^{name}: cannot be written \\(File too large\\)"
    with files_of(frames * 32 * 32 * 3 + 500), pytest.raises(DataError, match=told):
        run(clips, output)
    # of no part nothing is left
    with pytest.raises(DataError, match="interrupted" if frames == 8 else "is no store"):
        FrameStore(output)
    assert output.exists() == (frames == 8) and not list(output.rglob("*.partial*"))
    # with room again it goes on
    report = run(clips, output)
    assert report.reused == (18 if frames == 8 else report.reused)
    assert len(report.store.videos) == 18


# ------------------------------------------------------------------------------------- cleaning


def test_stores_that_are_not_cleaned_are_as_they_were(clips: Path, tmp_path: Path) -> None:
    report = run(clips, tmp_path / "store")
    assert report.unclean is None
    assert report.store.description["sampling"] == {"rate": 3.0, "size": 32}
    assert "beam" not in (tmp_path / "store" / "manifest.csv").read_text().splitlines()[0]


def test_cleaning_is_another_store(clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "store")
    with pytest.raises(DataError, match="`overwrite=True`"):
        run(clips, tmp_path / "store", sampling=Sampling(size=32, clean=True))


# ------------------------------------------------------------------------------ many sources

SETTINGS: dict[str, Any] = {"sampling": Sampling(size=32), "workers": 1, "progress": False}


@pytest.fixture
def hospitals(tmp_path: Path) -> CorpusPlan:
    """Two hospitals, with four patients each of the same numbers; the one has two in one scene."""
    speckle = np.random.default_rng(0).integers(20, 255, (9, 64, 64), dtype=np.uint8)
    rows = ["file,label,who,terms"]
    for i in range(4):
        (tmp_path / "north").mkdir(exist_ok=True)
        # the fourth is the first, a little brighter
        frame = speckle[0] // 2 + 90 if i == 3 else speckle[i] // 2 + 60
        Image.fromarray(frame).save(tmp_path / "north" / f"{i}.png")
        rows.append(f"{i}.png,{'ab'[i % 2]},p{i},{['free', 'CC BY', 'secret', 'free'][i]}")
    (tmp_path / "north" / "t.csv").write_text("\n".join(rows) + "\n")
    Image.fromarray(speckle[8]).save(tmp_path / "north" / "8.png")
    for i in range(4):
        write_clip(tmp_path / "south" / f"Cov-p{i}_mp4", draw_clip(i, 3, (90, 90, 90)))
    columns: dict[str, Any] = {
        "label_column": "label",
        "subject_column": "who",
        "licence_column": "terms",
    }
    north = Source(
        "North",
        root="here",
        folder="north",
        table="north/t.csv",
        file_column="file",
        licences={"free": "CC0-1.0", "CC BY": "CC0-1.0 AND CC-BY-4.0"},
        near_duplicates=True,
        **columns,
    )
    south = Source(
        "South",
        root="here",
        folder="south",
        url="https://south",
        citation="South, 2026",
        licence="MIT",
        label_scheme="prefix",
        labels={"Cov": "a"},
        subject_pattern=r"-(p\d)",
    )
    return CorpusPlan(
        "Hospitals", {"here": str(tmp_path)}, {"north": north, "south": south}, url="https://both"
    )


def test_sources_stay_apart(hospitals: CorpusPlan, tmp_path: Path) -> None:
    report = prepare(hospitals, tmp_path / "store", holdout=0, **SETTINGS)
    store = report.store
    assert report.unannotated == ("north/8.png",)
    assert {v.name: v.origin for v in store.videos} == {
        **{f"north/{i}.png": "north" for i in (0, 1, 2, 3, 8)},
        **{f"south/Cov-p{i}_mp4": "south" for i in range(4)},
    }
    north, south = store.sources(store.videos)
    assert north == {
        "name": "North",
        "url": None,
        "citation": None,
        "videos": 5,
        "frames": 5,
        # p0 and p3 are in one scene
        "subjects": 4,
        "classes": {"a": 2, "b": 2, "unlabelled": 1},
        "licences": {"CC0-1.0": 2, "CC0-1.0 AND CC-BY-4.0": 1, "not stated": 1, "secret": 1},
    }
    assert (south["url"], south["citation"]) == ("https://south", "South, 2026")
    assert (south["videos"], south["frames"], south["subjects"]) == (4, 12, 4)
    # only those that have any of the videos
    assert [s["name"] for s in store.sources(store.videos[-2:])] == ["South"]
    assert store.description["origin"] == {
        "name": "Hospitals",
        "url": "https://both",
        "citation": None,
    }
    assert load_corpus(str(tmp_path / "store" / "corpus.yaml")) == hospitals


def test_who_shares_a_picture_shares_a_subject(hospitals: CorpusPlan, tmp_path: Path) -> None:
    store = prepare(hospitals, tmp_path / "store", **SETTINGS).store
    subjects = {v.name: v.subject for v in store.videos}
    assert subjects["north/0.png"] == subjects["north/3.png"] == "north/p0"
    assert subjects["south/Cov-p0_mp4"] == "south/p0"
    assert store.description["scenes"] == {"north": {"videos": 5, "subjects": 5, "scenes": 4}}
    for seed in range(6):
        again = prepare(hospitals, tmp_path / f"{seed}", seed=seed, holdout=0.5, **SETTINGS).store
        sides = {v.name: v.split for v in again.videos}
        assert sides["north/0.png"] == sides["north/3.png"]
    apart = replace(
        hospitals,
        sources={key: replace(s, near_duplicates=False) for key, s in hospitals.sources.items()},
    )
    with pytest.raises(DataError, match="`overwrite=True`"):
        prepare(apart, tmp_path / "store", **SETTINGS)
    store = prepare(apart, tmp_path / "store", overwrite=True, **SETTINGS).store
    assert {v.name: v.subject for v in store.videos}["north/3.png"] == "north/p3"


def test_a_merged_subject_is_merged_in_every_source(hospitals: CorpusPlan, tmp_path: Path) -> None:
    sources = hospitals.sources | {"south": replace(hospitals.sources["south"], cohort="north")}
    store = prepare(replace(hospitals, sources=sources), tmp_path / "store", **SETTINGS).store
    subjects = {v.name: v.subject for v in store.videos}
    # the south's p3 is the north's p3, who is in a scene with its p0
    assert subjects["south/Cov-p3_mp4"] == subjects["north/3.png"] == "north/p0"


def test_a_list_of_licences(hospitals: CorpusPlan, tmp_path: Path) -> None:
    allowed = ["CC0-1.0", "MIT"]
    report = prepare(hospitals, tmp_path / "store", licences=allowed, **SETTINGS)
    assert [v.name for v in report.store.videos if v.origin == "north"] == [
        "north/0.png",
        "north/3.png",
    ]
    assert dict(report.left_out) == {
        "north/1.png": "is licensed CC0-1.0 AND CC-BY-4.0",
        "north/2.png": "has a licence that is mapped to no SPDX expression, 'secret'",
        "north/8.png": "states no licence",
    }
    lines = (tmp_path / "store" / "left_out.csv").read_text().splitlines()
    assert lines[0] == "item,reason"
    assert len(lines) == 4
    assert sum(report.store.description["left_out"].values()) == 3
    # asked again, it says so again, and another list is another store
    assert prepare(hospitals, tmp_path / "store", licences=allowed, **SETTINGS) == replace(
        report, store=ANY, reused=6
    )
    with pytest.raises(DataError, match="`overwrite=True`"):
        prepare(hospitals, tmp_path / "store", licences=[*allowed, "CC-BY-4.0"], **SETTINGS)
    with pytest.raises(DataError, match=r"nothing is left of 9 items: 4 is licensed MIT, "):
        prepare(hospitals, tmp_path / "none", licences=["Apache-2.0"], **SETTINGS)
    with pytest.raises(DataError, match="'CC BY' is no SPDX"):
        prepare(hospitals, tmp_path / "none", licences=["CC BY"], **SETTINGS)
    assert not (tmp_path / "none").exists()


def test_only_what_has_a_row(hospitals: CorpusPlan, tmp_path: Path) -> None:
    report = prepare(hospitals, tmp_path / "store", only_annotated=True, **SETTINGS)
    assert report.left_out == (("north/8.png", "has no row"),)
    assert report.unannotated == ()
    assert len(report.store.videos) == 8
    # what an earlier store left out is not that of the next
    prepare(hospitals, tmp_path / "store", overwrite=True, **SETTINGS)
    assert not (tmp_path / "store" / "left_out.csv").exists()


def test_a_corpus_is_the_same_wherever_it_lies(hospitals: CorpusPlan, tmp_path: Path) -> None:
    one = prepare(hospitals, tmp_path / "one", **SETTINGS).store
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("north", "south"):
        shutil.copytree(tmp_path / name, moved / name)
    two = prepare(replace(hospitals, roots={"here": str(moved)}), tmp_path / "two", **SETTINGS)
    assert one.digest == two.store.digest
    assert two.reused == 0
    renamed = replace(
        hospitals,
        sources={
            **hospitals.sources,
            "south": replace(hospitals.sources["south"], citation="South, 2027"),
        },
    )
    other = prepare(renamed, tmp_path / "three", **SETTINGS).store
    assert other.digest != one.digest


def test_a_source_has_a_rate_of_its_own(data: Path, tmp_path: Path) -> None:
    counts = []
    for rate in (None, 1.0):
        source = Source(
            "POCUS", root="here", folder="convex", subject_pattern=".*(Day.1)", rate=rate
        )
        (tmp_path / "convex").mkdir(exist_ok=True)
        link = tmp_path / "convex" / "Cov-Atlas-Day+1.gif"
        if not link.exists():
            link.symlink_to(data / "pocus" / "videos" / "convex" / "Cov-Atlas-Day+1.gif")
        plan = CorpusPlan("One", {"here": str(tmp_path)}, {"pocus": source})
        counts.append(len(prepare(plan, tmp_path / f"{rate}", **SETTINGS).store.frames))
    assert counts[0] > 2 * counts[1] > 0


def test_rows_of_stills_and_near_duplicates_without_a_corpus(
    hospitals: CorpusPlan, tmp_path: Path
) -> None:
    table = read_table(tmp_path / "north" / "t.csv", "file", "label", "who")
    store = run(tmp_path / "north", tmp_path / "store", annotate=table, near_duplicates=True).store
    assert {v.name: v.subject for v in store.videos} == {
        "0.png": "p0",
        "1.png": "p1",
        "2.png": "p2",
        "3.png": "p0",
        "8.png": "8.png",
    }
    assert "origin" not in (tmp_path / "store" / "manifest.csv").read_text().splitlines()[0]


def test_a_plain_store_is_what_it_was(tmp_path: Path) -> None:
    """Its digest names runs and caches: made before there were corpora, by commit 460b9f2."""
    for i in range(3):
        folder = tmp_path / "v" / f"Cov-s{i}_mp4"
        folder.mkdir(parents=True)
        for number in range(2):
            frame = np.full((8, 8, 3), 40 * i + number, np.uint8)
            Image.fromarray(frame).save(folder / f"{number}.bmp")
    store = run(tmp_path / "v", tmp_path / "store").store
    told = "bbd296cc73922e7782e9afc5001ad2314008d47f852aaa63504974a8f2c9fa7e"
    assert store.digest == told
