"""The documentation as a page, of files that the service has itself: nothing is loaded from elsewhere."""

from importlib.resources import files

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse, HTMLResponse

from app.http.guard.headers import DOCS_SECURITY

_ASSETS = files("fastapi_offline") / "static"
_CACHED = {"cache-control": "public, max-age=86400"}
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>SPARKE</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="icon" href="data:,">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui.js"></script>
<script src="/docs/show.js"></script>
</body>
</html>
"""
_SHOW = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
"""

router = APIRouter(prefix="/docs", include_in_schema=False)


@router.get("")
async def show_docs() -> HTMLResponse:
    """The page."""
    return HTMLResponse(_PAGE, headers={"content-security-policy": DOCS_SECURITY})


@router.get("/show.js")
async def show_script() -> Response:
    """What starts it: no script stands in the page itself."""
    return Response(_SHOW, media_type="text/javascript", headers=_CACHED)


@router.get("/swagger-ui.js")
async def show_swagger_script() -> FileResponse:
    """Swagger UI."""
    return FileResponse(str(_ASSETS / "swagger-ui-bundle.js"), media_type="text/javascript", headers=_CACHED)


@router.get("/swagger-ui.css")
async def show_swagger_style() -> FileResponse:
    """Its style."""
    return FileResponse(str(_ASSETS / "swagger-ui.css"), media_type="text/css", headers=_CACHED)
