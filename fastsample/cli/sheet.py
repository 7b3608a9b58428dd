"""Many images in one."""

from __future__ import annotations

from pathlib import Path


def contact_sheet(files: list[Path], path: Path, columns: int = 8) -> Path:
    """All images in one, small ones enlarged to be seen."""
    from PIL import Image  # not for --help

    images = [Image.open(file) for file in files]
    width, height = images[0].size
    zoom = max(1, 128 // max(width, height))
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width * zoom, rows * height * zoom))
    for index, image in enumerate(images):
        big = image.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
        sheet.paste(big, (index % columns * width * zoom, index // columns * height * zoom))
    sheet.save(path)
    return path
