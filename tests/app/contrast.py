"""Text of a page whose contrast to what lies behind it is too low, as WCAG 2.2 counts it."""

from __future__ import annotations

# Text is judged against the nearest backgrounds behind it, blended. Left out are disabled controls, numbers inside of
# squares and bars of a figure, what is being loaded, and what stands on a canvas.
LOW = """least => {
  const parse = text => {
    const numbers = (text.match(/[\\d.]+/g) || []).map(Number);
    if (numbers.length < 3) return [0, 0, 0, 0];
    const scale = text.startsWith('color(srgb') ? 255 : 1;
    return [...numbers.slice(0, 3).map(x => x * scale), numbers[3] ?? 1];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      layers.push(parse(getComputedStyle(e).backgroundColor));
      if (layers[layers.length - 1][3] === 1) break;
    }
    return layers.reduceRight((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const linear = c => c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const LEFT_OUT = 'script, style, :disabled, [data-disabled], .modebar, .hoverlayer, .heatmaplayer, .bars, '
    + '.textpoint, .heatmap-label, main [data-dash-is-loading="true"]';
  const low = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.textContent.trim() || !element.getClientRects().length || element.closest(LEFT_OUT)) continue;
    const style = getComputedStyle(element);
    if (style.visibility === 'hidden') continue;
    let ink = parse(element instanceof SVGElement ? style.fill : style.color);
    for (let e = element; e; e = e.parentElement) {
      ink = [...ink.slice(0, 3), ink[3] * Number(getComputedStyle(e).opacity)];
    }
    if (ink[3] === 0) continue;
    const ground = behind(element);
    const [a, b] = [luminance(over(ink, ground)), luminance(ground)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const kind = `${element.tagName}.${element.getAttribute('class') || ''}`;
    if (contrast < least) low.set(kind, `${node.textContent.trim().slice(0, 30)}: ${contrast.toFixed(2)}`);
  }
  return [...low].map(([kind, what]) => `${kind} ${what}`);
}"""


def low_contrast(tab, least=4.5):
    """Descriptions of text with less contrast, one for each kind of element."""
    return tab.evaluate(LOW, least)
