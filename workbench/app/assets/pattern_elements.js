// What patterns are shown with: HTML and SVG elements, whose text is always text, cards, numbers in words.
(function () {
  "use strict";

  const parts = (window.workbenchPatternParts ??= {});
  const SVG = "http://www.w3.org/2000/svg";

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

  // What can be taken away of a card: by the name of its form, what makes the bytes; `e` and ⤓ offer it.
  function offer(section, ways) {
    const button = make("button", "icon export", "⤓");
    button.title = "export (e)";
    button.setAttribute("aria-label", "export");
    section.querySelector("h3").append(button);
    section.ways = ways;
  }

  const asImage = (canvas) => () => new Promise((done) => canvas.toBlob(done));

  function asTable(titles, rows) {
    const quoted = (cell) => (/[",\n]/.test(cell) ? `"${String(cell).replaceAll('"', '""')}"` : cell);
    return () => new Blob([[titles, ...rows].map((row) => row.map(quoted).join(",")).join("\n") + "\n"], { type: "text/csv" });
  }

  const number = (x) => (Math.abs(x) >= 0.0995 ? x.toFixed(2) : x === 0 ? "0" : x.toPrecision(2));

  function empty(text) {
    return make("div", "empty", text.replaceAll("; ", ";\n"));
  }

  Object.assign(parts, { make, draw, card, number, empty, offer, asImage, asTable });
})();
