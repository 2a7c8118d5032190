// Draw each figure once, as wide as its card, and those in sight first. Dash draws each at plotly's own width and then again.
(function () {
  "use strict";

  // What plotly draws on, in a figure of Dash's.
  const isOfDash = (plot) => plot?.parentElement?.classList.contains("dash-graph");

  // A figure has its own height. Its width is the card's; many panels need more, and then the card scrolls.
  function widthOf(plot, layout) {
    const least = layout?.meta?.width || 0;
    plot.style.minWidth = `${least}px`;
    const room = plot.parentElement.clientWidth;
    return room && Math.max(room, least);
  }

  // Plotly breaks no lines: a message gets lines that fit into this width.
  function inLines(text, width) {
    const most = Math.max(24, Math.floor((width - 70) / 7.2));
    const piece = new RegExp(`.{1,${most}}`, "g");
    return text.split("<br>").flatMap((part) => {
      const broken = [""];
      for (const word of part.split(/ |(?<=[/\\])/).flatMap((long) => (long.length > most ? long.match(piece) : [long]))) {
        const last = broken[broken.length - 1];
        const longer = last + (last === "" || /[/\\]$/.test(last) ? "" : " ") + word;
        if (longer.replace(/<[^>]*>/g, "").length > most && last) broken.push(word);
        else broken[broken.length - 1] = longer;
      }
      return broken;
    }).join("<br>");
  }

  function fitted(layout, width) {
    const text = layout.meta?.message;
    const [first, ...others] = layout.annotations || [];
    const annotations = text && first ? [{ ...first, text: inLines(text, width) }, ...others] : layout.annotations;
    return { ...layout, width, ...(annotations ? { annotations } : {}) };
  }

  // The card has another width.
  function fit(plot) {
    const width = plot._fullLayout && widthOf(plot, plot.layout);
    if (!width || Math.abs(plot._fullLayout.width - width) <= 1) return;
    window.Plotly.react(plot, plot.data, fitted(plot.layout, width));
  }

  /* what is in sight is drawn first, the rest once the browser has time */

  const NEAR_PX = 100;
  const LATEST_MS = 1500;
  const late = new Map(); // by the box of a figure: how it is drawn

  function isNear(box) {
    const { top, bottom } = box.getBoundingClientRect();
    return top < window.innerHeight + NEAR_PX && bottom > -NEAR_PX;
  }

  function drawNow(box) {
    const draw = late.get(box);
    late.delete(box);
    seen.unobserve(box);
    draw?.();
  }

  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) drawNow(target);
  }, { rootMargin: `${NEAR_PX}px` });

  function prepared(plotly) {
    const { react } = plotly;
    plotly.react = (plot, figure, ...more) => {
      if (!figure?.layout || !isOfDash(plot)) return react(plot, figure, ...more);
      const draw = () => {
        const width = widthOf(plot, figure.layout);
        return react(plot, width ? { ...figure, layout: fitted(figure.layout, width) } : figure, ...more);
      };
      const box = plot.parentElement;
      // What is drawn already changes at once. Dash sends the next figure when this one is drawn.
      if (plot.data?.length || !figure.data?.length || isNear(box)) return draw();
      return new Promise((done) => {
        late.set(box, () => done(draw()));
        seen.observe(box);
        window.requestIdleCallback(() => drawNow(box), { timeout: LATEST_MS });
      });
    };
    return plotly;
  }

  let plotly; // which Dash loads with the first figure
  Object.defineProperty(window, "Plotly", { configurable: true, get: () => plotly, set: (loaded) => (plotly = loaded?.react && loaded !== plotly ? prepared(loaded) : loaded) });

  window.workbenchDrawing = { fit };
})();
