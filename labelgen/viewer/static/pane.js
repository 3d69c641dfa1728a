// One picture of a photo, with a layer over it; all panes share the place that is looked at.

import { maskAt, paintBox, paintDifference, paintDoubt, paintMasks, paintPoint, pathsOf } from "viewer/paint.js";
import { el, later } from "viewer/dom.js";

const PIXELATED = 4; // times enlarged from which pixels are shown as squares

// Which part of a photo is looked at: `x` and `y` are in the middle, `scale` is screen pixels a pixel.
export class Look {
  constructor(changed) {
    this.changed = changed;
    Object.assign(this, { width: 1, height: 1, scale: 1, x: 0, y: 0, isFitted: true });
  }

  fit(photo, box) {
    Object.assign(this, { width: photo.width || 1, height: photo.height || 1, isFitted: true });
    this.least = Math.min(box.width / this.width, box.height / this.height) * 0.97;
    Object.assign(this, { scale: this.least, x: this.width / 2, y: this.height / 2 });
    this.changed();
  }

  zoom(times, x = this.x, y = this.y) {
    const scale = Math.min(64, Math.max(Math.min(this.least, 1) / 2, this.scale * times));
    const kept = this.scale / scale;
    Object.assign(this, { x: x + (this.x - x) * kept, y: y + (this.y - y) * kept, scale, isFitted: false });
    this.clamp();
  }

  move(x, y) {
    Object.assign(this, { x: this.x - x / this.scale, y: this.y - y / this.scale, isFitted: false });
    this.clamp();
  }

  clamp() {
    this.x = Math.min(this.width, Math.max(0, this.x));
    this.y = Math.min(this.height, Math.max(0, this.y));
    this.changed();
  }
}

