"""What `evaluate` can measure of clips."""

from collections.abc import Mapping
from typing import Any

from selfnpo_core.evaluation.clip import clip
from selfnpo_core.evaluation.metrics import Metric, manifold_metrics
from selfnpo_core.evaluation.run import MetricSet
from selfnpo_core.worlds.oracle_metrics import ORACLE, oracle_metrics, oracle_network
from selfnpo_video.evaluation import vbench


def metric_set() -> MetricSet:
    """What can be measured of clips, by name."""
    return MetricSet(
        metrics=metrics,
        groups={"oracle": ORACLE},
        others={"vbench": vbench.reader},
        export=vbench.export,
    )


def metrics(options: Mapping[str, Any]) -> list[Metric]:
    """All of them; no file is read but the demo's own, and a feature network's configuration."""
    from selfnpo_video.demo import assets
    from selfnpo_video.demo.moving import MovingThings
    from selfnpo_video.evaluation.features import feature_network
    from selfnpo_video.evaluation.motion import motion_network

    oracle, seen, moves = oracle_network(MovingThings(), assets.FOLDER), clip(), motion_network()
    name = options["feature_network"]
    features = oracle if name == "oracle" else feature_network(name)
    return [
        Metric(name="fvd", kind="frechet", network=features, better="lower"),
        Metric(name="kvd", kind="kernel", network=features, better="lower"),
        *manifold_metrics(features),
        Metric(name="clip_score", kind="score", network=seen),
        Metric(name="frame_consistency", kind="score", network=seen),
        *(Metric(name=column, kind="score", network=moves, better="neither") for column in moves.columns),
        *oracle_metrics(oracle),
    ]
