"""A model of one's own: gather, fit, calibrate, judge, write."""
