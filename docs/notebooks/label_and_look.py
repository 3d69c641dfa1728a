# # Label and look
#
# Photos in, masks out: first without any files, then as a shard set, which a run can build up over days. This page is
# a script, `docs/notebooks/label_and_look.py`: run it, or open it as a notebook in an editor that knows `# %%`.

# %%
from pathlib import Path

import numpy as np
from PIL import Image

from sum_factory.labelgen import RunSettings, label, open_shards
from sum_factory.labelgen.run import run
from sum_factory.pipelines.microworld.scene import make_scene

# Put your own photos into `photos`. Without any, here are two scenes of the synthetic world that the tests use.

# %%
PHOTOS = Path("photos")
if not PHOTOS.exists():
    PHOTOS.mkdir()
    for number in (5, 6):
        Image.fromarray(make_scene(0, number).image).save(PHOTOS / f"scene{number}.png")

# `label` takes a folder, paths, Pillow images or arrays, and gives each photo with its masks. The tiny SAM that ships
# here is good for trying things; for photos give `sam="sam_vit_b_01ec64.pth"` or another of SAM's files, and leave
# `automask` out.

# %%
FEW_POINTS = {"points_per_side": 12}
for photo in label(PHOTOS, refiner="vit_micro", automask=FEW_POINTS):
    print(f"{photo.key}: {photo.width} x {photo.height}, {len(photo)} masks")
    for k in np.argsort(-photo.areas)[:3]:
        doubt = photo.mean_u["refinement"][k]
        print(f"  {photo.areas[k]:6} pixels, predicted IoU {photo.predicted_iou[k]:.2f}, mean doubt {doubt:.3f}")

# A mask is a bool array of the photo's size, and so is all that can be drawn of it. Here each mask gets a colour, and
# what is doubtful becomes red.

# %%
colours = np.random.default_rng(0).integers(64, 256, (1000, 3))
for photo in label(PHOTOS, refiner="vit_micro", automask=FEW_POINTS):
    picture = photo.image().astype(float)
    for k in np.argsort(-photo.areas):
        picture[photo.mask(k)] = 0.5 * picture[photo.mask(k)] + 0.5 * colours[k]
    for k in range(len(photo)):
        u = photo.uncertainty(k)
        if u is not None:  # None: nothing is known of this mask's doubt
            picture = picture * (1 - u[..., None]) + np.array([255, 0, 0]) * u[..., None]
    Image.fromarray(picture.astype(np.uint8)).save(f"{photo.key}_masks.png")

# For more than a handful of photos make a shard set. It can be interrupted anywhere; the same call does the rest.

# %%
settings = RunSettings(images=("photos",), shards="labels", refiner="vit_micro", automask=FEW_POINTS)
print(run(settings).lines())

# What was written is read like what `label` gives, at a path or at a URL such as `s3://bucket/labels`.

# %%
for photo in open_shards("labels"):
    sure = np.flatnonzero(photo.mean_u["refinement"] < 0.05)
    print(f"{photo.key}: {len(sure)} of {len(photo)} masks are hardly in doubt")
