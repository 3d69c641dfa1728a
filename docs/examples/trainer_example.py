from torch.utils.data import DataLoader

from sum_factory.trainer import Recipe, ShardDataset, ShuffledDataset, evaluate, fit, load_model

masks = {"name": "mine", "kind": "folder-pairs", "images": "human/photos", "masks": "human/masks", "task": "salient"}
recipe = Recipe(human=[masks], shards="labels", method="sum", steps=2, batch=2, masks=4, rounds=2)
summary = fit(recipe, "run")
print(summary.lines(), "run/weights.safetensors")

model = load_model("run")
[prediction] = model.predict("human/photos/2.png", points=[(128, 128)], task="salient")
print(f"{prediction.mask.sum()} pixels, predicted IoU {prediction.predicted_iou:.2f}")
print(evaluate(model, [masks]).by_set["mine"]["mIoU@3"])

items = ShuffledDataset(ShardDataset("labels"), seed=1)  # for a training loop of your own
for item in DataLoader(items, batch_size=None):
    print(item["key"], item["image"].shape, item["masks"].shape, item["certainty"].mean())
