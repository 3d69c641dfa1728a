// A page in one file: what a server would answer is computed from the photos that are in the page.

import { paintDoubt, paintMasks, pathsOf } from "viewer/paint.js";
import { RANGES } from "viewer/state.js";

const meets = (value, [least, most]) =>
  (least === null && most === null) ||
  (value !== null && (least === null || value >= Math.fround(least)) && (most === null || value <= Math.fround(most)));

function matcher(pattern) {
  const escaped = pattern.replace(/[.+^${}()|\\]/g, "\\$&").replace(/\[!/g, "[^");
  return new RegExp(`^${escaped.replace(/\*/g, ".*").replace(/\?/g, ".")}$`, "s");
}

export class Embedded {
  constructor(told) {
    this.told = told;
  }

  async about() {
    return this.told.about;
  }

  masksMet(photo, conditions) {
    return photo.masks.map((mask) => RANGES.every((name) => meets(mask[name], conditions[name])));
  }

  photosMet(conditions) {
    const patterns = conditions.patterns.map(matcher);
    const isBounded = RANGES.some((name) => conditions[name].some((bound) => bound !== null));
    const found = [];
    for (const photo of this.told.photos) {
      if (patterns.length && !patterns.some((pattern) => pattern.test(photo.key))) continue;
      if (conditions.kinds.length && !conditions.kinds.includes(photo.kind)) continue;
      const shown = this.masksMet(photo, conditions).filter(Boolean).length;
      if (shown || !isBounded) found.push({ photo, shown });
    }
    return found;
  }

  async summary(asked) {
    const conditions = JSON.parse(asked);
    const { photos, about } = this.told;
    const kinds = {};
    for (const { kind } of photos) kinds[kind] = (kinds[kind] ?? 0) + 1;
    const histograms = {};
    for (const scale of about.scales) {
      const others = { ...conditions, [scale.name]: [null, null] };
      const bars = { all: new Array(scale.bars).fill(0), shown: new Array(scale.bars).fill(0) };
      const isShown = new Map(this.photosMet(others).map(({ photo }) => [photo, this.masksMet(photo, others)]));
      for (const photo of photos) {
        photo.masks.forEach((mask, k) => {
          const value = mask[scale.name];
          if (value === null) return;
          const at = ((scale.is_log ? Math.log2(Math.max(1, value)) : value) - scale.lowest) / (scale.highest - scale.lowest);
          const bar = Math.min(scale.bars - 1, Math.max(0, Math.floor(at * scale.bars + 1e-6)));
          bars.all[bar] += 1;
          if (isShown.get(photo)?.[k]) bars.shown[bar] += 1;
        });
      }
      histograms[scale.name] = bars;
    }
    const met = this.photosMet(conditions);
    const masks = met.reduce((sum, { shown }) => sum + shown, 0);
    const all = photos.reduce((sum, photo) => sum + photo.masks.length, 0);
    return { photos: met.length, masks, masks_read: all, photos_read: photos.length, kinds, histograms, progress: null };
  }

  sorted(conditions, order) {
    const met = this.photosMet(conditions);
    const doubt = ({ photo }) => photo.mean_u ?? 0;
    const by = {
      set: () => 0,
      doubt: (a, b) => doubt(b) - doubt(a),
      certain: (a, b) => doubt(a) - doubt(b),
      most: (a, b) => b.shown - a.shown,
      fewest: (a, b) => a.shown - b.shown,
    };
    return met.sort(by[order]);
  }

  async entries(asked, order, start, count) {
    const met = this.sorted(JSON.parse(asked), order);
    const entries = met.slice(start, start + count).map(({ photo, shown }) => {
      return { ...photo, masks: photo.masks.length, shown };
    });
    return { photos: met.length, start, entries };
  }

  async place(asked, order, { unit, index }) {
    const met = this.sorted(JSON.parse(asked), order);
    return met.findIndex(({ photo }) => photo.unit === unit && photo.index === index);
  }

  find({ unit, index }) {
    return this.told.photos.find((photo) => photo.unit === unit && photo.index === index);
  }

  async image(set, named, asked) {
    const photo = this.find(named);
    const met = this.masksMet(photo, JSON.parse(asked));
    return { ...photo, masks: photo.masks.map((mask, k) => ({ ...mask, meets: met[k] })) };
  }

  async refined(set, named) {
    const photo = this.find(named);
    if (!photo.refined) throw new Error("There are no maps of this photo.");
    return photo.refined;
  }

  async beside() {
    return null;
  }

  async tile(named, what, asked) {
    const photo = this.find(named);
    if (what === "photo") return photo.picture;
    const bitmap = await this.bitmap(photo.picture);
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
    const pen = canvas.getContext("2d");
    pen.drawImage(bitmap, 0, 0);
    pen.scale(bitmap.width / photo.width, bitmap.height / photo.height);
    if (what === "doubt") {
      if (photo.doubt) paintDoubt(pen, await this.bitmap(photo.doubt), photo.width, photo.height, 1);
      return canvas.toDataURL("image/jpeg", 0.85);
    }
    const { masks } = await this.image(0, named, asked);
    const shown = masks.filter((mask) => mask.meets);
    paintMasks(pen, pathsOf(shown, photo.per_pixel), { stroke: (2 * photo.width) / bitmap.width, opacity: 1 });
    return canvas.toDataURL("image/jpeg", 0.85);
  }

  async whyNot() {
    return "this picture is not in the page";
  }

  async bitmap(address) {
    const image = new Image();
    image.src = address;
    await image.decode();
    return image;
  }

  async photo(set, named, part = null) {
    if (part) throw new Error("The page has no more of this photo.");
    return { bitmap: await this.bitmap(this.find(named).picture), note: null };
  }

  async doubt(set, named) {
    const { doubt } = this.find(named);
    if (!doubt) throw new Error("There are no maps of this photo.");
    return this.bitmap(doubt);
  }
}
