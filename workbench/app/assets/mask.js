// A plan's mask under the pointer: click, shift-click, lasso, and the budget.
(function () {
  "use strict";

  let state = null;
  let last = null;

  function budgeted(value, kept) {
    state = kept;
    const triggered = window.dash_clientside.callback_context.triggered.map((one) => one.prop_id);
    if (!kept || !triggered.includes("budget.value") || value === kept.keep.length) return;
    if (!triggered.includes("plan-kept.data")) window.workbench.jump({ set: { keep: `n${value}` }, replace: true });
  }

  function keep(heads) {
    window.workbench.jump({ set: { keep: heads.length ? heads.join(".") : "n0" } });
  }

  // Heads that are all kept are let go; else all of them are kept.
  function turn(heads) {
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
    const point = event.points.find((one) => one.z !== undefined) || event.points[0];
    const here = cells(plot).find(({ x, y }) => x === Math.round(point.x) && y === Math.round(point.y));
    if (!here || !state) return;
    if (event.event && event.event.shiftKey && last) {
      const between = (value, a, b) => value >= Math.min(a, b) && value <= Math.max(a, b);
      const block = cells(plot).filter(({ x, y }) => between(x, last.x, here.x) && between(y, last.y, here.y));
      keep([...new Set([...state.keep, ...block.map(({ head }) => head)])]);
    } else turn([here.head]);
    last = here;
  }

  document.addEventListener("workbench:watched", (event) => {
    const { plot, id } = event.detail;
    if (!window.workbench.marked(id, "mask")) return;
    plot.on("plotly_click", (clickedAt) => clicked(plot, clickedAt));
    plot.on("plotly_selected", (selected) => {
      const heads = ((selected && selected.points) || []).map((point) => point.customdata).filter(Boolean);
      if (heads.length && state) turn(heads);
    });
  });
  document.addEventListener("click", (event) => {
    const one = event.target.closest("[data-turn]");
    if (one && state) turn([one.dataset.turn]);
    const whole = event.target.closest("[data-keep]");
    if (whole) window.workbench.jump({ set: { keep: whole.dataset.keep } });
  });

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.workbench = Object.assign(window.dash_clientside.workbench || {}, { budgeted });
})();
