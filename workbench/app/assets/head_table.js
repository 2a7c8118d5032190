// The table of every head: ticked rows are the pinned heads, and a click on a head opens it.
(function () {
  "use strict";

  // The set that the server sent is in force once the grid has ticked its rows: until then, no rows is no choice.
  let isArmed = false;
  let last = null;

  function ordered(heads) {
    const numbers = (head) => head.match(/\d+/g).map(Number);
    return [...heads].sort((a, b) => numbers(a)[0] - numbers(b)[0] || numbers(a)[1] - numbers(b)[1]);
  }

  function pinSelected(rows, view) {
    if (!view || view.page !== "head_table" || !Array.isArray(rows)) return;
    const current = Object.fromEntries(view.more || []).heads || "";
    if (current !== last) [last, isArmed] = [current, current === ""];
    const heads = ordered(rows.map((row) => row.head)).join(".");
    if (heads === current) isArmed = true;
    if (heads === current || !isArmed) return;
    last = heads;
    window.workbench.jump({ set: { heads }, replace: true });
  }

  function open(cell) {
    const head = cell.textContent.trim();
    if (/^L\d+H\d+$/.test(head)) window.workbench.jump({ page: "head", head });
  }

  document.addEventListener("click", (event) => {
    const cell = event.target.closest("#head-table .opens-head");
    if (cell && !event.target.closest("input, .ag-selection-checkbox")) open(cell);
  });
  document.addEventListener("keydown", (event) => {
    const cell = event.target.closest?.("#head-table .opens-head");
    if (cell && event.key === "Enter") open(cell);
  });

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.workbench = Object.assign(window.dash_clientside.workbench || {}, { pinSelected });
})();
