"""Containers of a pod: environment, resources, probes and hooks."""

from typing import Annotated

from tensorfusion.api.core.security import SecurityContext
from tensorfusion.api.core.volume import ObjectFieldSelector, ResourceFieldSelector
from tensorfusion.api.fields import (
    CoreQuantity,
    Doc,
    Int32,
    Int64,
    IntOrString,
    Wire,
    defaulted,
    mapping,
)


class ConfigMapKeySelector(Wire, frozen=True, kw_only=True):
    """A key of a config map."""

    __atomic__ = True

    key: str
    name: str = ""
    optional: bool | None = None


class SecretKeySelector(Wire, frozen=True, kw_only=True):
    """A key of a secret."""

    __atomic__ = True

    key: str
    name: str = ""
    optional: bool | None = None


class FileKeySelector(Wire, frozen=True, kw_only=True):
    """A key of an environment file in a volume."""

    __atomic__ = True

    key: str
    path: str
    volume_name: str
    optional: bool | None = None


class EnvVarSource(Wire, frozen=True, kw_only=True):
    """Where the value of a variable comes from."""

    config_map_key_ref: ConfigMapKeySelector | None = None
    field_ref: ObjectFieldSelector | None = None
    file_key_ref: FileKeySelector | None = None
    resource_field_ref: ResourceFieldSelector | None = None
    secret_key_ref: SecretKeySelector | None = None


class EnvVar(Wire, frozen=True, kw_only=True):
    """An environment variable."""

    name: Annotated[str, Doc(min_length=1)]
    value: str = ""
    value_from: EnvVarSource | None = None


class ConfigMapEnvSource(Wire, frozen=True, kw_only=True):
    """All keys of a config map as variables."""

    name: str = ""
    optional: bool | None = None


class SecretEnvSource(Wire, frozen=True, kw_only=True):
    """All keys of a secret as variables."""

    name: str = ""
    optional: bool | None = None


class EnvFromSource(Wire, frozen=True, kw_only=True):
    """A set of variables from another object."""

    config_map_ref: ConfigMapEnvSource | None = None
    prefix: str = ""
    secret_ref: SecretEnvSource | None = None


class ExecAction(Wire, frozen=True, kw_only=True):
    """A command to run in the container."""

    command: tuple[str, ...] = ()


class HTTPHeader(Wire, frozen=True, kw_only=True):
    """A header of a probe request."""

    name: str
    value: str


class HTTPGetAction(Wire, frozen=True, kw_only=True):
    """An HTTP request to the container."""

    port: IntOrString
    host: str = ""
    http_headers: tuple[HTTPHeader, ...] = ()
    path: str = ""
    protocol: str = ""
    scheme: str = defaulted("HTTP")


class TCPSocketAction(Wire, frozen=True, kw_only=True):
    """A TCP connection to the container."""

    port: IntOrString
    host: str = ""


class GRPCAction(Wire, frozen=True, kw_only=True):
    """A gRPC health check."""

    port: Int32
    mode: str = ""
    service: str = ""


class SleepAction(Wire, frozen=True, kw_only=True):
    """A pause."""

    seconds: Int64


class LifecycleHandler(Wire, frozen=True, kw_only=True):
    """What a hook does."""

    exec: ExecAction | None = None
    http_get: HTTPGetAction | None = None
    sleep: SleepAction | None = None
    tcp_socket: TCPSocketAction | None = None


class Lifecycle(Wire, frozen=True, kw_only=True):
    """Hooks after start and before stop."""

    post_start: LifecycleHandler | None = None
    pre_stop: LifecycleHandler | None = None
    stop_signal: str = ""


class Probe(Wire, frozen=True, kw_only=True):
    """A periodic check of a container."""

    exec: ExecAction | None = None
    failure_threshold: Int32 = defaulted(3)
    grpc: GRPCAction | None = None
    http_get: HTTPGetAction | None = None
    initial_delay_seconds: Int32 | None = None
    period_seconds: Int32 = defaulted(10)
    success_threshold: Int32 = defaulted(1)
    tcp_socket: TCPSocketAction | None = None
    termination_grace_period_seconds: Int64 | None = None
    timeout_seconds: Int32 = defaulted(1)


class ContainerPort(Wire, frozen=True, kw_only=True):
    """A port that the container listens on."""

    container_port: Annotated[Int32, Doc(minimum=1, maximum=65535)]
    host_ip: str = ""
    host_port: Annotated[Int32 | None, Doc(minimum=0, maximum=65535)] = None
    name: str = ""
    protocol: Annotated[str, Doc(enum=("TCP", "UDP", "SCTP"))] = defaulted("TCP")


class ContainerResizePolicy(Wire, frozen=True, kw_only=True):
    """Whether resizing a resource restarts the container."""

    resource_name: str
    restart_policy: str


