"""Volumes of a pod. Sources of retired or vendor-specific storage are kept as they are."""

from tensorfusion.api.fields import (
    CoreQuantity,
    Int32,
    Int64,
    Labels,
    Raw,
    Wire,
    defaulted,
    mapping,
    named,
)
from tensorfusion.api.meta import LabelSelector, ObjectMeta


class LocalObjectReference(Wire, frozen=True, kw_only=True):
    """An object of the same namespace, by name."""

    __atomic__ = True

    name: str = ""


class ObjectFieldSelector(Wire, frozen=True, kw_only=True):
    """A field of the pod itself."""

    __atomic__ = True

    field_path: str
    api_version: str = defaulted("v1")


class ResourceFieldSelector(Wire, frozen=True, kw_only=True):
    """A resource amount of a container."""

    __atomic__ = True

    resource: str
    container_name: str = ""
    divisor: CoreQuantity | None = None


class KeyToPath(Wire, frozen=True, kw_only=True):
    """A key and the file it is projected to."""

    key: str
    path: str
    mode: Int32 | None = None
    user: Int64 | None = None


class ConfigMapVolumeSource(Wire, frozen=True, kw_only=True):
    """Files from the keys of a config map."""

    default_mode: Int32 = defaulted(420)
    default_user: Int64 | None = None
    items: tuple[KeyToPath, ...] = ()
    name: str = ""
    optional: bool | None = None


class SecretVolumeSource(Wire, frozen=True, kw_only=True):
    """Files from the keys of a secret."""

    default_mode: Int32 = defaulted(420)
    default_user: Int64 | None = None
    items: tuple[KeyToPath, ...] = ()
    optional: bool | None = None
    secret_name: str = ""


class DownwardAPIVolumeFile(Wire, frozen=True, kw_only=True):
    """A file with a field of the pod."""

    path: str
    field_ref: ObjectFieldSelector | None = None
    mode: Int32 | None = None
    resource_field_ref: ResourceFieldSelector | None = None
    user: Int64 | None = None


class DownwardAPIVolumeSource(Wire, frozen=True, kw_only=True):
    """Files with fields of the pod."""

    default_mode: Int32 = defaulted(420)
    default_user: Int64 | None = None
    items: tuple[DownwardAPIVolumeFile, ...] = ()


class EmptyDirVolumeSource(Wire, frozen=True, kw_only=True):
    """A folder that lives as long as the pod."""

    medium: str = ""
    mode: Int32 | None = None
    size_limit: CoreQuantity | None = None


class HostPathVolumeSource(Wire, frozen=True, kw_only=True):
    """A file or folder of the node."""

    path: str
    type: str = ""


class NFSVolumeSource(Wire, frozen=True, kw_only=True):
    """A folder of an NFS server."""

    path: str
    server: str
    read_only: bool | None = None


class CSIVolumeSource(Wire, frozen=True, kw_only=True):
    """A volume that a CSI driver makes for this pod."""

    driver: str
    fs_type: str = ""
    node_publish_secret_ref: LocalObjectReference | None = None
    read_only: bool | None = None
    volume_attributes: Labels = mapping()


class ImageVolumeSource(Wire, frozen=True, kw_only=True):
    """The content of an image or artifact."""

    pull_policy: str = ""
    reference: str = ""


class PersistentVolumeClaimVolumeSource(Wire, frozen=True, kw_only=True):
    """A claimed persistent volume."""

    claim_name: str
    read_only: bool | None = None


class TypedLocalObjectReference(Wire, frozen=True, kw_only=True):
    """An object of the same namespace, by kind and name."""

    __atomic__ = True

    kind: str
    name: str
    api_group: str = ""


class TypedObjectReference(Wire, frozen=True, kw_only=True):
    """An object by kind, name and namespace."""

    kind: str
    name: str
    api_group: str = ""
    namespace: str = ""


class VolumeResourceRequirements(Wire, frozen=True, kw_only=True):
    """How much storage is asked for."""

    limits: dict[str, CoreQuantity] = mapping()
    requests: dict[str, CoreQuantity] = mapping()


