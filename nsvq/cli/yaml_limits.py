"""A limit to what a YAML text unfolds into."""

from collections.abc import Callable
from typing import Any

import yaml

MAX_DEPTH = 50
MAX_VALUES = 10_000


def limited(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a loader that refuses texts that a few lines let grow without end, see `require_limited`.

    Args:
        load: The loader.
    """

    def load_limited(text: str) -> Any:
        require_limited(text)
        try:
            return load(text)
        # Values that do not fit their explicit tags, such as `!!int x`.
        except (ValueError, AttributeError, LookupError, TypeError) as error:
            raise yaml.YAMLError("a value does not fit its tag, as in !!int abc") from error

    return load_limited


def require_limited(text: str) -> None:
    """Refuse a YAML text of more than `MAX_VALUES` values, aliases written out, or nested deeper than `MAX_DEPTH`.

    Args:
        text: The text.

    Raises:
        YAMLError: If it is refused or is no YAML.
    """
    sizes: dict[str, int] = {}
    # The anchor and the size of each list or mapping that is open; the first stands for the text.
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((anchor, 1))
            if len(open_nodes) > MAX_DEPTH:
                raise yaml.YAMLError(f"nested more than {MAX_DEPTH} deep")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
        elif isinstance(event, yaml.AliasEvent):
            if any(name == anchor for name, _ in open_nodes):
                raise yaml.YAMLError(f"*{anchor} stands inside what it is an alias of")
            size = sizes.get(str(anchor), 1)
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        parent, total = open_nodes[-1]
        open_nodes[-1] = (parent, total + size)
        if total + size > MAX_VALUES:
            raise yaml.YAMLError(f"more than {MAX_VALUES} values, aliases written out")
