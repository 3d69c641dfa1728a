// The list of a photo's masks, which can be sorted; the one that is pointed at stands out in the panes.

import { colourOf, el, fixed, whole } from "viewer/dom.js";

const COLUMNS = [
  ["mask", "#", String],
  ["predicted_iou", "IoU", fixed],
  ["stability", "stab.", fixed],
  ["area", "area", whole],
  ["mean_u", "u", fixed],
];

export class MaskList {
  constructor(viewer) {
    this.viewer = viewer;
    this.masks = [];
    this.rows = new Map();
    this.by = "mask";
    this.isDown = false;
    this.isPointed = false;
    this.head = el("tr", {}, ...COLUMNS.map(([name, words]) => el("th", { scope: "col" }, el("button", { type: "button", onclick: () => this.sort(name) }, words))), el("th"));
    this.body = el("tbody");
    this.count = el("p", { class: "faint count" });
    this.node = el("div", { class: "masks" }, this.count, el("div", { class: "rows" }, el("table", {}, el("thead", {}, this.head), this.body)));
    this.body.addEventListener("pointerleave", () => this.leave());
  }

  show(masks) {
    this.masks = masks;
    this.rows = new Map(masks.map((mask) => [mask.mask, this.row(mask)]));
    this.fill();
    this.marked();
  }

  row(mask) {
    const swatch = el("i", { class: "swatch" });
    swatch.style.background = colourOf(mask.mask);
    const cells = COLUMNS.map(([name, , words], k) => el("td", {}, k === 0 ? swatch : null, words(mask[name])));
    const reject = el("button", { type: "button", class: "plain", title: "Leave this mask out (r)", "aria-label": `Leave mask ${mask.mask} out`, onclick: () => this.viewer.rejectMask(mask.mask) }, "✕");
    const row = el("tr", { "data-mask": mask.mask }, ...cells, el("td", {}, reject));
    row.addEventListener("pointerenter", () => {
      this.isPointed = true;
      this.viewer.highlight(mask.mask);
    });
    row.addEventListener("click", (event) => event.target !== reject && this.viewer.choose(mask.mask));
    return row;
  }

  leave() {
    this.viewer.highlight(null);
    this.isPointed = false;
  }

  sort(name) {
    this.isDown = this.by === name ? !this.isDown : name !== "mask";
    this.by = name;
    this.fill();
  }

  sorted() {
    const value = (mask) => mask[this.by] ?? -Infinity;
    const sign = this.isDown ? -1 : 1;
    return [...this.masks].sort((a, b) => sign * (value(a) - value(b)) || a.mask - b.mask);
  }

  order() {
    return this.sorted().filter((mask) => this.viewer.isShown(mask, this.viewer.listed)).map(({ mask }) => mask);
  }

  fill() {
    this.body.replaceChildren(...this.sorted().map(({ mask }) => this.rows.get(mask)));
    [...this.head.cells].forEach((cell, k) => {
      const isSorted = COLUMNS[k]?.[0] === this.by;
      cell.setAttribute("aria-sort", isSorted ? (this.isDown ? "descending" : "ascending") : "none");
    });
    const met = this.masks.filter((mask) => mask.meets !== false).length;
    const all = this.masks.length;
    this.count.textContent = met === all ? `${whole(all)} mask${all === 1 ? "" : "s"}` : `${whole(met)} of ${whole(all)} masks meet the filter`;
  }

  select(mask, scrollTo) {
    for (const [number, row] of this.rows) row.classList.toggle("selected", number === mask);
    if (scrollTo !== null) this.scrollTo(scrollTo);
  }

  scrollTo(mask) {
    this.rows.get(mask)?.scrollIntoView({ block: "nearest" });
  }

  marked() {
    const { entry, state } = this.viewer;
    for (const mask of this.masks) {
      const row = this.rows.get(mask.mask);
      row.classList.toggle("out", mask.meets === false);
      row.classList.toggle("rejected", Boolean(entry) && this.viewer.listed === 0 && state.isRejected(entry, mask.mask));
    }
  }
}
