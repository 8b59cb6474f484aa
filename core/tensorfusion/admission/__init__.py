"""Admission: from an annotated pod to a worker and its workload, or a refusal. Pure."""

from tensorfusion.admission.admit import Admitted, admit_pod
from tensorfusion.admission.context import AdmissionContext, Claims, Offers
from tensorfusion.admission.migration import Migration, MigrationScope
from tensorfusion.admission.providers import Providers, providers_of
from tensorfusion.admission.refusal import QuotaExceeded, Refused, RefusedValue
from tensorfusion.admission.validate import check_profile, check_quota_object

__all__ = [
    "Admitted",
    "AdmissionContext",
    "Claims",
    "Migration",
    "MigrationScope",
    "Offers",
    "Providers",
    "QuotaExceeded",
    "Refused",
    "RefusedValue",
    "admit_pod",
    "check_profile",
    "check_quota_object",
    "providers_of",
]
