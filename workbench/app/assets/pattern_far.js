// How far every head looks on one text: a layer-by-head map, and the heads that look the farthest.
(function () {
  "use strict";

  const parts = (window.workbenchPatternParts ??= {});

  const NAMED = 6;
  const [LEFT, TOP] = [34, 4];

  const named = ([layer, head, kind], view) => `L${layer}H${head}${isMixed(view, layer) ? ` ${kind}` : ""}`;
  const goal = ([layer, head, kind], view) => ({ layer, head, ...(isMixed(view, layer) ? { kind } : {}) });

  function isMixed(view, layer) {
    return new Set(view.file.layers.filter((entry) => entry.layer === layer).map((entry) => entry.kind)).size > 1;
  }

  const ranked = (far) => far.heads.filter((head) => head[3] !== null).sort((a, b) => b[3] - a[3]);

  // The head with the most attention far back.
  function farthest(far) {
    const [first] = ranked(far);
    const [layer, head, kind] = first || far.heads[0];
    const isTwice = far.heads.some((other) => other[0] === layer && other[2] !== kind);
    return { layer, head, ...(isTwice ? { kind } : {}) };
  }

  // The layers as rows: of a layer with two mixers, one row for each.
  function rowsOf(view) {
    return [...new Set(view.far.heads.map(([layer, , kind]) => JSON.stringify([layer, kind])))].map((row) => JSON.parse(row));
  }

  function farCard(view) {
    const { far } = view;
    const canvas = parts.make("canvas", "atlas far");
    canvas.setAttribute("role", "img");
    const best = ranked(far).slice(0, NAMED);
    canvas.setAttribute("aria-label", `attention ${far.from} or more tokens back, of ${far.heads.length} heads; the most: ${best.map((head) => `${named(head, view)} ${parts.number(head[3])}`).join(", ")}`);
    canvas.addEventListener("click", (event) => {
      const head = headAt(view, event);
      if (head) view.onHead(goal(head, view));
    });
    canvas.addEventListener("mousemove", (event) => {
      const head = headAt(view, event);
      canvas.title = head ? `${named(head, view)} · ${head[2]} · ${head[3] === null ? "no row looks so far" : parts.number(head[3])}` : "";
    });
    view.farCanvas = canvas;
    const buttons = best.map((head) => {
      const button = parts.make("button", "button quiet", `${named(head, view)} · ${parts.number(head[3])}`);
      button.classList.toggle("on", isShown(view, head));
      button.addEventListener("click", () => view.onHead(goal(head, view)));
      return button;
    });
    const about = best.length
      ? `share of each head's attention that lies ${far.from} or more tokens back, sink excluded, mean over the rows that have such a token · colours from 0 to 1 · click opens the head`
      : `the text is too short: no row looks ${far.from} tokens back`;
    const [probe] = view.file.probe.split(":");
    const section = parts.card(`Which heads look far on ${probe === "text" ? "this text" : probe}`, about, parts.make("div", "far-row", canvas, parts.make("div", "choices", parts.make("span", "muted", "farthest:"), ...buttons)));
    parts.offer(section, { PNG: parts.asImage(canvas), CSV: parts.asTable(["layer", "head", "kind", "far_mass"], far.heads) });
    return section;
  }

  const isShown = (view, [layer, head, kind]) => layer === view.at.layer && head === view.at.head && (!view.at.kind || view.at.kind === kind);

  // Columns, and the side of a square.
  function measures(view) {
    const columns = 1 + Math.max(...view.far.heads.map(([, head]) => head));
    const rows = rowsOf(view).length;
    const width = Math.max(120, view.holder.clientWidth - 40 - LEFT);
    return { columns, rows, wide: Math.min(26, width / columns), high: Math.max(7, Math.min(16, 320 / rows)) };
  }

  function headAt(view, event) {
    const { wide, high } = measures(view);
    const box = view.farCanvas.getBoundingClientRect();
    const [row, column] = [Math.floor((event.clientY - box.top - TOP) / high), Math.floor((event.clientX - box.left - LEFT) / wide)];
    const [layer, kind] = rowsOf(view)[row] || [];
    return view.far.heads.find((head) => head[0] === layer && head[2] === kind && head[1] === column);
  }

  function paintFar(view) {
    const { columns, rows, wide, high } = measures(view);
    const [width, height] = [LEFT + columns * wide + 3, TOP + rows * high + 18];
    const canvas = view.farCanvas;
    const ratio = window.devicePixelRatio || 1;
    [canvas.width, canvas.height] = [width * ratio, height * ratio];
    [canvas.style.width, canvas.style.height] = [`${width}px`, `${height}px`];
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const style = getComputedStyle(view.holder);
    context.font = "11px sans-serif";
    context.fillStyle = style.getPropertyValue("--muted");
    const order = rowsOf(view);
    const every = Math.ceil(13 / high);
    context.textAlign = "right";
    order.forEach(([layer], row) => row % every === 0 && context.fillText(layer, LEFT - 5, TOP + row * high + high / 2 + 4));
    context.textAlign = "center";
    const step = Math.ceil(24 / wide);
    for (let column = 0; column < columns; column += step) context.fillText(`H${column}`, LEFT + (column + 0.5) * wide, height - 4);
    for (const head of view.far.heads) {
      const row = order.findIndex(([layer, kind]) => layer === head[0] && kind === head[2]);
      const [x, y] = [LEFT + head[1] * wide, TOP + row * high];
      context.fillStyle = head[3] === null ? style.getPropertyValue("--line") : window.workbenchPixels.shade(parts.stops(view), head[3]).colour;
      context.fillRect(x, y, Math.max(1, wide - 1), Math.max(1, high - 1));
      if (!isShown(view, head)) continue;
      context.strokeStyle = "#e4572e";
      context.lineWidth = 2;
      context.strokeRect(x, y, Math.max(1, wide - 1), Math.max(1, high - 1));
    }
  }

  Object.assign(parts, { farCard, paintFar, farthest });
})();
