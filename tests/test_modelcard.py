"""What is published of a card: its words as they are, and of no subject."""

from __future__ import annotations

import ast
import html.parser
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trial
from hypothesis import given, settings
from hypothesis import strategies as st
from own import NAME, write_model
from PIL import Image, PngImagePlugin

from uscl_zoo import publish as publishing
from uscl_zoo.app.space import write_space
from uscl_zoo.cli import main
from uscl_zoo.errors import CardError, DataError, one_line
from uscl_zoo.files import WriteError
from uscl_zoo.modelcard import _code, _link, model_card, plain
from uscl_zoo.network import load
from uscl_zoo.zoo.card import Card, Origin, read_card

REPO = "me/own"

#: Each does something in Markdown, HTML or a table, if it is left as it is.
HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](https://example.org/track.png)",
    "a | b | c",
    "`code` and ``more``",
    "**bold** _slanted_ ~~gone~~",
    "# heading",
    "- item",
    "1. item",
    "> quoted",
    "&lt;b&gt; &copy;",
    "$$x^2$$",
    "---\nlicense: mit\n---",
    "line\n\n# heading",
    "back\\slash \\[x](y)",
    "</details>",
    "``` \n<b>",
    "<!-- gone",
)


def spiked(text: str) -> Card:
    """The trial card with a text wherever it has words."""
    card = trial.CARD
    (source,) = card.training.sources
    return replace(
        card,
        summary=text,
        intended_use=text,
        limits=(text, text),
        licence="MIT",
        weights=replace(card.weights, converted_from=Origin(text, None, text)),
        training=replace(
            card.training,
            method=text,
            sources=(
                replace(
                    source,
                    name=text,
                    url=f"https://example.org/{text}",
                    citation=text,
                    classes={text: 1},
                    licences={text: 1},
                    organs=(text,),
                ),
            ),
            labels=(text, "b"),
            hardware=text,
            code=text,
            start=Origin(text, None, text),
            teachers=(Origin(text, None, text),),
            recipe={text: text},
        ),
        metrics=tuple(
            replace(m, dataset=text, protocol=text, metric=text, unit=text, command=text)
            for m in card.metrics
        ),
    )


class _Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)


def rendered(text: str) -> str:
    """Markdown as HTML."""
    markdown = pytest.importorskip("markdown_it")
    body = text.split("\n---\n", 1)[1]
    found: str = markdown.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(body)
    return found


@pytest.mark.parametrize("text", HOSTILE)
def test_words_of_a_card_are_no_markup(text: str) -> None:
    usual, spoiled = (
        rendered(model_card(spiked("word"), REPO)),
        rendered(model_card(spiked(text), REPO)),
    )
    tags = []
    for page in (usual, spoiled):
        parser = _Tags()
        parser.feed(page)
        tags.append(parser.tags)
    assert tags[0] == tags[1]
    # and what is read is what was written
    words = " ".join(text.split())
    assert html.unescape(spoiled).count(words.replace("\\", "\\")) >= 10


def test_metadata_cannot_be_broken_out_of() -> None:
    from huggingface_hub import ModelCard

    for text in HOSTILE:
        data: Any = ModelCard(model_card(spiked(text), REPO)).data
        assert data.license == "mit"
        assert data.eval_results is not None
        assert data.eval_results[0].dataset_name == one_line(text)


@pytest.mark.parametrize("text", ["\u202egnp.exe", "a\u200bb\u2066c", "a\u2028b"])
def test_what_nobody_sees_is_escaped(text: str) -> None:
    card = model_card(spiked(text), REPO)
    assert not set(text) & set(card) - set("abcegnpx.")


@given(st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_text_is_shown_as_it_is(text: str) -> None:
    markdown = pytest.importorskip("markdown_it")
    shown = (
        markdown.MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
        .render(f"a {plain(text)} b")
    )
    body = shown.strip().removeprefix("<p>").removesuffix("</p>")
    assert "<" not in body
    expected = one_line(" ".join(text.split()))
    assert " ".join(html.unescape(body).split()) == " ".join(f"a {expected} b".split())


@given(st.text(alphabet="`a |\n", max_size=20))
@settings(max_examples=40, deadline=None)
def test_code_ends_where_it_should(text: str) -> None:
    markdown = pytest.importorskip("markdown_it")
    shown = (
        markdown.MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
        .render(f"x {_code(text)} y")
    )
    assert shown.count("<code>") == (1 if text.strip() or text else 0) or not text
    assert shown.rstrip().endswith("y</p>")


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://example.org/a_b?c=d", "https://example.org/a_b?c=d"),
        ("https://example.org/a) [x](y", "https://example.org/a%29%20%5Bx%5D%28y"),
        ("javascript:alert(1)", None),
        ("data:text/html,x", None),
        ("/etc/passwd", None),
        ("http://[x", None),
    ],
)
def test_links_are_of_the_web(url: str, target: str | None) -> None:
    assert _link(url) == target


# ------------------------------------------------------------------------------- a model's folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def held_out(model: Path, *subjects: str) -> None:
    from uscl_zoo.records import write_yaml

    path = model / f"{NAME}.yaml"
    card = read_card(path)
    write_yaml(path, replace(card, training=replace(card.training, held_out_subjects=subjects)))