export class Pane {
  constructor(viewer, chooser) {
    this.viewer = viewer;
    this.canvas = el("canvas", { tabindex: "-1" });
    this.words = el("p", { class: "words", hidden: true });
    this.node = el("figure", { class: "pane" }, chooser, this.canvas, this.words);
    Object.assign(this, { photo: null, part: null, labels: [], refined: [], doubt: null, show: "label", set: 0 });
    this.wantPart = later(() => this.fetchPart(), 180);
    this.canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.canvas.addEventListener("pointerdown", (event) => this.press(event));
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => viewer.highlight(null));
    this.canvas.addEventListener("dblclick", () => viewer.fit());
    new ResizeObserver(() => viewer.resized()).observe(this.canvas);
  }

  // What the masks on the screen are, to be pointed at.
  get masks() {
    return this.show === "refined" ? this.refined : this.labels;
  }

  setMasks(image, refined) {
    this.labels = pathsOf(image.masks, image.per_pixel);
    const changed = refined?.map((mask, k) => ({ ...image.masks[k], ...mask, path: mask.path }));
    this.refined = changed ? pathsOf(changed, image.per_pixel) : [];
  }

  tell(words) {
    this.words.hidden = !words;
    this.words.textContent = words ?? "";
  }

  box() {
    return { width: this.canvas.clientWidth || 1, height: this.canvas.clientHeight || 1 };
  }

  draw() {
    const { look, opacity } = this.viewer;
    const selected = this.viewer.selectedOf(this.set);
    const ratio = window.devicePixelRatio || 1;
    const { width, height } = this.box();
    const [pixels, lines] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== pixels || this.canvas.height !== lines) Object.assign(this.canvas, { width: pixels, height: lines });
    const pen = this.canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, pixels, lines);
    const scale = look.scale * ratio;
    pen.setTransform(scale, 0, 0, scale, pixels / 2 - look.x * scale, lines / 2 - look.y * scale);
    this.drawPhoto(pen, look);
    const stroke = 1.5 / look.scale;
    const kept = (masks) => masks.filter((mask) => this.viewer.isShown(mask, this.set));
    const told = { stroke, opacity, shown: selected };
    const only = (masks) => (selected === null ? kept(masks) : masks.filter(({ mask }) => mask === selected));
    if (opacity > 0) {
      if (this.show === "label") paintMasks(pen, kept(this.labels), told);
      if (this.show === "refined") paintMasks(pen, kept(this.refined), told);
      if (this.show === "difference") paintDifference(pen, only(this.labels), only(this.refined), told);
      if (this.show === "doubt" && this.doubt) {
        paintDoubt(pen, this.doubt, look.width, look.height, opacity);
        if (selected !== null) paintMasks(pen, only(this.labels), { ...told, filled: false });
      }
    }
    this.drawPrompts(pen, stroke, kept(this.labels));
    this.wantPart();
  }

  drawPhoto(pen, look) {
    pen.fillStyle = "#2a2e34";
    pen.fillRect(0, 0, look.width, look.height);
    if (!this.photo) return;
    pen.imageSmoothingEnabled = look.scale * (look.width / this.photo.width) < PIXELATED;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(this.photo, 0, 0, look.width, look.height);
    if (!this.part) return;
    const { picture, x, y, width, height } = this.part;
    pen.imageSmoothingEnabled = look.scale < PIXELATED;
    pen.drawImage(picture, x, y, width, height);
  }

  drawPrompts(pen, stroke, masks) {
    const { boxes, points } = this.viewer;
    const selected = this.viewer.selectedOf(this.set);
    for (const mask of masks) {
      const isSelected = mask.mask === selected;
      if (boxes || isSelected) paintBox(pen, mask, stroke);
      if (points || isSelected) paintPoint(pen, mask, 1.2 * stroke);
    }
  }

  // Of a photo that is larger than what is sent at once, the part on the screen at its own size.
  async fetchPart() {
    const { look, source, largest } = this.viewer;
    if (!this.photo || this.photo.width >= look.width || look.scale <= this.photo.width / look.width) return;
    const { width, height } = this.box();
    const [x, y] = [Math.max(0, Math.floor(look.x - width / 2 / look.scale)), Math.max(0, Math.floor(look.y - height / 2 / look.scale))];
    const size = [Math.ceil(width / look.scale) + 1, Math.ceil(height / look.scale) + 1].map((side) => Math.min(side, largest));
    const asked = [x, y, Math.min(size[0], look.width - x), Math.min(size[1], look.height - y)];
    const name = asked.join(",");
    if (this.part?.name === name || Math.min(...asked.slice(2)) < 1) return;
    const { named } = this;
    try {
      const { bitmap } = await source.photo(this.set, named, name);
      if (this.named !== named) return;
      this.part = { name, picture: bitmap, x, y, width: asked[2], height: asked[3] };
      this.viewer.draw();
    } catch {
      // what is there stays: the photo as a whole
    }
  }

  at({ clientX, clientY }) {
    const { look } = this.viewer;
    const box = this.canvas.getBoundingClientRect();
    return [look.x + (clientX - box.left - box.width / 2) / look.scale, look.y + (clientY - box.top - box.height / 2) / look.scale];
  }

  wheel(event) {
    event.preventDefault();
    const times = Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.0018));
    this.viewer.look.zoom(times, ...this.at(event));
  }

  press(event) {
    if (event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    let [x, y] = [event.clientX, event.clientY];
    let way = 0;
    const move = (moved) => {
      way += Math.abs(moved.clientX - x) + Math.abs(moved.clientY - y);
      if (way > 3) this.viewer.look.move(moved.clientX - x, moved.clientY - y);
      [x, y] = [moved.clientX, moved.clientY];
    };
    const end = (ended) => {
      this.canvas.removeEventListener("pointermove", move);
      if (way <= 3) this.viewer.choose(this.pointed(ended), this.set);
    };
    this.canvas.addEventListener("pointermove", move);
    this.canvas.addEventListener("pointerup", end, { once: true });
  }

  pointed(event) {
    return maskAt(this.masks.filter((mask) => this.viewer.isShown(mask, this.set)), ...this.at(event));
  }

  point(event) {
    this.viewer.pointAt(...this.at(event));
    if (event.buttons === 0) this.viewer.highlight(this.pointed(event), this.set);
  }
}

