// Cards: one of them over the whole window (`m`, Escape), or alone on a page that another site frames (`/embed/CARD`).
(function () {
  "use strict";

  let largest = null; // the card over the window, what had the focus before, and what is out of reach meanwhile
  let latest = null; // the card that was pointed at, or got the focus, last

  const titleOf = (card) => (card.querySelector("h3")?.firstChild?.textContent || card.dataset.card || "card").trim();
  const plotOf = (card) => [...card.querySelectorAll(".dash-graph")].map((holder) => window.workbench.graph(holder.id))[0];

  function maximise(card) {
    if (largest) restore();
    const opener = card.contains(document.activeElement) ? document.activeElement : card.querySelector("button.maximise");
    const others = [...document.querySelectorAll(".wb header, .wb .controls, .page .card")].filter((other) => other !== card);
    const behind = others.filter((other) => !other.contains(card) && !other.inert);
    behind.forEach((other) => (other.inert = true));
    card.classList.add("maximised");
    for (const [name, value] of Object.entries({ role: "dialog", "aria-modal": "true", "aria-label": titleOf(card) })) card.setAttribute(name, value);
    document.documentElement.classList.add("has-maximised");
    largest = { card, opener, behind };
    name(card.querySelector("button.maximise"), true);
    stretch();
    card.querySelector("button.maximise")?.focus();
    window.workbench.announce(`${titleOf(card)} fills the window; Escape goes back`);
  }

  function restore() {
    const { card, opener, behind } = largest;
    largest = null;
    behind.forEach((other) => (other.inert = false));
    card.classList.remove("maximised");
    ["role", "aria-modal", "aria-label"].forEach((attribute) => card.removeAttribute(attribute));
    document.documentElement.classList.remove("has-maximised");
    name(card.querySelector("button.maximise"), false);
    const plot = plotOf(card);
    if (plot) setHeight(plot, plot.ownHeight);
    (opener && opener.isConnected ? opener : card.querySelector("button.maximise"))?.focus();
  }

  function name(button, isLarge) {
    if (!button) return;
    const text = isLarge ? "back to the page (Escape)" : "fill the window (m)";
    button.title = text;
    button.setAttribute("aria-label", text);
    button.textContent = isLarge ? "✕" : "⤢";
  }

  // The figure of the card over the window, or of the embedded one, is as high as the room below its title.
  function stretch() {
    const card = largest ? largest.card : alone();
    const plot = card && plotOf(card);
    if (!plot || !plot.layout || !window.Plotly) return;
    if (!plot.isStretched) plot.ownHeight = plot._fullLayout.height;
    const below = card.getBoundingClientRect().bottom - plot.getBoundingClientRect().bottom;
    const room = window.innerHeight - (plot.getBoundingClientRect().top - card.getBoundingClientRect().top) - (largest ? 24 : Math.min(40, Math.max(16, below)));
    setHeight(plot, Math.max(room, largest ? plot.ownHeight || 0 : 160), true);
  }

  // Without `Plotly.relayout`, which would send the whole figure through Dash.
  function setHeight(plot, height, isStretched = false) {
    plot.isStretched = isStretched;
    if (!height || Math.abs(plot._fullLayout.height - height) < 1) return;
    plot.layout.height = height;
    window.Plotly.redraw(plot);
  }

  /* one card alone */

  function alone() {
    return window.workbench.embedded === null ? null : cardNamed(window.workbench.embedded);
  }

  function cardNamed(card) {
    return document.querySelector(`.page [data-card="${CSS.escape(card)}"]`);
  }

  function prepareEmbedding() {
    const { embedded } = window.workbench;
    const style = document.createElement("style");
    style.textContent = `.wb.embedded .page .card[data-card="${CSS.escape(embedded)}"] { display: block; }`;
    document.head.append(style);
    const heading = document.createElement("h1");
    heading.textContent = "A card of the attention workbench";
    const banner = document.createElement("header");
    banner.className = "unseen";
    banner.append(heading);
    document.body.prepend(banner);
    const link = document.createElement("button");
    link.className = "wb-open";
    link.textContent = "open in the workbench ↗";
    link.addEventListener("click", () => window.workbench.openApp());
    document.body.append(link);
  }

  // Once the page is laid out: a card of that name is there, or the page says which there are.
  let late = null;
  function checkEmbedded() {
    clearTimeout(late);
    late = setTimeout(() => {
      const page = [...document.querySelectorAll(".page")].find((frame) => frame.childElementCount && getComputedStyle(frame).display !== "none");
      if (!page || alone() || document.querySelector(".wb-missing")) return;
      const names = [...page.querySelectorAll("[data-card]")].map((card) => card.dataset.card);
      const text = document.createElement("p");
      text.className = "wb-missing";
      text.textContent = `There is no card “${window.workbench.embedded}” on this page; there is: ${names.join(", ")}.`;
      page.before(text);
    }, 1500);
  }

  // The address under which another page may frame this card, with all that is seen.
  function embedAddress(card) {
    const [page, query] = [window.location.pathname.slice(window.workbench.prefix().length), window.location.search.slice(1)];
    const parameters = new URLSearchParams(window.workbench.addressWithPlace(`${page}?${query}`, window.workbench.lastPlace()).split("?")[1]);
    parameters.set("page", page);
    return `${window.location.origin}${window.workbench.prefix()}embed/${encodeURIComponent(card.dataset.card)}?${parameters}`;
  }

  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.key === "Escape" && largest) return restore();
    if (event.key !== "m" || window.workbench.isTyping(event.target)) return;
    if (largest) return restore();
    if (latest?.getClientRects().length && latest.querySelector("button.maximise")) maximise(latest);
    else window.workbench.announce("point at a card, or focus something in it, then press m");
  }

  /* what scrolls is reached by keyboard, too */

  const watched = new WeakSet();
  const resized = new ResizeObserver(() => reachScrolled());
  let looking = null;
  function reachScrolled() {
    clearTimeout(looking);
    looking = setTimeout(() => {
      for (const box of document.querySelectorAll(".wb .table, .wb pre, .wb .dash-graph")) {
        if (!watched.has(box)) resized.observe(box);
        watched.add(box);
        const isScrolled = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
        if (isScrolled && box.getClientRects().length && !box.hasAttribute("tabindex")) box.tabIndex = 0;
      }
    }, 300);
  }

  new MutationObserver(reachScrolled).observe(document.body, { childList: true, subtree: true });
  window.addEventListener("resize", reachScrolled);
  document.addEventListener("keydown", pressed);
  for (const kind of ["mouseover", "focusin"]) document.addEventListener(kind, (event) => (latest = event.target.closest?.(".page .card") || latest));
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.maximise");
    if (!button) return;
    if (largest) restore();
    else maximise(button.closest(".card"));
  });
  document.addEventListener("workbench:navigated", () => {
    if (largest && !largest.card.getClientRects().length) restore();
    if (window.workbench.embedded !== null) checkEmbedded();
  });
  document.addEventListener("workbench:drawn", stretch);
  window.addEventListener("resize", stretch);
  if (window.workbench.embedded !== null) prepareEmbedding();

  window.workbench.embedAddress = embedAddress;
})();
