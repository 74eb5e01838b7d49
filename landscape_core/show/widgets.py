"""An explorer that computes: choose values, and see what they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

Draw = Callable[..., Any]
LOOK = {"style": {"description_width": "10em"}, "layout": {"width": "28em"}}


def explore(draw: Draw, /, **choices: Sequence[Any]) -> Any:
    """Sliders over the arguments of a function; what it returns is computed when they move.

    For notebooks with a kernel. What was computed once is kept, so that going back costs
    nothing. The sliders can be reached and moved with the keyboard.

    Parameters
    ----------
    draw : callable
        Takes the chosen values by name and returns anything that a notebook can show: a
        :class:`Picture`, a :class:`Setting`, a table, a figure.
    **choices : sequence
        For each argument the values that it may take. Numbers get a slider, anything else a
        menu. The first value of each is shown first.

    Returns
    -------
    ipywidgets.VBox
        The sliders, a line that says what is being done, and the result.

    Raises
    ------
    ImportError
        Without ipywidgets.
    ValueError
        If there is nothing to choose from.
    Exception
        What the function raises for the first values. Of later ones the line says it.

    Examples
    --------
    >>> import landscape_core as lc
    >>> def square(x: int) -> str:
    ...     return f"{x} squared is {x * x}"
    >>> box = lc.explore(square, x=[1, 2, 3])
    >>> box.children[0].value = 3
    """
    try:
        import ipywidgets as widgets
    except ImportError as error:
        raise ImportError("explore needs ipywidgets: pip install ipywidgets") from error
    if not choices:
        raise ValueError("there is nothing to explore: name an argument, as in width=[8, 64]")
    controls = {name: _control(widgets, name, values) for name, values in choices.items()}
    status, output = widgets.Label(), widgets.Output()
    kept: dict[tuple[int, ...], tuple[Any, ...]] = {}

    def show() -> None:
        at = tuple(control.index for control in controls.values())
        chosen = {name: control.value for name, control in controls.items()}
        if at not in kept:
            status.value = "computing …"
            kept[at] = (_shown(draw(**chosen)),)
        output.outputs = kept[at]
        status.value = ", ".join(f"{name} = {value}" for name, value in chosen.items())

    def follow(_: object) -> None:
        try:
            show()
        except Exception as error:  # told, and the sliders stay alive
            status.value = f"{type(error).__name__}: {error}"
            output.outputs = ()

    show()  # what fails here fails the cell
    for control in controls.values():
        control.observe(follow, names="index")
    return widgets.VBox([*controls.values(), status, output])


def _control(widgets: Any, name: str, values: Sequence[Any]) -> Any:
    """A slider for numbers, a menu for anything else."""
    listed = list(values)
    if not listed:
        raise ValueError(f"{name} has no values to choose from")
    options = [(str(value), value) for value in listed]
    label = name.replace("_", " ")
    if all(isinstance(v, Real) and not isinstance(v, bool) for v in listed):
        return widgets.SelectionSlider(
            options=options, index=0, description=label, continuous_update=False, **LOOK
        )
    return widgets.Dropdown(options=options, index=0, description=label, **LOOK)


def _shown(result: Any) -> Mapping[str, Any]:
    """A result as an output of a cell."""
    from IPython import get_ipython  # comes with ipywidgets
    from IPython.core.formatters import DisplayFormatter

    shell = get_ipython()
    formatter = DisplayFormatter() if shell is None else shell.display_formatter
    data, metadata = formatter.format(result)
    return {"output_type": "display_data", "data": data, "metadata": metadata}
