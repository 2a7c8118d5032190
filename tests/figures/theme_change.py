"""What `assets/theme.js` makes of a figure when the theme changes, in Python: by the pairs of colours alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import workbench.app
from workbench.figures.style import paired_colours

_SCRIPT = (Path(workbench.app.__file__).parent / "assets" / "theme.js").read_text()
# The names under which the browser looks for no colours.
PLAIN = set(re.findall(r'"(\w+)"', re.search(r"PLAIN = new Set\((.*)\)", _SCRIPT)[1]))


def in_the_dark(light):
    """A light figure as the browser makes it dark."""
    pairs = paired_colours()
    colours, letters = ({a.lower(): b for a, b in pairs[name]} for name in ("colours", "letters"))

    def changed(value):
        if isinstance(value, list):
            return [changed(each) for each in value]
        if isinstance(value, dict):
            return {name: of if is_plain(name, of) else changed(of) for name, of in value.items()}
        if not isinstance(value, str):
            return value
        if parts := re.fullmatch(r"rgba\((\d+), (\d+), (\d+), (.*)\)", value):
            opaque = colours["#{:02x}{:02x}{:02x}".format(*map(int, parts.groups()[:3]))]
            return "rgba({}, {}, {}, {})".format(*bytes.fromhex(opaque[1:]), parts[4])
        in_labels = re.sub(r"color:(#\w{6})", lambda match: "color:" + letters[match[1].lower()], value)
        return colours.get(value.lower(), in_labels)

    def is_plain(name, of):
        return name in PLAIN or (name == "text" and isinstance(of, list))

    return changed(as_sent(light))


def as_sent(figure):
    """A figure as the browser gets it."""
    return json.loads(figure.to_json())
