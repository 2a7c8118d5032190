// Edit a plan's mask: click, shift-click, lasso, and the budget's slider.
(function () {
  "use strict";

  let state = null;
  let last = null;

  function changeBudget(value, mask) {
    state = mask;
    const triggered = window.dash_clientside.callback_context.triggered.map((input) => input.prop_id);
    if (!mask || !triggered.includes("budget.value") || value === mask.keep.length) return;
    if (!triggered.includes("plan-kept.data")) window.workbench.jump({ set: { keep: `n${value}` }, replace: true });
  }

  function keep(heads) {
    window.workbench.jump({ set: { keep: heads.length ? heads.join(".") : "n0" } });
  }

  // Keep all of these heads; if all are kept already, keep none of them.
  function toggle(heads) {
    const kept = new Set(state.keep);
    const all = heads.every((head) => kept.has(head));
    heads.forEach((head) => (all ? kept.delete(head) : kept.add(head)));
    keep([...kept]);
  }

  function cells(plot) {
    const points = plot.data.find((trace) => Array.isArray(trace.customdata));
    return points.customdata.map((head, i) => ({ head, x: points.x[i], y: points.y[i] }));
  }

  function clicked(plot, event) {
    const point = event.points.find((candidate) => candidate.z !== undefined) || event.points[0];
    const cell = cells(plot).find(({ x, y }) => x === Math.round(point.x) && y === Math.round(point.y));
    if (!cell || !state) return;
    if (event.event && event.event.shiftKey && last) {
      const between = (value, a, b) => value >= Math.min(a, b) && value <= Math.max(a, b);
      const block = cells(plot).filter(({ x, y }) => between(x, last.x, cell.x) && between(y, last.y, cell.y));
      keep([...new Set([...state.keep, ...block.map(({ head }) => head)])]);
    } else toggle([cell.head]);
    last = cell;
  }

  document.addEventListener("workbench:watched", (event) => {
    const { plot, id } = event.detail;
    if (!window.workbench.marked(id, "mask")) return;
    plot.on("plotly_click", (click) => clicked(plot, click));
    plot.on("plotly_selected", (selected) => {
      const heads = ((selected && selected.points) || []).map((point) => point.customdata).filter(Boolean);
      if (heads.length && state) toggle(heads);
    });
  });
  document.addEventListener("click", (event) => {
    const name = event.target.closest("[data-toggle-head]");
    if (name && state) toggle([name.dataset.toggleHead]);
    const mask = event.target.closest("[data-keep]");
    if (mask) window.workbench.jump({ set: { keep: mask.dataset.keep } });
  });

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.workbench = Object.assign(window.dash_clientside.workbench || {}, { changeBudget });
})();
