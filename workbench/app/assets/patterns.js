// Show attention patterns: all heads of a layer, one head's pattern, its tokens, its strongest links.
(function () {
  "use strict";

  const parts = (window.workbenchPatternParts ??= {});
  const RETRY_MS = 5000;

  const shown = new Map(); // by the id of the container

  // `source`: the parameters that name the patterns to the server; `at`: {layer, head, kind}, the kind where a layer has
  // two mixers; null: the head that looks the farthest; `onHead`: called with the head that is clicked.
  async function show(id, source, at, onHead) {
    const holder = document.getElementById(id);
    if (!holder) return;
    const before = shown.get(id);
    before?.stop.abort();
    const view = { id, holder, source, at, onHead, stop: new AbortController(), direction: before?.direction || "from" };
    shown.set(id, view);
    holder.classList.toggle("expected", !holder.childElementCount); // room, so that what is below is not drawn first
    try {
      const same = before?.file && JSON.stringify(before.source) === JSON.stringify(source);
      view.file = same ? before.file : await ask(view, "of", {});
      if (source.job) [view.far, view.losses] = same ? [before.far, before.losses] : await Promise.all([ask(view, "far", {}), lossesOf(view)]);
      view.at ??= parts.farthest(view.far);
      const hasLayer = view.file.layers.some((layer) => layer.layer === view.at.layer);
      if (!hasLayer) view.at = { layer: view.file.layers[0].layer, head: 0 };
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
      holder.classList.remove("expected");
      holder.replaceChildren(parts.make("div", "patterns", parts.card("Pattern", "", parts.empty(error.message))));
      // A scan that is still writing stores patterns after the scores that the page follows.
      setTimeout(() => shown.get(id) === view && holder.offsetParent && show(id, source, at, onHead), RETRY_MS);
    }
  }

  function ask(view, route, more) {
    return window.workbenchPixels.request(`patterns/${route}`, { ...view.source, ...more }, view.stop.signal);
  }

  // The loss of each token of a text that was run, or why there is none.
  async function lossesOf(view) {
    return window.workbenchPixels.request("probing/losses", { job: view.source.job }, view.stop.signal);
  }

  function tileOf(view, q0, q1, k0, k1) {
    return ask(view, "tile", { ...view.at, q0, q1, k0, k1 });
  }

  function stops(view) {
    const isDark = document.documentElement.classList.contains("dark");
    return view.file.colours[isDark ? "dark" : "light"];
  }

  function build(view) {
    view.holder.classList.remove("expected");
    if (view.direction === "loss" && !view.losses?.nats?.length) view.direction = "from";
    view.pattern = parts.patternCard(view);
    view.words = parts.tokensCard(view);
    const beside = parts.make("div", "beside", view.words, parts.profileCard(view), parts.linksCard(view));
    const halves = parts.make("div", "halves", view.pattern, beside);
    const map = view.far ? [parts.farCard(view)] : [];
    view.holder.replaceChildren(parts.make("div", "patterns", ...map, parts.atlasCard(view), halves));
    if (view.far) parts.paintFar(view);
    parts.paintAtlas(view);
    parts.paint(view);
    parts.colour(view);
  }

  function redraw() {
    for (const view of shown.values()) {
      if (!view.atlas) continue;
      if (view.far) parts.paintFar(view);
      parts.paintAtlas(view);
      parts.paint(view);
      parts.colour(view);
    }
  }

  /* the Head page */

  let last = "";
  let waiting = null;
  function showHeadPatterns(view, checkpoints, dark, changed) {
    clearTimeout(waiting);
    if (!view || view.page !== "head" || !view.head) return;
    if (!document.getElementById("head-patterns")) {
      waiting = setTimeout(showHeadPatterns, 50, view, checkpoints, dark, changed); // until the page is laid out
      return;
    }
    const [layer, head] = view.head.slice(1).split("H").map(Number);
    const ckpt = (checkpoints || {})[view.run];
    const source = { run: view.run, ...(view.probe ? { probe: view.probe } : {}), ...(ckpt ? { ckpt } : {}) };
    const kind = Object.fromEntries(view.more || []).mixer;
    const key = JSON.stringify([source, layer, head, kind, changed]);
    if (key === last) return setTimeout(redraw, 0) && undefined;
    last = key;
    const open = (to) => window.workbench.jump({ page: "head", run: view.run, head: `L${to.layer}H${to.head}`, set: { mixer: to.kind || "" } });
    show("head-patterns", source, { layer, head, ...(kind ? { kind } : {}) }, open);
  }

  Object.assign(parts, { ask, tileOf, stops });
  window.workbenchPatterns = { show, redraw };
  window.addEventListener("resize", () => redraw());
  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.workbench = Object.assign(window.dash_clientside.workbench || {}, { showHeadPatterns });
})();
