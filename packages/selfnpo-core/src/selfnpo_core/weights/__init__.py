"""Negative weights on disk and as tensors: npo folders, model cards, offsets, exports, inspection."""
