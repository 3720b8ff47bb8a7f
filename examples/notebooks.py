"""Make the notebooks from their scripts and run them: `make notebooks`. Their pictures need Chrome or Chromium."""

import os
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAMES = ("erase_people", "audit_an_edit")


def cells_of(name: str) -> Any:
    """Return a script as a notebook that has not been run, without a trace of the machine."""
    import jupytext
    import nbformat

    made = nbformat.v4.new_notebook(cells=jupytext.read(HERE / f"{name}.py", fmt="py:percent").cells)
    made.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for place, cell in enumerate(made.cells):
        cell.id, cell.metadata = f"cell-{place}", {}
    return made


def main() -> None:
    """Run each notebook in an empty folder and write it beside its script, with the digest of the model it trained.

    Another kind of processor trains a model that is a little another, and prints a little other numbers.
    """
    import nbformat
    from nbclient import NotebookClient

    os.environ["PLOTLY_RENDERER"] = "png"  # a forge shows no plotly; whoever runs the notebook has it interactive
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm's wish for widgets
    for name in NAMES:
        made = cells_of(name)
        made.cells.append(nbformat.v4.new_code_cell("print(lm.digest())"))
        with tempfile.TemporaryDirectory() as folder:
            client = NotebookClient(made, timeout=600, record_timing=False, resources={"metadata": {"path": folder}})
            client.execute()
        made.metadata.model = "".join(
            out.text for out in made.cells.pop().outputs if out.get("name") == "stdout"
        ).strip()
        made.metadata.pop("language_info")
        nbformat.write(made, HERE / f"{name}.ipynb")
        print(f"written to {name}.ipynb")


if __name__ == "__main__":
    main()
