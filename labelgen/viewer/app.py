"""The server's answers: the page, what it asks of sets and photos, and the selection that it saves."""

from __future__ import annotations

import json
import secrets
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import anyio.to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sum_factory.labelgen.page.drawing import heat_map
from sum_factory.labelgen.viewer.chosen import ORDERS, positions
from sum_factory.labelgen.viewer.conditions import Conditions, scales
from sum_factory.labelgen.viewer.front import KINDS_OF_FILES, file_of, served_page
from sum_factory.labelgen.viewer.guard import Guard
from sum_factory.labelgen.viewer.photos import Photos
from sum_factory.labelgen.viewer.pictures import heat_png, jpeg, largest_u, size_within, smaller, with_masks
from sum_factory.labelgen.viewer.save import Wanted, save
from sum_factory.labelgen.viewer.shown_set import ShownSet
from sum_factory.shared.cores import usable_cores
from sum_factory.shared.credentials import concealed
from sum_factory.shared.errors import SettingsError, SumError

LARGEST_SIDE = 2048
"""Pixels of a side of a picture that is sent; of a larger photo, parts are sent at its own size."""
HEAT_SIDE = 1024
TILE_SIDES = (160, 256, 384, 512)
MOST_TILES = 500
"""Photos of the list that are told of at once, at most."""
LONGEST_BODY = 64 << 20
KEEP = {"Cache-Control": "private, max-age=3600"}
STRICT = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


class Viewer:
    """What is served: one set, or two side by side."""

    def __init__(self, sets: Sequence[ShownSet]) -> None:
        self.sets = tuple(sets)
        self.photos = tuple(map(Photos, sets))

    def begin(self) -> None:
        """Start to read manifests."""
        for each in self.sets:
            each.catalog.begin()

    def close(self) -> None:
        """Stop."""
        for each in self.sets:
            each.catalog.close()

    def about(self, request: Request) -> Response:
        """Tell of the sets as a whole."""
        told = {"sets": [each.about() for each in self.sets], "scales": list(scales()), "orders": list(ORDERS)}
        return _json({**told, "can_save": True, "largest_side": LARGEST_SIDE})

    def summary(self, request: Request) -> Response:
        """Tell how many photos and masks meet conditions, and how they are spread."""
        shown, conditions = self.sets[0], _conditions(request)
        chosen = shown.chooser.choose(conditions, "set")
        return _json({"photos": len(chosen), **chosen.facts, "progress": shown.progress()})

    def entries(self, request: Request) -> Response:
        """Tell of some photos of the list."""
        shown, conditions = self.sets[0], _conditions(request)
        chosen = shown.chooser.choose(conditions, request.query_params.get("order", "set"))
        start, count = _whole(request, "start"), min(MOST_TILES, _whole(request, "count"))
        entries = [shown.entry(*each, conditions.layer or shown.layer) for each in positions(chosen, start, count)]
        return _json({"photos": len(chosen), "start": start, "entries": entries})

    def place(self, request: Request) -> Response:
        """Tell where in the list a photo is."""
        chosen = self.sets[0].chooser.choose(_conditions(request), request.query_params.get("order", "set"))
        return _json({"place": chosen.place(*_named(request))})

    def image(self, request: Request) -> Response:
        """Tell of a photo's masks."""
        return _json(self._set(request).described(*_named(request), _conditions(request)))

    def refined(self, request: Request) -> Response:
        """Tell of a photo's refined masks."""
        return _json({"masks": self._set(request).refined(*_named(request), _layer(request))})

    def beside(self, request: Request) -> Response:
        """Tell where in the other set a photo of the first is."""
        first, number, image = self.sets[0], *_named(request)
        found = self._set(request).find(first.catalog.unit(number).keys[image], (number, image))
        return _json({"found": found})

    def tile(self, request: Request) -> Response:
        """Return a small picture: the photo, its masks, or where these are doubtful."""
        number, image = _named(request)
        shown, what = self._set(request), request.query_params.get("what", "masks")
        wanted = _whole(request, "side")
        side = next((each for each in TILE_SIDES if each >= wanted), TILE_SIDES[-1])
        photo = self._photos(request).small(number, image, side)
        if what == "masks":
            photo = self._with_masks(shown, photo, number, image, _conditions(request))
        if what == "doubt":
            size: tuple[int, int] = tuple(shown.catalog.unit(number).sizes[image].tolist())
            maps = shown.doubt(number, image, _layer(request), None)
            photo = heat_map(photo, largest_u(maps, size, photo.shape[:2]))
        return Response(jpeg(photo), media_type="image/jpeg", headers=KEEP)

    def _with_masks(self, shown: ShownSet, photo: Any, number: int, image: int, conditions: Conditions) -> Any:
        rows, meets = shown.image(number, image), shown.meeting(number, image, conditions)
        side = shown.shards.input_side
        grids = shown.labels(number, rows, meets)
        return with_masks(photo, grids, [rows.frame(k, side) for k in meets], meets, (rows.height, rows.width))

    def photo(self, request: Request) -> Response:
        """Return a photo, scaled down to what a screen shows, or a part of it at its own size."""
        number, image = _named(request)
        photo = self._photos(request).large(number, image)
        pixels = photo.pixels
        if "part" in request.query_params:
            x, y, width, height = _part(request)
            pixels = pixels[y : y + height, x : x + width]
            if not pixels.size:
                raise SettingsError("part: no such part of the photo")
        headers = KEEP | ({} if photo.note is None else {"X-Note": quote(photo.note)})
        return Response(jpeg(smaller(pixels, LARGEST_SIDE)), media_type="image/jpeg", headers=headers)

    def doubt(self, request: Request) -> Response:
        """Return the largest u of a photo's masks, or that of one mask."""
        shown, named = self._set(request), _named(request)
        mask = None if "mask" not in request.query_params else _whole(request, "mask")
        size = tuple(shown.catalog.unit(named[0]).sizes[named[1]].tolist())
        picture = heat_png(shown.doubt(*named, _layer(request), mask), size, size_within(size, HEAT_SIDE))
        return Response(picture, media_type="image/png", headers=KEEP)

    def look_again(self, request: Request) -> Response:
        """Look for units that have been committed since."""
        for each in self.sets:
            each.catalog.look_again()
        return _json(self.sets[0].progress())

    def _set(self, request: Request) -> ShownSet:
        return self.sets[self._number(request)]

    def _photos(self, request: Request) -> Photos:
        return self.photos[self._number(request)]

    def _number(self, request: Request) -> int:
        number = int(request.path_params["set"])
        if number >= len(self.sets):
            raise SettingsError(f"there is no set {number}, but {len(self.sets)}")
        return number


