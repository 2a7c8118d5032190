// Dialogs over a page: jump to a head, the keys, exports.
(function () {
  "use strict";

  const KEYS = [
    ["[ ]", "previous, next checkpoint"],
    ["h l", "head to the left, to the right"],
    ["j k", "next, previous layer"],
    ["/", "jump to a head, as L13H2"],
    ["e", "export: figures, tables, a permalink"],
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
    const address = new URL(window.location.href);
    const planes = window.workbench.planes();
    const step = window.workbench.lastStep();
    if (step !== null) address.searchParams.set("step", step);
    if (planes && planes.version) address.searchParams.set("v", planes.version);
    return address.href;
  }

  function exportAddress(name, extension) {
    const page = window.location.pathname.slice(window.workbench.prefix().length);
    const query = new URLSearchParams(window.location.search);
    query.set("page", page);
    return `${window.workbench.prefix()}export/${name}.${extension}?${query}`;
  }

  function saveFigure(plot, name, format) {
    const { width, height } = plot._fullLayout;
    const background = getComputedStyle(plot.closest(".card")).backgroundColor;
    const figure = { data: plot.data, layout: { ...plot.layout, paper_bgcolor: background, width, height } };
    window.Plotly.downloadImage(figure, { format, filename: name, width, height, scale: format === "png" ? 2 : 1 });
  }

  // The buttons and links that export a card.
  function exportsOf(card) {
    const plot = [...card.querySelectorAll(".dash-graph")].map((holder) => window.workbench.graph(holder.id))[0];
    const title = (card.querySelector("h3")?.firstChild?.textContent || "figure").trim();
    const name = `workbench-${(card.querySelector(".dash-graph")?.id || card.dataset.table || "figure").replace(/\W+/g, "-")}`;
    const links = [];
    if (plot && plot.data && plot.data.length) {
      for (const format of ["png", "svg"]) {
        const button = node("button", { className: "text", textContent: format.toUpperCase() });
        button.dataset.format = format;
        button.addEventListener("click", () => saveFigure(plot, name, format));
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
      button.addEventListener("click", async () => save(await make(), `workbench-${title.replace(/\W+/g, "-").toLowerCase()}.${format.toLowerCase()}`));
      links.push(button);
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
    return [...document.querySelectorAll(`.page ${selector}`)].filter((element) => element.offsetParent);
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

  function notice(text) {
    const close = node("button", { className: "text", textContent: "close" });
    const bar = node("div", { className: "wb-notice" }, [node("span", { textContent: `${text} ` }), close]);
    bar.setAttribute("role", "status");
    close.addEventListener("click", () => bar.remove());
    document.body.append(bar);
  }

  document.addEventListener("workbench:stepped", checkVersion);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (/^(input|textarea|select)$/i.test(event.target.tagName)) return;
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
    const copy = event.target.closest("[data-copy]");
    if (copy) {
      navigator.clipboard?.writeText(copy.dataset.copy);
      copy.textContent = "copied";
    }
  });
})();
