"""Models that outline what they find: masks and boxes, a region each."""
