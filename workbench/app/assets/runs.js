// Many runs: filter their chips by name, choose all of those, or one alone.
(function () {
  "use strict";

  function chips() {
    return [...document.querySelectorAll("#runs .mantine-Chip-root, .chips .mantine-Chip-root")].map((root) => ({
      root,
      name: root.querySelector("input").value,
    }));
  }

  function filter(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    for (const { root, name } of chips()) root.hidden = !words.every((word) => name.toLowerCase().includes(word));
  }

  function choose(which) {
    const names = chips().filter(({ root }) => !root.hidden).map(({ name }) => name);
    const base = new URLSearchParams(window.location.search).get("base");
    if (!names.length) return;
    const value = which === "all" ? names : [names.includes(base) ? base : names[0]];
    window.dash_clientside.set_props("runs", { value });
  }

  document.addEventListener("input", (event) => {
    if (event.target.closest(".run-filter")) filter(event.target.value);
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-runs]");
    if (button) choose(button.dataset.runs);
  });
})();
