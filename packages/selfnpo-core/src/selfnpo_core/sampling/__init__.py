"""Samples: what the options of `sample` mean, folders of samples, models tuned to preferences, what a sample is."""
