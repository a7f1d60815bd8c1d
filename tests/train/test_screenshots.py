"""Pictures of the report: three views, each its own, and what is missing is named."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from train.screenshots import VIEWS, Options, chromium, main

PAGE = """<!doctype html><meta name="viewport" content="width=device-width"><style>
html { background: #fff } @media (prefers-color-scheme: dark) { html { background: #000 } }</style>"""


def test_every_view_is_taken(tmp_path, browser):
    (tmp_path / "report.html").write_text(PAGE)
    main(Options(tmp_path / "report.html", out=tmp_path / "shots" / "report"))
    for view, (width, height, scheme) in VIEWS.items():
        picture = Image.open(tmp_path / "shots" / f"report-{view}.png").convert("L")
        assert picture.size == (width, height)
        assert np.asarray(picture).mean() == (0 if scheme == "dark" else 255)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no report '.*none\.html'; train\.benchmark writes one"):
        main(Options(tmp_path / "none.html"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="apt-get install chromium chromium-driver"), chromium():
        pass
