"""Pictures from the network, through FFmpeg: RTSP, HTTP, MPEG-TS over TCP and the like."""

from __future__ import annotations

import re
import time

import av

from distill.clips.video import MOST_PIXELS, BrokenFileError, Film, Painter
from distill.errors import UserError
from distill.live.sources import NOTHING, Shot, Shots, Source, film_rate, film_shots

SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "rtmps", "srt", "tcp", "udp", "rtp")
OPTIONS = {
    "protocol_whitelist": f"{','.join(SCHEMES)},tls,crypto,hls,httpproxy,rtmpt,ffrtmphttp",  # no files of this machine
    "max_pixels": str(MOST_PIXELS),
    "rtsp_transport": "tcp",  # over UDP a busy network tears pictures
}
PROMPT = {"fflags": "nobuffer"}  # not to begin late; what was read to learn the format is left out, so no recordings
LISTS = ("hls", "dash")  # formats that are fetched a few seconds at a time
NEARLY = 1.0  # seconds before its end at which a recording counts as shown to the end


class Link:
    """A stream at a URL. A recording at a URL ends; a stream that ends was lost."""

    live, paced, blind = True, False, False

    def __init__(self, url: str, silence: float) -> None:
        scheme = url.partition(":")[0].lower()
        if scheme not in SCHEMES:
            raise UserError(f"source={safe(url)}: there is no way to open {scheme}://; known: {', '.join(SCHEMES)}")
        self.url, self.silence, self.name = url, silence, safe(url)

    def shots(self) -> Shots:
        with _Remote(self.url, self.silence) as film:
            length = film.container.duration
            self.paced = bool(length) or film.container.format.name in LISTS
            shot = None
            for shot in film_shots(film, self) if self.paced else _as_they_come(film, self):
                yield shot
            if not (length and shot and shot.seconds + shot.lasts > length / av.time_base - NEARLY):
                raise BrokenFileError("broke off")


class _Remote(Film):
    """A film that is not in a file. Who waits for it in vain for `silence` seconds is let go."""

    def __init__(self, url: str, silence: float) -> None:
        options = OPTIONS if url.lower().startswith("http") else OPTIONS | PROMPT
        try:
            self.container = av.open(url, timeout=(silence, silence), options=options, metadata_errors="replace")
        except av.FFmpegError as error:
            why = f"does not answer in {silence:g} s" if isinstance(error, av.ExitError) else error.strerror
            raise BrokenFileError(f"cannot be opened ({why})") from error
        if not self.container.streams.video or not self.container.streams.video[0].codec_context:
            self.container.close()
            raise BrokenFileError("holds no video that can be decoded")
        self.stream = self.container.streams.video[0]
        self.decoder = self.stream.codec_context
        self.stream.thread_type = "NONE"
        self.lost = 0


def _as_they_come(film: Film, source: Source) -> Shots:
    """What a camera says of its times is often wrong; when its frames arrive is not."""
    paint, first, before = Painter(), 0.0, 0.0
    for frame in film.frames():
        now = time.monotonic()
        lasts = now - before if before else 1 / film_rate(film)
        first, before = first or now, now
        yield Shot(NOTHING if source.blind else paint.picture(frame), now - first, lasts)


def safe(url: str) -> str:
    """A URL without its password, even one that holds what would have to be written otherwise in a URL."""
    return re.sub(r"(?<=://)([^/]*|[^/:@]*:(?!\d*(/|$)).*)@", "***@", url)
