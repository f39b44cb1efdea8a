"""HEAD as RFC 9110 has it: the head of the answer that GET would get, and no more."""

from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadMiddleware:
    """Asks the routes for GET where HEAD comes, and ends the answer after its head: of a stream nothing is waited for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})
            elif message.get("more_body", False):
                raise _HeadIsAll

        scope["method"] = "GET"
        try:
            with suppress(_HeadIsAll):
                await self._app(scope, receive, send_head)
        finally:
            scope["method"] = "HEAD"


class _HeadIsAll(Exception):
    """Ends a stream whose head was asked for."""