def test_no_subject_is_named(model: Path, tmp_path: Path) -> None:
    held_out(model, "Jane-Doe", "John-Smith")
    picture = PngImagePlugin.PngInfo()
    picture.add_text("Comment", "Jane-Doe")
    Image.new("RGB", (8, 8), "red").save(model / "confusion.png", pnginfo=picture)
    (model / "heldout.csv").write_text("Jane-Doe")
    (model / "cases.png").write_bytes(b"Jane-Doe")
    built = publishing.build(str(model), tmp_path / "repository", REPO)
    for path in built.iterdir():
        assert b"Jane" not in path.read_bytes() and b"Smith" not in path.read_bytes(), path.name
    assert "the frames of 2 subjects" in (built / "README.md").read_text()
    with Image.open(built / "confusion.png") as found:
        assert found.getpixel((0, 0)) == (255, 0, 0)
    # of the zoo neither
    assert "`s1`" not in model_card(trial.CARD, REPO)


def test_nor_in_a_space(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    held_out(model, "Jane-Doe", "John-Smith")
    # what a folder is called is no code
    odd = model.rename(tmp_path / 'a"""; {x} \\u <b>')
    space = write_space(odd, tmp_path / "space")
    for path in space.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"Jane" not in content and b"Smith" not in content, path.name
    ast.parse((space / "app.py").read_text())
    assert "<b>" not in (space / "README.md").read_text()
    assert len(load(space / "model", "cpu").classes) == 3


def test_what_goes_wrong_with_a_copy_is_said_of_the_copy(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "absent" / "copy"
    with pytest.raises(WriteError, match=f"^{copy}: cannot be written"):
        publishing._copy(model / "predict.json", copy)
    with pytest.raises(DataError, match="copy the model's folder again"):
        publishing._copy(model / "absent.json", tmp_path / "copy")


@pytest.mark.parametrize(
    "name", ["confusion.png", "predict.json", "statistics.safetensors", "model.safetensors"]
)
@pytest.mark.parametrize("dangling", [False, True])
def test_links_are_not_followed(
    name: str, dangling: bool, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (model / name).rename(elsewhere)
    (model / name).symlink_to(elsewhere)
    if dangling:
        elsewhere.unlink()
    with pytest.raises(SystemExit) as stopped:
        main(["publish", str(model), "--to", "me", "--dry-run", "-o", f"{tmp_path}/repository"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "repository").exists()


def test_a_secret_in_the_place_of_a_picture(model: Path, tmp_path: Path) -> None:
    for content in (b"ssh-ed25519 secret", b"", b"\x89PNG\r\n\x1a\n secret"):
        (model / "confusion.png").write_bytes(content)
        with pytest.raises(DataError, match=r"confusion\.png: is no picture"):
            publishing.build(str(model), tmp_path / "repository")
    (model / "confusion.png").unlink()
    os.mkfifo(model / "confusion.png")
    with pytest.raises(DataError, match=r"confusion\.png"):
        publishing.build(str(model), tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_a_text_of_a_licence_that_is_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own"
    monkeypatch.setenv("USCL_ZOO_WEIGHTS", str(folder))
    card = trial.write(
        folder, replace(trial.CARD, weights=replace(trial.CARD.weights, licence_file="LICENSE.x"))
    )
    assert card.weights.licence_file == "LICENSE.x"
    (tmp_path / "secret").write_text("secret")
    (folder / "LICENSE.x").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match=r"LICENSE\.x: is a link"):
        publishing.build(trial.NAME, tmp_path / "repository")


# ------------------------------------------------------------------------------------- licences


def test_the_licence_by_option(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from uscl_zoo.records import write_yaml

    path = model / f"{NAME}.yaml"
    write_yaml(path, replace(read_card(path), licence=None))
    with pytest.raises(CardError, match="`licence`"):
        publishing.build(str(model), tmp_path / "none")
    words = ["publish", str(model), "--to", "me", "--dry-run"]
    main([*words, "-o", f"{tmp_path}/repository", "--licence", "CC-BY-4.0"])
    built = tmp_path / "repository"
    assert read_card(built / f"{NAME}.yaml").licence == "CC-BY-4.0"
    assert "license: cc-by-4.0" in (built / "README.md").read_text()
    assert '"license": "CC-BY-4.0"' in (built / "config.json").read_text()
    # what is written is a model still
    from uscl_zoo.network import load

    assert load(built, "cpu").licence == "CC-BY-4.0"
    with pytest.raises(DataError, match="no licence that is known here"):
        publishing.build(str(model), tmp_path / "odd", licence="whatever")


def test_a_licence_that_is_another_or_too_loose(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"states MIT, not CC-BY-4\.0"):
        publishing.build(str(model), tmp_path / "other", licence="CC-BY-4.0")
    publishing.build(str(model), tmp_path / "same", licence="MIT")
    from uscl_zoo.records import write_yaml
    from uscl_zoo.zoo.card import Source

    path = model / f"{NAME}.yaml"
    card = read_card(path)
    source = Source("x", None, None, 1, 1, 1, {}, {"CC BY-NC-SA 4.0": 1})
    training = replace(card.training, sources=(source,))
    write_yaml(path, replace(card, licence=None, training=training))
    with pytest.raises(DataError, match="`licence` MIT: MIT is looser than"):
        publishing.build(str(model), tmp_path / "loose", licence="MIT")


def test_shutil_is_not_what_follows_links() -> None:
    """Only `_copy` and `_copy_picture` bring a file of the user's into a repository."""
    text = Path(publishing.__file__).read_text()
    assert not re.search(r"shutil\.copy", text)
