import pytest

from tensorfusion.api import registry
from tensorfusion.api.registry import RESOURCES, by_kind, by_plural, lookup
from tensorfusion.errors import NotFound


def test_words_of_kubectl_find_the_resource():
    for word, resource in {
        "pods": registry.PODS,
        "pod": registry.PODS,
        "po": registry.PODS,
        "Pod": registry.PODS,
        "deploy": registry.DEPLOYMENTS,
        "deployments.apps": registry.DEPLOYMENTS,
        "deployments.v1.apps": registry.DEPLOYMENTS,
        "gp": registry.GPU_POOLS,
        "gpu": registry.GPUS,
        "GPUPool": registry.GPU_POOLS,
        "tfw": registry.WORKLOADS,
        "gpupools.tensor-fusion.ai": registry.GPU_POOLS,
        "pc": registry.PRIORITY_CLASSES,
    }.items():
        assert lookup(word) is resource, word


def test_no_two_resources_share_a_word():
    seen = {}
    for resource in RESOURCES:
        for word in {resource.plural, resource.singular, *resource.short_names}:
            assert seen.setdefault(word, resource) is resource, word


def test_unknown_word_is_answered_with_a_suggestion():
    with pytest.raises(NotFound, match='did you mean "gpupools"'):
        lookup("gpupols")
    with pytest.raises(NotFound, match="known are"):
        lookup("zzzzzz")


def test_unknown_version_names_the_served_one():
    with pytest.raises(NotFound, match="served as apps/v1"):
        by_kind("apps/v1beta1", "Deployment")
    with pytest.raises(NotFound, match="did you mean"):
        by_kind("v1", "Pood")


def test_every_resource_is_found_by_url_and_by_kind():
    for resource in RESOURCES:
        assert by_plural(resource.group, resource.version, resource.plural) is resource
        assert by_kind(resource.api_version, resource.kind) is resource
    with pytest.raises(NotFound):
        by_plural("", "v1", "services")


def test_our_twelve_kinds_are_in_the_category():
    assert len(registry.CUSTOM_RESOURCES) == 12
    for resource in registry.CUSTOM_RESOURCES:
        assert resource.categories == ("tensorfusion",)
        assert resource.is_custom
        assert resource.description
        shown = [column for column in resource.columns if not column.priority]
        assert shown[-1].name == "Age"
        assert len(shown) <= 7


def test_only_deployments_and_replica_sets_scale():
    assert {item.kind for item in RESOURCES if item.has_scale} == {"Deployment", "ReplicaSet"}
