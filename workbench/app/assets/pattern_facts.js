// Cards of a head: its strongest links, and its attention by distance.
(function () {
  "use strict";

  const parts = (window.workbenchPatternParts ??= {});

  function linksCard(view) {
    const titles = ["A", "query", "key", "distance"].map((title) => parts.make("th", "", title));
    const rows = view.facts.links.slice(0, 12).map((link, i) => {
      const cells = [parts.number(link.value), `${parts.word(view, link.query)} @${link.query}`, `${parts.word(view, link.key)} @${link.key}`, String(link.distance)];
      const row = parts.make("tr", "link", ...cells.map((text) => parts.make("td", "mono", text)));
      row.addEventListener("mouseenter", () => view.rings.get(i)?.classList.add("on"));
      row.addEventListener("mouseleave", () => view.rings.get(i)?.classList.remove("on"));
      row.addEventListener("click", () => parts.choose(view, view.direction === "from" ? link.query : link.key));
      return row;
    });
    const about = `exact · distance ≥ ${view.file.far} tokens, sink excluded, one per query`;
    if (!rows.length) return parts.card("Long-range links", about, parts.empty("no attention so far back"));
    const values = view.facts.links.map(({ query, key, distance, value }) => [query, key, distance, value]);
    const table = parts.make("table", "links", parts.make("thead", "", parts.make("tr", "", ...titles)), parts.make("tbody", "", ...rows));
    const section = parts.card("Long-range links", about, parts.make("div", "table", table));
    parts.offer(section, { CSV: parts.asTable(["query", "key", "distance", "value"], values) });
    return section;
  }

  function profileCard(view) {
    const { profile, sink, window: effectiveWindow } = view.facts;
    const [width, height, left, base] = [460, 190, 34, 150];
    const svg = parts.draw("svg", { viewBox: `0 0 ${width} ${height}`, width, style: "max-width: 100%", role: "img", "aria-label": "mass by distance" });
    const step = (width - left - 8) / profile.length;
    const top = (share) => base - share * (base - 10);
    for (const share of [0, 0.5, 1]) {
      svg.append(parts.draw("line", { x1: left, x2: width - 8, y1: top(share), y2: top(share), class: "axis" }));
      svg.append(parts.draw("text", { x: left - 6, y: top(share) + 4, "text-anchor": "end" }, share));
    }
    profile.forEach(({ least, most, mass }, i) => {
      const bar = parts.draw("rect", { x: left + i * step + 2, width: Math.max(1, step - 4), y: top(mass), height: base - top(mass), class: "mass" });
      const name = least === most ? `${least}` : `${least}–${most}`;
      bar.append(parts.draw("title", {}, `${name} tokens back: ${parts.number(mass)} of the attention`));
      svg.append(bar);
      svg.append(parts.draw("text", { x: left + (i + 0.5) * step, y: base + 14, "text-anchor": "middle" }, least));
    });
    const line = profile.map(({ within }, i) => `${left + (i + 0.5) * step},${top(within)}`).join(" ");
    svg.append(parts.draw("polyline", { points: line, class: "within" }));
    svg.append(parts.draw("text", { x: (left + width) / 2, y: base + 31, "text-anchor": "middle" }, "tokens back, from"));
    const about = `share of attention, mean over rows · sink ${parts.number(sink)} (not in the bars) · 95 % of the rest within ${Math.round(effectiveWindow)} tokens (dotted)`;
    const section = parts.card("Distance profile", about, svg);
    const bars = profile.map(({ least, most, mass, within }) => [least, most, mass, within]);
    parts.offer(section, { CSV: parts.asTable(["least", "most", "mass", "within"], bars) });
    return section;
  }

  Object.assign(parts, { linksCard, profileCard });
})();
