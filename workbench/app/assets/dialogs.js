// Dialogs over a page: jump to a head, the keys, exports. Notices beside it.
(function () {
  "use strict";

  const KEYS = [
    ["[ ]", "previous, next checkpoint"],
    ["h l", "on the Head page: head to the left, to the right"],
    ["j k", "on the Head page: next, previous layer"],
    ["/", "jump to a head, as L13H2"],
    ["m", "fill the window with the card under the pointer, or with the focus; Escape goes back"],
    ["e", "export: figures, tables, a permalink, addresses to embed"],
    ["d", "dark or light"],
    ["?", "these keys"],
  ];
  // The detectors and versions that the address was made with, if it is a permalink.
  const linked = new URLSearchParams(window.location.search).get("v");
  let isVersionChecked = false;

  function node(tag, properties, children) {
    const element = Object.assign(document.createElement(tag), properties || {});
    element.append(...(children || []));
    return element;
  }

  function open(title, children) {
    document.querySelectorAll("dialog.wb-dialog").forEach((old) => old.remove());
    const dialog = node("dialog", { className: "wb-dialog" }, [node("h2", { textContent: title }), ...children]);
    dialog.setAttribute("aria-label", title);
    dialog.addEventListener("close", () => dialog.remove());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    document.body.append(dialog);
    dialog.showModal();
    return dialog;
  }

  function help() {
    const rows = KEYS.map(([keys, meaning]) =>
      node("tr", {}, [
        node("td", {}, keys.split(" ").map((key) => node("kbd", { textContent: key }))),
        node("td", { textContent: meaning }),
      ]),
    );
    open("Keys", [node("table", {}, rows)]);
  }

  function jumpTo() {
    const input = node("input", { placeholder: "L13H2", autocomplete: "off", spellcheck: false });
    input.setAttribute("aria-label", "head");
    const hint = node("p", { className: "muted", textContent: "layer and head, both from 0" });
    const form = node("form", {}, [input, hint]);
    const dialog = open("Jump to a head", [form]);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const match = /^\s*L?(\d+)\s*[H.,\s]\s*(\d+)\s*$/i.exec(input.value);
      if (!match) {
        hint.textContent = `“${input.value}” is no head; write it as L13H2`;
        return;
      }
      dialog.close();
      window.workbench.jump({ page: "head", head: `L${Number(match[1])}H${Number(match[2])}` });
    });
    input.focus();
  }

  /* export */

  function permalink() {
    const { pathname, search } = window.location;
    const planes = window.workbench.planes();
    const [, query] = window.workbench.addressWithPlace(`?${search.slice(1)}`, window.workbench.lastPlace()).split("?");
    const parameters = new URLSearchParams(query);
    if (planes && planes.version) parameters.set("v", planes.version);
    return `${window.location.origin}${pathname}?${parameters}`;
  }

  // What a file shows: the run, the head, detector and probe, the checkpoint, and the versions that made it.
  function context() {
    const query = new URLSearchParams(window.location.search);
    const page = document.querySelector(".wb").className.match(/on-([\w-]+)/)[1];
    const follows = (control) => !!document.querySelector(`.control-${control}`)?.getClientRects().length || window.workbench.embedded !== null;
    const planes = window.workbench.planes();
    const of = { head: [query.get("of"), query.get("head")], compare: ["a", "b"].map((side) => query.get(side) && `${query.get(side)} at ${query.get(`at_${side}`)}`), plan: [query.get("plan")] };
    const words = of[page] || [query.getAll("run").join(", ")];
    if (follows("detector") && query.get("detector")) words.push(`${query.get("detector")} on ${query.get("probe")}`);
    if (follows("checkpoint")) words.push(document.getElementById("checkpoint-label").textContent);
    if (follows("detector") && planes && planes.version) words.push(planes.version);
    words.push(`workbench ${document.querySelector('meta[name="workbench-version"]')?.content || ""}`.trim());
    return words.filter(Boolean);
  }

  function fileName(name) {
    const words = [name, ...context().slice(0, -1)].join("-");
    return words.replace(/[^\w.]+/g, "-").replace(/-+$/, "").slice(0, 140);
  }

  function exportAddress(name, extension) {
    const page = window.location.pathname.slice(window.workbench.prefix().length);
    const query = new URLSearchParams(window.location.search);
    query.set("page", page);
    return `${window.workbench.prefix()}export/${name}.${extension}?${query}`;
  }

  const CAPTION_PX = 44;

  function saveFigure(plot, name, title, format) {
    const { width, height: ownHeight, margin } = plot._fullLayout;
    const height = ownHeight + CAPTION_PX;
    const background = getComputedStyle(plot.closest(".card")).backgroundColor;
    const text = `<b>${title}</b><br><span style="font-size: 11px">${context().join(" · ")}</span>`;
    const caption = { text, x: 8, xref: "container", xanchor: "left", y: 1, yref: "container", yanchor: "top", pad: { t: 20 }, font: { size: 13 } };
    caption.x = 8 / width;
    const layout = { ...plot.layout, paper_bgcolor: background, width, height, title: caption, margin: { ...plot.layout.margin, t: (margin?.t ?? 28) + CAPTION_PX } };
    window.Plotly.downloadImage({ data: plot.data, layout }, { format, filename: fileName(name), width, height, scale: format === "png" ? 2 : 1 });
  }

  // An image of a canvas under the same caption.
  async function titled(blob, title, card) {
    const picture = await createImageBitmap(blob);
    const canvas = node("canvas", { width: Math.max(picture.width, 560), height: picture.height + CAPTION_PX });
    const brush = canvas.getContext("2d");
    const style = getComputedStyle(card);
    brush.fillStyle = style.backgroundColor;
    brush.fillRect(0, 0, canvas.width, canvas.height);
    brush.fillStyle = style.color;
    brush.font = "bold 13px sans-serif";
    brush.fillText(title, 8, 18);
    brush.font = "11px sans-serif";
    brush.fillText(context().join(" · "), 8, 35);
    brush.drawImage(picture, 0, CAPTION_PX);
    return new Promise((done) => canvas.toBlob(done));
  }

  // The buttons and links that export a card.
  function exportsOf(card) {
    const plot = [...card.querySelectorAll(".dash-graph")].map((holder) => window.workbench.graph(holder.id))[0];
    const title = (card.querySelector("h3")?.firstChild?.textContent || card.querySelector("h3 input")?.value || "figure").trim();
    const name = `workbench-${(card.querySelector(".dash-graph")?.id || card.dataset.table || "figure").replace(/\W+/g, "-")}`;
    const links = [];
    if (plot && plot.data && plot.data.length) {
      for (const format of ["png", "svg"]) {
        const button = node("button", { className: "text", textContent: format.toUpperCase() });
        button.dataset.format = format;
        button.addEventListener("click", () => saveFigure(plot, name, title, format));
        links.push(button);
      }
    }
    if (card.dataset.table) {
      for (const extension of ["csv", "parquet"]) {
        const href = exportAddress(card.dataset.table, extension);
        links.push(node("a", { className: "text", href, download: "", textContent: extension === "csv" ? "CSV" : "Parquet" }));
      }
    }
    for (const [format, make] of Object.entries(card.makers || {})) {
      const button = node("button", { className: "text", textContent: format });
      button.dataset.format = format.toLowerCase();
      button.addEventListener("click", async () => {
        const blob = await make();
        const isImage = format === "PNG";
        save(isImage ? await titled(blob, title, card) : blob, `${fileName(`workbench-${title.toLowerCase()}`)}.${format.toLowerCase()}`);
      });
      links.push(button);
    }
    if (links.length && card.dataset.card && window.workbench.embedded === null) {
      const copy = node("button", { className: "text", textContent: "Embed", title: "copy the address of this card alone, for a page that frames it" });
      copy.dataset.copy = window.workbench.embedAddress(card);
      links.push(copy);
    }
    return { title: title || card.dataset.table, links };
  }

  function save(blob, name) {
    const link = node("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  function openExport(cards) {
    const rows = cards.map(exportsOf).filter(({ links }) => links.length).map(({ title, links }) =>
      node("tr", {}, [node("td", { textContent: title }), node("td", {}, [node("div", { className: "links" }, links)])]),
    );
    const link = node("input", { readOnly: true, value: permalink(), id: "permalink" });
    link.setAttribute("aria-label", "permalink");
    link.addEventListener("focus", () => link.select());
    const about = node("p", { className: "muted", textContent: "Permalink, with the checkpoint and the detector's version:" });
    const files = visible("[data-file]").map(({ dataset: { file, fileAbout } }) =>
      node("p", {}, [node("a", { href: exportAddress(...file.split(".")), download: file, textContent: `${file}: ${fileAbout}` })]),
    );
    open("Export", [node("table", {}, rows), ...files, about, link]);
  }

  function visible(selector) {
    return [...document.querySelectorAll(`.page ${selector}`)].filter((element) => element.getClientRects().length);
  }

  function exportAll() {
    openExport(visible(".card"));
  }

  /* a permalink of another version of its detector */

  function checkVersion() {
    const planes = window.workbench.planes();
    if (isVersionChecked || !linked || !planes || !planes.version || planes.detector !== linked.split("@")[0]) return;
    isVersionChecked = true;
    if (linked === planes.version) return;
    notice(`This link was made with ${linked}; these runs were scored with ${planes.version}. Numbers may differ.`);
  }

  function showNotice(data) {
    if (data) notice(`${data.text.charAt(0).toUpperCase()}${data.text.slice(1)}.`);
  }

  function notice(text) {
    document.querySelectorAll(".wb-notice").forEach((old) => old.remove());
    const close = node("button", { className: "text", textContent: "close" });
    const bar = node("div", { className: "wb-notice" }, [node("span", { textContent: `${text} ` }), close]);
    bar.setAttribute("role", "status");
    close.addEventListener("click", () => bar.remove());
    document.body.append(bar);
  }

  document.addEventListener("workbench:stepped", checkVersion);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (window.workbench.isTyping(event.target)) return;
    const action = { "/": jumpTo, "?": help, e: exportAll }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".icon.export");
    if (button) openExport([button.closest(".card")]);
    if (event.target.closest("#help")) help();
    if (event.target.closest("#export")) exportAll();
    if (event.target.closest("#jump-head")) jumpTo();
    const copy = event.target.closest("[data-copy]");
    if (copy) {
      navigator.clipboard?.writeText(copy.dataset.copy);
      copy.textContent = "copied";
    }
  });

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.workbench = Object.assign(window.dash_clientside.workbench || {}, { showNotice });
})();
