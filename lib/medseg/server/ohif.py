"""OHIF, the web viewer that ships with MONAI Label, served right.

Upstream's route looks for `assets/icon.png` as a file of that whole name and answers with the start page instead; its
panel asks port 8000 whatever port the server has; its page fetches fonts from the internet, where there may be none;
its MONAI Label mode has no way to edit and save a segmentation, although the viewer has one.
"""

from __future__ import annotations

import functools
import mimetypes
import re
from pathlib import Path
from urllib.parse import quote

import monailabel.endpoints.ohif as upstream
from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from monailabel.config import settings as monai_settings
from monailabel.endpoints.user.auth import RBAC

ROOT = Path(upstream.__file__).resolve().parent / "static" / "ohif"
SERVER_COOKIE = "MONAILABEL_SERVER_URL"
FOREIGN_LINKS = re.compile(r'<link[^>]*href="https?://[^>]*>')
PANELS = ("rightPanels: [monailabel.monaiLabel]", "rightPanels: [monailabel.monaiLabel, cornerstone.panelTool]")
"""The MONAI Label mode names the viewer's segmentation panel and does not show it."""
DAY = 86400


def ohif_router() -> APIRouter:
    """`/ohif/...`."""
    router = APIRouter(prefix="/ohif", tags=["Others"])
    user = Depends(RBAC(monai_settings.MONAI_LABEL_AUTH_ROLE_USER))

    @router.get("/{path:path}", include_in_schema=False, dependencies=[user])
    def page(path: str, request: Request) -> Response:
        file = file_of(path)
        if file is None:
            return _start_page(str(request.base_url))
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        if file.suffix == ".js" and (text := patched(file)) is not None:
            return Response(text, media_type=kind)
        return FileResponse(
            file, media_type=kind, headers={"Cache-Control": f"max-age={DAY}"} if _named(file) else None
        )

    return router


def file_of(path: str) -> Path | None:
    """The viewer's file at a path; None: the path belongs to the viewer's own routes, or leaves its folder."""
    file = (ROOT / path).resolve()
    return file if file.is_relative_to(ROOT) and file.is_file() and file.name != "index.html" else None


@functools.lru_cache(maxsize=64)
def patched(file: Path) -> str | None:
    """A script with the segmentation panel beside MONAI Label's; None where there is nothing to change."""
    text = file.read_text(encoding="utf-8")
    return text.replace(*PANELS) if PANELS[0] in text else None


def _named(file: Path) -> bool:
    """Whether the name holds a hash of the content, so that a browser may keep it."""
    return re.search(r"[0-9a-f]{20}", file.name) is not None


def _start_page(server: str) -> HTMLResponse:
    """The viewer, told which server its panel talks to: the one it comes from."""
    text = FOREIGN_LINKS.sub("", (ROOT / "index.html").read_text(encoding="utf-8"))
    answer = HTMLResponse(text, headers={"Cache-Control": "no-cache"})
    answer.set_cookie(SERVER_COOKIE, quote(server, safe=""), path="/ohif", samesite="lax")
    return answer
