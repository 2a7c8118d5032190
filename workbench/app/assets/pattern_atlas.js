// All heads of a layer as one canvas; a click opens a head.
(function () {
  "use strict";

  const parts = (window.workbenchPatternParts ??= {});
  const pixels = () => window.workbenchPixels;

  const THUMB = 76;
  const LABEL = 16;
  const GAP = 8;

  function atlasCard(view) {
    const canvas = parts.make("canvas", "atlas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `patterns of the ${view.atlas.heads.length} heads of layer ${view.at.layer}`);
    canvas.addEventListener("click", (event) => {
      const i = indexAt(view, event);
      if (i !== undefined) view.onHead({ layer: view.at.layer, head: view.atlas.heads[i], ...(isMixed(view) ? { kind: view.atlas.kinds[i] } : {}) });
    });
    canvas.addEventListener("mousemove", (event) => {
      const i = indexAt(view, event);
      canvas.title = i === undefined ? "" : `L${view.at.layer}H${view.atlas.heads[i]} · ${view.atlas.kinds[i]}`;
    });
    view.atlasCanvas = canvas;
    const signed = view.atlas.signed.some(Boolean) ? " · signed: each head on its own scale" : "";
    const about = `${view.file.n} tokens of ${view.file.probe} · the largest entry of each block · √ scale${signed} · click opens the head`;
    const section = parts.card(`All heads of layer ${view.at.layer}`, about);
    if (view.source.job) section.append(layerButtons(view));
    section.append(canvas);
    parts.offer(section, { PNG: parts.asImage(canvas) });
    return section;
  }

  function layerButtons(view) {
    const layers = [...new Map(view.file.layers.map((layer) => [layer.layer, layer])).values()];
    const buttons = layers.map((layer) => {
      const button = parts.make("button", "button quiet", `L${layer.layer} ${layer.kind}`);
      button.classList.toggle("on", layer.layer === view.at.layer);
      button.addEventListener("click", () => view.onHead({ layer: layer.layer, head: Math.min(view.at.head, layer.n_heads - 1) }));
      return button;
    });
    return parts.make("div", "choices", ...buttons);
  }

  function perRow(view) {
    return Math.max(1, Math.min(view.atlas.heads.length, Math.floor((view.width + GAP) / (thumb(view) + GAP))));
  }

  // The side of one head's picture: all heads in one row if that leaves them large enough, else in several.
  function thumb(view) {
    const { width } = view;
    return Math.max(THUMB, Math.min(128, Math.floor((width + GAP) / view.atlas.heads.length) - GAP));
  }

  // Whether the layer has two mixers: then the numbers of its heads occur twice.
  function isMixed(view) {
    return new Set(view.atlas.kinds).size > 1;
  }

  function indexAt(view, event) {
    const box = view.atlasCanvas.getBoundingClientRect();
    const [size, columns] = [thumb(view), perRow(view)];
    const column = Math.floor((event.clientX - box.left) / (size + GAP));
    const row = Math.floor((event.clientY - box.top) / (size + GAP + LABEL));
    const i = row * columns + column;
    return column < columns && i < view.atlas.heads.length ? i : undefined;
  }

  function paintAtlas(view) {
    const { atlas, atlasCanvas: canvas } = view;
    view.width = view.holder.clientWidth - 40;
    const [size, columns] = [thumb(view), perRow(view)];
    const rows = Math.ceil(atlas.heads.length / columns);
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [columns * (size + GAP), rows * (size + GAP + LABEL)];
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.imageSmoothingEnabled = atlas.side > size * ratio;
    const style = getComputedStyle(view.holder);
    context.font = "11px sans-serif";
    context.textAlign = "center";
    const chosen = atlas.heads.findIndex((head, i) => head === view.at.head && (!view.at.kind || !isMixed(view) || atlas.kinds[i] === view.at.kind));
    atlas.heads.forEach((head, i) => {
      const [x, y] = [(i % columns) * (size + GAP) + 2, Math.floor(i / columns) * (size + GAP + LABEL) + 2];
      const codes = atlas.codes.subarray(i * atlas.side ** 2, (i + 1) * atlas.side ** 2);
      const tile = { signed: atlas.signed[i], scale: atlas.scale[i] };
      context.drawImage(pixels().picture(codes, atlas.side, atlas.side, tile, parts.stops(view)), x, y, size, size);
      const isChosen = i === chosen;
      context.strokeStyle = isChosen ? "#e4572e" : style.getPropertyValue("--line");
      context.lineWidth = isChosen ? 3 : 1;
      context.strokeRect(x, y, size, size);
      context.fillStyle = style.getPropertyValue(isChosen ? "--text" : "--muted");
      context.fillText(isMixed(view) ? `H${head} ${atlas.kinds[i]}` : `H${head}`, x + size / 2, y + size + 13);
    });
  }

  Object.assign(parts, { atlasCard, paintAtlas });
})();
