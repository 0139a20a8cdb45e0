"""Experiments in a world: arms, cells, methods at equal cost, and the pages that are made of them."""
