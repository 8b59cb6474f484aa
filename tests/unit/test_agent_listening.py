"""Where an agent listens: addresses, interfaces, the certificate for them, and the Host check."""

import pytest
from cryptography import x509

from tensorfusion.api.registry import NODES
from tensorfusion.apiserver.listening import address_of, bind, in_url, interfaces
from tensorfusion.apiserver.security import ensure_credentials, host_allowed
from tensorfusion.app.agent_door import Door, choose_door
from tensorfusion.errors import ConfigError, NotFound, Unavailable
from tensorfusion.testing.clock import FakeClock


class Nodes:
    """A store that knows one node, by its addresses; or raises."""

    def __init__(self, *addresses, error=None):
        self.addresses = [{"type": kind, "address": value} for kind, value in addresses]
        self.error = error

    def get(self, resource, name):
        assert resource is NODES
        if self.error is not None:
            raise self.error
        return {"metadata": {"name": name}, "status": {"addresses": self.addresses}}


def test_an_address_stands_for_itself_and_an_interface_for_its_own():
    assert address_of("127.0.0.2") == "127.0.0.2"
    assert address_of("0:0::1") == "::1"
    assert address_of("lo") == interfaces()["lo"] == "127.0.0.1"


@pytest.mark.parametrize("listen", ["", "*", "no-such0", "node.example", "10.0.0", "fe80::1%lo"])
def test_what_is_neither_address_nor_interface_is_told_with_what_there_is(listen):
    with pytest.raises(ConfigError, match=r"listen: .* must be an IP address .*lo 127\.0\.0\.1"):
        address_of(listen)


def test_a_port_is_kept_on_the_address_it_was_for(tmp_path):
    with bind("127.0.0.2", 0, tmp_path / "port") as first:
        address, port = first.getsockname()
        assert address == "127.0.0.2"
        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.2:{port}"):
            bind("127.0.0.2", port, tmp_path / "port")
    (tmp_path / "port").write_text(str(port))
    with bind("127.0.0.2", 0, tmp_path / "port") as second:
        assert second.getsockname() == ("127.0.0.2", port)


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7"])  # RFC 5737, RFC 3849
def test_an_address_of_another_machine_is_told(tmp_path, address):
    with pytest.raises(ConfigError, match="no interface of this machine has that address"):
        bind(address, 0, tmp_path / "port")


@pytest.mark.parametrize(
    ("listen", "advertise", "door"),
    [
        ("127.0.0.1", "", Door("127.0.0.1", "127.0.0.1", ("127.0.0.1", "n"))),
        ("lo", "", Door("127.0.0.1", "127.0.0.1", ("127.0.0.1", "n"))),
        ("::1", "", Door("::1", "::1", ("::1", "n"))),
        ("127.0.0.2", "GPU.example", Door("127.0.0.2", "gpu.example", ("gpu.example", "n", "127.0.0.2"))),
        ("0.0.0.0", "", Door("0.0.0.0", "10.1.2.3", ("10.1.2.3", "n"))),
        ("::", "2001:db8::7", Door("::", "2001:db8::7", ("2001:db8::7", "n"))),
    ],
)  # fmt: skip
def test_a_door_has_an_address_and_the_names_it_is_asked_by(listen, advertise, door):
    store = Nodes(("Hostname", "n.example"), ("InternalIP", "10.1.2.3"))
    assert choose_door(store, "n", listen, advertise) == door


@pytest.mark.parametrize(
    ("store", "why"),
    [
        (Nodes(("Hostname", "n")), "node n has none"),
        (Nodes(error=NotFound("no")), "there is no node n yet"),
        (Nodes(error=Unavailable("away")), "the API server cannot be asked: away"),
    ],
)
def test_all_addresses_need_one_to_be_asked_by(store, why):
    with pytest.raises(ConfigError, match=rf"listen: 0\.0\.0\.0 .*{why}.*--advertise"):
        choose_door(store, "n", "0.0.0.0", "")
    assert choose_door(store, "n", "0.0.0.0", "10.0.0.1").host == "10.0.0.1"


@pytest.mark.parametrize("advertise", ["https://n", "n:80", "0.0.0.0", "::", "a_b", "-a", "a..b"])
def test_what_cannot_be_asked_by_is_told(advertise):
    with pytest.raises(ConfigError, match=r"advertise: .* must be one IP address or DNS name"):
        choose_door(Nodes(), "n", "127.0.0.1", advertise)


def subjects(credentials):
    loaded = x509.load_pem_x509_certificate(credentials.certificate_path.read_bytes())
    names = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


def test_a_certificate_is_made_again_for_names_that_it_lacks_and_only_then(tmp_path):
    first = ensure_credentials(tmp_path, FakeClock())
    assert subjects(first) == {"localhost", "127.0.0.1"}
    served = ("127.0.0.2", "::1", "n")
    second = ensure_credentials(tmp_path, FakeClock(), served)
    assert subjects(second) == {"localhost", "127.0.0.1", *served}
    assert second.token == first.token
    assert second.authority_pem != first.authority_pem
    assert ensure_credentials(tmp_path, FakeClock(), served[1:]) == second
    assert ensure_credentials(tmp_path, FakeClock()) == second


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.2:80", True),
        ("N", True),
        ("[::1]", True),
        ("[::1]:443", True),
        ("localhost:80", True),
        ("127.0.0.3", False),
        ("::1", False),
        ("n.example", False),
        ("n:80:80", False),
        ("n:port", False),
        ("", False),
    ],
)
def test_a_host_is_loopback_or_what_is_served(host, allowed):
    served = {in_url(name) for name in ("127.0.0.2", "n", "::1")}
    assert host_allowed(host.encode(), served) is allowed
    assert host_allowed(host.encode()) is (allowed and "localhost" in host)
