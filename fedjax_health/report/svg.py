"""Makes a figure's SVG fit to stand inside a page beside others.

Ids get a prefix, since those of two figures may be equal; the figure's style sheet,
which would apply to the whole page, is dropped; named colours become variables of the
page, so that a dark page can have other ones.
"""

import re
from collections.abc import Mapping
from xml.etree import ElementTree

NAMESPACE = re.compile(r"^\{[^}]*\}")
REFERENCE = re.compile(r"url\(#([^)]+)\)")
DROPPED = {"metadata", "style", "title"}


def inline_svg(
    text: str, *, prefix: str, label: str, colours: Mapping[str, str]
) -> str:
    """Returns an ``<svg>`` element for a page of HTML.

    Args:
      text: a whole SVG file of our own figures.
      prefix: put before every id.
      label: what a screen reader says in place of the figure.
      colours: name -> ``#rrggbb``; in the page it is ``var(--name)``.
    """
    root = ElementTree.fromstring(text)
    swaps = {value.lower(): f"var(--{name})" for name, value in colours.items()}
    for element in list(root.iter()):
        for child in list(element):
            if _plain(child.tag) in DROPPED:
                element.remove(child)
        element.tag = _plain(element.tag)
        # Line breaks between elements are bytes that nobody reads.
        if element.tag != "text":
            element.text = None
        element.tail = None
        attributes = {_plain(key): value for key, value in element.attrib.items()}
        element.attrib.clear()
        for key, value in attributes.items():
            element.set(key, _rewrite(key, value, prefix, swaps))
    width, height = (float(root.get(k, "0").removesuffix("pt")) for k in _SIZE)
    for key in ("version", *_SIZE):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", label)
    # In place of the style sheet that was dropped; a page of 96 pixels to the inch.
    size = f"max-width: {width / 72:.2f}in; --shape: {width:g} / {height:g}"
    root.set("style", f"stroke-linejoin: round; {size}")
    return ElementTree.tostring(root, encoding="unicode")


_SIZE = ("width", "height")


def _rewrite(key: str, value: str, prefix: str, swaps: Mapping[str, str]) -> str:
    if key == "id":
        return f"{prefix}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    if key == "clip-path" or "url(" in value:
        value = REFERENCE.sub(rf"url(#{prefix}-\1)", value)
    if key == "style":
        # In a style sheet alone may a colour be a variable.
        for colour, variable in swaps.items():
            value = value.replace(colour, variable)
    return value


def _plain(name: str) -> str:
    return NAMESPACE.sub("", str(name))
