"""Raw frames with their times into a pipe.

NUT is the one container that ffmpeg reads from a pipe and that keeps any time base and any pixel
format, so a variable frame rate survives. PyAV knows how to write it; this is the only place
beside `reader` that may use it.
"""

from __future__ import annotations

from typing import BinaryIO

import av
import numpy as np
from av.video.stream import VideoStream

from faceswap.media.planes import Plane
from faceswap.types import VideoInfo

_BUFFER_BYTES = 1 << 20


class NutMuxer:
    """Write frames of ``info``'s size, pixel format and time base to a file object.

    Raises:
        OSError: the other end of the pipe is gone.
    """

    def __init__(self, file: BinaryIO, info: VideoInfo) -> None:
        self._container = av.open(file, "w", format="nut", buffer_size=_BUFFER_BYTES)
        stream = self._container.add_stream("rawvideo", rate=info.rate)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = info.width, info.height
        stream.pix_fmt = info.pixel_format
        stream.time_base = stream.codec_context.time_base = info.time_base
        self._stream, self._time_base = stream, info.time_base

    def write(self, planes: tuple[Plane, ...], pts: int) -> None:
        """One frame at ``pts`` ticks of the time base."""
        packet = av.Packet(b"".join(np.ascontiguousarray(plane).tobytes() for plane in planes))
        packet.stream = self._stream
        packet.time_base = self._time_base
        packet.pts = packet.dts = pts
        packet.is_keyframe = True
        self._container.mux(packet)

    def close(self) -> None:
        """Write what is still in the buffer."""
        self._container.close()
