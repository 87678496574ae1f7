"""What is to be prepared: the sources of a corpus, and the items that each of them holds.

A corpus is described by a YAML file: its sources, each with its folder, its table and its own
wording of labels and licences. An item is what becomes one video of the store: a file, or a
folder of frames.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from uscl_zoo.data.annotations import (
    Annotation,
    SubjectPattern,
    Table,
    fold,
    known,
    known_subject,
    read_table,
)
from uscl_zoo.data.rows import alike, survey
from uscl_zoo.errors import CardError, DataError
from uscl_zoo.files import expanded
from uscl_zoo.records import from_mapping, read_yaml
from uscl_zoo.ultrasound.reading import warn
from uscl_zoo.ultrasound.sources import Named

from .labels import LABEL_SCHEMES, from_name
from .spdx import canonical

CORPORA = Path(__file__).parents[1] / "corpora"

# of keys, which begin the names of videos and subjects
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# files in a message
_LISTED = 20


@dataclass(frozen=True)
class Source:
    """A collection of a corpus: where it is, whose, on what terms, and what its words mean.

    Attributes:
        name: as cards have it.
        root: key of the root that it lies in.
        folder: within the root, searched for videos, stills and folders of frames.
        url: where it is published.
        citation: how its authors ask to be cited.
        licence: of all its items, as an SPDX expression, where no column has it.
        licences: SPDX expressions by the table's wording, beside those of the corpus.
        table: a CSV, as a path within the root. What it names by a path counts from its own folder
            or from `folder`; each row names one file or one folder of frames.
        file_column: of the table: paths, names or stems.
        label_column: of the table.
        subject_column: of the table.
        licence_column: of the table.
        where: values by column of the rows that are this source's.
        label_scheme: without a table: `prefix` of the name, or one of `LABEL_SCHEMES`.
        labels: the corpus' label by the source's wording, null for none; without it, as they are.
        subject_pattern: without a subject column: a `SubjectPattern` of the path within `folder`.
        cohort: two sources of one cohort show the same people; by default each is its own.
        rate: frames a second, where it is not that of the store.
        near_duplicates: whether subjects that share a picture are taken for one.
    """

    name: str
    root: str
    folder: str = "."
    url: str | None = None
    citation: str | None = None
    licence: str | None = None
    licences: dict[str, str] = field(default_factory=dict)
    table: str | None = None
    file_column: str = "Filename"
    label_column: str | None = None
    subject_column: str | None = None
    licence_column: str | None = None
    where: dict[str, str] = field(default_factory=dict)
    label_scheme: str | None = None
    labels: dict[str, str | None] | None = None
    subject_pattern: str | None = None
    cohort: str | None = None
    rate: float | None = None
    near_duplicates: bool = False


@dataclass(frozen=True)
class CorpusPlan:
    """A corpus of several sources.

    Attributes:
        name: of the whole.
        roots: folders by key; relative ones count from the folder of the YAML.
        sources: by key, which begins the names of their videos and subjects.
        url: of the whole.
        citation: of the whole.
        licences: SPDX expressions by wording, for all sources.
    """

    name: str
    roots: dict[str, str]
    sources: dict[str, Source]
    url: str | None = None
    citation: str | None = None
    licences: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    """What becomes one video of a store.

    Attributes:
        path: a file, or a folder of frames.
        annotation: subject, label, licence.
        annotated: whether a row or a name gives them; otherwise it is its own subject.
        origin: key of its source; None of what is prepared without a corpus.
        rate: frames a second; None for that of the store.
    """

    path: Path
    annotation: Annotation
    annotated: bool = True
    origin: str | None = None
    rate: float | None = None


def corpus_names() -> tuple[str, ...]:
    """Names of the corpora that come with the package."""
    return tuple(sorted(path.stem for path in CORPORA.glob("*.yaml")))


def load_corpus(name_or_file: str, roots: Mapping[str, Path] | None = None) -> CorpusPlan:
    """Read a corpus, by name or from a YAML file, with its roots resolved.

    Args:
        name_or_file: one of `corpus_names`, or a path.
        roots: folders that stand for those of the file, by key.

    Raises:
        CardError: naming file and key, for an unknown corpus, an unknown key or a wrong value.
        DataError: for a root that is no folder.
    """
    path = CORPORA / f"{name_or_file}.yaml"
    if not path.is_file():
        path = expanded(name_or_file)
        if not path.is_file():
            raise CardError(
                f"no corpus {name_or_file!r}: give a YAML file or one of "
                f"{', '.join(corpus_names())}"
            )
    plan = from_mapping(CorpusPlan, read_yaml(path), str(path))
    _check(plan, str(path))
    unknown = sorted(set(roots or ()) - set(plan.roots))
    if unknown:
        raise DataError(
            f"{path}: has no root {unknown[0]!r}, only {', '.join(plan.roots)}; see `roots`"
        )
    resolved = {}
    for key, folder in plan.roots.items():
        given = (roots or {}).get(key)
        where = expanded(given) if given is not None else path.parent / folder
        if not where.is_dir():
            raise DataError(
                f"{where}: no such folder; say where it is, `roots={{{key!r}: FOLDER}}`"
            )
        resolved[key] = str(where.resolve())
    return dataclasses.replace(plan, roots=resolved)


def _check(plan: CorpusPlan, where: str) -> None:
    def refuse(key: str, why: str) -> None:
        raise CardError(f"{where}: {key}: {why}")

    def spdx(key: str, expression: str) -> None:
        try:
            canonical(expression)
        except DataError as error:
            refuse(key, str(error))

    if not plan.sources:
        refuse("sources", "should name at least one")
    for wording, expression in plan.licences.items():
        spdx(f"licences.{wording}", expression)
    for key, source in plan.sources.items():
        of = f"sources.{key}"
        for text in (key, source.cohort or key):
            if not _KEY.fullmatch(text):
                refuse(of, f"a key is of letters, digits, dots and dashes, not {text!r}")
        if source.root not in plan.roots:
            refuse(f"{of}.root", f"should be one of {', '.join(plan.roots)}, not {source.root!r}")
        for wording, expression in source.licences.items():
            spdx(f"{of}.licences.{wording}", expression)
        if source.licence is not None:
            spdx(f"{of}.licence", source.licence)
        if source.rate is not None and not source.rate > 0:
            refuse(f"{of}.rate", f"should be above 0, not {source.rate!r}")
        if source.table is None:
            for column in ("label_column", "subject_column", "licence_column", "where"):
                if getattr(source, column):
                    refuse(f"{of}.{column}", "needs a table")
        if source.label_scheme is not None:
            schemes = ("prefix", *LABEL_SCHEMES)
            if source.table is not None:
                refuse(f"{of}.label_scheme", "a table and a scheme exclude each other")
            if source.label_scheme not in schemes:
                refuse(f"{of}.label_scheme", f"should be one of {', '.join(schemes)}")
        if source.subject_pattern is not None and source.subject_column is not None:
            refuse(f"{of}.subject_pattern", "a subject column and a pattern exclude each other")
        if source.licence is not None and source.licence_column is not None:
            refuse(f"{of}.licence", "a licence and a licence column exclude each other")


# ------------------------------------------------------------------------------ what is there


def items_in(
    areas: Sequence[Path],
    annotate: Callable[[str], Annotation | None] | Table,
    *,
    pattern: SubjectPattern | None = None,
    every_row: bool = False,
    tell: Callable[[str], None] = warn,
) -> dict[str, Item]:
    """The items of files and folders, by their path within the folder they are in.

    Args:
        areas: files and folders, which are searched.
        annotate: a table, whose rows say what an item is as well; or what is known by name.
        pattern: of subjects; None for those of `annotate`.
        every_row: whether a row without a file is an error.
        tell: is given a line for whatever is left out, lost or bent.

    Raises:
        DataError: if two would have one name, or a row does not name one file.
    """
    items = {}
    for source, row in found_in(areas, annotate, every_row=every_row, tell=tell):
        item = _plain(source.name, source.path, row)
        if pattern is not None:
            whose = replace(item.annotation, subject=pattern(source.within) or source.name)
            item = replace(item, annotation=whose)
        items[source.name] = item
    # what a table itself says is compared where it is read
    said = [item.annotation for item in items.values()]
    subjects = [row.subject for row in said] if pattern is not None else []
    labels = [row.label for row in said if row.label] if not isinstance(annotate, Table) else []
    for line in alike(subjects, labels):
        tell(line)
    return items


def items_named(
    sources: Mapping[str, Path], annotate: Callable[[str], Annotation | None]
) -> dict[str, Item]:
    """Items that have their names already."""
    return {name: _plain(name, path, annotate(name)) for name, path in sources.items()}


def _plain(name: str, path: Path, row: Annotation | None) -> Item:
    if row is None:
        return Item(path, Annotation(subject=name), False)
    row = Annotation(known_subject(row.subject) or name, known(row.label), row.licence)
    return Item(path, row)


def found_in(
    areas: Sequence[Path],
    annotate: Callable[[str], Annotation | None] | Table | None,
    *,
    every_row: bool = False,
    tell: Callable[[str], None] = warn,
) -> Iterator[tuple[Named, Annotation | None]]:
    """The items of some files and folders, and what is known of each."""
    table = annotate if isinstance(annotate, Table) else None
    surveyed = survey(areas, table, every_row=every_row, on_damage=tell)
    for note in surveyed.notes:
        tell(note)
    taken: dict[str, Path] = {}
    for source in surveyed.sources:
        if source.name in taken:
            raise DataError(
                f"{source.path} and {taken[source.name]} would both be named {source.name!r}; "
                "prepare their common folder instead"
            )
        taken[source.name] = source.path
        if annotate is None or isinstance(annotate, Table):
            yield source, surveyed.rows.get(source.path)
        else:
            yield source, annotate(source.name)


# --------------------------------------------------------------------------- what is in a corpus


def items_of(
    plan: CorpusPlan, *, every_row: bool = False, tell: Callable[[str], None] = warn
) -> tuple[dict[str, Item], list[tuple[str, str]]]:
    """The items of a corpus by name, `KEY/path`, and those left out, with the reason.

    Args:
        plan: of the corpus.
        every_row: as for `items_in`.
        tell: as for `items_in`.

    Raises:
        DataError: if a row does not name one file, two sources claim one, or a label has no
            meaning in the corpus.
    """
    items: dict[str, Item] = {}
    for key, source in plan.sources.items():
        items |= _of_source(key, source, plan, every_row, tell)
    claims: dict[Path, list[str]] = defaultdict(list)
    for name, item in items.items():
        claims[item.path.resolve()].append(name)
    owned = {
        path: [name for name in names if items[name].annotated] for path, names in claims.items()
    }
    twice = [names for names in owned.values() if len(names) > 1]
    if twice:
        raise DataError(
            f"{plan.name}: {len(twice)} files are in two sources; part them by `folder` or `where`:"
            f" {'; '.join(' = '.join(names) for names in twice[:_LISTED])}"
        )
    # who annotates files in a folder knows that it is no clip
    opened = {path.parent: names[0] for path, names in owned.items() if names}
    left: list[tuple[str, str]] = []
    kept: dict[str, Item] = {}
    for name, item in items.items():
        path = item.path.resolve()
        others = owned[path] or ([opened[path]] if path in opened else [])
        if item.annotated:
            kept[name] = item
        elif others and items[others[0]].origin != item.origin:
            continue
        elif len(claims[path]) > 1:
            if claims[path][0] == name:
                left.append((name, "is in the folders of several sources, and no row says whose"))
        else:
            kept[name] = item
    return kept, left


def _of_source(
    key: str, source: Source, plan: CorpusPlan, every_row: bool, tell: Callable[[str], None]
) -> dict[str, Item]:
    root = Path(plan.roots[source.root])
    table = None
    if source.table is not None:
        table = read_table(
            root / source.table,
            source.file_column,
            source.label_column,
            source.subject_column,
            source.licence_column,
            where=source.where,
        )
    licences = _folded(plan.licences) | _folded(source.licences)
    labels = None if source.labels is None else _folded(source.labels)
    pattern = source.subject_pattern
    whose = None if pattern is None else SubjectPattern(pattern)
    items = {}
    areas = [root / source.folder]
    for named, row in found_in(areas, table, every_row=every_row, tell=tell):
        name, path, annotated = named.name, named.path, row is not None
        if table is None:
            row, annotated = _by_name(name, source), True
        subject: str | None = None
        if row is not None and source.subject_column is not None:
            subject = row.subject
        elif whose is not None:
            subject = whose(named.within)
        label = row.label if row is not None else None
        if label is not None and labels is not None:
            if _fold(label) not in labels:
                raise DataError(
                    f"{path}: label {label!r} is none of the source's: "
                    f"{', '.join(source.labels or ())}; add it to `labels` of {key}"
                )
            label = labels[_fold(label)]
        wording = row.licence if row is not None and source.licence_column else source.licence
        items[f"{key}/{name}"] = Item(
            path=path,
            annotation=Annotation(
                f"{source.cohort or key}/{subject or name}", label, _licence(wording, licences)
            ),
            annotated=annotated,
            origin=key,
            rate=source.rate,
        )
    return items


def _by_name(name: str, source: Source) -> Annotation:
    if source.label_scheme is None:
        return Annotation(name)
    scheme = None if source.label_scheme == "prefix" else source.label_scheme
    return from_name(name, scheme)


def _licence(wording: str | None, licences: Mapping[str, str]) -> str | None:
    """As an SPDX expression; the wording where it stands for none."""
    if wording is None:
        return None
    try:
        return canonical(licences.get(_fold(wording), wording))
    except DataError:
        return wording


def _folded(words: Mapping[str, Any]) -> dict[str, Any]:
    return {_fold(word): meaning for word, meaning in words.items()}


def _fold(word: str) -> str:
    """As `fold`, and `CC BY-NC -SA` is `CC BY-NC-SA`."""
    return re.sub(r"\s*-\s*", "-", fold(word))
