"""Models that outline, made and judged: masks and boxes of one's own, to a folder that answers."""
