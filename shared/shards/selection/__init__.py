"""Shard sets that choose from others: no data are copied."""
