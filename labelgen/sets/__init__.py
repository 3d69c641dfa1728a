"""What is done with shard sets that are there: looked at, repaired, chosen from, joined, exported, converted."""
