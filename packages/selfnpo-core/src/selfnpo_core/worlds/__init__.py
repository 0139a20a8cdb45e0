"""Worlds whose truth is drawn by code, so that a sample can be judged exactly, and what builds their judges."""
