"""Reports as one HTML file each, that needs no other and reads well on paper and on a phone."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;display:block;overflow-x:auto;margin:1rem 0}
td,th{padding:.25rem .8rem;border-bottom:1px solid #ddd;text-align:left;white-space:nowrap}
.wrap td{white-space:normal;overflow-wrap:anywhere}
img{max-width:100%;height:auto} figure{margin:1.5rem 0} figcaption{color:#555;font-size:.9rem}
.note{border-left:4px solid #c53030;padding-left:.8rem} code{font-size:.9em}
@media print{body{margin:0;font-size:11px} figure{break-inside:avoid}}
"""


def page(title: str, content: str) -> str:
    """A whole page.

    Args:
        title: plain text.
        content: HTML, below the title.
    """
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1>{content}</html>\n"
    )


def figure(name: str, picture: bytes, caption: str) -> str:
    """A PNG within the page.

    Args:
        name: for those who cannot see it.
        picture: the file.
        caption: plain text.
    """
    return (
        f'<figure><img alt="{escape(name)}" src="data:image/png;base64,'
        f'{base64.b64encode(picture).decode()}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], wrap: bool = False) -> str:
    """A table of plain texts; without a head if that is empty.

    Args:
        head: of the columns.
        rows: of cells.
        wrap: break long cells; otherwise a wide table scrolls.
    """
    cells = [("td", row) for row in rows]
    if head:
        cells.insert(0, ("th", head))
    lines = (
        "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, row in cells
    )
    return f"<table{' class=wrap' if wrap else ''}>{''.join(lines)}</table>"
