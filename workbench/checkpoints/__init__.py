"""Directories of pretraining checkpoints: their order, their headers and their fingerprints. No torch."""

from workbench.checkpoints.configs import ConfigChange, config_changes, read_config
from workbench.checkpoints.digests import Fingerprint, fingerprint, same_weights, verify_digests
from workbench.checkpoints.formats import Format, checkpoint_format
from workbench.checkpoints.names import CheckpointName, parse_name
from workbench.checkpoints.series import Checkpoint, Series, find_checkpoints
from workbench.checkpoints.weight_headers import TensorInfo, WeightsInfo, inspect_weights

__all__ = [
    "Checkpoint",
    "CheckpointName",
    "ConfigChange",
    "Fingerprint",
    "Format",
    "Series",
    "TensorInfo",
    "WeightsInfo",
    "checkpoint_format",
    "config_changes",
    "find_checkpoints",
    "fingerprint",
    "inspect_weights",
    "parse_name",
    "read_config",
    "same_weights",
    "verify_digests",
]
