// What is asked for and what is marked; whoever shows it listens to "conditions" and "marks".

const ANY = [null, null];
export const RANGES = ["predicted_iou", "stability", "area", "mean_u"];

export class State extends EventTarget {
  constructor(about, layer) {
    super();
    this.name = `labelgen view ${about.id}`;
    this.conditions = { layer, patterns: [], kinds: [] };
    for (const name of RANGES) this.conditions[name] = ANY;
    this.order = "set";
    this.what = "masks";
    this.side = 200;
    this.photos = new Map(); // "unit/index" -> "picked" or "rejected"
    this.masks = new Set(); // "unit/index/mask", rejected
    this.restore();
    if (!about.layers.includes(this.conditions.layer)) this.conditions.layer = layer;
  }

  get asked() {
    return JSON.stringify(this.conditions);
  }

  get isFiltered() {
    const { patterns, kinds } = this.conditions;
    return patterns.length + kinds.length > 0 || RANGES.some((name) => this.bounds(name));
  }

  bounds(name) {
    const [least, most] = this.conditions[name];
    return least !== null || most !== null;
  }

  set(changed) {
    const before = `${this.asked} ${this.order} ${this.what}`;
    for (const [name, value] of Object.entries(changed)) {
      if (name in this.conditions) this.conditions[name] = value;
      else this[name] = value;
    }
    this.keep();
    if (before !== `${this.asked} ${this.order} ${this.what}`) this.dispatchEvent(new Event("conditions"));
  }

  clear() {
    const none = Object.fromEntries(RANGES.map((name) => [name, ANY]));
    this.set({ ...none, patterns: [], kinds: [] });
  }

  // Text as it is typed: without * or ? it may stand anywhere in a key.
  setPattern(text) {
    const words = text.trim().split(/\s+/).filter(Boolean);
    this.set({ patterns: words.map((word) => (/[*?[]/.test(word) ? word : `*${word}*`)) });
  }

  markOf({ unit, index }) {
    return this.photos.get(`${unit}/${index}`);
  }

  mark({ unit, index }, mark) {
    const name = `${unit}/${index}`;
    if (this.photos.get(name) === mark) this.photos.delete(name);
    else this.photos.set(name, mark);
    this.marked();
  }

  isRejected({ unit, index }, mask) {
    return this.masks.has(`${unit}/${index}/${mask}`);
  }

  rejectMask({ unit, index }, mask) {
    const name = `${unit}/${index}/${mask}`;
    if (!this.masks.delete(name)) this.masks.add(name);
    this.marked();
  }

  marked() {
    this.keep();
    this.dispatchEvent(new Event("marks"));
  }

  unmark() {
    this.photos.clear();
    this.masks.clear();
    this.marked();
  }

  photosMarked(mark) {
    return [...this.photos].filter(([, is]) => is === mark).map(([name]) => name.split("/").map(Number));
  }

  masksRejected() {
    return [...this.masks].map((name) => name.split("/").map(Number));
  }

  keep() {
    const { order, what, side } = this;
    const told = { conditions: this.conditions, order, what, side, photos: [...this.photos], masks: [...this.masks] };
    try {
      sessionStorage.setItem(this.name, JSON.stringify(told));
    } catch {
      // a browser that keeps nothing: marks live as long as the page
    }
  }

  restore() {
    try {
      const told = JSON.parse(sessionStorage.getItem(this.name) ?? "null");
      if (!told) return;
      Object.assign(this.conditions, told.conditions);
      Object.assign(this, { order: told.order, what: told.what, side: told.side });
      this.photos = new Map(told.photos);
      this.masks = new Set(told.masks);
    } catch {
      // what another version kept
    }
  }
}
