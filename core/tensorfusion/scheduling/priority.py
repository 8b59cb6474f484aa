"""The priority of a pod: its own number, else its PriorityClass, else its quality of service."""

from tensorfusion import names
from tensorfusion.api.core.cluster import PriorityClass
from tensorfusion.api.core.pod import Pod
from tensorfusion.store.informer import Informer

BY_QOS = {"critical": 100_000, "high": 10_000, "medium": 0, "low": -1000}
"""Values of the classes that the control plane creates for our qualities of service."""


class Priorities:
    """Reads priorities; classes are looked up as they are now."""

    def __init__(self, classes: Informer[PriorityClass]) -> None:
        self._classes = classes

    def of(self, pod: Pod) -> int:
        """The pod's priority; higher goes first."""
        if pod.spec is not None and pod.spec.priority is not None:
            return pod.spec.priority
        found = self._class_of(pod)
        if found is not None and found.value is not None:
            return found.value
        return BY_QOS.get(pod.metadata.annotations.get(names.QOS, "medium"), 0)

    def preempts(self, pod: Pod) -> bool:
        """Whether others may be evicted for the pod."""
        policy = (pod.spec.preemption_policy or "") if pod.spec is not None else ""
        found = self._class_of(pod)
        if not policy and found is not None:
            policy = found.preemption_policy
        return policy != "Never"

    def _class_of(self, pod: Pod) -> PriorityClass | None:
        name = pod.spec.priority_class_name if pod.spec is not None else ""
        if name:
            return self._classes.get(name)
        return next((c for c in self._classes.values() if c.global_default), None)
