"""The app's door. MONAI Label loads this file and takes the subclass of `MONAILabelApp` it finds in it.

monailabel start_server --app apps/medseg --studies DIR [--conf models caml,supervised]
"""

from medseg.server.app import MedsegApp

__all__ = ["MedsegApp"]
