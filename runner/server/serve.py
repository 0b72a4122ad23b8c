"""Running the server: where it listens, and how it ends."""

from __future__ import annotations

import asyncio
import math
import socket

import uvicorn

from ...ir.errors import SystolicError
from .application import LOOPBACK, application
from .service import Service

CLOSING_SECONDS = 3.0  # that a cancelled answer may take to reach its client
GRACE_SECONDS = 10.0  # that answers get to end by themselves once the server is to stop


class Server(uvicorn.Server):
    """Ends as ``new_server`` says: the requests by themselves, then the connections."""

    def __init__(self, config: uvicorn.Config, service: Service, grace: float) -> None:
        super().__init__(config)
        self._service = service
        self._grace = grace

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Waits for the answers that are on their way, and tells those that take too long."""
        ending = asyncio.create_task(self._end_requests())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_requests(self) -> None:
        await asyncio.sleep(self._grace)
        if self._service.scheduler is not None:
            await asyncio.to_thread(self._service.scheduler.close, cancel=True)


def new_server(
    service: Service, *, host: str, port: int, api_key: str | None = None, grace: float = GRACE_SECONDS
) -> Server:
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
        timeout_graceful_shutdown=math.ceil(grace + CLOSING_SECONDS),
        server_header=False,
    )
    return Server(config, service, grace)


def listen(host: str, port: int) -> socket.socket:
    """A socket at that address; port 0 takes a free one. ``SystolicError`` if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise SystolicError(f"cannot listen at {host}, port {port}: {error.strerror}") from None
