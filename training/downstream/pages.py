"""One HTML page that needs no other file, for a screen, a phone and paper."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from html import escape

from PIL import Image

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:68rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;display:block;overflow-x:auto;margin:1rem 0}
td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}
h1,p,dd{overflow-wrap:anywhere} td span{white-space:nowrap} .wrap td{overflow-wrap:anywhere}
img{max-width:100%;height:auto} figure{margin:1.5rem 0} figcaption{color:#555;font-size:.9rem}
.narrow{display:inline-block;vertical-align:top;width:31.5%;margin-right:1.5%}
.verdict{font-size:1.2rem;line-height:1.4} dt{font-weight:600;margin-top:.6rem}
dd{margin:0 0 0 1rem}
.note{border-left:4px solid #c53030;padding-left:.8rem} code{font-size:.9em}
@media (max-width:40rem){
.narrow{width:100%} .wide{overflow-x:auto} .wide img{max-width:none;width:44rem}
td,th{font-size:.85rem;padding:.2rem .4rem}
td:first-child,th:first-child{position:sticky;left:0;background:#fff;min-width:6.5rem;max-width:9rem;
overflow-wrap:anywhere}}
@media print{
body{margin:0;padding:0;max-width:none;font-size:11px} h2{break-after:avoid}
table{display:table;overflow:visible;font-size:9px} tr,figure{break-inside:avoid}
td,th{padding:.15rem .3rem} td{overflow-wrap:anywhere}
}
"""

# What is to be typed, between backticks.
_CODE = re.compile(r"`([^`]+)`")
# Wider than high by less than this, two pictures stand side by side.
_NARROW = 1.5
# Of an interval: it stays on one line, where the rest of a cell may be broken.
_INTERVAL = re.compile(r"\[[^\[\]]{1,24}\]")


def page(title: str, body: str) -> str:
    """A page.

    Args:
        title: plain text.
        body: HTML.
    """
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1>{body}</html>\n"
    )


def figure(name: str, kind: str, picture: bytes, caption: str) -> str:
    """A picture within the page.

    Args:
        name: said where it cannot be shown.
        kind: its media type, e.g. `image/png`.
        picture: content of the file, of a kind that Pillow reads.
        caption: plain text.
    """
    data = base64.b64encode(picture).decode()
    width, height = Image.open(io.BytesIO(picture)).size
    shape = " class=narrow" if width < _NARROW * height else " class=wide"
    return (
        f'<figure{shape}><img alt="{escape(name)}" src="data:{kind};base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def prose(text: str) -> str:
    """Plain text as HTML; what stands between backticks is code."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], wrap: bool = False) -> str:
    """A table of plain text.

    Args:
        head: of the columns; empty for none.
        rows: of cells.
        wrap: break words of long cells; otherwise a wide table scrolls, but on paper.
    """
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"] if head else []
    lines += [f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table{' class=wrap' if wrap else ''}>{''.join(lines)}</table>"


def _cell(text: str) -> str:
    return _INTERVAL.sub(r"<span>\g<0></span>", escape(text))
