"""Binding: the server's listening sockets, opened before anything else starts."""

import errno
import ipaddress
import socket

BACKLOG = 2048
# Of a name with several addresses, one that this machine lacks can be done without.
LACKING = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


def listen(host: str, port: int) -> list[socket.socket]:
    """A listening socket for each address of a host, all on one port; port 0 lets the system choose.

    Raises OSError, whose text says how to fix it.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise OSError(f"{host} is no address, and no name of one; --host chooses another") from None
    sockets: list[socket.socket] = []
    lacking: OSError | None = None
    try:
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            try:
                sockets.append(_listen(family, (address[0], port, *address[2:])))
            except OSError as error:
                if error.errno not in LACKING:
                    raise
                lacking = error
            else:
                port = sockets[0].getsockname()[1]
        if lacking is not None and not sockets:
            raise lacking
    except OSError as error:
        for opened in sockets:
            opened.close()
        raise OSError(_reason(error, host, port)) from None
    return sockets


def is_local(sockets: list[socket.socket]) -> bool:
    """Whether only this machine can reach the sockets."""
    return all(ipaddress.ip_address(s.getsockname()[0].partition("%")[0]).is_loopback for s in sockets)


def url(listening: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listen(family: int, address: tuple[object, ...]) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.setblocking(False)
        opened.bind(address)
        # At once: until one of them listens, two processes may be bound to one port.
        opened.listen(BACKLOG)
    except BaseException:
        opened.close()
        raise
    return opened


def _reason(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; --port chooses another"
    if error.errno in LACKING:
        return f"{host} is no address of this machine; --host chooses another"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"this user may not listen on port {port} of {host}; --port chooses another"
    return f"cannot listen on port {port} of {host}: {error.strerror}"
