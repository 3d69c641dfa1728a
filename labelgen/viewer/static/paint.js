// Masks as paths on a canvas whose unit is a pixel of the photo.

import { colourOf } from "viewer/dom.js";

const LABEL_ONLY = "255 92 92";
const REFINED_ONLY = "66 222 150";

// Masks with their paths, the largest first, so that the small ones lie on top.
export function pathsOf(masks, perPixel) {
  const scale = new DOMMatrix([1 / perPixel, 0, 0, 1 / perPixel, 0, 0]);
  return masks
    .filter((mask) => mask.path)
    .map((mask) => {
      const path = new Path2D();
      path.addPath(new Path2D(mask.path), scale);
      return { ...mask, drawn: path };
    })
    .sort((a, b) => b.area - a.area);
}

// `shown` has a number for each mask that stands out; then all others are faint.
export function paintMasks(pen, masks, { stroke, opacity, shown = null, filled = true }) {
  pen.lineWidth = stroke;
  pen.lineJoin = "round";
  for (const mask of masks) {
    const isFaint = shown !== null && shown !== mask.mask;
    pen.fillStyle = colourOf(mask.mask, (isFaint ? 0.12 : shown === null ? 0.42 : 0.55) * opacity);
    pen.strokeStyle = colourOf(mask.mask, (isFaint ? 0.35 : 1) * Math.min(1, 1.4 * opacity));
    if (filled) pen.fill(mask.drawn, "evenodd");
    pen.stroke(mask.drawn);
  }
}

// What the label has and the refined mask has not, in red; the other way round, in green.
export function paintDifference(pen, labels, refined, { stroke, opacity }) {
  const byMask = new Map(refined.map((mask) => [mask.mask, mask.drawn]));
  for (const { mask, drawn } of labels) {
    const other = byMask.get(mask) ?? new Path2D();
    const both = new Path2D(drawn);
    both.addPath(other);
    for (const [own, colour] of [[drawn, LABEL_ONLY], [other, REFINED_ONLY]]) {
      pen.save();
      pen.clip(own, "evenodd");
      pen.fillStyle = `rgb(${colour} / ${0.8 * opacity})`;
      pen.fill(both, "evenodd");
      pen.restore();
    }
    pen.lineWidth = stroke / 2;
    pen.strokeStyle = `rgb(255 255 255 / ${0.5 * opacity})`;
    pen.stroke(drawn);
  }
}

export function paintDoubt(pen, picture, width, height, opacity) {
  pen.fillStyle = `rgb(0 0 0 / ${0.65 * opacity})`;
  pen.fillRect(0, 0, width, height);
  pen.globalAlpha = opacity;
  pen.imageSmoothingEnabled = true;
  pen.drawImage(picture, 0, 0, width, height);
  pen.globalAlpha = 1;
}

export function paintBox(pen, mask, stroke) {
  const [x, y, width, height] = mask.box;
  pen.lineWidth = stroke;
  pen.setLineDash([4 * stroke, 3 * stroke]);
  pen.strokeStyle = "rgb(0 0 0 / .6)";
  pen.strokeRect(x, y, width + 1, height + 1);
  pen.lineDashOffset = 3.5 * stroke;
  pen.strokeStyle = colourOf(mask.mask);
  pen.strokeRect(x, y, width + 1, height + 1);
  pen.setLineDash([]);
  pen.lineDashOffset = 0;
}

export function paintPoint(pen, mask, stroke) {
  const [x, y] = mask.point;
  pen.beginPath();
  pen.arc(x, y, 3.5 * stroke, 0, 2 * Math.PI);
  pen.fillStyle = colourOf(mask.mask);
  pen.fill();
  pen.lineWidth = 1.2 * stroke;
  pen.strokeStyle = "#fff";
  pen.stroke();
}

// The smallest mask at a place of the photo.
export function maskAt(masks, x, y) {
  const pen = (maskAt.pen ??= document.createElement("canvas").getContext("2d"));
  for (let k = masks.length - 1; k >= 0; k -= 1) {
    if (pen.isPointInPath(masks[k].drawn, x, y, "evenodd")) return masks[k].mask;
  }
  return null;
}
