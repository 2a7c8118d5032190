// Patterns to look at: all heads of a layer, one head's map, its tokens, its strongest links.
(function () {
  "use strict";

  const parts = (window.workbenchPatternParts ??= {});
  const RETRY_MS = 5000;

  const shown = new Map(); // by the id of the container

  // `source`: what the server knows the patterns by; `at`: {layer, head, kind}, the kind where a layer has two mixers; `onHead`: told which head was clicked.
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
      holder.replaceChildren(parts.make("div", "patterns", parts.card("Pattern", "", parts.empty(error.message))));
      // a scan that is still writing makes maps after the scores that the page follows
      setTimeout(() => shown.get(id) === view && holder.offsetParent && show(id, source, at, onHead), RETRY_MS);
    }
  }

  function ask(view, what, more) {
    return window.workbenchPixels.fetched(`patterns/${what}`, { ...view.source, ...more }, view.stop.signal);
  }

  function tileOf(view, q0, q1, k0, k1) {
    return ask(view, "tile", { ...view.at, q0, q1, k0, k1 });
  }

  function stops(view) {
    const isDark = document.documentElement.classList.contains("dark");
    return view.file.colours[isDark ? "dark" : "light"];
  }

  function build(view) {
    view.pattern = parts.patternCard(view);
    view.words = parts.tokensCard(view);
    const beside = parts.make("div", "beside", view.words, parts.profileCard(view), parts.linksCard(view));
    const halves = parts.make("div", "halves", view.pattern, beside);
    view.holder.replaceChildren(parts.make("div", "patterns", parts.atlasCard(view), halves));
    parts.paintAtlas(view);
    parts.paint(view);
    parts.colour(view);
  }

  function redraw() {
    for (const view of shown.values()) {
      if (!view.atlas) continue;
      parts.paintAtlas(view);
      parts.paint(view);
    }
  }

  /* the Head page */

  let last = "";
  let waiting = null;
  function patterned(kept, steps, dark, changed) {
    clearTimeout(waiting);
    if (!kept || kept.page !== "head" || !kept.head) return;
    if (!document.getElementById("head-patterns")) {
      waiting = setTimeout(patterned, 50, kept, steps, dark, changed); // until the page is laid out
      return;
    }
    const [layer, head] = kept.head.slice(1).split("H").map(Number);
    const ckpt = (steps || {})[kept.run];
    const source = { run: kept.run, ...(kept.probe ? { probe: kept.probe } : {}), ...(ckpt ? { ckpt } : {}) };
    const kind = Object.fromEntries(kept.more || []).mixer;
    const key = JSON.stringify([source, layer, head, kind, changed]);
    if (key === last) return setTimeout(redraw, 0) && undefined;
    last = key;
    const open = (to) => window.workbench.jump({ page: "head", run: kept.run, head: `L${to.layer}H${to.head}`, set: { mixer: to.kind || "" } });
    show("head-patterns", source, { layer, head, ...(kind ? { kind } : {}) }, open);
  }

  Object.assign(parts, { ask, tileOf, stops });
  window.workbenchPatterns = { show, redraw };
  window.addEventListener("resize", () => redraw());
  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.workbench = Object.assign(window.dash_clientside.workbench || {}, { patterned });
})();