def make_app(viewer: Viewer, token: str) -> Guard:
    """Return the application that serves ``viewer`` to those who know the token."""
    of_image = "{set:int}/{unit:int}/{image:int}"
    told: dict[str, Callable[[Request], Response]] = {
        "/api/about": viewer.about,
        "/api/summary": viewer.summary,
        "/api/entries": viewer.entries,
        "/api/place/{unit:int}/{image:int}": viewer.place,
        f"/api/image/{of_image}": viewer.image,
        f"/api/refined/{of_image}": viewer.refined,
        f"/api/beside/{of_image}": viewer.beside,
        f"/api/tile/{of_image}": viewer.tile,
        f"/api/photo/{of_image}": viewer.photo,
        f"/api/doubt/{of_image}": viewer.doubt,
    }
    routes = [Route(path, _answering(answer)) for path, answer in told.items()]
    routes += [
        Route("/", _page),
        Route("/static/{name}", _file),
        Route("/api/save", _saving(viewer), methods=["POST"]),
        Route("/api/look_again", _answering(viewer.look_again), methods=["POST"]),
    ]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = max(4, usable_cores() + 2)
        viewer.begin()
        yield
        await anyio.to_thread.run_sync(viewer.close)

    return Guard(Starlette(routes=routes, lifespan=lifespan), token)


def _answering(answer: Callable[[Request], Response]) -> Callable[[Request], Awaitable[Response]]:
    async def answered(request: Request) -> Response:
        return _strict(await anyio.to_thread.run_sync(_told, answer, request))

    return answered


def _saving(viewer: Viewer) -> Callable[[Request], Awaitable[Response]]:
    async def saved(request: Request) -> Response:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > LONGEST_BODY:
                return _strict(_json({"error": "what is to be saved is too long"}, 413))

        def write(_: Request) -> Response:
            summary = save(viewer.sets[0].catalog, Wanted.parse(bytes(data)))
            return _json({"told": summary.lines(), "masks": summary.masks, "images": summary.images})

        return _strict(await anyio.to_thread.run_sync(_told, write, request))

    return saved


def _told(answer: Callable[[Request], Response], request: Request) -> Response:
    """Answer; an error that the user can mend is told in its words, any other in the terminal."""
    try:
        return answer(request)
    except SumError as error:
        return _json({"error": str(error)}, 422)
    except Exception as error:
        print(concealed("".join(traceback.format_exception(error))), file=sys.stderr, end="")
        return _json({"error": f"{type(error).__name__}: a fault of the viewer; the terminal tells more"}, 500)


async def _page(request: Request) -> Response:
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'self' 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    page = Response(served_page(nonce), media_type="text/html; charset=utf-8")
    page.headers["Content-Security-Policy"] = policy
    page.headers["Cache-Control"] = "no-store"
    return _strict(page)


async def _file(request: Request) -> Response:
    content = file_of(request.path_params["name"])
    if content is None:
        return _strict(Response("no such file\n", 404, media_type="text/plain"))
    kind = KINDS_OF_FILES[request.path_params["name"].rsplit(".", 1)[1]]
    return _strict(Response(content, media_type=kind, headers={"Cache-Control": "no-cache"}))


def _strict(response: Response) -> Response:
    response.headers.update(STRICT)
    return response


def _json(told: Any, status: int = 200) -> Response:
    content = json.dumps(told, allow_nan=False, separators=(",", ":"))
    return Response(content, status, media_type="application/json", headers={"Cache-Control": "no-store"})


def _conditions(request: Request) -> Conditions:
    return Conditions.parse(request.query_params.get("conditions", ""))


def _named(request: Request) -> tuple[int, int]:
    return int(request.path_params["unit"]), int(request.path_params["image"])


def _whole(request: Request, name: str) -> int:
    text = request.query_params.get(name, "")
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise SettingsError(f"{name}: expected a whole number, found {text[:40]!r}")
    return int(text)


def _layer(request: Request) -> str:
    return request.query_params.get("layer", "")


def _part(request: Request) -> tuple[int, int, int, int]:
    """Return x, y, width and height of the part of a photo that is asked for."""
    numbers = request.query_params["part"].split(",")
    if len(numbers) != 4 or not all(number.isascii() and number.isdigit() and len(number) < 9 for number in numbers):
        raise SettingsError("part: expected x,y,width,height")
    x, y, width, height = map(int, numbers)
    return x, y, min(width, LARGEST_SIDE), min(height, LARGEST_SIDE)
