"""Puts guard, errors, threads and routes into MONAI Label's running FastAPI application."""

from __future__ import annotations

import functools
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

from fastapi.routing import APIRoute
from monailabel.endpoints import ohif as upstream_ohif
from monailabel.endpoints import proxy as upstream_proxy
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from medseg.server.dicom.proxy import proxy_router
from medseg.server.endpoints import MODULES, guarded_router
from medseg.server.guard import Guard, GuardOptions, is_local
from medseg.server.http_errors import install_errors
from medseg.server.ohif import ohif_router
from medseg.server.routes import medseg_router
from medseg.server.shutdown import end_jobs_with_the_server

logger = logging.getLogger(__name__)

LOCAL_ORIGIN = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"


def install(app: Any, web: Any = None) -> None:
    """Called while the server starts, before its first request.

    By then the application has built its middleware; it builds it again when `middleware_stack` is None.

    Args:
        app: the `MedsegApp`.
        web: the FastAPI application; None: MONAI Label's, if this process serves it.
    """
    if web is None:
        module = sys.modules.get("monailabel.app")
        web = getattr(module, "app", None)
    if web is None:
        return
    settings = app.settings
    options = GuardOptions(
        max_body=int(settings.upload_gb * 2**30),
        allow_remote=allow_remote(settings.allow_remote, sys.argv),
        expose_logs=settings.expose_logs,
        dicomweb="://" in app.studies,
        origins=frozenset(settings.cors_origins),
    )
    web.user_middleware = [
        Middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_origin_regex=LOCAL_ORIGIN,
            allow_credentials=True,
            allow_methods=["*"],
            allow_headers=["*"],
        ),
        Middleware(Guard, options=options),
    ]
    hidden = {str(app.model_dir): "the model folder", app.app_dir: "the app", tempfile.gettempdir(): "a temporary file"}
    install_errors(web, hidden if options.dicomweb else {**hidden, str(Path(app.studies).absolute()): "this study"})
    _replace_routes(web, app)
    web.middleware_stack = None
    web.openapi_schema = None
    accept_signed_tokens()
    end_jobs_with_the_server()
    if not options.allow_remote:
        logger.info("answering this machine only; for others start with --host 0.0.0.0 or --conf allow_remote true")


def allow_remote(setting: bool | None, argv: list[str]) -> bool:
    """`--conf allow_remote`; else whether `--host` was given and names another address than this machine's loopback.

    MONAI Label's own default is every address, and everybody is administrator.
    """
    if setting is not None:
        return setting
    host = None
    for index, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name in ("-i", "--host"):
            host = value if equals else (argv[index + 1] if index + 1 < len(argv) else None)
    return host is not None and not is_local(host)


def accept_signed_tokens() -> None:
    """MONAI Label decodes tokens without naming the algorithm, which PyJWT refuses: every user gets 401."""
    from monailabel.endpoints.user import auth

    if not isinstance(auth.jwt, _Decoder):
        auth.jwt = _Decoder(auth.jwt)


class _Decoder:
    """PyJWT with the algorithm of OpenID Connect servers."""

    def __init__(self, jwt: Any) -> None:
        self.decode = functools.partial(jwt.decode, algorithms=["RS256"])


def _replace_routes(web: Any, app: Any) -> None:
    """Ours first; upstream's versions of the same go. Newer FastAPI keeps included routers whole, older ones flat."""
    modules = (*MODULES, upstream_ohif, upstream_proxy)
    replaced = {id(module.router) for module in modules}
    endpoints = {
        id(route.endpoint) for module in modules for route in module.router.routes if isinstance(route, APIRoute)
    }
    web.router.routes[:] = [
        route
        for route in web.router.routes
        if id(getattr(route, "original_router", None)) not in replaced
        and id(getattr(route, "endpoint", None)) not in endpoints
    ]
    web.include_router(guarded_router(app))
    web.include_router(medseg_router(app))
    web.include_router(ohif_router())
    web.include_router(proxy_router(app))
