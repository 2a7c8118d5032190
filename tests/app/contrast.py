"""Text of a page whose contrast to what lies behind it is too low, as WCAG 2.2 counts it."""

from __future__ import annotations

# Text is judged against the nearest backgrounds behind it, blended. Disabled controls, logotypes and text on a canvas or
# a picture are left out, as are tokens on a coloured ground, whose ink is chosen for it.
LOW = """least => {
  const parse = text => {
    const numbers = (text.match(/[\\d.]+/g) || []).map(Number);
    if (text.startsWith('color(srgb')) return [...numbers.slice(0, 3).map(x => x * 255), numbers[3] ?? 1];
    return numbers.length >= 3 ? [...numbers.slice(0, 3), numbers[3] ?? 1] : [0, 0, 0, 0];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      layers.push(parse(getComputedStyle(e).backgroundColor));
      if (layers[layers.length - 1][3] === 1) break;
    }
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const low = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.textContent.trim() || !element.getClientRects().length || element.closest('script, style, :disabled, [data-disabled]')) continue;
    const style = getComputedStyle(element);
    if (style.visibility === 'hidden' || style.opacity === '0' || element.closest('.modebar, .colorbar, .hoverlayer')) continue;
    const isDrawn = element instanceof SVGElement;
    let ink = parse(isDrawn ? style.fill : style.color);
    for (let e = element; e; e = e.parentElement) ink = [...ink.slice(0, 3), ink[3] * Number(getComputedStyle(e).opacity)];
    const ground = behind(element);
    const [a, b] = [luminance(over(ink, ground)), luminance(ground)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (isDrawn && element.closest('.heatmaplayer, .bars, .textpoint, .heatmap-label')) continue;
    if (contrast < least) low.set(`${element.tagName}.${element.getAttribute('class') || ''}`, `${node.textContent.trim().slice(0, 30)}: ${contrast.toFixed(2)}`);
  }
  return [...low].map(([where, what]) => `${where} ${what}`);
}"""


def low_contrast(tab, least=4.5):
    """Descriptions of text with less contrast, one for each kind of element."""
    return tab.evaluate(LOW, least)
