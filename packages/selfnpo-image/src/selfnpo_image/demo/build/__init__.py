"""How the shipped demo models were made: oracle, autoencoder, denoiser and text encoder, judge, reference statistics.

Every stage is seeded, shows its progress, writes its result into a work folder and is skipped when that is there.
"""
