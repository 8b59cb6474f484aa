"""Which pods that ask for GPUs the native way are taken over without a label of their own."""

from collections.abc import Mapping

from tensorfusion.api.fields import Wire
from tensorfusion.api.meta import LabelSelector
from tensorfusion.model.demand import Requirement


class MigrationScope(Wire, frozen=True, kw_only=True):
    """A set of pods; any of the three conditions selects, an empty scope selects nothing."""

    namespace_names: tuple[str, ...] = ()
    namespace_selector: LabelSelector | None = None
    pod_selector: LabelSelector | None = None

    def selects(
        self, namespace: str, namespace_labels: Mapping[str, str], pod_labels: Mapping[str, str]
    ) -> bool:
        """Whether a pod belongs to the set."""
        return (
            namespace in self.namespace_names
            or (
                self.namespace_selector is not None
                and selector_matches(self.namespace_selector, namespace_labels)
            )
            or (self.pod_selector is not None and selector_matches(self.pod_selector, pod_labels))
        )


class Migration(Wire, frozen=True, kw_only=True):
    """The ``autoMigration`` block of the settings; off unless enabled.

    A pod is taken over when no excluding scope selects it, and an including one does or none is
    given.

    Attributes:
        enable: Take pods over.
        includes: Which ones; all when empty.
        excludes: Which ones not.
        progressive: Both ways of giving out GPUs live in one cluster, each on nodes of its own:
            native GPU pods that are not taken over go through our scheduler, which keeps them
            off nodes with workers, and such nodes bear a taint.
    """

    enable: bool = False
    includes: tuple[MigrationScope, ...] = ()
    excludes: tuple[MigrationScope, ...] = ()
    progressive: bool = False

    def selects(
        self, namespace: str, namespace_labels: Mapping[str, str], pod_labels: Mapping[str, str]
    ) -> bool:
        """Whether a pod is taken over."""
        subject = (namespace, namespace_labels, pod_labels)
        if not self.enable or any(scope.selects(*subject) for scope in self.excludes):
            return False
        return not self.includes or any(scope.selects(*subject) for scope in self.includes)


def selector_matches(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Whether labels satisfy a selector; an empty selector matches everything."""
    return all(labels.get(key) == value for key, value in selector.match_labels.items()) and all(
        Requirement(term.key, term.operator, term.values).matches(labels)
        for term in selector.match_expressions
    )
