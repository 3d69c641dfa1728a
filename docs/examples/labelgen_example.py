from sum_factory.labelgen import RunSettings, label, open_shards
from sum_factory.labelgen.run import run
from sum_factory.shared.automask.settings import settings_for

points = settings_for("vit_micro", points_per_side=8)
for photo in label("photos", refiner="vit_micro", automask=points):  # nothing is written
    doubtful = photo.mean_u["refinement"].argmax()
    print(f"{photo.key}: {len(photo)} masks; mask {doubtful} has {photo.mask(doubtful).sum()} pixels")

settings = RunSettings(images=("photos",), shards="labels", refiner="vit_micro", automask=points, unit_size=2)
summary = run(settings)  # the same into a shard set, which can be interrupted anywhere
print(f"{summary.masks} masks of {summary.images} photos")
again = run(settings)  # what is done stays done
assert again.units_done == 0
for photo in open_shards("labels"):
    assert photo.image().shape[:2] == photo.mask(0).shape == photo.uncertainty(0).shape
