"""Plots as vector graphics: one that stands in a file, and one for the page, without comments, styles or shared ids."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

from omnichat.experiments.plots import LIGHT, Theme, theme_settings

_SVG = "http://www.w3.org/2000/svg"
_LINK = "http://www.w3.org/1999/xlink"
Draw = Callable[[Theme], Figure]


@dataclass(frozen=True, slots=True)
class Plate:
    """A numbered figure: `key` names its file, `file` is the SVG of the file, `inline` the element of the page.

    `alt` says what is to be seen, for people who cannot see it; the caption says what it means.
    """

    key: str
    caption: str
    alt: str
    file: str
    inline: str
    number: int = 0


def plate(key: str, draw: Draw, caption: str, alt: str) -> Plate:
    """Draw a figure on white."""
    buffer = io.BytesIO()
    settings: Any = theme_settings(LIGHT) | {"svg.hashsalt": f"omnichat {key}"}
    with matplotlib.rc_context(settings):
        draw(LIGHT).savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    content = buffer.getvalue().decode("utf-8")
    return Plate(key, caption, alt, content, inline_svg(content, key, alt))


def inline_svg(content: str, key: str, alt: str) -> str:
    """Return an SVG as an element for an HTML page.

    Comments and metadata go, for they quote labels; the style element goes, for it would hold for the whole page (the
    page's own sheet says the same of plots); ids get the figure's prefix, so that two plots do not share any.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK)
    root = ElementTree.fromstring(content)  # our own file; the parser drops comments and the document type
    prefix = re.sub(r"[^A-Za-z0-9]+", "-", key) + "-"
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            if name == "id":
                element.set(name, prefix + value)
            elif name in ("href", f"{{{_LINK}}}href") and value.startswith("#"):
                element.set(name, "#" + prefix + value[1:])
            elif "url(#" in value:
                element.set(name, value.replace("url(#", f"url(#{prefix}"))
    for name in ("width", "height"):  # the page scales it by its viewBox
        size = root.attrib.pop(name, "")
        if name == "width" and size.endswith("pt"):
            root.set("style", f"width:{float(size[:-2]) / 72 * 96:.0f}px")
    root.set("role", "img")
    root.set("aria-label", alt)
    return ElementTree.tostring(root, encoding="unicode")
