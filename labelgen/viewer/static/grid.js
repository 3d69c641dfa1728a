// The photos as a grid of which only the rows on the screen are there.

import { el, fixed, later, whole } from "viewer/dom.js";

const CHUNK = 60;
const CAPTION = 40;
const GAP = 10;
const TALLEST = 8_000_000; // pixels that an element may be high in every browser
const SPARE_ROWS = 2;
const MOST_LOADING = 4;

export class Grid {
  constructor(node, source, state, open) {
    Object.assign(this, { node, source, state, open });
    this.space = node.querySelector("#space");
    this.nothing = node.querySelector("#nothing");
    this.count = 0;
    this.focused = -1;
    this.offset = 0; // of the list, in pixels: the scroll position, if the list is not too tall for that
    this.chunks = new Map();
    this.tiles = new Map();
    this.ask = 0;
    this.loading = new Set();
    this.waiting = [];
    this.wants = later(() => this.fetchPictures(), 60);
    node.addEventListener("scroll", () => this.scrolled());
    node.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    node.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.layout()).observe(node);
  }

  // Forget what was listed: the conditions are others, or more is known.
  reset(count, { isNew }) {
    this.ask += 1;
    this.chunks.clear();
    this.count = count;
    if (isNew) {
      this.focused = -1;
      this.offset = 0;
      this.node.scrollTop = 0;
      for (const tile of this.tiles.values()) this.drop(tile);
      this.tiles.clear();
    }
    this.nothing.hidden = count > 0;
    this.layout();
  }

  layout() {
    const inner = this.node.clientWidth - 2 * GAP;
    this.columns = Math.max(1, Math.floor((inner + GAP) / (this.state.side + GAP)));
    this.tileWidth = Math.floor((inner + GAP) / this.columns) - GAP;
    this.rowHeight = Math.round(this.tileWidth * 0.75) + CAPTION + GAP;
    this.tall = Math.ceil(this.count / this.columns) * this.rowHeight + 2 * GAP;
    this.space.style.height = `${Math.min(this.tall, TALLEST)}px`;
    this.scrolled();
  }

  get most() {
    return Math.max(0, this.tall - this.node.clientHeight);
  }

  // How many pixels of the list one of the scroll bar stands for.
  get ratio() {
    const most = this.node.scrollHeight - this.node.clientHeight;
    return most > 0 ? this.most / most : 1;
  }

  scrolled() {
    if (this.isTall() && Math.abs(this.node.scrollTop * this.ratio - this.offset) < this.ratio) this.draw();
    else {
      this.offset = this.node.scrollTop * (this.isTall() ? this.ratio : 1);
      this.draw();
    }
  }

  isTall() {
    return this.tall > TALLEST;
  }

  wheel(event) {
    if (!this.isTall() || event.ctrlKey) return;
    event.preventDefault();
    this.moveTo(this.offset + event.deltaY * (event.deltaMode === 1 ? 40 : 1));
  }

  moveTo(offset) {
    this.offset = Math.min(this.most, Math.max(0, offset));
    this.node.scrollTop = this.offset / (this.isTall() ? this.ratio : 1);
    this.draw();
  }

  draw() {
    const rows = Math.ceil(this.node.clientHeight / this.rowHeight);
    const first = Math.floor(this.offset / this.rowHeight);
    const start = Math.max(0, (first - SPARE_ROWS) * this.columns);
    const end = Math.min(this.count, (first + rows + 1 + SPARE_ROWS) * this.columns);
    for (const [place, tile] of this.tiles) {
      if (place < start || place >= end) {
        this.drop(tile);
        this.tiles.delete(place);
      }
    }
    for (let place = start; place < end; place += 1) {
      const tile = this.tiles.get(place) ?? this.make(place);
      const top = Math.floor(place / this.columns) * this.rowHeight + GAP - this.offset + this.node.scrollTop;
      const left = (place % this.columns) * (this.tileWidth + GAP) + GAP;
      tile.node.style.transform = `translate(${left}px, ${top}px)`;
      tile.node.style.width = `${this.tileWidth}px`;
      tile.node.style.height = `${this.rowHeight - GAP}px`;
      this.fill(tile, place);
    }
    this.wants();
  }

  make(place) {
    const picture = el("img", { alt: "", draggable: "false", decoding: "async" });
    const [name, facts, trouble] = [el("b"), el("span"), el("p", { class: "trouble", hidden: true })];
    const open = () => {
      this.focus(place);
      this.open(place);
    };
    const node = el("div", { class: "tile", role: "option", "data-place": place, onclick: open }, el("div", { class: "frame" }, picture, trouble), el("div", { class: "caption" }, name, facts));
    const tile = { node, picture, name, facts, trouble, entry: null, wanted: null };
    this.tiles.set(place, tile);
    this.space.append(node);
    return tile;
  }

  // What the server told of a place of the list; undefined until it has.
  entry(place) {
    const number = Math.floor(place / CHUNK);
    if (!this.chunks.has(number)) this.load(number);
    return this.chunks.get(number)?.[place - number * CHUNK];
  }

  async load(number) {
    const { ask } = this;
    this.chunks.set(number, []);
    try {
      const told = await this.source.entries(this.state.asked, this.state.order, number * CHUNK, CHUNK);
      if (ask !== this.ask) return;
      this.chunks.set(number, told.entries);
      this.draw();
    } catch (error) {
      if (ask === this.ask) this.node.dispatchEvent(new CustomEvent("trouble", { detail: error.message }));
    }
  }

  async whenKnown(place) {
    for (let tries = 0; tries < 200; tries += 1) {
      const entry = this.entry(place);
      if (entry) return entry;
      await new Promise((go) => setTimeout(go, 25));
    }
    throw new Error("The list of photos does not come.");
  }

  fill(tile, place) {
    const entry = this.entry(place);
    tile.node.classList.toggle("focused", place === this.focused);
    if (!entry) return;
    const mark = this.state.markOf(entry) ?? "";
    tile.node.dataset.mark = mark;
    if (tile.entry === entry) return;
    tile.entry = entry;
    tile.node.title = entry.key;
    tile.name.textContent = entry.key;
    tile.facts.textContent = entry.problem || entry.error ? "" : factsOf(entry);
    this.setTrouble(tile, entry.problem ?? entry.error);
  }

  setTrouble(tile, words) {
    tile.trouble.hidden = !words;
    tile.trouble.textContent = words ?? "";
    tile.node.classList.toggle("broken", Boolean(words));
  }

  // Pictures that tiles on the screen lack are loaded, a few at a time: a browser lets other questions wait for more.
  fetchPictures() {
    const side = Math.ceil(this.tileWidth * Math.min(2, window.devicePixelRatio || 1));
    this.waiting = [];
    for (const [place, tile] of this.tiles) {
      const { entry } = tile;
      if (!entry || entry.problem || entry.error) continue;
      const name = `${entry.unit}/${entry.index} ${this.state.what} ${this.state.asked} ${side}`;
      if (tile.wanted !== name) this.waiting.push({ place, tile, name, side });
    }
    this.waiting.sort((a, b) => a.place - b.place);
    this.fetchNext();
  }

  fetchNext() {
    while (this.loading.size < MOST_LOADING && this.waiting.length) {
      const { tile, name, side } = this.waiting.shift();
      tile.wanted = name;
      this.loading.add(tile);
      this.fetchPicture(tile, side);
    }
  }

  async fetchPicture(tile, side) {
    const name = tile.wanted;
    const address = await this.source.tile(tile.entry, this.state.what, this.state.asked, side);
    if (tile.wanted !== name || !tile.node.isConnected) {
      this.loaded(tile);
      return;
    }
    tile.picture.onload = () => {
      this.setTrouble(tile, null);
      this.loaded(tile);
    };
    tile.picture.onerror = async () => {
      this.loaded(tile);
      this.setTrouble(tile, await this.source.whyNot(address));
    };
    tile.picture.src = address;
  }

  loaded(tile) {
    this.loading.delete(tile);
    this.fetchNext();
  }

  drop(tile) {
    tile.node.remove();
    tile.wanted = null;
    tile.picture.removeAttribute("src");
    this.loading.delete(tile);
  }

  focus(place) {
    this.focused = Math.min(this.count - 1, Math.max(0, place));
    const top = Math.floor(this.focused / this.columns) * this.rowHeight;
    if (top < this.offset) this.moveTo(top);
    const bottom = top + this.rowHeight + 2 * GAP;
    if (bottom > this.offset + this.node.clientHeight) this.moveTo(bottom - this.node.clientHeight);
    this.draw();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.count) return;
    const page = Math.max(1, Math.floor(this.node.clientHeight / this.rowHeight)) * this.columns;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns, PageDown: page, PageUp: -page };
    const ends = { Home: 0, End: this.count - 1 };
    const at = Math.max(0, this.focused);
    if (event.key in steps) this.focus(this.focused < 0 ? 0 : at + steps[event.key]);
    else if (event.key in ends) this.focus(ends[event.key]);
    else if (event.key === "Enter" && this.focused >= 0) this.open(this.focused);
    else if ("sx".includes(event.key) && this.focused >= 0) this.markFocused(event.key);
    else return;
    event.preventDefault();
  }

  markFocused(key) {
    const entry = this.entry(this.focused);
    if (entry) this.state.mark(entry, key === "s" ? "picked" : "rejected");
  }
}

function factsOf(entry) {
  if (!entry.masks) return "no masks";
  const masks = entry.shown === entry.masks ? whole(entry.masks) : `${whole(entry.shown)} of ${whole(entry.masks)}`;
  const doubt = entry.mean_u === null ? "" : `  ·  u ${fixed(entry.mean_u)}`;
  return `${masks} mask${entry.masks === 1 ? "" : "s"}${doubt}`;
}
