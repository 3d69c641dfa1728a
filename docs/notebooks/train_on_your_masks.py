# # Train on your own masks
#
# A few masks that people drew, many photos without any, and the labels of a frozen SAM on these. This page is a
# script, `docs/notebooks/train_on_your_masks.py`. It takes two steps of training, so that it runs in seconds: the
# last cell says what to change.

# %%
from pathlib import Path

from PIL import Image

from sum_factory.labelgen import RunSettings
from sum_factory.labelgen.run import run
from sum_factory.pipelines.microworld.scene import make_scene
from sum_factory.trainer import Recipe, evaluate, fit, load_model
from sum_factory.trainer.evaluation.settings import Protocol

# Human masks are files of the same name as their photos. Put yours into `mine/photos` and `mine/masks`; without any,
# here are six scenes of a synthetic world with a mask each, and two photos more without.

# %%
if not Path("mine").exists():
    for folder in ("mine/photos", "mine/masks", "more"):
        Path(folder).mkdir(parents=True)
    for number in range(20, 26):
        scene = make_scene(0, number)
        Image.fromarray(scene.image).save(f"mine/photos/{number}.png")
        Image.fromarray(scene.masks("salient")[0]).save(f"mine/masks/{number}.png")
    for number in (30, 31):
        Image.fromarray(make_scene(0, number).image).save(f"more/{number}.png")

# The photos without masks get labels and maps of doubt, from a SAM that stays as it is.

# %%
few_points = {"points_per_side": 10}
run(RunSettings(images=("more",), shards="more_labels", refiner="vit_micro", automask=few_points))

# Some masks are kept aside to judge by: a list names those that are trained on, and another one the others.

# %%
names = sorted(path.stem for path in Path("mine/masks").iterdir())
Path("train.txt").write_text("\n".join(names[:-2]))
Path("aside.txt").write_text("\n".join(names[-2:]))
mine = {"kind": "folder-pairs", "images": "mine/photos", "masks": "mine/masks", "task": "salient"}
aside = {**mine, "name": "kept aside", "list": "aside.txt"}

# A recipe has all settings of a run. What is not named has the paper's value; a wrong name or value is an error that
# says so.

# %%
recipe = Recipe(
    human=[{**mine, "name": "mine", "list": "train.txt"}],
    shards="more_labels",
    method="sum",
    variant="decoder",
    steps=2,
    batch=2,
    masks=4,
    rounds=2,
    stride=2,
    loss={"temperature": 3},
    optimizer={"learning_rate": 4e-4},
)
print(fit(recipe, "runs/mine").lines())

# Judge both models on the masks that were kept aside, as a user would prompt them: a point, then a click where the
# mask is wrong.

# %%
two_rounds = Protocol(rounds=2)
for name, weights in (("SAM", "vit_micro"), ("after training", "runs/mine")):
    scores = evaluate(weights, [aside], two_rounds).by_set["kept aside"]
    print(f"{name}: IoU {scores['mIoU@1']:.3f} after a point, {scores['mIoU@2']:.3f} after a click more")

# And use it. Points count from 0 at the top left.

# %%
[prediction] = load_model("runs/mine").predict(f"mine/photos/{names[-1]}.png", points=[(128, 128)], task="salient")
Image.fromarray(prediction.mask).save("prediction.png")
print(f"{prediction.mask.sum()} pixels; the model expects an IoU of {prediction.predicted_iou:.2f}")

# Two steps change next to nothing. For a real run give `sam` one of SAM's own files, leave `few_points`, `stride`,
# `loss` and `optimizer` out, and take hundreds of steps of forty photos; on several GPUs call `trainer fit` with the
# same recipe as a YAML file.
