"""What `evaluate` can measure of pictures."""

from collections.abc import Mapping
from typing import Any

from selfnpo_core.evaluation.clip import clip
from selfnpo_core.evaluation.metrics import Metric, manifold_metrics
from selfnpo_core.evaluation.run import MetricSet
from selfnpo_core.worlds.oracle_metrics import ORACLE, oracle_metrics, oracle_network


def metric_set() -> MetricSet:
    """What can be measured of pictures, by name."""
    return MetricSet(
        metrics=metrics,
        groups={"oracle": ORACLE},
    )


def metrics(options: Mapping[str, Any]) -> list[Metric]:
    """All of them; no file is read but the demo's own."""
    from selfnpo_image import shipped
    from selfnpo_image.demo.pictures import Things
    from selfnpo_image.evaluation.inception import inception_network
    from selfnpo_image.evaluation.judges import aesthetic, hps, imagereward, pickscore

    oracle = oracle_network(Things(), shipped.FOLDER)
    features = oracle if options["feature_network"] == "oracle" else inception_network()
    scores = {"clip_score": clip(), "pickscore": pickscore(), "hpsv2.1": hps(), "imagereward": imagereward()}
    return [
        Metric(name="fid", kind="frechet", network=features, better="lower"),
        Metric(name="kid", kind="kernel", network=features, better="lower"),
        *manifold_metrics(features),
        *(Metric(name=name, kind="score", network=network) for name, network in scores.items()),
        Metric(name="aesthetic", kind="score", network=aesthetic()),
        *oracle_metrics(oracle),
    ]
