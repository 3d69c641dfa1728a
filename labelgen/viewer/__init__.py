"""``labelgen view --serve``: a local web page over a shard set or selection of any size."""
