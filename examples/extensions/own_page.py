"""A page of one's own in the app: attention sinks per layer of one run, as a figure and a table.

Run it as it stands: `python examples/extensions/own_page.py RUN...` serves the app with the page. In a package of your
own the decorated function alone is enough; name its module in an entry point, and `workbench app` has the page:

    [project.entry-points."workbench.pages"]
    my_package = "my_package.my_page"
"""

import sys

import pandas as pd
import plotly.graph_objects as go
from dash import Input, Output, html, no_update

from workbench.app import ids, page, serve
from workbench.app.components import card, choice, graph, message, text_table, theme_of
from workbench.app.state.view import View
from workbench.figures.style import COLOURS, styled
from workbench.figures.trajectories import at_step
from workbench.heads import WorkbenchError

FIGURE, TABLE = "sinks-figure", "sinks-table"


def sinks_per_layer(run, step):
    """Mean and largest attention on the first token in each layer, at a step, a checkpoint's name, or "last"."""
    probes = run.probes_of("sink")
    if not probes:
        raise WorkbenchError(f"{run.name} has no scores of sink; add them with --detector sink")
    scores = run.scores(detector="sink", probe=probes[0], **at_step(step))
    heads = scores.groupby("layer")["score"]
    return heads.agg(mean="mean", largest="max").reset_index()


def sinks_figure(sinks, theme):
    """A bar for the mean of each layer, a mark for its strongest head."""
    figure = styled(go.Figure(), theme, height=300)
    bar, mark = COLOURS[theme][:2]
    figure.add_bar(x=sinks["layer"], y=sinks["mean"], name="mean of the heads", marker={"color": bar})
    strongest = {"color": mark, "size": 11, "symbol": "diamond"}
    figure.add_scatter(x=sinks["layer"], y=sinks["largest"], name="strongest head", mode="markers", marker=strongest)
    figure.update_xaxes(title="layer", title_font={"size": 12}, dtick=1)
    return figure.update_yaxes(title="attention on the first token", title_font={"size": 12}, range=[0, 1])


def register(app, content):
    """Draw the page whenever the view, the slider's checkpoint, the scores or the theme change."""

    @app.callback(
        Output(ids.parameter_id("sinks_run"), "data"),
        Output(ids.parameter_id("sinks_run"), "value"),
        Output(FIGURE, "figure"),
        Output(TABLE, "children"),
        Input(ids.VIEW, "data"),
        Input(ids.RUN_CHECKPOINTS, "data"),
        Input(ids.SCORES_CHANGED, "data"),
        Input(ids.THEME, "data"),
    )
    def show_sinks(view_json, checkpoints, _, is_dark):
        view, theme = View.of_page("sinks", view_json), theme_of(is_dark)
        if view is None:
            return (no_update,) * 4
        name = view.get("sinks_run")
        try:
            sinks = sinks_per_layer(content.runs[name], (checkpoints or {}).get(name, "last"))
        except WorkbenchError as error:
            return list(view.runs), name, message(str(error), theme), []
        rows = [[row.layer, f"{row.mean:.3f}", f"{row.largest:.3f}"] for row in sinks.itertuples()]
        table = text_table(("layer", "mean", "strongest head"), rows, numbers_from=1)
        return list(view.runs), name, sinks_figure(sinks, theme), table


def settle(view, _):
    """The run of the address if it is among the chosen ones, else the first of these."""
    return view if view.get("sinks_run") in view.runs else view.having({"sinks_run": view.runs[0]})


def export_sinks(view, content, step) -> pd.DataFrame:
    """The table of the page, for `/export/sinks.csv`."""
    return sinks_per_layer(content.runs[view.get("sinks_run")], "last" if step is None else step)


@page(
    "sinks",
    register=register,
    parameters=("sinks_run",),
    settle=settle,
    exports={"sinks": export_sinks},
    follows_checkpoint=True,
)
def layout(_):
    """Attention sinks per layer of one run."""
    about = "at the slider's checkpoint · a query head's mean attention on the first token"
    figure = card("Attention sinks per layer", about, graph(FIGURE))
    numbers = card("In numbers", "", html.Div(id=TABLE, className="table"), table="sinks")
    title = html.Section(choice("sinks_run", label="Run"), className="card head-title")
    return [title, html.Div([figure, numbers], className="row two")]


if __name__ == "__main__":
    serve(sys.argv[1:])
