from pathlib import Path

from PIL import Image

from sum_factory.pipelines.microworld.scene import make_scene

for folder in ("photos", "human/photos", "human/masks"):
    Path(folder).mkdir(parents=True)
for number in range(4):
    scene = make_scene(0, number)  # seed and number: the same scene every time
    Image.fromarray(scene.image).save(f"{'photos' if number < 2 else 'human/photos'}/{number}.png")
    if number >= 2:
        Image.fromarray(scene.masks("salient")[0]).save(f"human/masks/{number}.png")
