// One head's pattern as a canvas, with zoom, rings around its strongest links, and the cell under the pointer. Rows are queries.
(function () {
  "use strict";

  const parts = (window.workbenchPatternParts ??= {});
  const pixels = () => window.workbenchPixels;

  const RINGS = 8;

  function patternCard(view) {
    const canvas = parts.make("canvas", "map");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `pattern of L${view.at.layer}H${view.at.head}`);
    const svg = parts.draw("svg", {});
    const plot = parts.make("div", "plot", canvas, svg);
    const caption = parts.make("div", "said");
    const back = parts.make("button", "button quiet", "whole pattern");
    back.addEventListener("click", () => zoom(view, 0, view.file.n, 0, view.file.n));
    const section = parts.card("Pattern", "", plot, parts.make("div", "choices", back, caption));
    parts.offer(section, { PNG: parts.asImage(canvas) });
    Object.assign(view, { canvas, svg, plot, caption, back });
    canvas.addEventListener("mousedown", (event) => startDrag(view, event));
    canvas.addEventListener("mousemove", (event) => parts.point(view, cellAt(view, event)));
    canvas.addEventListener("mouseleave", () => parts.point(view, null));
    canvas.addEventListener("dblclick", () => zoom(view, 0, view.file.n, 0, view.file.n));
    view.observer = new ResizeObserver(() => overlay(view));
    view.observer.observe(plot);
    return section;
  }

  // The queries and keys that the tile covers, in tokens.
  function extent(view) {
    const { tile, file } = view;
    const [q1, k1] = [tile.query + tile.rows * tile.block, tile.key + tile.columns * tile.block];
    return { q0: tile.query, q1, k0: tile.key, k1, n: file.n };
  }

  function describe(view) {
    const { tile, file } = view;
    const name = `L${view.at.layer}H${view.at.head}`;
    const isExact = view.file.exact.includes(name) && tile.block === 1;
    const grain = tile.block === 1 ? (isExact ? "exact" : "single tokens") : `largest of ${tile.block} × ${tile.block} tokens`;
    const scale = tile.signed ? "signed weights of a linear layer, √ scale on both sides of 0, ± the head's largest" : "√ scale";
    const finest = Math.min(...view.facts.blocks);
    const more = finest > 1 && tile.block === finest && !isExact ? " · finer crops: scan with --keep qk" : "";
    return `${scale} · rows = query · ${grain} · drag to zoom · rings: links ≥ ${file.far} tokens back, sink excluded${more}`;
  }

  function paint(view) {
    const { canvas, tile } = view;
    const times = Math.max(1, Math.floor(640 / Math.max(tile.rows, tile.columns)));
    canvas.width = tile.columns * times;
    canvas.height = tile.rows * times;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(pixels().picture(tile.codes, tile.rows, tile.columns, tile, parts.stops(view)), 0, 0, canvas.width, canvas.height);
    view.plot.style.aspectRatio = `${tile.columns} / ${tile.rows}`;
    view.pattern.about.textContent = describe(view);
    view.back.disabled = tile.rows * tile.block >= view.file.n;
    overlay(view);
  }

  // A token's middle on the plot, in pixels.
  function position(view, query, key) {
    const { q0, q1, k0, k1 } = extent(view);
    const box = view.plot.getBoundingClientRect();
    return { x: ((key + 0.5 - k0) / (k1 - k0)) * box.width, y: ((query + 0.5 - q0) / (q1 - q0)) * box.height, box };
  }

  function overlay(view) {
    const { svg, tile } = view;
    const { q0, q1, k0, k1 } = extent(view);
    const shapes = [];
    const { box } = position(view, 0, 0);
    if (!box.width) return;
    for (let i = 0; i <= 4; i++) {
      const [down, across] = [q0 + ((q1 - q0) * i) / 4, k0 + ((k1 - k0) * i) / 4].map(Math.round);
      shapes.push(parts.draw("text", { x: -6, y: (box.height * i) / 4 + 4, "text-anchor": "end" }, down));
      shapes.push(parts.draw("text", { x: (box.width * i) / 4, y: box.height + 15, "text-anchor": "middle" }, across));
    }
    shapes.push(parts.draw("text", { x: box.width / 2, y: box.height + 27, "text-anchor": "middle" }, "key (source)"));
    const side = { x: -34, y: box.height / 2, "text-anchor": "middle", transform: `rotate(-90 -34 ${box.height / 2})` };
    shapes.push(parts.draw("text", side, "query (destination)"));
    const inside = (query, key) => query >= q0 && query < q1 && key >= k0 && key < k1;
    view.rings = new Map();
    const ringed = [];
    view.facts.links.forEach((link, i) => {
      if (!inside(link.query, link.key) || view.rings.size >= RINGS) return;
      const { x, y } = position(view, link.query, link.key);
      if (ringed.some(([left, top]) => Math.hypot(left - x, top - y) < 14)) return;
      ringed.push([x, y]);
      const ring = parts.draw("circle", { cx: x, cy: y, r: Math.max(7, (box.width / tile.columns) * 0.9), class: "ring" });
      ring.append(parts.draw("title", {}, parts.describeLink(view, link.query, link.key, link.value)));
      view.rings.set(i, ring);
      shapes.push(ring);
    });
    if (view.query >= q0 && view.query < q1) {
      const middle = position(view, view.query, view.query);
      const line = view.direction === "from" ? { x1: 0, x2: box.width, y1: middle.y, y2: middle.y } : { x1: middle.x, x2: middle.x, y1: 0, y2: box.height };
      shapes.push(parts.draw("line", { ...line, class: "cross" }));
    }
    svg.replaceChildren(...shapes);
  }

  function cellAt(view, event) {
    const box = view.plot.getBoundingClientRect();
    const { tile } = view;
    const column = Math.min(tile.columns - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * tile.columns)));
    const row = Math.min(tile.rows - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * tile.rows)));
    return { row, column };
  }

  function startDrag(view, event) {
    event.preventDefault();
    const box = view.plot.getBoundingClientRect();
    const from = { x: event.clientX, y: event.clientY };
    const frame = parts.draw("rect", { class: "frame" });
    view.svg.append(frame);
    const bounds = (to) => {
      const side = Math.max(Math.abs(to.clientX - from.x), Math.abs(to.clientY - from.y));
      const x = (to.clientX < from.x ? from.x - side : from.x) - box.left;
      const y = (to.clientY < from.y ? from.y - side : from.y) - box.top;
      return { x, y, side };
    };
    const move = (to) => {
      const { x, y, side } = bounds(to);
      for (const [name, value] of Object.entries({ x, y, width: side, height: side })) frame.setAttribute(name, value);
    };
    const up = (to) => {
      window.removeEventListener("mousemove", move);
      frame.remove();
      const { x, y, side } = bounds(to);
      if (side < 6) return parts.pick(view, cellAt(view, to));
      const { q0, q1, k0, k1, n } = extent(view);
      const tokens = Math.max(8, Math.round((side / box.width) * (k1 - k0)));
      const clamp = (start) => Math.max(0, Math.min(n - Math.min(tokens, n), Math.round(start)));
      const [q, k] = [clamp(q0 + (y / box.height) * (q1 - q0)), clamp(k0 + (x / box.width) * (k1 - k0))];
      zoom(view, q, Math.min(n, q + tokens), k, Math.min(n, k + tokens));
    };
    window.addEventListener("mousemove", move);
    window.addEventListener("mouseup", up, { once: true });
  }

  async function zoom(view, q0, q1, k0, k1) {
    try {
      view.tile = await parts.tileOf(view, q0, q1, k0, k1);
      paint(view);
    } catch (error) {
      if (error.name !== "AbortError") view.caption.textContent = error.message;
    }
  }

  Object.assign(parts, { patternCard, paint, overlay, position, extent });
})();
