# # Read shards without this software
#
# A shard set is WebDataset tars, or Zarr arrays, and Parquet. This script, `docs/notebooks/read_without.py`, imports
# nothing of this project: it reads the masks of `labels` from tars, those of `arrays` from Zarr (`labelgen convert
# --shards labels --out arrays --encoding zarr`), and draws both at the photos' own size. [The format](../shards.md)
# has every byte.

# %%
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import webdataset
import zarr

# The manifest of a unit is a table with a row for each mask. It alone says that a unit is there.

# %%
manifests = sorted(Path("labels/manifest/masks").glob("*.parquet"))
for path in manifests:
    table = pq.read_table(path)
    print(path.name, table.num_rows, "masks;", "largest", max(table["area"].to_pylist()), "pixels")

# A mask is stored as the signs of SAM's logits on a coarse grid, with magnitudes near the boundary, which say where
# between two cells it lies.


# %%
def decode(blob):
    """Return the logits of a blob, float (rows, columns)."""
    last_row, last_column, top, left, bottom, right, typical, steps = struct.unpack_from("<6BeB", blob)
    positive = np.zeros((last_row + 1, last_column + 1), bool)
    if steps == 0:
        return np.where(positive, 1.0, -1.0)
    data = np.frombuffer(zlib.decompress(blob[9:], -15), np.uint8)
    height, width = bottom - top + 1, right - left + 1
    packed = -(-height * width // 8)
    rows = np.unpackbits(data[:packed])[: height * width].reshape(height, width)
    positive[top : bottom + 1, left : right + 1] = np.bitwise_xor.accumulate(rows, axis=0)
    padded = np.pad(positive, 1, mode="edge")
    neighbours = [padded[i : i + last_row + 1, j : j + last_column + 1] for i in range(3) for j in range(3)]
    band = np.any([each != positive for each in neighbours], axis=0)
    share = (data[packed:] + 0.5) / steps
    magnitude = np.full(positive.shape, 3.0 * typical)
    magnitude[band] = typical * share / (1 - share)
    return np.where(positive, magnitude, -magnitude)


# At the photo's size: bilinear from the grid to SAM's square input, of which the photo fills a part, and from there
# to the photo.


# %%
def stretched(grid, step, count, axis):
    """Sample an axis of a grid at ``count`` places that are ``step`` cells apart, between the centres of cells."""
    place = np.clip((np.arange(count) + 0.5) * step - 0.5, 0, grid.shape[axis] - 1)
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, grid.shape[axis] - 1)
    share = np.expand_dims(place - below, 1 - axis)
    return np.take(grid, below, axis) * (1 - share) + np.take(grid, above, axis) * share


def drawn(grid, crop, photo_size, side):
    """Return the mask of a grid, bool of the photo's (height, width); ``crop`` is what SAM saw of the photo."""
    x0, y0, x1, y1 = crop
    longer = max(y1 - y0, x1 - x0)
    inner = grid
    for axis, length in ((0, y1 - y0), (1, x1 - x0)):
        shown = int(length * side / longer + 0.5)
        inner = stretched(stretched(inner, 1 / 4, shown, axis), shown / length, length, axis)
    mask = np.zeros(photo_size, bool)
    mask[y0:y1, x0:x1] = inner > 0
    return mask


# From tars: a sample is a photo, with the blobs of its masks one after the other.

# %%
side = json.loads(Path("labels/dataset.json").read_text())["layers"]["masks"]["weights"]["sam"]["image_size"]
from_tars = {}
for path in sorted(Path("labels/masks").glob("*.tar")):
    for sample in webdataset.WebDataset(str(path), shardshuffle=False).decode():
        about, start, masks = sample["json"], 0, []
        whole = (0, 0, about["width"], about["height"])
        for length, crop in zip(about["length"], about.get("crop_box", [whole] * len(about["length"])), strict=True):
            logits = decode(sample["labels"][start : start + length])
            masks.append(drawn(logits, crop, (about["height"], about["width"]), side))
            start += length
        from_tars[about["key"]] = masks
print({key: len(masks) for key, masks in from_tars.items()})

# From Zarr: a row of the array is a mask, a byte per cell; from 128 on a cell is in the mask. The manifest has what the
# bytes mean.

# %%
from_zarr = {}
codes = zarr.open("arrays/masks.zarr", mode="r")["label"]
for path in sorted(Path("arrays/manifest/masks").glob("*.parquet")):
    unit = int(path.stem)
    first = unit * codes.shards[0]
    rows = [row for row in pq.read_table(path).to_pylist() if row["mask"] is not None]
    for number, row in enumerate(rows):
        code = codes[first + number][: row["grid_height"], : row["grid_width"]].astype(float)
        positive = code >= 128
        bounded = np.where(positive, code - 128, 127 - code)  # 127 outside the band
        steps = max(1, row["steps"])
        share = (np.floor((2 * bounded + 1) * steps / 254) + 0.5) / steps
        in_band = (code != 0) & (code != 255)
        magnitude = np.where(in_band, row["typical"] * share / np.where(in_band, 1 - share, 1), 3 * row["typical"])
        crop = [row[name] for name in ("crop_x0", "crop_y0", "crop_x1", "crop_y1")]
        logits = np.where(positive, magnitude, -np.abs(magnitude) - (row["steps"] == 0))
        from_zarr.setdefault(row["image"], []).append(drawn(logits, crop, (row["height"], row["width"]), side))

# %%
for key, masks in from_tars.items():
    assert all(np.array_equal(one, other) for one, other in zip(masks, from_zarr.get(key, []), strict=True)), key
np.savez("masks.npz", **{f"{key} {k}": mask for key, masks in from_tars.items() for k, mask in enumerate(masks)})
print("tars and Zarr hold the same masks")
