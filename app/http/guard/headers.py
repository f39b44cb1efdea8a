"""What the headers of every answer say to browsers and to caches between."""

from starlette.datastructures import MutableHeaders

_ALWAYS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}
_UNLESS_SAID = {
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
DOCS_SECURITY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""For the page of the documentation: nothing from elsewhere. Its script sets styles in place, so those are let be."""

_TLS_ALONE = "max-age=31536000"


def add_headers(headers: MutableHeaders, *, is_tls: bool) -> None:
    """Those of every answer; a route may say otherwise of what it shows. HSTS where clients are known to come over TLS."""
    for name, value in _ALWAYS.items():
        headers[name] = value
    for name, value in _UNLESS_SAID.items():
        headers.setdefault(name, value)
    if is_tls:
        headers["strict-transport-security"] = _TLS_ALONE
