// Elements of the pattern cards: HTML and SVG whose text is always set as text, cards, numbers, exports.
(function () {
  "use strict";

  const parts = (window.workbenchPatternParts ??= {});
  // The names of the cards, as in `/embed/NAME`: words of their titles.
  const NAMES = ["heads", "distance", "links", "tokens", "pattern"];
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
    section.dataset.card = NAMES.find((name) => title.toLowerCase().includes(name)) || "pattern";
    section.querySelector("h3").append(iconButton("maximise", "⤢", "fill the window (m)"));
    return section;
  }

  function iconButton(name, sign, title) {
    const button = make("button", `icon ${name}`, sign);
    button.title = title;
    button.setAttribute("aria-label", title);
    return button;
  }

  // Offer exports of a card, on `e` and ⤓; `makers`: by format, the function that makes the file.
  function offer(section, makers) {
    section.querySelector("h3").append(iconButton("export", "⤓", "export (e)"));
    section.makers = makers;
  }

  const asImage = (canvas) => () => new Promise((done) => canvas.toBlob(done));

  function asTable(titles, rows) {
    const quoted = (value) => (/[",\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
    return () => new Blob([[titles, ...rows].map((row) => row.map(quoted).join(",")).join("\n") + "\n"], { type: "text/csv" });
  }

  const number = (x) => (Math.abs(x) >= 0.0995 ? x.toFixed(2) : x === 0 ? "0" : x.toPrecision(2));

  function empty(text) {
    return make("div", "empty", text.replaceAll("; ", ";\n"));
  }

  Object.assign(parts, { make, draw, card, number, empty, offer, asImage, asTable });
})();
