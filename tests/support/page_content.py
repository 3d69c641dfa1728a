"""What the page of `labelgen view --out` has in itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def embedded(page: Path) -> dict[str, Any]:
    """Return what a page tells its scripts: photos with their masks, and about the set."""
    (found,) = re.findall(r'<script type="application/json" id="embedded">(.*?)</script>', page.read_text(), re.DOTALL)
    told: dict[str, Any] = json.loads(found)
    return told
