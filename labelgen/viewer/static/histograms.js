// Histograms of the masks' numbers; a range is brushed over the bars, or typed below them.

import { el, short } from "viewer/dom.js";

const TITLES = {
  predicted_iou: "predicted IoU",
  stability: "stability",
  area: "area, pixels",
  mean_u: "mean u",
};
const MOST_BARS = 56;
const HEIGHT = 54;

export class Histogram {
  constructor(scale, state, layers) {
    this.scale = scale;
    this.state = state;
    this.bars = [];
    this.canvas = el("canvas", { height: HEIGHT, role: "img", "aria-label": `Histogram of ${TITLES[scale.name]}` });
    this.least = this.input("least");
    this.most = this.input("most");
    this.clear = el("button", { type: "button", class: "plain", onclick: () => this.choose([null, null]) }, "all");
    this.unknown = el("span", { class: "faint" });
    const hasLayers = scale.name === "mean_u" && layers.length > 1;
    this.node = el(
      "div",
      { class: "histogram", "data-name": scale.name },
      el("div", { class: "head" }, el("b", {}, TITLES[scale.name]), this.unknown, this.clear),
      hasLayers ? this.layers(layers) : null,
      this.canvas,
      el("div", { class: "bounds" }, this.least, el("span", {}, "to"), this.most),
    );
    this.canvas.addEventListener("pointerdown", (event) => this.brush(event));
    this.canvas.addEventListener("dblclick", () => this.choose([null, null]));
  }

  input(which) {
    const change = () => {
      const numbers = [this.least, this.most].map((box) => (box.value.trim() === "" ? null : Number(box.value)));
      if (numbers.every((number) => number === null || Number.isFinite(number))) this.choose(numbers);
    };
    const label = `${which === "least" ? "Least" : "Most"} ${TITLES[this.scale.name]}`;
    return el("input", { type: "text", inputmode: "decimal", "aria-label": label, onchange: change });
  }

  layers(layers) {
    const option = (name) => el("option", { value: name, selected: name === this.state.conditions.layer }, name);
    return el("select", { "aria-label": "Maps", onchange: (event) => this.state.set({ layer: event.target.value }) }, ...layers.map(option));
  }

  choose(bounds) {
    this.state.set({ [this.scale.name]: bounds });
    this.draw();
  }

  // The value at the lower edge of a bar.
  edge(bar) {
    const { lowest, highest, bars, is_log: isLog } = this.scale;
    const at = lowest + (bar * (highest - lowest)) / bars;
    return isLog ? Math.round(2 ** at) : +at.toFixed(4);
  }

  bar(value) {
    const { lowest, highest, bars, is_log: isLog } = this.scale;
    return (((isLog ? Math.log2(Math.max(1, value)) : value) - lowest) * bars) / (highest - lowest);
  }

  show({ all, shown }, masks) {
    const first = all.findIndex((count) => count > 0);
    const last = all.findLastIndex((count) => count > 0);
    const known = all.reduce((sum, count) => sum + count, 0);
    this.unknown.textContent = masks > known ? `${short(masks - known)} unknown` : "";
    this.node.classList.toggle("empty", first < 0 && !this.isBounded());
    const width = Math.max(1, Math.ceil((last - first + 1) / MOST_BARS));
    this.first = Math.max(0, first - width);
    this.width = width;
    this.bars = [];
    if (first >= 0) {
      for (let bar = this.first; bar <= last + width; bar += width) {
        const sum = (counts) => counts.slice(bar, bar + width).reduce((total, count) => total + count, 0);
        this.bars.push([sum(all), sum(shown)]);
      }
    }
    this.draw();
  }

  draw() {
    const ratio = window.devicePixelRatio || 1;
    const width = this.canvas.clientWidth || 240;
    this.canvas.width = width * ratio;
    this.canvas.height = HEIGHT * ratio;
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(this.node);
    const [faint, strong, brushed] = ["--bar", "--accent", "--brush"].map((name) => style.getPropertyValue(name));
    const top = Math.sqrt(Math.max(1, ...this.bars.map(([all]) => all)));
    const step = width / Math.max(1, this.bars.length);
    const [from, to] = this.span();
    if (this.isBounded()) {
      pen.fillStyle = brushed;
      pen.fillRect(from * step, 0, (to - from) * step, HEIGHT);
    }
    this.bars.forEach(([all, shown], k) => {
      for (const [count, colour] of [[all, faint], [shown, strong]]) {
        const height = count ? Math.max(1.5, (Math.sqrt(count) / top) * (HEIGHT - 3)) : 0;
        const isOut = colour === strong && this.isBounded() && (k + 0.5 < from || k + 0.5 > to);
        pen.fillStyle = colour;
        pen.globalAlpha = isOut ? 0.3 : 1;
        pen.fillRect(k * step + 0.5, HEIGHT - height, Math.max(1, step - 1), height);
        pen.globalAlpha = 1;
      }
    });
    const [least, most] = this.state.conditions[this.scale.name];
    if (document.activeElement !== this.least) this.least.value = least ?? "";
    if (document.activeElement !== this.most) this.most.value = most ?? "";
    const edges = this.bars.length ? [this.edge(this.first), this.edge(this.first + this.width * this.bars.length)] : [];
    [this.least.placeholder, this.most.placeholder] = edges.map((edge) => short0(edge, this.scale.is_log));
    this.clear.hidden = !this.isBounded();
  }

  isBounded() {
    return this.state.bounds(this.scale.name);
  }

  // Where the range begins and ends, in bars that are drawn.
  span() {
    const [least, most] = this.state.conditions[this.scale.name];
    const place = (value) => (this.bar(value) - this.first) / this.width;
    return [least === null ? 0 : place(least), most === null ? this.bars.length : place(most)];
  }

  brush(event) {
    if (!this.bars.length || event.button !== 0) return;
    const box = this.canvas.getBoundingClientRect();
    const place = ({ clientX }) =>
      Math.min(this.bars.length, Math.max(0, ((clientX - box.left) / box.width) * this.bars.length));
    const start = place(event);
    this.canvas.setPointerCapture(event.pointerId);
    const move = (moved) => {
      const ends = [start, place(moved)].sort((a, b) => a - b);
      const [from, to] = [Math.floor(ends[0]), Math.ceil(ends[1])];
      const least = from <= 0 ? null : this.edge(this.first + from * this.width);
      const most = to >= this.bars.length ? null : this.edge(this.first + to * this.width);
      this.choose([least, most]);
    };
    const end = (ended) => {
      if (Math.abs(place(ended) - start) < 0.3) this.choose([null, null]);
      this.canvas.removeEventListener("pointermove", move);
    };
    this.canvas.addEventListener("pointermove", move);
    this.canvas.addEventListener("pointerup", end, { once: true });
    this.canvas.addEventListener("pointercancel", end, { once: true });
  }
}

const short0 = (edge, isLog) => (isLog ? short(edge) : String(edge));
