from sum_factory.labelgen.run import run
from sum_factory.labelgen.run_settings import RunSettings
from sum_factory.shared.automask.settings import settings_for

points = settings_for("vit_micro", points_per_side=8)
settings = RunSettings(images=("photos",), shards="labels", refiner="vit_micro", automask=points, unit_size=2)
summary = run(settings)
print(f"{summary.masks} masks of {summary.images} photos")

again = run(settings)  # what is done stays done
assert again.units_done == 0
