"""Alert evaluation: rules over the metric store, states, delivery to sinks."""

from tensorfusion.alerting.delivery import Dispatcher
from tensorfusion.alerting.evaluator import Evaluator

__all__ = ["Dispatcher", "Evaluator"]
