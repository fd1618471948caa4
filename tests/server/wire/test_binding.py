"""The sockets that a server listens on, and what it says when it may not."""

import socket
from contextlib import closing

import pytest

from server.wire.binding import is_local, listen, url


def first(host, port):
    sockets = listen(host, port)
    for other in sockets[1:]:
        other.close()
    return closing(sockets[0])


def has(address):
    try:
        with socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET):
            return True
    except OSError:
        return False


def test_port_0_is_any_port_and_the_same_one_for_all_addresses():
    sockets = listen("localhost", 0)
    ports = {listening.getsockname()[1] for listening in sockets}
    assert len(ports) == 1
    assert ports != {0}
    assert is_local(sockets)
    for listening in sockets:
        with socket.create_connection(listening.getsockname()[:2]):
            listening.close()


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("127.0.0.9", True), ("::1", True), ("0.0.0.0", False), ("::", False)]
)
def test_what_only_this_machine_reaches(host, local):
    if ":" in host and not has("::1"):
        pytest.skip("this machine has no IPv6")
    with first(host, 0) as listening:
        assert is_local([listening]) == local
        port = listening.getsockname()[1]
        assert url(listening) == (f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")


def test_a_taken_port():
    with first("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(OSError, match=rf"^port {port} on 127\.0\.0\.1 is in use; --port chooses another$"):
            listen("127.0.0.1", port)
    # Others may have it as soon as it is free.
    with first("127.0.0.1", port):
        pass


@pytest.mark.parametrize("host", ["192.0.2.1", "nothing.invalid", "a" * 70, "a b", "127.0.0.1:80"])
def test_a_host_that_is_not_ours(host):
    with pytest.raises(OSError, match="--host chooses another") as raised:
        listen(host, 0)
    assert raised.value.errno is None
    assert "\n" not in str(raised.value)
