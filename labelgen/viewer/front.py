"""The front end: one page of plain HTML, CSS and JavaScript modules, served, or with all that it shows in itself."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from sum_factory.labelgen.page.drawing import data_url

KINDS_OF_FILES = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
SPECIFIER = "viewer/"
"""What modules are imported by, before their names: an import map says where they are."""


@cache
def _files() -> Mapping[str, bytes]:
    folder = files("sum_factory.labelgen.viewer") / "static"
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}


def file_of(name: str) -> bytes | None:
    """Return a file that the page asks for, or None."""
    is_asked = name.rsplit(".", 1)[-1] in KINDS_OF_FILES
    return _files().get(name) if is_asked else None


def modules() -> list[str]:
    """Return the names of the JavaScript modules."""
    return sorted(name for name in _files() if name.endswith(".js"))


def served_page(nonce: str) -> bytes:
    """Return the page that asks the server for everything. ``nonce`` is what its policy lets scripts of its own by."""
    places = {f"{SPECIFIER}{name}": f"./static/{name}" for name in modules()}
    style = '<link rel="stylesheet" href="static/viewer.css">'
    return _page("labelgen view", style, places, nonce, "")


def whole_page(title: str, embedded: Mapping[str, Any]) -> bytes:
    """Return a page that has all in itself: styles, modules and, as JSON, the photos and masks that it shows."""
    places = {f"{SPECIFIER}{name}": data_url(_files()[name], "text/javascript") for name in modules()}
    style = f"<style>{_files()['viewer.css'].decode()}</style>"
    data = json.dumps(embedded, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return _page(title, style, places, "", f'<script type="application/json" id="embedded">{data}</script>')


def _page(title: str, style: str, places: Mapping[str, str], nonce: str, data: str) -> bytes:
    allowed = f' nonce="{nonce}"' if nonce else ""
    text = _files()["index.html"].decode()
    filled = {
        "TITLE": html.escape(title),
        "STYLE": style,
        "MODULES": f'<script type="importmap"{allowed}>{json.dumps({"imports": places})}</script>',
        "DATA": data,
        "START": f'<script type="module"{allowed}>import "{SPECIFIER}main.js";</script>',
    }
    for name, value in filled.items():
        text = text.replace(f"<!--{name}-->", value, 1)
    return text.encode("utf-8", "backslashreplace")
