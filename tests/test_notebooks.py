"""The notebooks, in a short form: they run, and what they show may be shown."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHORT", "1")
    monkeypatch.setenv("USCL_ZOO_DATA", str(data.resolve()))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.defpath]))
    notebook: Any = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=where).execute()
    text = "".join(
        "".join(output.get("text", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", ())
    )
    assert {"busi": "difference", "pretrain": "a probe needs every class"}[path.stem] in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_shown_as_it_ran(path: Path) -> None:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    # a few, and the words beside them name their source and licence
    assert 1 <= len(pictures) <= 3
    for cell in code:
        words = "".join("".join(output.get("text", "")) for output in cell["outputs"])
        if any(output in pictures for output in cell["outputs"]) and "curves" not in str(
            cell["source"]
        ):
            assert re.search("CC[ -]BY", words)
            assert "NC" not in words
    said = json.dumps([output.get("text") for output in outputs])
    for private in (str(Path.home()), "/tmp/"):
        assert private not in said
    assert path.stat().st_size < 2e6
