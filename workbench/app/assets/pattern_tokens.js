// The tokens of a pattern, coloured by their attention from or to one of them; pattern and tokens mark each other's place.
(function () {
  "use strict";

  const parts = (window.workbenchPatternParts ??= {});
  const pixels = () => window.workbenchPixels;

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
  const describeLink = (view, query, key, value) => `${word(view, query)} @${query} → ${word(view, key)} @${key} · A = ${parts.number(value)}`;

  function point(view, cell) {
    view.words.querySelectorAll(".pointed").forEach((element) => element.classList.remove("pointed"));
    if (!cell) {
      view.caption.textContent = "";
      return colour(view);
    }
    const { queries, keys } = span(view, cell);
    const value = pixels().valueOf(view.tile, view.tile.codes[cell.row * view.tile.columns + cell.column]);
    view.caption.textContent = `query ${tokens(view, queries)} → key ${tokens(view, keys)} · A = ${parts.number(value)}`;
    for (let i = keys[0]; i <= keys[1]; i++) view.spans[i].classList.add("pointed");
    if (view.direction !== "loss") colour(view, view.direction === "from" ? queries[0] : keys[0]);
  }

  // Choose the token whose row, or column, colours the others.
  function pick(view, cell) {
    const { queries, keys } = span(view, cell);
    choose(view, view.direction === "from" ? queries[1] : keys[0]);
  }

  function choose(view, token) {
    view.query = token;
    colour(view);
    parts.overlay(view);
  }

  function tokensCard(view) {
    const { pieces, ids } = view.file;
    // Tokens without spaces would run into each other.
    const isSpaced = pieces && pieces.filter((piece) => /^\s/.test(piece)).length * 10 > pieces.length;
    const box = parts.make("div", isSpaced ? "tokens" : "tokens apart");
    view.spans = Array.from(ids, (id, i) => {
      const text = pieces ? pieces[i].replaceAll("\n", "↵\n") || "∅" : String(id);
      const span = parts.make("span", CUT.test(text) ? "cut" : "", text);
      span.dataset.i = i;
      if (hasLosses(view)) span.title = `${word(view, i)} @${i} · ${lossInWords(view, i)}`;
      return span;
    });
    box.append(...grouped(view.spans));
    view.inks = [];
    const index = (event) => event.target.dataset?.i;
    box.addEventListener("mouseover", (event) => index(event) !== undefined && hover(view, Number(index(event))));
    box.addEventListener("mouseleave", () => hover(view, null));
    box.addEventListener("click", (event) => index(event) !== undefined && choose(view, Number(index(event))));
    const buttons = ["from", "to", ...(hasLosses(view) ? ["loss"] : [])].map((direction) => {
      const button = parts.make("button", "button quiet", direction);
      button.title = { from: "what this token looks at", to: "who looks at this token", loss: "how unexpected each token is" }[direction];
      button.addEventListener("click", () => {
        view.direction = direction;
        colour(view);
        parts.overlay(view);
      });
      return button;
    });
    view.buttons = buttons;
    const section = parts.card("Tokens", "", box);
    section.querySelector("h3").append(...buttons);
    const nats = hasLosses(view) ? view.losses.nats : null;
    const side = () => (view.direction === "to" ? "attends" : "attended");
    const rows = () => view.spans.map((span, i) => [i, ids[i], pieces ? pieces[i] : "", attention(view, i, view.query), ...(nats ? [nats[i] ?? ""] : [])]);
    parts.offer(section, { CSV: () => parts.asTable(["token", "id", "text", side(), ...(nats ? ["nats"] : [])], rows())() });
    return section;
  }

  // A piece of a character, as the server writes it.
  const CUT = /^\S{1,8} \d\/\d$/u;
  // Nats that have the strongest colour: a chance of 1 in 2,981.
  const MOST_NATS = 8;

  const hasLosses = (view) => Boolean(view.losses?.nats?.length);

  function lossInWords(view, i) {
    const nats = view.losses.nats[i];
    if (nats === null) return "the first token: nothing is before it";
    return `loss ${nats.toFixed(2)} nats, probability ${Math.exp(-nats).toPrecision(2)}`;
  }

  // Groups of tokens that are out of sight are not laid out.
  const GROUP = 256;
  function grouped(spans) {
    if (spans.length <= 2 * GROUP) return spans;
    const starts = Array.from({ length: Math.ceil(spans.length / GROUP) }, (_, i) => i * GROUP);
    return starts.map((start) => parts.make("div", "group", ...spans.slice(start, start + GROUP)));
  }

  function hover(view, token) {
    view.svg.querySelectorAll(".hover").forEach((line) => line.remove());
    if (view.direction === "loss") return token === null ? undefined : (view.caption.textContent = `${word(view, token)} @${token} · ${lossInWords(view, token)}`);
    if (token === null) return colour(view);
    colour(view, token);
    const { q0, q1 } = parts.extent(view);
    if (token < q0 || token >= q1) return;
    const { x, y, box } = parts.position(view, token, token);
    const line = view.direction === "from" ? { x1: 0, x2: box.width, y1: y, y2: y } : { x1: x, x2: x, y1: 0, y2: box.height };
    view.svg.append(parts.draw("line", { ...line, class: "cross hover" }));
  }

  // The attention between a token and another, in the whole pattern: from the token's row or column.
  function attention(view, other, token) {
    const { whole, direction } = view;
    const [row, column] = (direction === "from" ? [token, other] : [other, token]).map((i) => Math.floor(i / whole.block));
    return pixels().valueOf(whole, whole.codes[row * whole.columns + column]);
  }

  // The height of a token's colour on the scale: of its attention from or to the chosen one, or of its loss.
  function heightOf(view, i, token) {
    if (view.direction === "loss") return (view.losses.nats[i] ?? 0) / MOST_NATS;
    const relative = attention(view, i, token) / (view.whole.signed ? view.whole.scale || 1 : 1);
    return Math.sign(relative) * Math.sqrt(Math.abs(relative));
  }

  // Colour the tokens by one of them, on the scale of the pattern; only those whose look changes are touched.
  function colour(view, token = view.query) {
    const { whole, spans, inks, direction } = view;
    const isLoss = direction === "loss";
    const stops = parts.stops(view);
    spans.forEach((span, i) => {
      const height = heightOf(view, i, token);
      const { colour: shade, ink } = Math.abs(height) > 0.05 ? window.workbenchPixels.shade(stops, height) : { colour: "", ink: "" };
      const isUnseen = !isLoss && (direction === "from" ? i > token : i < token);
      const look = `${shade} ${isUnseen} ${i === token}`;
      if (inks[i] === look) return;
      inks[i] = look;
      span.style.background = shade;
      span.style.color = ink;
      span.classList.toggle("out-of-reach", isUnseen);
      span.classList.toggle("query", !isLoss && i === token);
    });
    view.buttons.forEach((button) => button.classList.toggle("on", button.textContent === direction));
    view.words.about.textContent = isLoss ? aboutLosses(view) : aboutToken(view, token, whole);
  }

  function aboutToken(view, token, whole) {
    const row = whole.block === 1 ? "" : ` · rows of ${whole.block} tokens together`;
    const title = view.direction === "from" ? "attention FROM" : "attention TO";
    const missing = view.losses?.reason ? ` · ${view.losses.reason}` : "";
    return `${title} ${word(view, token)} @${token} · click changes the token · √ scale${row}${missing}`;
  }

  function aboutLosses(view) {
    const nats = view.losses.nats.filter((x) => x !== null);
    const mean = nats.reduce((sum, x) => sum + x, 0) / nats.length;
    return `loss of each token given those before it · mean ${mean.toFixed(2)} nats over ${nats.length} tokens · the strongest colour: ${MOST_NATS} nats or more`;
  }

  Object.assign(parts, { point, pick, choose, tokensCard, colour, word, describeLink });
})();