class ResourceClaim(Wire, frozen=True, kw_only=True):
    """A claim of the pod that the container uses."""

    name: str
    request: str = ""


class ResourceRequirements(Wire, frozen=True, kw_only=True):
    """Requested and maximum resources."""

    claims: Annotated[tuple[ResourceClaim, ...], Doc(map_keys=("name",))] = ()
    limits: dict[str, CoreQuantity] = mapping()
    requests: dict[str, CoreQuantity] = mapping()


class ContainerRestartRuleOnExitCodes(Wire, frozen=True, kw_only=True):
    """Exit codes that a restart rule is about."""

    operator: str
    values: Annotated[tuple[Int32, ...], Doc(is_set=True)] = ()


class ContainerRestartRule(Wire, frozen=True, kw_only=True):
    """When a container restarts against the general policy."""

    action: str
    exit_codes: ContainerRestartRuleOnExitCodes | None = None


class VolumeDevice(Wire, frozen=True, kw_only=True):
    """A raw block device in the container."""

    device_path: str
    name: str


class VolumeMount(Wire, frozen=True, kw_only=True):
    """Where a volume appears in the container."""

    mount_path: str
    name: str
    bind_mount_options: Annotated[tuple[str, ...], Doc(is_set=True)] = ()
    mount_propagation: str = ""
    read_only: bool | None = None
    recursive_read_only: str = ""
    sub_path: str = ""
    sub_path_expr: str = ""


class Container(Wire, frozen=True, kw_only=True):
    """A container of a pod."""

    name: Annotated[str, Doc(min_length=1)]
    args: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: Annotated[tuple[EnvVar, ...], Doc(map_keys=("name",), merge_key="name")] = ()
    env_from: tuple[EnvFromSource, ...] = ()
    image: str = ""
    image_pull_policy: Annotated[str, Doc(enum=("Always", "IfNotPresent", "Never"))] = ""
    lifecycle: Lifecycle | None = None
    liveness_probe: Probe | None = None
    ports: Annotated[
        tuple[ContainerPort, ...],
        Doc(
            map_keys=(
                "containerPort",
                "protocol",
            ),
            merge_key="containerPort",
        ),
    ] = ()
    readiness_probe: Probe | None = None
    resize_policy: tuple[ContainerResizePolicy, ...] = ()
    resources: ResourceRequirements | None = None
    restart_policy: str = ""
    restart_policy_rules: tuple[ContainerRestartRule, ...] = ()
    security_context: SecurityContext | None = None
    startup_probe: Probe | None = None
    stdin: bool | None = None
    stdin_once: bool | None = None
    termination_message_path: str = defaulted("/dev/termination-log")
    termination_message_policy: Annotated[str, Doc(enum=("File", "FallbackToLogsOnError"))] = (
        defaulted("File")
    )
    tty: bool | None = None
    volume_devices: Annotated[
        tuple[VolumeDevice, ...], Doc(map_keys=("devicePath",), merge_key="devicePath")
    ] = ()
    volume_mounts: Annotated[
        tuple[VolumeMount, ...], Doc(map_keys=("mountPath",), merge_key="mountPath")
    ] = ()
    working_dir: str = ""


class EphemeralContainer(Wire, frozen=True, kw_only=True):
    """A container added to a running pod for debugging."""

    name: str
    args: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: Annotated[tuple[EnvVar, ...], Doc(map_keys=("name",), merge_key="name")] = ()
    env_from: tuple[EnvFromSource, ...] = ()
    image: str = ""
    image_pull_policy: str = ""
    lifecycle: Lifecycle | None = None
    liveness_probe: Probe | None = None
    ports: Annotated[
        tuple[ContainerPort, ...],
        Doc(
            map_keys=(
                "containerPort",
                "protocol",
            ),
            merge_key="containerPort",
        ),
    ] = ()
    readiness_probe: Probe | None = None
    resize_policy: tuple[ContainerResizePolicy, ...] = ()
    resources: ResourceRequirements | None = None
    restart_policy: str = ""
    restart_policy_rules: tuple[ContainerRestartRule, ...] = ()
    security_context: SecurityContext | None = None
    startup_probe: Probe | None = None
    stdin: bool | None = None
    stdin_once: bool | None = None
    target_container_name: str = ""
    termination_message_path: str = ""
    termination_message_policy: str = ""
    tty: bool | None = None
    volume_devices: Annotated[
        tuple[VolumeDevice, ...], Doc(map_keys=("devicePath",), merge_key="devicePath")
    ] = ()
    volume_mounts: Annotated[
        tuple[VolumeMount, ...], Doc(map_keys=("mountPath",), merge_key="mountPath")
    ] = ()
    working_dir: str = ""
