"""OHIF, the web viewer that ships with MONAI Label, served right.

Upstream's route looks for `assets/icon.png` as a file of that whole name and answers with the start page instead; its
panel asks port 8000 whatever port the server has; its page fetches fonts from the internet, where there may be none;
its MONAI Label mode has no way to edit and save a segmentation, although the viewer has one; nobody knows who sits
before it.
"""

from __future__ import annotations

import functools
import logging
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
FOREIGN_LINKS = re.compile(r"""<link[^>]*href="https?://[^>]*>|@import\s+(?:url\()?["']?https?://[^;]*;""")

WHO = (
    "(name => (localStorage.setItem('medseg-annotator', name), name))((localStorage.getItem('medseg-annotator') || "
    "window.prompt('Your name, as the author of your labels:') || '')"
    r".replace(/[^\p{L}\p{N}_ .@+-]/gu, '').trim().slice(0, 64))"
)
"""Who sits before the browser: kept in it, and asked for once where nobody typed it into the panel."""

NAME_FIELD = (
    'react.createElement("tr", null, react.createElement("td", {colSpan: 3}, "Your name:")), '
    'react.createElement("tr", null, react.createElement("td", {colSpan: 3}, react.createElement("input", '
    '{id: "medsegAnnotator", className: "actionInput", type: "text", '
    "defaultValue: localStorage.getItem('medseg-annotator') || '', "
    "onChange: event => localStorage.setItem('medseg-annotator', event.target.value)}))), "
)
SETTINGS = 'className: "settingsTable"\n    }, /*#__PURE__*/react.createElement("tbody", null, '
NEXT_SAMPLE = "async next_sample(stategy = 'random', params = {}) {"
WHITE_BAR = """w3-{0} w3-center",
      style: {{
        backgroundColor: 'white'
      }}
    }}, {1}"""
BAR = """w3-{0} w3-center",
      style: {{backgroundColor: '{2}', color: 'white', width: {1}, whiteSpace: 'nowrap'}}
    }}, {1}"""
BARS = (("blue", "activelearning", "#2a72b5"), ("orange", "training", "#b35900"), ("green", "accuracy", "#1f7a4d"))

KEPT_PARAMS = "const params = config && config.infer && config.infer[model] ? config.infer[model] : {};"
EDIT_CLICKS = """          params[label] = points[label];
        }
"""
EDIT_LABELS = """        label_names = label_names.filter(name => name !== 'background' && name !== 'null');
        if (!label_names.length || points['background']?.length) label_names = info.modelLabelNames[model];
"""
"""For names without a segment the viewer makes new ones, in place of the model's; background may be about any label."""
GROW_CLICKS = "let fg = points[currentLabel];"
GROW_LABEL = """const noLabel = ['background', 'null'];
        const clicked = Object.keys(points).filter(name => !noLabel.includes(name) && points[name].length);
        const target = currentLabel && !noLabel.includes(currentLabel) ? currentLabel : clicked[0];
        if (!target || (target !== currentLabel && clicked.length > 1)) {
          hideNotification(nid, this.notification);
          this.notification.show({title: 'MONAI Label - ' + model, type: 'error', duration: 6000,
            message: 'Select the label that the clicks are about, then Run'});
          return;
        }
        let fg = points[target] || [];"""
GROW_ANSWER = """params['background'] = bg;
        label_names = [currentLabel];"""
GROW_TARGET = """params['background'] = bg;
        params['label'] = target;
        label_names = [target];"""

PANEL = (
    ("onChange: this.onChangeStrategy,", "onChange: event => this.setState({strategy: event.target.value}),"),
    ("strategy: 'random',", "strategy: Object.keys(props.info?.data?.strategies ?? {})[0] ?? 'random',"),
    (NEXT_SAMPLE, f"{NEXT_SAMPLE}\n    params = {{client_id: {WHO}, ...params}};"),
    (SETTINGS, SETTINGS + NAME_FIELD),
    ("Modality: 'Modality',", "why: 'Chosen because',\n      Modality: 'Modality',"),
    ('className: "w3-round w3-light-grey w3-tiny"', "style: {backgroundColor: '#444'}"),
    *((WHITE_BAR.format(*bar), BAR.format(*bar)) for bar in BARS),
    (KEPT_PARAMS, "const params = {...config?.infer?.[model]};"),
    (EDIT_CLICKS, EDIT_CLICKS + EDIT_LABELS),
    (GROW_CLICKS, GROW_LABEL),
    (GROW_ANSWER, GROW_TARGET),
)
"""What the panel says otherwise than it should: its choice of a strategy calls nothing, nobody is asked for a next
sample, nobody is told why that one; its progress is white on white and full from the start; clicks on one label do not
tell which, and those of one run stay in the next."""

MODE_PANELS = "rightPanels: [monailabel.monaiLabel]"
MODE_BUTTONS = "// toolbarService.addButtons(segmentationButtons);"
BUTTONS = re.compile(r"const segmentationButtons_toolbarButtons = (\[.*?\n\}\]);\n", re.DOTALL)
"""The MONAI Label mode leaves out the panel and the brushes that the viewer's own segmentation mode defines."""

