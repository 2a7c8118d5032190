// Numbers in cells are black or white, whichever is read better: plotly's grey is not on colours between.
(function () {
  "use strict";

  const EVEN = 0.179; // the luminance on which black and white have the same contrast

  const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const linear = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);

  // The luminance of the colour of a score, from 0 (black) to 1 (white).
  function luminance(z, { cmin, cmax, colorscale }) {
    const at = Math.min(Math.max((z - cmin) / (cmax - cmin || 1), 0), 1);
    const above = Math.max(1, colorscale.findIndex(([stop]) => stop >= at));
    const [[low, from], [high, to]] = [colorscale[above - 1], colorscale[above]];
    const share = (at - low) / (high - low || 1);
    const [red, green, blue] = channels(from).map((c, i) => linear(c + share * (channels(to)[i] - c)));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  }

  document.addEventListener("workbench:drawn", ({ detail: { plot } }) => {
    const scale = plot._fullLayout?.coloraxis;
    if (!scale) return;
    for (const number of plot.querySelectorAll(".heatmap-label text")) {
      const z = number.__data__?.z;
      if (Number.isFinite(z)) number.style.fill = luminance(z, scale) > EVEN ? "#000000" : "#ffffff";
    }
  });
})();
