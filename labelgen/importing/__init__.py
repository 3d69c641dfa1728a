"""``labelgen import``: a shard set of masks that are there already, as SA-1B's JSON or in a file of COCO."""
