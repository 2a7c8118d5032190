"""Interventions: windows, linear attention, gates, ablation and patching of chosen heads."""
