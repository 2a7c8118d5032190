"""Ids of the components that several pages share; a page's own ids stand in its file."""

# Stores in the browser.
LOCATION, NAVIGATE, VIEW, ADDRESS_STEP, EMPTY_PAGE = "location", "navigate", "view", "address-step", "empty-page"
JUMP, THEME, NOTICE, CARDS = "jump", "theme", "notice", "cards"
THEME_COLOURS = "theme-colours"
PLANES, PLANES_REQUEST, CURRENT_STEP, RUN_CHECKPOINTS, FINGERPRINTS = (
    "planes",
    "planes-request",
    "current-step",
    "run-checkpoints",
    "fingerprints",
)
SCORES_CHANGED, METRICS_CHANGED, HEAD_CHANGED, NAMES_CHANGED, ANY_CHANGED = (
    "scores-changed",
    "metrics-changed",
    "head-changed",
    "names-changed",
    "any-changed",
)
# A timer: the server looks at the runs with every tick.
TICK = "tick"
# Header and controls around the pages.
MANTINE, ROOT, STATUS, BANNERS = "mantine", "root", "status", "banners"
RUNS, DETECTOR, PROBE, HEAD_RUN = "runs", "detector", "probe", "head-run"
CHECKPOINT, CHECKPOINT_LABEL = "checkpoint", "checkpoint-label"


def parameter_id(name: str) -> dict[str, str]:
    """The id of a select whose value is the parameter `name` of the address."""
    return {"type": "choice", "name": name}
