from sum_factory.shared.shards.selection.opened import open_shards
from sum_factory.shared.shards.verify import verify

shards = open_shards("labels")
assert [problem for check in verify(shards) for problem in check.problems] == []
for unit, image in shards.walk():
    maps = shards.read_uncertainty(unit, shards.uncertainty(unit)[image.index])
    logits = shards.read_label_logits(unit, image, range(len(image.masks)))
    for row, mask, doubt in zip(image.masks, logits, maps, strict=True):
        print(image.key, row["area"], (mask > 0).mean(), doubt.u.mean())
