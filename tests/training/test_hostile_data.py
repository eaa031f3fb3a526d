"""Data folders of somebody who means harm, or of an ordinary desktop."""

import gzip
import os
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from fastguide.training import load_images
from fastguide.training.idx import read_idx


def folder(root, name="cat", size=(5, 4), count=2):
    (root / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", size, (i, 2, 3)).save(root / name / f"{i}.png")
    return root / name


def test_sixteen_bits_are_rounded_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    (tmp_path / "a").mkdir()
    Image.fromarray(ramp).save(tmp_path / "a" / "0.png")
    Image.fromarray(ramp).save(tmp_path / "a" / "1.tif")
    pixels = load_images(tmp_path).pixels
    assert pixels.shape == (2, 1, 16, 16)
    for image in pixels:
        assert image.flatten().tolist() == list(range(256))


def test_depths_that_are_not_read_are_errors(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "a" / "0.tif")
    with pytest.raises(ValueError, match=r"0\.tif is damaged: its pixels are floating-point"):
        load_images(tmp_path)
    Image.fromarray(np.full((4, 4), 1 << 20, np.int32)).save(tmp_path / "a" / "0.tif")
    with pytest.raises(ValueError, match=r"0\.tif is damaged: its pixels have more than 16 bits"):
        load_images(tmp_path)


def test_what_is_hidden_or_empty_is_no_class(tmp_path):
    folder(tmp_path, "cat")
    folder(tmp_path, ".ipynb_checkpoints")
    (tmp_path / "aardvark").mkdir()
    (tmp_path / "cat" / "._0.png").write_bytes(b"a resource fork")
    (tmp_path / "owl").mkdir()
    Image.new("RGB", (5, 4)).save(tmp_path / "owl" / "0.tif")
    images = load_images(tmp_path)
    assert images.class_names == ("cat", "owl")
    assert images.labels.tolist() == [0, 0, 1]


def test_links_that_lead_out_are_not_followed(tmp_path):
    data, other = tmp_path / "data", tmp_path / "other"
    inside, outside = folder(data), folder(other, "secret")
    (inside / "9.png").symlink_to(outside / "0.png")
    (inside / "8.png").symlink_to("8.png")
    (inside / "7.png").symlink_to("0.png")
    (data / "dog").symlink_to(outside)
    with pytest.warns(UserWarning, match="leads out of"):
        images = load_images(data)
    assert images.class_names == ("cat",)
    assert len(images.pixels) == 3


def test_what_is_no_regular_file_is_skipped(tmp_path):
    inside = folder(tmp_path)
    os.mkfifo(inside / "3.png")
    (inside / "4.png").mkdir()
    assert len(load_images(tmp_path).pixels) == 2
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")
    assert len(load_images(tmp_path).pixels) == 2


def png_of(width, height):
    """A PNG of one colour, which is all header."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    squeeze = zlib.compressobj(9)
    rows = b"".join(squeeze.compress(bytes(1 + 3 * width)) for _ in range(height))
    data = rows + squeeze.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def peak(call, message):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(png_of(6000, 4000))
    message = r"0\.png has 6000 x 4000 pixels"
    assert peak(lambda: load_images(tmp_path), message) < 10 << 20


def test_images_that_are_nearly_all_air_are_not_decoded(tmp_path):
    (tmp_path / "a").mkdir()
    data = png_of(2000, 2000)
    for i in range(40):
        (tmp_path / "a" / f"{i}.png").write_bytes(data)
    message = "would take 480000000 bytes of memory"
    assert peak(lambda: load_images(tmp_path), message) < 40 << 20


def test_an_image_of_another_size_is_not_decoded(tmp_path):
    inside = folder(tmp_path)
    (inside / "9.png").write_bytes(png_of(4000, 4000))
    message = r"9\.png is \(3, 4000, 4000\) as"
    assert peak(lambda: load_images(tmp_path), message) < 10 << 20


def idx_head(*sizes):
    return bytes([0, 0, 8, len(sizes)]) + b"".join(n.to_bytes(4, "big") for n in sizes)


def test_a_compressed_file_that_is_nearly_all_air_is_not_read(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(idx_head(400_000, 28, 28))
        for _ in range(4):  # the file may be short: what it claims is judged first
            file.write(bytes(1 << 20))
    assert peak(lambda: read_idx(path), "would take 313600000 bytes") < 10 << 20


def test_a_compressed_file_that_goes_on_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(idx_head(2, 4, 4))
        for _ in range(64):
            file.write(bytes(1 << 20))
    assert peak(lambda: read_idx(path), "is damaged: more than 48 bytes") < 10 << 20


def test_every_failure_names_the_file(tmp_path):
    inside = folder(tmp_path)
    whole = (inside / "0.png").read_bytes()
    for damage in (b"", b"no", whole[:40], whole[: len(whole) // 2]):
        (inside / "1.png").write_bytes(damage)
        with pytest.raises(ValueError, match=r"1\.png"):
            load_images(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    good = gzip.compress(idx_head(2, 4, 4) + bytes(range(32)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_head(2) + bytes(2)))
    flipped = bytearray(good)
    flipped[20] ^= 0x55
    for damage in (b"", good[:5], good[:-9], bytes(flipped), gzip.compress(idx_head(0, 4, 4))):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz"):
            load_images(tmp_path)
