"""Face swapping: one photo of a person onto another person in a photo or a video.

    from faceswap import Swapper, swap_image

    swapper = Swapper.from_pack("lite")
    swap_image(swapper, "source.jpg", "target.jpg", "swapped.jpg")

Importing the package loads nothing else: each public name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from faceswap.config import SwapConfig, VideoConfig, load_config
    from faceswap.errors import FaceSwapError
    from faceswap.folder import swap_folder
    from faceswap.media.provenance import Provenance, read_provenance
    from faceswap.models import load_model
    from faceswap.people import list_people
    from faceswap.photo import swap_image
    from faceswap.preview import preview_video
    from faceswap.swap import Swapper
    from faceswap.types import (
        Faces,
        FolderReport,
        Identities,
        ImageReport,
        SwapResult,
        VideoInfo,
        VideoReport,
    )
    from faceswap.video import swap_video

    __version__: str

__all__ = [
    "FaceSwapError",
    "Faces",
    "FolderReport",
    "Identities",
    "ImageReport",
    "Provenance",
    "SwapConfig",
    "SwapResult",
    "Swapper",
    "VideoConfig",
    "VideoInfo",
    "VideoReport",
    "__version__",
    "list_people",
    "load_config",
    "load_model",
    "preview_video",
    "read_provenance",
    "swap_folder",
    "swap_image",
    "swap_video",
]

_HOME = {  # public name -> module it comes from
    **dict.fromkeys(("SwapConfig", "VideoConfig", "load_config"), "config"),
    **dict.fromkeys(("FaceSwapError",), "errors"),
    **dict.fromkeys(("load_model",), "models"),
    **dict.fromkeys(("Provenance", "read_provenance"), "media.provenance"),
    "list_people": "people",
    "preview_video": "preview",
    "swap_folder": "folder",
    "swap_image": "photo",
    "swap_video": "video",
    "Swapper": "swap",
    **dict.fromkeys(("Faces", "FolderReport", "Identities", "ImageReport"), "types"),
    **dict.fromkeys(("SwapResult", "VideoInfo", "VideoReport"), "types"),
}


def __getattr__(name: str) -> Any:
    """PEP 562: look a public name up in its module, once."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("faceswap")
    elif name in _HOME:
        value = getattr(import_module(f"faceswap.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module 'faceswap' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
