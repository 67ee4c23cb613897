"""Text from data and configuration, made harmless for a page."""

import datetime
import unicodedata
from typing import Any

_BAD = "\N{REPLACEMENT CHARACTER}"

_OVERRIDES = frozenset(("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))


def clean(text: str) -> str:
    """Returns text without what could break a page or turn its direction.

    Control characters, halves of surrogate pairs and marks that override the
    direction of writing become the replacement character.

    Args:
      text: from data or configuration.
    """
    return "".join(_BAD if _is_bad(c) else c for c in text)


def clean_tree(value: Any) -> Any:
    """Returns nested values with every text clean; dates become text.

    Args:
      value: as JSON or TOML gives it.
    """
    match value:
        case str():
            return clean(value)
        case dict():
            return {clean(str(key)): clean_tree(item) for key, item in value.items()}
        case list():
            return [clean_tree(item) for item in value]
        case datetime.date() | datetime.time():
            return str(value)
    return value


def _is_bad(character: str) -> bool:
    if character in "\n\t":
        return False
    kind = unicodedata.category(character)
    return (
        kind in ("Cc", "Cs")
        or unicodedata.bidirectional(character) in _OVERRIDES
        or character in "\ufffe\uffff"
    )
