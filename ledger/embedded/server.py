"""JSON-RPC over HTTP: single requests and batches, on one address, with a cap on what is read."""

from __future__ import annotations

import logging
from typing import Any

from aiohttp import web

from dht.errors import MurmurationError, StorageError
from ledger import bounded_json
from ledger.embedded.jsonrpc import INTERNAL_ERROR, INVALID_REQUEST, PARSE_ERROR, RpcError
from ledger.embedded.methods import Methods

MOST_REQUEST_BYTES = 2 * 1024 * 1024
MOST_BATCH = 500
_log = logging.getLogger(__name__)


class Server:
    """Serves `methods` until `stop`. The EVM runs in the event loop: requests are answered one after another."""

    def __init__(self, methods: Methods, host: str = "127.0.0.1", port: int = 0) -> None:
        self._methods = methods
        self._host, self._port = host, port
        self._runner: web.AppRunner | None = None

    async def start(self) -> str:
        """Listen; returns the URL. Raises StorageError when the address is taken."""
        app = web.Application(client_max_size=MOST_REQUEST_BYTES)
        app.router.add_post("/", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            await self.stop()
            raise StorageError(
                f"cannot listen on {self._host} port {self._port}: {error.strerror}", remedy="choose another port"
            ) from None
        host, port = self._runner.addresses[0][:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def stop(self) -> None:
        """Answer what was asked already, then close."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.Request) -> web.Response:
        # A page in somebody's browser must not reach a chain on their machine: such pages cannot send JSON unasked.
        if request.content_type != "application/json":
            return web.json_response({"error": "send application/json"}, status=415)
        try:
            body = bounded_json.loads(await request.read())
        except web.HTTPRequestEntityTooLarge:
            error = RpcError(INVALID_REQUEST, f"a request has at most {MOST_REQUEST_BYTES} bytes")
            return web.json_response(_failed(None, error), status=413)
        except ValueError:
            return web.json_response(_failed(None, RpcError(PARSE_ERROR, "the request is no JSON")))
        return web.json_response(self.reply(body))

    def reply(self, body: Any) -> Any:
        """The answer to a decoded request or batch."""
        if not isinstance(body, list):
            return self._one(body)
        if not 0 < len(body) <= MOST_BATCH:
            return _failed(None, RpcError(INVALID_REQUEST, f"a batch has 1 to {MOST_BATCH} requests"))
        return [self._one(item) for item in body]

    def _one(self, call: Any) -> dict[str, Any]:
        if not isinstance(call, dict) or not isinstance(call.get("method"), str):
            return _failed(None, RpcError(INVALID_REQUEST, "a request is an object with a method"))
        number, params = call.get("id"), call.get("params") or []
        if not isinstance(params, list):
            return _failed(number, RpcError(INVALID_REQUEST, "params must be a list"))
        try:
            return {"jsonrpc": "2.0", "id": number, "result": self._methods.answer(call["method"], params)}
        except RpcError as error:
            return _failed(number, error)
        except MurmurationError as error:
            _log.error("%s", error)
            return _failed(number, RpcError(INTERNAL_ERROR, str(error)))
        except Exception:
            _log.exception("%s failed", call["method"])
            return _failed(number, RpcError(INTERNAL_ERROR, "internal error"))


def _failed(number: Any, error: RpcError) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "error": error.as_json()}
