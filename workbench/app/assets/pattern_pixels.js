// Decode attention into values and colours; workbench/store/map_codes.py defines the codes.
(function () {
  "use strict";

  const above = (octaves, steps) => Float32Array.from({ length: steps + 1 }, (_, i) => 2 ** ((i * octaves) / steps - octaves));
  const UNSIGNED = Float32Array.from([0, ...above(24, 254)]);
  const half = [0, ...above(16, 126)];
  const SIGNED = Float32Array.from([...half, ...half.map((x) => -x)]);

  // The value of a code: a probability, or a signed weight of a linear layer.
  function valueOf(tile, code) {
    return tile.signed ? SIGNED[code] * tile.scale : UNSIGNED[code];
  }

  const read = new Map(); // a text of thousands of tokens has few colours
  function channels(colour) {
    if (!read.has(colour)) read.set(colour, [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16)));
    return read.get(colour);
  }

  // The 256 colours of a tile, by the square root of the value; signed values lie on both sides of zero.
  const palettes = new Map();
  function palette(stops, signed) {
    const key = `${signed} ${JSON.stringify(stops)}`;
    if (!palettes.has(key)) {
      const table = signed ? SIGNED : UNSIGNED;
      const colours = stops.map(([stop, colour]) => [stop, channels(colour)]);
      palettes.set(key, Uint32Array.from(table, (value) => between(colours, (1 + Math.sign(value) * Math.sqrt(Math.abs(value))) / 2)));
    }
    return palettes.get(key);
  }

  function between(colours, position) {
    const next = Math.max(1, colours.findIndex(([stop]) => stop >= position));
    const [[low, from], [high, to]] = [colours[next - 1], colours[next]];
    const share = high === low ? 0 : (position - low) / (high - low);
    const [red, green, blue] = from.map((channel, i) => Math.round(channel + share * (to[i] - channel)));
    return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0; // the byte order of a pixel in little-endian memory
  }

  // A colour of the scale, -1 to 1 from zero, and the ink that is legible on it.
  function shade(stops, height) {
    const position = (1 + Math.max(-1, Math.min(1, height))) / 2;
    const packed = between(stops.map(([stop, colour]) => [stop, channels(colour)]), position);
    const rgb = [packed & 255, (packed >> 8) & 255, (packed >> 16) & 255];
    const [red, green, blue] = rgb.map((channel) => (channel <= 10 ? channel / 3294.6 : ((channel / 255 + 0.055) / 1.055) ** 2.4));
    const luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    return { colour: `rgb(${rgb.join(", ")})`, ink: luminance > 0.179 ? "#000000" : "#ffffff" };
  }

  // A canvas with one pixel per cell.
  function picture(codes, rows, columns, tile, stops) {
    const canvas = document.createElement("canvas");
    canvas.width = columns;
    canvas.height = rows;
    const context = canvas.getContext("2d");
    const image = context.createImageData(columns, rows);
    const colours = palette(stops, tile.signed);
    const pixels = new Uint32Array(image.data.buffer);
    for (let i = 0; i < codes.length; i++) pixels[i] = colours[codes[i]];
    context.putImageData(image, 0, 0);
    return canvas;
  }

  // The answer of a route: JSON, or bytes with their description. Throws the reason if there is none.
  async function request(route, query, signal) {
    const answer = await fetch(`${window.workbench.prefix()}${route}?${new URLSearchParams(query)}`, { signal });
    const description = answer.headers.get("X-Workbench");
    if (description === null) {
      const json = await answer.json();
      if (json.error) throw new Error(json.error);
      return json;
    }
    return { ...JSON.parse(description), codes: new Uint8Array(await answer.arrayBuffer()) };
  }

  window.workbenchPixels = { valueOf, shade, picture, request };
})();
