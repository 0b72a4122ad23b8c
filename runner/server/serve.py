"""Running the server: where it listens, and how it ends."""

from __future__ import annotations

import socket

import uvicorn

from ...ir.errors import SystolicError
from .application import LOOPBACK, application
from .service import Service

GRACE_SECONDS = 10.0  # that answers get to end by themselves once the server is to stop


def new_server(
    service: Service, *, host: str, port: int, api_key: str | None = None, grace: float = GRACE_SECONDS
) -> uvicorn.Server:
    """A server that ``run()`` starts. On SIGTERM or Ctrl-C it takes no more requests, and cancels those
    that are not over after ``grace`` seconds.

    Raises ``SystolicError`` for a host that others can reach without an ``api_key``.
    """
    is_loopback = host in LOOPBACK
    if not is_loopback and not api_key:
        raise SystolicError(
            f"others can reach {host}, so clients must need a key: give --api-key or SYSTOLIC_API_KEY"
        )
    app = application(service, api_key=api_key or None, only_loopback=is_loopback)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        lifespan="on",
        timeout_graceful_shutdown=max(1, round(grace)),
        server_header=False,
    )
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """A socket at that address; port 0 takes a free one. ``SystolicError`` if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise SystolicError(f"cannot listen at {host}, port {port}: {error.strerror}") from None
