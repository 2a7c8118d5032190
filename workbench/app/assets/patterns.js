// Patterns to look at: all heads of a layer, one head's map, its tokens, its strongest links. Rows are queries.
(function () {
  "use strict";

  const { valueOf, picture, fetched } = window.workbenchPixels;
  const SVG = "http://www.w3.org/2000/svg";
  const THUMB = 76;
  const RINGS = 8;
  const RETRY_MS = 5000;

  const shown = new Map(); // by the id of the container

  /* making elements: text is always text */

  function make(tag, className, ...children) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.append(...children);
    return element;
  }

  function draw(tag, attributes, text) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function card(title, about, ...body) {
    const small = make("small", "", about);
    const section = make("section", "card", make("h3", "", title, small), ...body);
    section.about = small;
    return section;
  }

  const number = (x) => (Math.abs(x) >= 0.0995 ? x.toFixed(2) : x === 0 ? "0" : x.toPrecision(2));

  /* one container */

  // `source`: what the server knows the patterns by; `at`: {layer, head}; `onHead`: told which head was clicked.
  async function show(id, source, at, onHead) {
    const holder = document.getElementById(id);
    if (!holder) return;
    const before = shown.get(id);
    before?.stop.abort();
    const view = { id, holder, source, at, onHead, stop: new AbortController(), direction: before?.direction || "from" };
    shown.set(id, view);
    try {
      const same = before?.file && JSON.stringify(before.source) === JSON.stringify(source);
      view.file = same ? before.file : await ask(view, "of", {});
      const here = view.file.layers.some((layer) => layer.layer === at.layer);
      if (!here) view.at = { layer: view.file.layers[0].layer, head: 0 };
      const [atlas, facts, tile] = await Promise.all([
        ask(view, "atlas", { layer: view.at.layer }),
        ask(view, "head", view.at),
        tileOf(view, 0, view.file.n, 0, view.file.n),
      ]);
      Object.assign(view, { atlas, facts, whole: tile, tile });
      view.query = before && before.query < view.file.n && same ? before.query : view.file.n - 1;
      build(view);
    } catch (error) {
      if (error.name === "AbortError") return;
      holder.replaceChildren(make("div", "patterns", card("Pattern", "", empty(error.message))));
      // a scan that is still writing makes maps after the scores that the page follows
      setTimeout(() => shown.get(id) === view && holder.offsetParent && show(id, source, at, onHead), RETRY_MS);
    }
  }

  function empty(text) {
    return make("div", "empty", text.replaceAll("; ", ";\n"));
  }

  function ask(view, what, more) {
    return fetched(`patterns/${what}`, { ...view.source, ...more }, view.stop.signal);
  }

  function tileOf(view, q0, q1, k0, k1) {
    return ask(view, "tile", { ...view.at, q0, q1, k0, k1 });
  }

  function stops(view) {
    const isDark = document.documentElement.classList.contains("dark");
    return view.file.colours[isDark ? "dark" : "light"];
  }

  function build(view) {
    view.pattern = patternCard(view);
    view.words = tokensCard(view);
    const above = make("div", "halves", view.pattern, view.words);
    const below = make("div", "halves below", profileCard(view), linksCard(view));
    view.holder.replaceChildren(make("div", "patterns", atlasCard(view), above, below));
    paintAtlas(view);
    paint(view);
    colour(view);
  }

  function redraw() {
    for (const view of shown.values()) {
      if (!view.atlas) continue;
      paintAtlas(view);
      paint(view);
    }
  }

  /* all heads of the layer */

  function atlasCard(view) {
    const canvas = make("canvas", "atlas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `patterns of the ${view.atlas.heads.length} heads of layer ${view.at.layer}`);
    canvas.addEventListener("click", (event) => {
      const head = headAt(view, event);
      if (head !== undefined) view.onHead({ layer: view.at.layer, head });
    });
    canvas.addEventListener("mousemove", (event) => {
      const head = headAt(view, event);
      canvas.title = head === undefined ? "" : `L${view.at.layer}H${head}`;
    });
    view.atlasCanvas = canvas;
    const signed = view.atlas.signed.some(Boolean) ? " · signed: each head on its own scale" : "";
    const about = `${view.file.n} tokens of ${view.file.probe} · the largest entry of each block · √ scale${signed} · click opens the head`;
    const one = card(`All heads of layer ${view.at.layer}`, about);
    if (view.source.job) one.append(layerButtons(view));
    one.append(canvas);
    return one;
  }

  function layerButtons(view) {
    const layers = [...new Map(view.file.layers.map((layer) => [layer.layer, layer])).values()];
    const buttons = layers.map((layer) => {
      const button = make("button", "button quiet", `L${layer.layer} ${layer.kind}`);
      button.classList.toggle("on", layer.layer === view.at.layer);
      button.addEventListener("click", () => view.onHead({ layer: layer.layer, head: Math.min(view.at.head, layer.n_heads - 1) }));
      return button;
    });
    return make("div", "choices", ...buttons);
  }

  const LABEL = 16;
  const GAP = 8;

  function perRow(view) {
    const width = view.holder.clientWidth - 40;
    return Math.max(1, Math.min(view.atlas.heads.length, Math.floor((width + GAP) / (thumb(view) + GAP))));
  }

  // One row where that leaves the heads large enough, else as many rows as it takes.
  function thumb(view) {
    const width = view.holder.clientWidth - 40;
    return Math.max(THUMB, Math.min(128, Math.floor((width + GAP) / view.atlas.heads.length) - GAP));
  }

  function headAt(view, event) {
    const box = view.atlasCanvas.getBoundingClientRect();
    const [size, columns] = [thumb(view), perRow(view)];
    const column = Math.floor((event.clientX - box.left) / (size + GAP));
    const row = Math.floor((event.clientY - box.top) / (size + GAP + LABEL));
    return column < columns ? view.atlas.heads[row * columns + column] : undefined;
  }

  function paintAtlas(view) {
    const { atlas, atlasCanvas: canvas } = view;
    const [size, columns] = [thumb(view), perRow(view)];
    const rows = Math.ceil(atlas.heads.length / columns);
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [columns * (size + GAP), rows * (size + GAP + LABEL)];
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.imageSmoothingEnabled = atlas.side > size * ratio;
    const style = getComputedStyle(view.holder);
    context.font = "11px sans-serif";
    context.textAlign = "center";
    atlas.heads.forEach((head, i) => {
      const [x, y] = [(i % columns) * (size + GAP) + 2, Math.floor(i / columns) * (size + GAP + LABEL) + 2];
      const codes = atlas.codes.subarray(i * atlas.side ** 2, (i + 1) * atlas.side ** 2);
      const tile = { signed: atlas.signed[i], scale: atlas.scale[i] };
      context.drawImage(picture(codes, atlas.side, atlas.side, tile, stops(view)), x, y, size, size);
      const isChosen = head === view.at.head;
      context.strokeStyle = isChosen ? "#e4572e" : style.getPropertyValue("--line");
      context.lineWidth = isChosen ? 3 : 1;
      context.strokeRect(x, y, size, size);
      context.fillStyle = style.getPropertyValue(isChosen ? "--text" : "--muted");
      context.fillText(`H${head}`, x + size / 2, y + size + 13);
    });
  }

  /* one head's pattern */

  function patternCard(view) {
    const canvas = make("canvas", "map");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `pattern of L${view.at.layer}H${view.at.head}`);
    const svg = draw("svg", {});
    const plot = make("div", "plot", canvas, svg);
    const said = make("div", "said");
    const back = make("button", "button quiet", "whole pattern");
    back.addEventListener("click", () => zoom(view, 0, view.file.n, 0, view.file.n));
    const one = card("Pattern", "", plot, make("div", "choices", back, said));
    Object.assign(view, { canvas, svg, plot, said, back });
    canvas.addEventListener("mousedown", (event) => startDrag(view, event));
    canvas.addEventListener("mousemove", (event) => point(view, cellAt(view, event)));
    canvas.addEventListener("mouseleave", () => point(view, null));
    canvas.addEventListener("dblclick", () => zoom(view, 0, view.file.n, 0, view.file.n));
    view.observer = new ResizeObserver(() => overlay(view));
    view.observer.observe(plot);
    return one;
  }

  // What the tile covers, in tokens.
  function extent(view) {
    const { tile, file } = view;
    const [q1, k1] = [tile.query + tile.rows * tile.block, tile.key + tile.columns * tile.block];
    return { q0: tile.query, q1, k0: tile.key, k1, n: file.n };
  }

  function caption(view) {
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
    context.drawImage(picture(tile.codes, tile.rows, tile.columns, tile, stops(view)), 0, 0, canvas.width, canvas.height);
    view.plot.style.aspectRatio = `${tile.columns} / ${tile.rows}`;
    view.pattern.about.textContent = caption(view);
    view.back.disabled = tile.rows * tile.block >= view.file.n;
    overlay(view);
  }

  // A token's middle on the plot, in pixels.
  function place(view, query, key) {
    const { q0, q1, k0, k1 } = extent(view);
    const box = view.plot.getBoundingClientRect();
    return { x: ((key + 0.5 - k0) / (k1 - k0)) * box.width, y: ((query + 0.5 - q0) / (q1 - q0)) * box.height, box };
  }

  function overlay(view) {
    const { svg, tile } = view;
    const { q0, q1, k0, k1 } = extent(view);
    const parts = [];
    const { box } = place(view, 0, 0);
    if (!box.width) return;
    for (let i = 0; i <= 4; i++) {
      const [down, across] = [q0 + ((q1 - q0) * i) / 4, k0 + ((k1 - k0) * i) / 4].map(Math.round);
      parts.push(draw("text", { x: -6, y: (box.height * i) / 4 + 4, "text-anchor": "end" }, down));
      parts.push(draw("text", { x: (box.width * i) / 4, y: box.height + 15, "text-anchor": "middle" }, across));
    }
    parts.push(draw("text", { x: box.width / 2, y: box.height + 27, "text-anchor": "middle" }, "key (source)"));
    const side = { x: -34, y: box.height / 2, "text-anchor": "middle", transform: `rotate(-90 -34 ${box.height / 2})` };
    parts.push(draw("text", side, "query (destination)"));
    const inside = (query, key) => query >= q0 && query < q1 && key >= k0 && key < k1;
    view.rings = new Map();
    const taken = [];
    view.facts.links.forEach((link, i) => {
      if (!inside(link.query, link.key) || view.rings.size >= RINGS) return;
      const { x, y } = place(view, link.query, link.key);
      if (taken.some(([left, top]) => Math.hypot(left - x, top - y) < 14)) return;
      taken.push([x, y]);
      const ring = draw("circle", { cx: x, cy: y, r: Math.max(7, (box.width / tile.columns) * 0.9), class: "ring" });
      ring.append(draw("title", {}, told(view, link.query, link.key, link.value)));
      view.rings.set(i, ring);
      parts.push(ring);
    });
    if (view.query >= q0 && view.query < q1) {
      const at = place(view, view.query, view.query);
      const line = view.direction === "from" ? { x1: 0, x2: box.width, y1: at.y, y2: at.y } : { x1: at.x, x2: at.x, y1: 0, y2: box.height };
      parts.push(draw("line", { ...line, class: "cross" }));
    }
    svg.replaceChildren(...parts);
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
    const frame = draw("rect", { class: "frame" });
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
      if (side < 6) return pick(view, cellAt(view, to));
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
      view.tile = await tileOf(view, q0, q1, k0, k1);
      paint(view);
    } catch (error) {
      if (error.name !== "AbortError") view.said.textContent = error.message;
    }
  }

  /* pointing: at a cell, at a token */

  function span(view, cell) {
    const { tile, file } = view;
    const range = (start, i) => [start + i * tile.block, Math.min(file.n, start + (i + 1) * tile.block) - 1];
    return { queries: range(tile.query, cell.row), keys: range(tile.key, cell.column) };
  }

  function word(view, i) {
    const { pieces, ids } = view.file;
    if (!pieces) return `token ${ids[i]}`;
    return JSON.stringify(pieces[i]).slice(1, -1);
  }

  const tokens = (view, [first, last]) => (first === last ? `${word(view, first)} @${first}` : `@${first} … ${last}`);
  const told = (view, query, key, value) => `${word(view, query)} @${query} → ${word(view, key)} @${key} · A = ${number(value)}`;

  function point(view, cell) {
    view.words.querySelectorAll(".pointed").forEach((element) => element.classList.remove("pointed"));
    if (!cell) {
      view.said.textContent = "";
      return colour(view);
    }
    const { queries, keys } = span(view, cell);
    const value = valueOf(view.tile, view.tile.codes[cell.row * view.tile.columns + cell.column]);
    view.said.textContent = `query ${tokens(view, queries)} → key ${tokens(view, keys)} · A = ${number(value)}`;
    for (let i = keys[0]; i <= keys[1]; i++) view.spans[i].classList.add("pointed");
    colour(view, view.direction === "from" ? queries[0] : keys[0]);
  }

  // The token whose row, or column, colours the others.
  function pick(view, cell) {
    const { queries, keys } = span(view, cell);
    choose(view, view.direction === "from" ? queries[1] : keys[0]);
  }

  function choose(view, token) {
    view.query = token;
    colour(view);
    overlay(view);
  }

  /* tokens */

  function tokensCard(view) {
    const { pieces, ids } = view.file;
    // words of a tokenizer that writes no spaces would run into each other
    const isSpaced = pieces && pieces.filter((piece) => /^\s/.test(piece)).length * 10 > pieces.length;
    const box = make("div", isSpaced ? "tokens" : "tokens apart");
    view.spans = Array.from(ids, (id, i) => {
      const text = pieces ? pieces[i].replaceAll("\n", "↵\n") || "∅" : String(id);
      const span = make("span", "", text);
      span.dataset.i = i;
      return span;
    });
    box.append(...view.spans);
    const at = (event) => event.target.dataset?.i;
    box.addEventListener("mouseover", (event) => at(event) !== undefined && hover(view, Number(at(event))));
    box.addEventListener("mouseleave", () => hover(view, null));
    box.addEventListener("click", (event) => at(event) !== undefined && choose(view, Number(at(event))));
    const buttons = ["from", "to"].map((direction) => {
      const button = make("button", "button quiet", direction);
      button.title = direction === "from" ? "what this token looks at" : "who looks at this token";
      button.addEventListener("click", () => {
        view.direction = direction;
        colour(view);
        overlay(view);
      });
      return button;
    });
    view.buttons = buttons;
    const one = card("Tokens", "", box);
    one.querySelector("h3").append(...buttons);
    return one;
  }

  function hover(view, token) {
    view.svg.querySelectorAll(".hover").forEach((line) => line.remove());
    if (token === null) return colour(view);
    colour(view, token);
    const { q0, q1 } = extent(view);
    if (token < q0 || token >= q1) return;
    const { x, y, box } = place(view, token, token);
    const line = view.direction === "from" ? { x1: 0, x2: box.width, y1: y, y2: y } : { x1: x, x2: x, y1: 0, y2: box.height };
    view.svg.append(draw("line", { ...line, class: "cross hover" }));
  }

  // Colour the tokens by the row (from) or column (to) of one of them, in the whole pattern.
  function colour(view, token = view.query) {
    const { whole, spans, direction } = view;
    const block = Math.floor(token / whole.block);
    const at = (i) => {
      const other = Math.floor(i / whole.block);
      const [row, column] = direction === "from" ? [block, other] : [other, block];
      return valueOf(whole, whole.codes[row * whole.columns + column]);
    };
    const largest = whole.signed ? whole.scale || 1 : 1;
    spans.forEach((span, i) => {
      const value = at(i);
      const strength = Math.sqrt(Math.abs(value) / largest);
      const ink = value < 0 ? "47, 127, 181" : "245, 158, 11";
      span.style.background = strength > 0.05 ? `rgba(${ink}, ${strength.toFixed(3)})` : "";
      span.classList.toggle("unseen", direction === "from" ? i > token : i < token);
      span.classList.toggle("query", i === token);
    });
    view.buttons.forEach((button) => button.classList.toggle("on", button.textContent === direction));
    const row = whole.block === 1 ? "" : ` · rows of ${whole.block} tokens together`;
    const what = direction === "from" ? "attention FROM" : "attention TO";
    view.words.about.textContent = `${what} ${word(view, token)} @${token} · click changes the token${row}`;
  }

  /* links and distances */

  function linksCard(view) {
    const titles = ["A", "query", "key", "distance"].map((title) => make("th", "", title));
    const rows = view.facts.links.slice(0, 12).map((link, i) => {
      const cells = [number(link.value), `${word(view, link.query)} @${link.query}`, `${word(view, link.key)} @${link.key}`, String(link.distance)];
      const row = make("tr", "link", ...cells.map((text) => make("td", "mono", text)));
      row.addEventListener("mouseenter", () => view.rings.get(i)?.classList.add("on"));
      row.addEventListener("mouseleave", () => view.rings.get(i)?.classList.remove("on"));
      row.addEventListener("click", () => choose(view, view.direction === "from" ? link.query : link.key));
      return row;
    });
    const about = `exact · distance ≥ ${view.file.far} tokens, sink excluded, one per query`;
    if (!rows.length) return card("Long-range links", about, empty("no attention so far back"));
    const table = make("table", "links", make("thead", "", make("tr", "", ...titles)), make("tbody", "", ...rows));
    return card("Long-range links", about, make("div", "table", table));
  }

  function profileCard(view) {
    const { profile, sink, window: reach } = view.facts;
    const [width, height, left, base] = [460, 190, 34, 150];
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, style: "max-width: 100%", role: "img", "aria-label": "mass by distance" });
    const step = (width - left - 8) / profile.length;
    const top = (share) => base - share * (base - 10);
    for (const share of [0, 0.5, 1]) {
      svg.append(draw("line", { x1: left, x2: width - 8, y1: top(share), y2: top(share), class: "axis" }));
      svg.append(draw("text", { x: left - 6, y: top(share) + 4, "text-anchor": "end" }, share));
    }
    profile.forEach(({ least, most, mass }, i) => {
      const bar = draw("rect", { x: left + i * step + 2, width: Math.max(1, step - 4), y: top(mass), height: base - top(mass), class: "mass" });
      const name = least === most ? `${least}` : `${least}–${most}`;
      bar.append(draw("title", {}, `${name} tokens back: ${number(mass)} of the attention`));
      svg.append(bar);
      svg.append(draw("text", { x: left + (i + 0.5) * step, y: base + 14, "text-anchor": "middle" }, least));
    });
    const line = profile.map(({ within }, i) => `${left + (i + 0.5) * step},${top(within)}`).join(" ");
    svg.append(draw("polyline", { points: line, class: "within" }));
    svg.append(draw("text", { x: (left + width) / 2, y: base + 31, "text-anchor": "middle" }, "tokens back, from"));
    const about = `share of attention, mean over rows · sink ${number(sink)} (not in the bars) · 95 % of the rest within ${Math.round(reach)} tokens (dotted)`;
    return card("Distance profile", about, svg);
  }

  /* the Head page */

  let last = "";
  function patterned(kept, steps, dark, changed) {
    if (!kept || kept.page !== "head" || !kept.head) return;
    const [layer, head] = kept.head.slice(1).split("H").map(Number);
    const ckpt = (steps || {})[kept.run];
    const source = { run: kept.run, ...(kept.probe ? { probe: kept.probe } : {}), ...(ckpt ? { ckpt } : {}) };
    const key = JSON.stringify([source, layer, head, changed]);
    if (key === last) return setTimeout(redraw, 0) && undefined;
    last = key;
    show("head-patterns", source, { layer, head }, (to) => window.workbench.jump({ page: "head", run: kept.run, head: `L${to.layer}H${to.head}` }));
  }

  window.workbenchPatterns = { show, redraw };
  window.addEventListener("resize", () => redraw());
  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.workbench = Object.assign(window.dash_clientside.workbench || {}, { patterned });
})();
