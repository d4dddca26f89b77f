"""Run a notebook's code cells without Jupyter: `python run_cells.py FILE` prints a JSON line for each value shown."""

import ast
import io
import json
import linecache
import math
import sys
import traceback
from pathlib import Path
from typing import Any

SHOWN_BY_JUPYTER = "%matplotlib inline"


def run(path: Path) -> None:
    """Run the code cells of a notebook in one namespace; the process ends with the first cell that raises."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"], start=1):
        if cell["cell_type"] != "code":
            continue
        try:
            value = _value(_code(cell), f"<cell {number} of {path.name}>", namespace)
            if value is not None:
                print(json.dumps({"cell": number, **shown(value)}), flush=True)
        except BaseException as error:
            traceback.print_exc()
            sys.exit(f"cell {number} of {path.name}: {type(error).__name__}: {error}")


def shown(value: Any) -> dict[str, Any]:
    """Return what Jupyter would show of a value; what its display raises is raised here."""
    if type(value).__name__ == "Figure":
        value.savefig(io.BytesIO(), format="png")
        panels = [panel for panel in value.axes if panel.axison]
        return {"panels": len(panels), "empty_panels": sum(_is_empty(panel) for panel in panels)}
    for name in ("_repr_html_", "_repr_png_"):
        content = getattr(value, name, lambda: None)()
        if content is not None:
            return {"html": content} if name == "_repr_html_" else {"bytes": len(content)}
    return {"text": repr(value)}


def _code(cell: dict[str, Any]) -> str:
    # The line stays as an empty one, so that numbers of lines are those of the cell.
    lines = "".join(cell["source"]).split("\n")
    return "\n".join("" if line == SHOWN_BY_JUPYTER else line for line in lines)


def _value(source: str, name: str, namespace: dict[str, Any]) -> Any:
    """Run a cell and return the value of its last line where that is an expression."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), namespace)
    return eval(compile(ast.Expression(last.value), name, "eval"), namespace) if last else None


def _is_empty(panel: Any) -> bool:
    # Without data the limits of a panel's data are infinite.
    return not all(map(math.isfinite, panel.dataLim.get_points().flatten()))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
