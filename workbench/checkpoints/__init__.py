"""Directories of pretraining checkpoints: their order, their headers and their fingerprints. No torch."""

from workbench.checkpoints.configs import ConfigChange, architecture, config_changes, read_config
from workbench.checkpoints.digests import Fingerprint, files_stamp, fingerprint, same_weights, verify_digests
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
    "architecture",
    "checkpoint_format",
    "config_changes",
    "files_stamp",
    "find_checkpoints",
    "fingerprint",
    "inspect_weights",
    "parse_name",
    "read_config",
    "same_weights",
    "verify_digests",
]
