"""The device that a user names, if models can be put there."""

from __future__ import annotations

import torch

from workbench.heads import WorkbenchError

_EXPECTED = "expected 'cpu', 'cuda', 'cuda:1' or another device that this torch has"


def named_device(name: str | torch.device) -> torch.device:
    """A device on which tensors can be made.

    Raises:
        WorkbenchError: for a name that torch does not know, or a device that is not there.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise WorkbenchError(f"device {str(name)!r} is none that torch knows; {_EXPECTED}") from error
    if device.type == "meta":
        raise WorkbenchError(f"device 'meta' holds no numbers; {_EXPECTED}")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0][:120]
        raise WorkbenchError(f"device {str(name)!r} is not there ({reason}); {_EXPECTED}") from error
    return device
