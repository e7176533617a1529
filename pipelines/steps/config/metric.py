"""`metric:` of an audience: by which figure models are stopped, tuned and chosen."""

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Tag

from pipelines.steps.config.problems import closest, problem
from pipelines.steps.config.values import Section, Share

MetricName = Literal["auc", "average_precision", "auc_and_average_precision"]
METRIC_NAMES: tuple[str, ...] = get_args(MetricName)
DEFAULT_METRIC: MetricName = "auc_and_average_precision"


class PrecisionAt(Section):
    """Precision among the devices that rank highest.

    Attributes:
        precision_at: Their share of all devices.
    """

    precision_at: Share

    def __str__(self) -> str:
        return f"precision_at {self.precision_at:g}"


def _metric(value: object) -> object:
    if isinstance(value, dict | PrecisionAt) or value in METRIC_NAMES:
        return value
    raise problem(
        f"one of {', '.join(METRIC_NAMES)}, or `precision_at:` and a share of the devices",
        closest(str(value), METRIC_NAMES) or "use one of these, or write {precision_at: 0.1}",
    )


def _form(value: object) -> str:
    return "metric_name" if isinstance(value, str) else "metric_of_share"


Metric = Annotated[
    Annotated[MetricName, Tag("metric_name")] | Annotated[PrecisionAt, Tag("metric_of_share")],
    Discriminator(_form),
    BeforeValidator(_metric),
]
