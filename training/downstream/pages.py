"""One HTML page that needs no other file, for a screen, a phone and paper."""

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
        picture: content of the file.
        caption: plain text.
    """
    data = base64.b64encode(picture).decode()
    return (
        f'<figure><img alt="{escape(name)}" src="data:{kind};base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], wrap: bool = False) -> str:
    """A table of plain text.

    Args:
        head: of the columns; empty for none.
        rows: of cells.
        wrap: break long cells; otherwise a wide table scrolls.
    """
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"] if head else []
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table{' class=wrap' if wrap else ''}>{''.join(lines)}</table>"
