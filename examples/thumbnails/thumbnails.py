"""Thumbnails of a folder of pictures: a complete handler to start from.

It runs in a child process, because Pillow keeps a core busy. Other tasks, leases and heartbeats are not delayed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from taskd.ports.handler import ITaskContext
from taskd.worker import Reject, handler

PICTURES = Path(os.environ.get("PICTURES", "pictures")).resolve()
"""Tasks name folders below this one. Every user who may submit tasks can read these pictures, and nothing else."""

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tiff"}


@handler("thumbnails", isolation="process", timeout=3600, max_attempts=2)
def thumbnails(task: ITaskContext) -> dict[str, Any]:
    """Small copies of all pictures of a folder, into its folder "thumbnails"."""
    folder, size = _folder(task.payload.get("folder", ".")), _size(task.payload.get("size", 200))
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not pictures:
        raise Reject(f"there are no pictures in {folder.relative_to(PICTURES.parent)}")
    into = folder / "thumbnails"
    into.mkdir(exist_ok=True)
    made, skipped = 0, []
    for count, picture in enumerate(pictures):
        task.progress(count / len(pictures), picture.name)
        try:
            made += _make(picture, into / f"{picture.stem}.jpg", size)
        except (UnidentifiedImageError, OSError) as e:
            # one broken picture must not fail the others
            task.log(f"{picture.name}: skipped: {e}")
            skipped.append(picture.name)
    task.progress(1, "done")
    return {"made": made, "there": len(pictures) - made - len(skipped), "skipped": skipped}


def _make(picture: Path, thumbnail: Path, size: int) -> bool:
    """Make one thumbnail. False if it exists already, made by an earlier attempt."""
    if thumbnail.exists() and thumbnail.stat().st_mtime >= picture.stat().st_mtime:
        return False
    unfinished = thumbnail.with_suffix(".part")
    with Image.open(picture) as image:
        small = ImageOps.exif_transpose(image).convert("RGB")
        small.thumbnail((size, size))
        small.save(unfinished, "JPEG", quality=85)
    # a rename is atomic: nobody sees an incomplete file
    unfinished.replace(thumbnail)
    return True


def _folder(name: Any) -> Path:
    if not isinstance(name, str):
        raise Reject("folder must be a text, such as holidays/2026")
    folder = (PICTURES / name).resolve()
    if not folder.is_relative_to(PICTURES) or not folder.is_dir():
        raise Reject(f"there is no folder {name!r} among the pictures")
    return folder


def _size(size: Any) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or not 16 <= size <= 2000:
        raise Reject("size must be a whole number of pixels from 16 to 2000")
    return size
