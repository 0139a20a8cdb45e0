"""Experiments on worlds whose truth is drawn by code, where a sample can be judged exactly: what both demos share."""

from selfnpo_core.worlds.arms import ARMS, TUNED_ARMS, make_arm, train_arm
from selfnpo_core.worlds.cells import Arm, Table
from selfnpo_core.worlds.measure import (
    Samples,
    Scores,
    Task,
    against,
    describe,
    distance,
    floor,
    judge,
    plain,
    sample,
    sweep,
)
from selfnpo_core.worlds.report import write_page
from selfnpo_core.worlds.world import Demo, Judges, World, correct

__all__ = [
    "ARMS",
    "TUNED_ARMS",
    "Arm",
    "Demo",
    "Judges",
    "Samples",
    "Scores",
    "Table",
    "Task",
    "World",
    "against",
    "correct",
    "describe",
    "distance",
    "floor",
    "judge",
    "make_arm",
    "plain",
    "sample",
    "sweep",
    "train_arm",
    "write_page",
]
