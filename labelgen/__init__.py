"""Label photos with a frozen SAM, and read what was labelled.

    from sum_factory.labelgen import label, open_shards

What is named here is imported when it is first used.
"""

from typing import TYPE_CHECKING

from sum_factory.shared.lazy import lazily

if TYPE_CHECKING:
    from sum_factory.labelgen.in_memory import label as label
    from sum_factory.labelgen.run import add_uncertainty as add_uncertainty
    from sum_factory.labelgen.run_settings import RunSettings as RunSettings
    from sum_factory.labelgen.run_settings import UncertaintyRunSettings as UncertaintyRunSettings
    from sum_factory.shared.labelled_photo import LabelledPhoto as LabelledPhoto
    from sum_factory.shared.shards.selection.opened import open_shards as open_shards

PLACES = {
    "LabelledPhoto": "sum_factory.shared.labelled_photo",
    "RunSettings": "sum_factory.labelgen.run_settings",
    "UncertaintyRunSettings": "sum_factory.labelgen.run_settings",
    "add_uncertainty": "sum_factory.labelgen.run",
    "label": "sum_factory.labelgen.in_memory",
    "open_shards": "sum_factory.shared.shards.selection.opened",
}
"""Where each public name of the package is."""

__getattr__ = lazily(__name__, PLACES)