STORE = re.compile(r"(storeSegmentation: async \(\{\s+segmentationId,\s+dataSource)(\s+\}\) => \{)")
STORED = "naturalizedReport.wadoRoot = dataSource.getConfig().wadoRoot;"
SAY_SO = """fetch('/medseg/outcome?series=' + encodeURIComponent(naturalizedReport.SeriesInstanceUID))
        .then(answer => answer.ok ? answer.json() : {remarks: ['/medseg/ tells what became of it']})
        .catch(() => ({remarks: ['/medseg/ tells what became of it']}))
        .then(({state, remarks}) => servicesManager.services.uiNotificationService.show({
          title: state === 'label' ? 'Saved' : state ? 'Stored, but not the finished label of the case' : 'Stored',
          message: remarks.join('; ') || (state === 'label' ? 'The finished label of the case now' : state),
          type: state === 'label' && !remarks.length ? 'success' : state === 'label' || !state ? 'warning' : 'error',
          duration: remarks.length ? 15000 : 5000,
        }));"""
"""In this mode the panel's export reaches the command that stores without the archive to store in; and it tells nothing
of what became of the segmentation."""
SEND = "await dataSource.store.dicom(naturalizedReport);"
SIGN = f"Object.assign(naturalizedReport, {{ContentCreatorName: {WHO}, SpecificCharacterSet: 'ISO_IR 192'}});"
"""The viewer writes UTF-8, and does not say so."""
DAY = 86400
LARGEST_MODE = 200_000  # bytes; the bundles that are looked into are smaller

logger = logging.getLogger(__name__)


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
        if (text := patched(file)) is not None:
            return Response(text, media_type=kind)
        return FileResponse(
            file, media_type=kind, headers={"Cache-Control": f"max-age={DAY}"} if _named(file) else None
        )

    return router


def file_of(path: str) -> Path | None:
    """The viewer's file at a path; None: the path belongs to the viewer's own routes, or leaves its folder."""
    file = (ROOT / path).resolve()
    return file if file.is_relative_to(ROOT) and file.is_file() and file.name != "index.html" else None


@functools.lru_cache(maxsize=8)
def patched(file: Path) -> str | None:
    """A script or style sheet without what is wrong in it; None where there is nothing to change."""
    if file.suffix == ".css":
        text = file.read_text(encoding="utf-8")
        return FOREIGN_LINKS.sub("", text) if FOREIGN_LINKS.search(text) else None
    if file.suffix != ".js" or file.stat().st_size > LARGEST_MODE:
        return None
    text = file.read_text(encoding="utf-8")
    if PANEL[0][0] in text:
        return with_panel_that_works(text)
    if STORE.search(text):
        return with_archive_to_store_in(text)
    return with_segmentation_panel(text) if MODE_PANELS in text else None


def with_panel_that_works(panel: str) -> str:
    """The panel with a choice that counts, the annotator's name, the reason for a sample, and progress to be seen."""
    for wrong, right in PANEL:
        if wrong not in panel:
            logger.warning("this build of OHIF has another form; its panel stays as it is at %r", wrong[:60])
        panel = panel.replace(wrong, right)
    return panel


def with_archive_to_store_in(commands: str) -> str:
    """The command that stores a segmentation: in the viewer's own archive if told none, with its author and a word."""
    text = STORE.sub(r"\1 = extensionManager.getActiveDataSource()[0]\2", commands)
    return text.replace(SEND, f"{SIGN}\n      {SEND}").replace(STORED, f"{STORED} {SAY_SO}")


def with_segmentation_panel(mode: str) -> str:
    """The MONAI Label mode with the viewer's segmentation panel, its brushes and its export beside it."""
    sources = (f.read_text(encoding="utf-8") for f in sorted(ROOT.glob("*.js")) if f.stat().st_size <= LARGEST_MODE)
    buttons = next((found.group(1) for source in sources if (found := BUTTONS.search(source))), None)
    if buttons is None or MODE_BUTTONS not in mode:
        logger.warning("this build of OHIF has another form; its MONAI Label mode stays without a segmentation panel")
        return mode
    panels = "rightPanels: [monailabel.monaiLabel, cornerstone.panelTool]"
    return mode.replace(MODE_PANELS, panels).replace(MODE_BUTTONS, f"toolbarService.addButtons({buttons});")


def _named(file: Path) -> bool:
    """Whether the name holds a hash of the content, so that a browser may keep it."""
    return re.search(r"[0-9a-f]{20}", file.name) is not None


def _start_page(server: str) -> HTMLResponse:
    """The viewer, told which server its panel talks to: the one it comes from."""
    text = FOREIGN_LINKS.sub("", (ROOT / "index.html").read_text(encoding="utf-8"))
    answer = HTMLResponse(text, headers={"Cache-Control": "no-cache"})
    answer.set_cookie(SERVER_COOKIE, quote(server, safe=""), path="/ohif", samesite="lax")
    return answer
