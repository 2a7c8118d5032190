"""Which heads must keep the whole context: rankings, keep-sets, and what a conversion costs."""

from workbench.planning.game import Game
from workbench.planning.rankings import METHODS, Ranking, rank
from workbench.planning.window_gates import WindowGates, window_gates

__all__ = ["METHODS", "Game", "Ranking", "WindowGates", "rank", "window_gates"]
