"""How a unit of a layer is written and read: as a tar, or as shards of Zarr arrays."""
