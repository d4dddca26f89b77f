"""Labels that matplotlib draws as they are."""


def plain(label: str) -> str:
    """Keep matplotlib from taking a label's `$` for a formula, and one that begins with `_` out of the legend."""
    text = label.replace("$", r"\$")
    return f"\N{WORD JOINER}{text}" if text.startswith("_") else text
