// Answer in the browser what must not wait for the server: the address, the keys, another checkpoint.
(function () {
  "use strict";

  // Values that the address leaves out; the view has others, as `default_left`.
  const DEFAULTS = { x: "tokens", group: "each run", base: "no baseline" };
  const SVG = "http://www.w3.org/2000/svg";

  // The slider's position and the scores of the view.
  let shown = { position: null, planes: null };
  const decoded = new WeakMap();

  /* the address */

  function prefix() {
    const config = document.getElementById("_dash-config");
    return (config && JSON.parse(config.textContent).requests_pathname_prefix) || "/";
  }

  // `/embed/CARD` shows one card alone; the page that has the card stands in the address, or in a list of the server's.
  const PLACE = ["step", "at", "by"]; // what names a stop of the slider; see slider_stops.py
  const path = window.location.pathname.slice(prefix().length);
  const embedded = path.startsWith("embed/") ? decodeURIComponent(path.slice("embed/".length)) : null;
  let pages = {}; // of cards

  let visits = 0;
  function here() {
    return { ...shownAddress(), visit: ++visits };
  }

  function shownAddress() {
    const { pathname, search } = window.location;
    if (embedded === null) return { pathname, search };
    const query = new URLSearchParams(search);
    const page = query.get("page") || pages[embedded] || "overview";
    query.delete("page");
    query.delete("theme");
    return { pathname: prefix() + page, search: `?${query}` };
  }

  // Where the slider stands; null at the last stop, which the address leaves out, so that it follows a scan.
  function currentPlace() {
    const { position, planes } = shown;
    if (!planes || position === null || position >= planes.stops.length - 1) return null;
    return planes.stops[position].place;
  }

  // The place as a permalink has it.
  function lastPlace() {
    const { position, planes } = shown;
    return (planes && planes.stops[position]?.place) || {};
  }

  // What the server needs to find the place again among other runs.
  function currentStep() {
    const place = currentPlace();
    if (!place) return null;
    const { position, planes } = shown;
    return { place, names: checkpointNames(position, planes), x: planes.stops[position].x };
  }

  function addressWithPlace(address, place) {
    const [page, query] = address.split("?");
    const parameters = new URLSearchParams(query);
    PLACE.forEach((name) => parameters.delete(name));
    // In one order, so that the same stop has the same address.
    for (const name of PLACE) if (place && name in place) parameters.set(name, place[name]);
    return page + "?" + parameters.toString();
  }

  function readAddress(_, pagesOfCards) {
    pages = pagesOfCards || {};
    return [here(), keptTheme()];
  }

  let hasView = false; // before, the server has no view that a click could change, and links are ordinary ones
  function writeAddress(to) {
    if (to) hasView = true;
    if (!to || (to.visit && to.visit !== visits)) return;  // another entry of the history has been gone to since
    const address = prefix() + asEmbedded(to.keepsPlace || !shown.planes ? keepPlace(to.address) : addressWithPlace(to.address, currentPlace()));
    if (address !== window.location.pathname + window.location.search) {
      if (to.replace || embedded !== null) window.history.replaceState(null, "", address);
      else window.history.pushState(null, "", address);
    }
    const head = new URLSearchParams(to.address.split("?")[1]).get("head");
    document.title = head ? head + " · attention workbench" : "attention workbench";
    document.dispatchEvent(new Event("workbench:navigated"));
  }

  function keepPlace(address) {
    const query = new URLSearchParams(window.location.search);
    return addressWithPlace(address, Object.fromEntries(PLACE.filter((name) => query.has(name)).map((name) => [name, query.get(name)])));
  }

  function asEmbedded(address) {
    if (embedded === null) return address;
    const [page, search] = address.split("?");
    const query = new URLSearchParams(search);
    const theme = new URLSearchParams(window.location.search).get("theme");
    query.set("page", page);
    if (theme) query.set("theme", theme);
    return `embed/${encodeURIComponent(embedded)}?${query}`;
  }

  let writing = null;
  function writeStep() {
    clearTimeout(writing);
    writing = setTimeout(() => {
      const page = window.location.pathname.slice(prefix().length);
      const address = prefix() + addressWithPlace(page + "?" + window.location.search.slice(1), currentPlace());
      if (address !== window.location.pathname + window.location.search) {
        window.history.replaceState(null, "", address);
      }
    }, 150);
  }

  window.addEventListener("popstate", () => window.dash_clientside.set_props("location", { data: here() }));

  /* theme and page */

  // Whether it is dark: as the address of an embedded card says, else as chosen last. Frames may have no storage.
  function keptTheme() {
    const theme = embedded === null ? null : new URLSearchParams(window.location.search).get("theme");
    if (theme) return theme === "dark";
    try {
      return JSON.parse(window.localStorage.getItem("theme"));
    } catch {
      return null;
    }
  }

  function keepTheme(isDark) {
    try {
      window.localStorage.setItem("theme", JSON.stringify(isDark));
    } catch {
      // it is chosen again next time
    }
  }

  function applyTheme(dark, view, colours) {
    const page = view ? view.page : pageOfAddress();
    document.documentElement.classList.toggle("dark", Boolean(dark));
    document.documentElement.dataset.agThemeMode = dark ? "dark" : "light"; // of the head table's grid
    document.dispatchEvent(new CustomEvent("workbench:theme", { detail: { isDark: Boolean(dark), colours } }));
    return [dark ? "dark" : "light", `wb on-${page}${dark ? " dark" : ""}${embedded === null ? "" : " embedded"}`];
  }

  // Before the server has answered: the page of the address, where there is one, else the first.
  function pageOfAddress() {
    const name = shownAddress().pathname.replace(/\/$/, "").split("/").pop();
    return document.getElementById(`page-${name}`) ? name : document.querySelector(".page").dataset.pageName;
  }

  function frame(view) {
    return view && document.getElementById(`page-${view.page}`);
  }

  // The current page, if it is not laid out yet.
  const requested = new Set();
  function findEmptyPage(view) {
    const page = frame(view);
    if (!page || page.childElementCount || requested.has(view.page)) return window.dash_clientside.no_update;
    requested.add(view.page);
    return view.page;
  }

  /* another checkpoint */

  function unpack(text, bits) {
    const packed = atob(text);
    const bytes = new Uint8Array(packed.length);
    for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
    return bits === 8 ? bytes : new Uint16Array(bytes.buffer);
  }

  function plane(run) {
    if (!decoded.has(run)) {
      const span = run.high - run.low || 1;
      const missing = 2 ** run.bits - 1;
      const table = Float64Array.from({ length: missing + 1 }, (_, level) => run.low + (level / (missing - 1)) * span);
      table[missing] = NaN;
      const values = (text) => {
        const levels = unpack(text, run.bits);
        const scores = new Float64Array(levels.length);
        for (let i = 0; i < levels.length; i++) scores[i] = table[levels[i]];
        return scores;
      };
      decoded.set(run, { score: values(run.score), ci_lo: values(run.ci_lo), ci_hi: values(run.ci_hi) });
    }
    return decoded.get(run);
  }

  function showCheckpoint(position, planes, view) {
    const same = window.dash_clientside.no_update;
    if (!planes) return ["", same];
    document.querySelector(".controls .checkpoint").classList.toggle("none", !planes.stops.length);
    if (!planes.stops.length) {
      shown = { position: null, planes: null };
      return ["", same];
    }
    position = Math.min(position, planes.stops.length - 1);
    shown = { position, planes };
    document.dispatchEvent(new Event("workbench:stepped"));
    document.querySelector(".controls .checkpoint").classList.toggle("one", areAllOne(planes));
    graphs().forEach((id) => update(graph(id), id));
    window.dash_clientside.set_props("current-step", { data: currentStep() });
    writeStep();
    // Pages that follow the slider ask the server; on other pages nothing changes.
    const names = frame(view)?.dataset.followsCheckpoint ? checkpointNames(position, planes) : same;
    const words = label(position, planes);
    sayCheckpoint(words);
    return [words, names];
  }

  function showCards(position, planes, view) {
    if (!planes) return [];
    if (!planes.stops.length) return unscoredCards(planes);
    const base = Object.fromEntries((view && view.more) || []).base;
    return cards(Math.min(position, planes.stops.length - 1), planes, base);
  }

  // For those who hear the page: the slider's value in words, and once it rests.
  let saying = null;
  let lastSaid = null;
  function sayCheckpoint(words) {
    clearTimeout(saying);
    saying = setTimeout(() => {
      document.querySelector("#checkpoint [role=slider]")?.setAttribute("aria-valuetext", words);
      if (lastSaid !== null && lastSaid !== words) announce(`checkpoint ${words}`);
      lastSaid = words;
    }, 300);
  }

  function announce(text) {
    const region = document.getElementById("announced");
    if (region) region.textContent = text;
  }

  function checkpointNames(position, planes) {
    const here = Object.entries(planes.runs).filter(([, run]) => run.columns[position] >= 0);
    return Object.fromEntries(here.map(([name, run]) => [name, run.names[run.columns[position]]]));
  }

  // Models of one checkpoint each have nothing to step through.
  function areAllOne(planes) {
    const runs = Object.values(planes.runs);
    return runs.length > 0 && runs.every((run) => run.checkpoints.length === 1);
  }

  function label(position, planes) {
    if (areAllOne(planes)) {
      const names = [...new Set(Object.values(planes.runs).map((run) => run.checkpoints[0]))];
      return names.length > 3 ? `one each of ${names.length} models` : names.join(", ");
    }
    const labels = Object.values(planes.runs).map((run) => run.checkpoints[run.columns[position]]);
    const same = labels.every((text) => text === labels[0]);
    const stop = planes.stops[position];
    // A stop of a model without steps bears its name, which is not what the other runs show there.
    const isNamed = Object.values(planes.runs).some((run) => run.steps[0] === null && run.checkpoints.includes(stop.label));
    const isLast = position === planes.stops.length - 1;
    return (same && labels[0]) || (isNamed && isLast ? "the last of each run" : stop.label);
  }

  function watchFigures() {
    graphs().forEach((id) => watch(id, 100));
  }

  // The ids of all figures. Class "cursor": a line shows the checkpoint; class "grid": cells show its scores.
  function graphs() {
    return [...document.querySelectorAll("main .dash-graph")].map((holder) => holder.id);
  }

  function marked(id, name) {
    return document.getElementById(id).classList.contains(name);
  }

  function graph(id) {
    const holder = document.getElementById(id);
    return holder && holder.querySelector(".js-plotly-plot");
  }

  function watch(id, tries) {
    const plot = graph(id);
    if (!plot || !plot.on || !window.Plotly) {
      if (tries > 0) setTimeout(() => watch(id, tries - 1), 50);
      return;
    }
    if (!plot.isWatched) {
      plot.isWatched = true;
      plot.on("plotly_afterplot", () => settle(plot, id));
      if (!marked(id, "mask")) plot.on("plotly_click", (event) => clicked(event.points[0]));
      document.dispatchEvent(new CustomEvent("workbench:watched", { detail: { plot, id } }));
      new ResizeObserver(() => window.workbenchDrawing.fit(plot)).observe(plot.parentElement);
    }
    settle(plot, id);
  }

  // What is to be done with every figure that plotly has drawn.
  function settle(plot, id) {
    window.workbenchDrawing.fit(plot);
    const hasText = ((plot.layout && plot.layout.annotations) || []).some((annotation) => annotation.text);
    document.getElementById(id).classList.toggle("waiting", !plot.data.length && !hasText);
    update(plot, id);
    document.dispatchEvent(new CustomEvent("workbench:drawn", { detail: { plot, id } }));
  }

  // Bring a plot to the shown checkpoint. A new figure from the server has a new `plot.data`.
  function update(plot, id) {
    const { position, planes } = shown;
    if (!plot || !plot.layout || position === null || !planes || !plot.offsetParent) return;
    const key = `${planes.detector} ${planes.probe} ${position}`;
    if (marked(id, "cursor")) return drawCursors(plot, planes.stops[position].x);
    if (plot.broughtTo === key && plot.broughtData === plot.data) return;
    const meta = plot.layout.meta || {};
    if (!marked(id, "grid") || meta.detector !== planes.detector || meta.probe !== planes.probe) return;
    const isFresh = plot.broughtData !== plot.data;
    plot.broughtTo = key;
    plot.broughtData = plot.data;
    // The server draws the last checkpoint. With very many heads, drawing it again would be a visible pause.
    const isDrawn = isFresh && position === planes.stops.length - 1;
    if (!isDrawn || Object.values(planes.runs).some((run) => run.bits === 16)) fill(plot, position, planes);
  }

  function fill(plot, position, planes) {
    const traces = plot.data.map((trace, i) => [i, planes.runs[trace.name]]).filter(([, run]) => run);
    const cells = traces.map(([, run]) => filled(run, position, planes));
    const values = {
      z: cells.map((cell) => cell.z),
      text: cells.map((cell) => cell.text),
      hovertemplate: traces.map(([, run]) => template(run, position, planes)),
    };
    window.Plotly.restyle(plot, values, traces.map(([i]) => i));
  }

  // With very many heads there is no text for each: a template puts head and score into one under the pointer.
  function template(run, position, planes) {
    if (run.bits === 16) return "%{text}<extra></extra>";
    const unit = planes.unit ? " " + planes.unit : "";
    return `<b>%{customdata}</b> · ${run.checkpoints[run.columns[position]] || ""}<br>${planes.detector} %{z:.3~r}${unit}<extra></extra>`;
  }

  // Lines over the plot, without plotly: `Plotly.relayout` would send the whole figure through Dash and draw it again.
  function drawCursors(plot, x) {
    const svg = plot.querySelector(".main-svg");
    const layout = plot._fullLayout;
    let group = svg.querySelector(".cursors");
    if (!group) {
      group = document.createElementNS(SVG, "g");
      group.setAttribute("class", "cursors");
    }
    const axes = Object.keys(layout).filter((name) => /^xaxis\d*$/.test(name) && layout[name].type === "log");
    const lines = axes.map((name) => {
      const across = layout[name];
      const up = layout["yaxis" + across.anchor.slice(1)];
      const left = across._offset + across.d2p(x);
      const line = document.createElementNS(SVG, "line");
      const ends = { x1: left, x2: left, y1: up._offset, y2: up._offset + up._length };
      for (const [end, value] of Object.entries(ends)) line.setAttribute(end, value);
      return line;
    });
    group.replaceChildren(...lines);
    svg.appendChild(group);
  }

  function filled(run, position, planes) {
    const rows = 1 + run.cells[run.cells.length - 1][0];
    const z = Array.from({ length: rows }, () => new Array(run.width).fill(null));
    const text = run.bits === 16 ? Array.from({ length: rows }, () => new Array(run.width).fill("no such head")) : null;
    const column = run.columns[position];
    const scores = plane(run);
    run.cells.forEach(([row, slot], head) => {
      const i = column * run.heads.length + head;
      const score = column < 0 ? NaN : scores.score[i];
      z[row][slot] = Number.isNaN(score) ? null : score;
      if (!text) return;
      const checkpoint = column < 0 ? "no checkpoint yet" : run.checkpoints[column];
      text[row][slot] = `<b>${run.heads[head]}</b> · ${run.kinds[head]} · ${checkpoint}<br>` + scoreText(run, scores, i, head, column, planes);
    });
    return { z, text };
  }

  // As in `workbench.console`: significant digits where the decimals would leave fewer than two.
  function fixed(x, decimals) {
    const isSmall = x !== 0 && Math.abs(x) < 10 ** (1 - decimals);
    return isSmall ? String(Number(x.toPrecision(decimals))) : x.toFixed(decimals);
  }

  function scoreText(run, scores, i, head, column, planes) {
    if (column < 0 || Number.isNaN(scores.score[i])) return `${planes.detector}: no score (no such row here)`;
    const unit = planes.unit ? " " + planes.unit : "";
    const [low, high] = [scores.ci_lo[i], scores.ci_hi[i]];
    const interval = low === undefined || Number.isNaN(low) ? "" : ` · 95 % CI ${fixed(low, 4)} to ${fixed(high, 4)}`;
    return `${planes.detector} ${fixed(scores.score[i], 4)}${unit}${interval} · n = ${run.n[head].toLocaleString("en")}`;
  }

  /* the cards: the number of heads, now and so far */

  function cards(position, planes, base) {
    return Object.entries(planes.runs).map(([name, run], i) => {
      const isCounted = planes.threshold !== null;
      const [value, about] = isCounted ? counted(run, position, planes) : extremes(run, position, planes);
      const baseline = isCounted && base !== name && planes.runs[base];
      if (name === base && isCounted) value.push(span("of", " (baseline)"));
      if (baseline) value.push(span("of", ` · ${against(run, baseline, position, planes)}`));
      return div("card kpi", [div("what", [span("", name), span("muted", run.layers)]), div("value", value), div("about", about)], {
        borderLeftColor: `var(--run-${i % 16})`, // as `figures.style.COLOURS`
      });
    }).concat(unscoredCards(planes));
  }

  // What is not shown, and why.
  function unscoredCards(planes) {
    const why = (name, reason) =>
      div("card kpi", [div("what", [span("", name)]), div("value", "–"), div("about", reason)], { borderLeftColor: "var(--muted)" });
    const unscored = Object.entries(planes.unscored || {});
    if (!unscored.length && !Object.keys(planes.runs).length) return [why("no scores", (planes.reason || "").replace(/<[^>]*>/g, " "))];
    return unscored.map(([name, reason]) => why(name, planes.probe ? `not shown on ${planes.probe}: ${reason}` : reason));
  }

  // How many heads are at the threshold or above.
  function countOf(run, position, planes) {
    const last = run.columns[position];
    const n = run.heads.length;
    const now = last < 0 ? [] : plane(run).score.subarray(last * n, (last + 1) * n);
    return now.filter((value) => value >= planes.threshold).length;
  }

  function against(run, baseline, position, planes) {
    const difference = countOf(run, position, planes) - countOf(baseline, position, planes);
    return `${difference > 0 ? "+" : difference < 0 ? "−" : "±"}${Math.abs(difference)} to the baseline`;
  }

  function counted(run, position, planes) {
    const last = run.columns[position];
    const n = run.heads.length;
    const reached = firstReached(run, planes.threshold);
    const ever = reached.filter((column) => column <= last).length;
    const now = countOf(run, position, planes);
    const strongest = run.strongest.head ? ` · of the strongest, ${run.strongest.head}: ${run.strongest.onset}` : "";
    const onset = run.first_onset ? `first onset ${run.first_onset}${strongest}` : "no onset";
    const isOne = run.checkpoints.length === 1;
    const rule = ` of ${n} heads at ${planes.detector} ≥ ${planes.threshold}`;
    const source = span("of", rule, `threshold ${planes.threshold}: ${planes.threshold_source}`);
    if (isOne) return [[`${now}`, source], "one checkpoint: no onset to tell"];
    return [[`${now}`, source], [`${ever} reached it so far · ${ever - now} lost · `, span("", onset, planes.onset_meaning)]];
  }

  // The first checkpoint at which each head reaches a threshold.
  const reaching = new WeakMap();
  function firstReached(run, threshold) {
    if (!reaching.has(run)) {
      const { score } = plane(run);
      const n = run.heads.length;
      const first = Float64Array.from(run.heads, () => Infinity);
      for (let i = score.length - 1; i >= 0; i--) if (score[i] >= threshold) first[i % n] = Math.floor(i / n);
      reaching.set(run, first);
    }
    return reaching.get(run);
  }

  function extremes(run, position, planes) {
    const { score } = plane(run);
    const column = run.columns[position];
    const rows = run.heads.map((head, i) => [column < 0 ? NaN : score[column * run.heads.length + i], head]);
    const scored = rows.filter(([value]) => !Number.isNaN(value)).sort((a, b) => a[0] - b[0]);
    if (!scored.length) return ["–", `${planes.detector}: no score`];
    const mean = scored.reduce((sum, [value]) => sum + value, 0) / scored.length;
    const [lowest, highest] = [scored[0], scored[scored.length - 1]];
    const ends = `lowest ${fixed(lowest[0], 2)} (${lowest[1]}) · highest ${fixed(highest[0], 2)} (${highest[1]})`;
    return [[fixed(mean, 2), span("of", ` ${planes.unit}, mean ${planes.detector}`)], ends];
  }

  function component(type, className, children, { style, title } = {}) {
    return { namespace: "dash_html_components", type, props: { className, children, style, title } };
  }
  const div = (className, children, style) => component("Div", className, children, { style });
  const span = (className, children, title) => component("Span", className, children, { title });

  /* pointing and keys */

  let jumps = 0;
  function jump(to) {
    if (embedded !== null && to.page && to.page !== shownAddress().pathname.slice(prefix().length)) return openApp(to);
    window.dash_clientside.set_props("jump", { data: { ...to, count: ++jumps } });
  }

  // The whole app in a tab of its own: an embedded card has no pages.
  function openApp({ page, head, run } = {}) {
    const { pathname, search } = shownAddress();
    const query = new URLSearchParams(search);
    if (head) query.set("head", head);
    if (head && run) query.set("of", run);
    window.open(`${prefix()}${page || pathname.slice(prefix().length)}?${query}`, "_blank", "noopener");
  }

  function clicked(point) {
    const head = point.customdata;
    if (typeof head !== "string" || !head) return;
    const runs = shown.planes ? shown.planes.runs : {};
    const run = [point.data.legendgroup, point.data.name].find((name) => name && name in runs);
    jump(run ? { page: "head", head, run } : { page: "head", head });
  }

  // The select of the Head page has another run.
  function changeHeadRun(run, view) {
    if (run && view && run !== view.run) jump({ run });
  }

  // A select that is named as a parameter of the address has another value.
  function changeParameter(values, view) {
    if (!view) return;
    const current = Object.fromEntries(view.more || []);
    const inputs = window.dash_clientside.callback_context.triggered;
    const set = {};
    for (const { prop_id: id, value } of inputs) {
      const { name } = JSON.parse(id.slice(0, id.lastIndexOf(".")));
      const usual = DEFAULTS[name] || current[`default_${name}`] || "";
      if (value !== null && value !== undefined && value !== (current[name] || usual)) {
        set[name] = value === usual ? "" : value;
      }
    }
    if (Object.keys(set).length) jump({ set });
  }

  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "[" || event.key === "]") step(event.key === "]" ? 1 : -1);
    else if (event.key === "d") toggleTheme();
    else if ("hjkl".includes(event.key) && event.key.length === 1) jump({ key: event.key });
  }

  // Whether a key is a letter of a text. Chips and the inputs of selects, which only show a choice, take no text.
  function isTyping(element) {
    if (element.isContentEditable || /^(textarea|select)$/i.test(element.tagName)) return true;
    const isText = !/^(checkbox|radio|range|button|submit|color|file|image|reset)$/.test(element.type || "");
    return /^input$/i.test(element.tagName || "") && isText && !element.readOnly && !element.disabled;
  }

  function step(by) {
    const { position, planes } = shown;
    if (!planes) return;
    const next = Math.min(Math.max(position + by, 0), planes.stops.length - 1);
    if (next !== position) window.dash_clientside.set_props("checkpoint", { value: next });
  }

  function toggleTheme() {
    const isDark = !document.documentElement.classList.contains("dark");
    keepTheme(isDark);
    window.dash_clientside.set_props("theme", { data: isDark });
  }

  document.addEventListener("keydown", pressed);
  document.addEventListener("click", (event) => {
    if (event.target.closest("#dark")) toggleTheme();
    const link = event.target.closest("a[data-page]");
    if (link && (hasView || embedded !== null) && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      const { page, head, run, probe, set } = link.dataset;
      jump({ page, ...(head ? { head, run } : {}), ...(probe ? { probe } : {}), ...(set ? { set: JSON.parse(set) } : {}) });
    }
  });

  window.workbench = { jump, prefix, graph, marked, lastPlace, addressWithPlace, announce, isTyping, embedded, openApp, planes: () => shown.planes };
  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    workbench: {
      ...((window.dash_clientside || {}).workbench || {}),
      ...{ readAddress, writeAddress, applyTheme, findEmptyPage, showCheckpoint, showCards, watchFigures, changeHeadRun, changeParameter },
    },
  });
})();
