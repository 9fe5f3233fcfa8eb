"""Thumbnails of images, made in processes, with a bar: ``map`` of a CPU-bound task.

    python examples/thumbnails.py [DIRECTORY]

The images are generated, so there is nothing to download. Each is a PNG file of 480 by 320 pixels. A worker
makes a thumbnail of each in one of its processes, so all cores are busy and the event loop stays free. One
file is broken on purpose: it is left out, and the report at the end says why.

Python's standard library is enough to write and read such PNG files. A real application would take Pillow.
"""

import asyncio
import hashlib
import logging
import struct
import sys
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

from gearflow import JobServer, connect, task
from gearflow.worker import Worker

WIDTH, HEIGHT, FACTOR = 480, 320, 8
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write_png(path: Path, width: int, height: int, rows: list[bytes]) -> None:
    """Write 8-bit RGB rows as a PNG file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def read_png(path: Path) -> tuple[int, int, list[bytes]]:
    """Read what ``write_png`` has written. Raises ValueError if it is something else."""
    data = path.read_bytes()
    if not data.startswith(SIGNATURE):
        raise ValueError(f"{path.name} is no PNG file")
    width, height = struct.unpack(">II", data[16:24])
    length = struct.unpack(">I", data[33:37])[0]
    pixels = zlib.decompress(data[41 : 41 + length])
    size = 1 + 3 * width
    return width, height, [pixels[start + 1 : start + size] for start in range(0, len(pixels), size)]


@task(executor="process")
def make_thumbnail(path: Path) -> Path:
    """Write the image an eighth as wide and high: each pixel is the mean of 64."""
    width, height, rows = read_png(path)
    small: list[bytes] = []
    for top in range(0, height, FACTOR):
        block = rows[top : top + FACTOR]
        row = bytearray()
        for left in range(0, 3 * width, 3 * FACTOR):
            for colour in range(3):
                start, stop = left + colour, left + 3 * FACTOR
                row.append(sum(sum(line[start:stop:3]) for line in block) // FACTOR**2)
        small.append(bytes(row))
    target = path.with_name(f"{path.stem}.thumb.png")
    write_png(target, width // FACTOR, height // FACTOR, small)
    return target


def generate(directory: Path, number: int) -> list[Path]:
    """Images with gradients and stripes, and one file that is no image."""
    paths: list[Path] = []
    for index in range(number):
        rows = [
            bytes((value * (index + 1) + y // 2) % 256 for x in range(WIDTH) for value in (x, x // 2, y))
            for y in range(HEIGHT)
        ]
        paths.append(directory / f"image{index:02}.png")
        write_png(paths[-1], WIDTH, HEIGHT, rows)
    paths.insert(number // 2, directory / "notes.png")
    paths[number // 2].write_text("this is no image")
    return paths


async def main(directory: Path) -> None:
    """Generate the images, make the thumbnails, and report."""
    logging.getLogger("gearflow.worker").setLevel(logging.CRITICAL)  # it would report the failure, too
    paths = generate(directory, 12)
    async with (
        JobServer(port=0) as server,
        connect(server.address),
        Worker([make_thumbnail], servers=[server.address], concurrency=2),
    ):
        thumbnails = make_thumbnail.amap(paths, errors="skip", progress=True)
        digest = hashlib.sha256()
        async for path in thumbnails:
            width, height, rows = read_png(path)
            digest.update(b"".join(rows))
            print(f"{path.name}: {width} x {height}")
    for failed in thumbnails.errors:
        print(f"left out: {failed.item.name}: {failed.error}")
    print(f"all pixels: {digest.hexdigest()[:16]}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(main(Path(sys.argv[1])))
    else:
        with TemporaryDirectory() as folder:
            asyncio.run(main(Path(folder)))
