"""Security settings of pods and containers."""

from tensorfusion.api.fields import Int64, Wire


class AppArmorProfile(Wire, frozen=True, kw_only=True):
    """The AppArmor profile to run under."""

    type: str
    localhost_profile: str = ""


class Capabilities(Wire, frozen=True, kw_only=True):
    """POSIX capabilities to add and drop."""

    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()


class SELinuxOptions(Wire, frozen=True, kw_only=True):
    """SELinux labels to apply."""

    level: str = ""
    role: str = ""
    type: str = ""
    user: str = ""


class SeccompProfile(Wire, frozen=True, kw_only=True):
    """The seccomp profile to run under."""

    type: str
    localhost_profile: str = ""


class WindowsSecurityContextOptions(Wire, frozen=True, kw_only=True):
    """Security settings of Windows containers."""

    gmsa_credential_spec: str = ""
    gmsa_credential_spec_name: str = ""
    host_process: bool | None = None
    run_as_user_name: str = ""


class SecurityContext(Wire, frozen=True, kw_only=True):
    """Security settings of one container."""

    allow_privilege_escalation: bool | None = None
    app_armor_profile: AppArmorProfile | None = None
    capabilities: Capabilities | None = None
    privileged: bool | None = None
    proc_mount: str = ""
    read_only_root_filesystem: bool | None = None
    run_as_group: Int64 | None = None
    run_as_non_root: bool | None = None
    run_as_user: Int64 | None = None
    se_linux_options: SELinuxOptions | None = None
    seccomp_profile: SeccompProfile | None = None
    windows_options: WindowsSecurityContextOptions | None = None


class Sysctl(Wire, frozen=True, kw_only=True):
    """A kernel parameter to set."""

    name: str
    value: str


class PodSecurityContext(Wire, frozen=True, kw_only=True):
    """Security settings of all containers of a pod."""

    app_armor_profile: AppArmorProfile | None = None
    fs_group: Int64 | None = None
    fs_group_change_policy: str = ""
    run_as_group: Int64 | None = None
    run_as_non_root: bool | None = None
    run_as_user: Int64 | None = None
    se_linux_change_policy: str = ""
    se_linux_options: SELinuxOptions | None = None
    seccomp_profile: SeccompProfile | None = None
    supplemental_groups: tuple[Int64, ...] = ()
    supplemental_groups_policy: str = ""
    sysctls: tuple[Sysctl, ...] = ()
    windows_options: WindowsSecurityContextOptions | None = None
