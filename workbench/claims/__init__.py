"""What scores support: thresholds with their sources, what a model gets right, and the heads that it has."""

from workbench.claims.abilities import abilities
from workbench.claims.model_summary import ModelSummary, summarise_model
from workbench.claims.thresholds import THRESHOLDS, Threshold, claims

__all__ = ["THRESHOLDS", "ModelSummary", "Threshold", "abilities", "claims", "summarise_model"]