class PersistentVolumeClaimSpec(Wire, frozen=True, kw_only=True):
    """What a claimed volume must offer."""

    access_modes: tuple[str, ...] = ()
    data_source: TypedLocalObjectReference | None = None
    data_source_ref: TypedObjectReference | None = None
    resources: VolumeResourceRequirements | None = None
    selector: LabelSelector | None = None
    storage_class_name: str = ""
    volume_attributes_class_name: str = ""
    volume_mode: str = ""
    volume_name: str = ""


class PersistentVolumeClaimTemplate(Wire, frozen=True, kw_only=True):
    """The claim made for an ephemeral volume."""

    spec: PersistentVolumeClaimSpec
    metadata: ObjectMeta | None = None


class EphemeralVolumeSource(Wire, frozen=True, kw_only=True):
    """A volume made for the pod from a claim template."""

    volume_claim_template: PersistentVolumeClaimTemplate | None = None


class ClusterTrustBundleProjection(Wire, frozen=True, kw_only=True):
    """Trust anchors as a file."""

    path: str
    label_selector: LabelSelector | None = None
    name: str = ""
    optional: bool | None = None
    signer_name: str = ""
    user: Int64 | None = None


class ConfigMapProjection(Wire, frozen=True, kw_only=True):
    """Keys of a config map as files."""

    items: tuple[KeyToPath, ...] = ()
    name: str = ""
    optional: bool | None = None


class DownwardAPIProjection(Wire, frozen=True, kw_only=True):
    """Fields of the pod as files."""

    items: tuple[DownwardAPIVolumeFile, ...] = ()


class PodCertificateProjection(Wire, frozen=True, kw_only=True):
    """A private key and its certificates as files."""

    key_type: str
    signer_name: str
    certificate_chain_path: str = ""
    credential_bundle_path: str = ""
    key_path: str = ""
    max_expiration_seconds: Int32 | None = None
    user: Int64 | None = None
    user_annotations: Labels = mapping()


class SecretProjection(Wire, frozen=True, kw_only=True):
    """Keys of a secret as files."""

    items: tuple[KeyToPath, ...] = ()
    name: str = ""
    optional: bool | None = None


class ServiceAccountTokenProjection(Wire, frozen=True, kw_only=True):
    """A service account token as a file."""

    path: str
    audience: str = ""
    expiration_seconds: Int64 = defaulted(3600)
    user: Int64 | None = None


class VolumeProjection(Wire, frozen=True, kw_only=True):
    """One source of a projected volume."""

    cluster_trust_bundle: ClusterTrustBundleProjection | None = None
    config_map: ConfigMapProjection | None = None
    downward_api: DownwardAPIProjection | None = named("downwardAPI")
    pod_certificate: PodCertificateProjection | None = None
    secret: SecretProjection | None = None
    service_account_token: ServiceAccountTokenProjection | None = None


class ProjectedVolumeSource(Wire, frozen=True, kw_only=True):
    """Several sources in one folder."""

    default_mode: Int32 = defaulted(420)
    default_user: Int64 | None = None
    sources: tuple[VolumeProjection, ...] = ()


class Volume(Wire, frozen=True, kw_only=True):
    """A named volume with exactly one source."""

    name: str
    aws_elastic_block_store: Raw | None = None
    azure_disk: Raw | None = None
    azure_file: Raw | None = None
    cephfs: Raw | None = None
    cinder: Raw | None = None
    config_map: ConfigMapVolumeSource | None = None
    csi: CSIVolumeSource | None = None
    downward_api: DownwardAPIVolumeSource | None = named("downwardAPI")
    empty_dir: EmptyDirVolumeSource | None = None
    ephemeral: EphemeralVolumeSource | None = None
    fc: Raw | None = None
    flex_volume: Raw | None = None
    flocker: Raw | None = None
    gce_persistent_disk: Raw | None = None
    git_repo: Raw | None = None
    glusterfs: Raw | None = None
    host_path: HostPathVolumeSource | None = None
    image: ImageVolumeSource | None = None
    iscsi: Raw | None = None
    nfs: NFSVolumeSource | None = None
    persistent_volume_claim: PersistentVolumeClaimVolumeSource | None = None
    photon_persistent_disk: Raw | None = None
    portworx_volume: Raw | None = None
    projected: ProjectedVolumeSource | None = None
    quobyte: Raw | None = None
    rbd: Raw | None = None
    scale_io: Raw | None = named("scaleIO")
    secret: SecretVolumeSource | None = None
    storageos: Raw | None = None
    vsphere_volume: Raw | None = None
