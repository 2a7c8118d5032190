// The theme of figures: their colours change in the browser, so that a switch asks the server for nothing.
(function () {
  "use strict";

  const SHOWN_MS = 60; // until the page that a view names is in sight
  // Numbers and names: they hold no colours.
  const PLAIN = new Set(["x", "y", "z", "customdata", "hovertemplate", "array", "arrayminus", "meta"]);
  const SEE_THROUGH = /^rgba\((\d+), (\d+), (\d+), (.*)\)$/;
  const LETTER = /color:(#[0-9a-f]{6})/gi;

  let isDark = false;
  let pairs = null; // of colours that mean the same in both themes: those of text first

  // From the colours of the other theme to those of the present one.
  function counterparts(colours) {
    return new Map(colours.map(([light, dark]) => (isDark ? [light, dark] : [dark, light])).map(([from, to]) => [from.toLowerCase(), to]));
  }

  function recolouredText(text, colours, letters) {
    const parts = SEE_THROUGH.exec(text);
    if (!parts) return colours.get(text.toLowerCase()) || text.replace(LETTER, (whole, letter) => `color:${letters.get(letter.toLowerCase()) || letter}`);
    const hex = (share) => Number(share).toString(16).padStart(2, "0");
    const opaque = colours.get(`#${parts.slice(1, 4).map(hex).join("")}`);
    if (!opaque) return text;
    return `rgba(${[1, 3, 5].map((i) => parseInt(opaque.slice(i, i + 2), 16)).join(", ")}, ${parts[4]})`;
  }

  function recoloured(value, colours, letters) {
    if (typeof value === "string") return recolouredText(value, colours, letters);
    if (Array.isArray(value)) return value.map((each) => recoloured(each, colours, letters));
    if (!value || typeof value !== "object" || ArrayBuffer.isView(value)) return value;
    const isPlain = (name, of) => PLAIN.has(name) || (name === "text" && Array.isArray(of));
    return Object.fromEntries(Object.entries(value).map(([name, of]) => [name, isPlain(name, of) ? of : recoloured(of, colours, letters)]));
  }

  // A figure that the server drew for the other theme, or before the switch. What the figure is of stays the same object.
  function recolour(plot) {
    const ground = plot.layout?.font?.color?.toLowerCase();
    const [[light, dark]] = pairs.colours;
    if (!plot.offsetParent || ground !== (isDark ? light : dark).toLowerCase()) return;
    const colours = counterparts(pairs.colours);
    const letters = counterparts(pairs.letters);
    plot.data.forEach((trace) => Object.assign(trace, recoloured(trace, colours, letters)));
    Object.assign(plot.layout, recoloured(plot.layout, colours, letters));
    window.Plotly.react(plot, plot.data, plot.layout);
  }

  function recolourAll() {
    if (pairs && window.Plotly) document.querySelectorAll("main .js-plotly-plot").forEach(recolour);
  }

  let later = null;
  document.addEventListener("workbench:theme", ({ detail }) => {
    isDark = detail.isDark;
    pairs = detail.colours || pairs;
    recolourAll();
    clearTimeout(later);
    later = setTimeout(recolourAll, SHOWN_MS);
  });
  document.addEventListener("workbench:drawn", ({ detail }) => pairs && recolour(detail.plot));
})();
