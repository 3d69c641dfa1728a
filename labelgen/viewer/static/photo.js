// A photo opened large: one or two panes, each with a layer, and the list of its masks.

import { byId, el, fixed, whole } from "viewer/dom.js";
import { Look, Pane } from "viewer/pane.js";
import { MaskList } from "viewer/masks.js";

const SHOWS = [
  ["photo", "photo"],
  ["label", "label"],
  ["refined", "refined"],
  ["doubt", "uncertainty"],
  ["difference", "difference"],
];

export class PhotoView {
  constructor(source, state, about, grid) {
    Object.assign(this, { source, state, about, grid, largest: about.largest_side ?? 2048 });
    // `hovered` and `locked` are masks as { set, mask }: two sets have masks of the same numbers
    Object.assign(this, { place: -1, entry: null, hovered: null, locked: null, opacity: 1 });
    Object.assign(this, { boxes: false, points: false, onlyMet: true, ask: 0 });
    this.look = new Look(() => this.draw());
    this.node = byId("photo");
    this.list = new MaskList(this);
    this.panes = [this.makePane(), this.makePane()];
    this.panes[0].show = "label";
    this.panes[1].show = this.shows(0).includes("doubt") ? "doubt" : "photo";
    if (about.sets.length > 1) Object.assign(this.panes[1], { set: 1, show: "label" });
    this.split = about.sets.length > 1;
    this.build();
    state.addEventListener("marks", () => this.marked());
  }

  shows(set) {
    const { layers, refined } = this.about.sets[set];
    const has = { photo: true, label: true, refined: refined.length, doubt: layers.length, difference: refined.length };
    return SHOWS.map(([name]) => name).filter((name) => has[name]);
  }

  makePane() {
    const set = el("select", { "aria-label": "Set", onchange: () => this.changePane(pane, { set: Number(set.value) }) });
    const show = el("select", { "aria-label": "Layer", class: "show", onchange: () => this.changePane(pane, { show: show.value }) });
    const layer = el("select", { "aria-label": "Maps", onchange: () => this.changePane(pane, { layer: layer.value }) });
    const pane = new Pane(this, el("figcaption", {}, set, show, layer));
    Object.assign(pane, { choosers: { set, show, layer }, layer: this.about.sets[0].layer });
    return pane;
  }

  build() {
    const button = (words, title, act, attributes = {}) =>
      el("button", { type: "button", title, onclick: act, ...attributes }, words);
    const toggle = (words, title, name) => {
      const box = el("input", { type: "checkbox", onchange: () => this.toggle(name, box.checked) });
      box.dataset.toggle = name;
      return el("label", { title, class: "toggle" }, box, words);
    };
    this.slider = el("input", { type: "range", min: 0, max: 1, step: 0.05, value: 1, oninput: () => this.setOpacity(Number(this.slider.value)) });
    this.name = el("b");
    this.facts = el("span", { class: "faint" });
    this.pick = button("pick", "Pick this photo (s)", () => this.mark("picked"), { class: "mark" });
    this.reject = button("reject", "Reject this photo (x)", () => this.mark("rejected"), { class: "mark" });
    this.status = el("div", { class: "status" });
    const bar = el(
      "div",
      { class: "bar" },
      button("‹", "Photo before (←)", () => this.step(-1), { "aria-label": "Photo before" }),
      button("›", "Next photo (→)", () => this.step(1), { "aria-label": "Next photo" }),
      el("div", { class: "name" }, this.name, this.facts),
      this.pick,
      this.reject,
      el("label", { class: "toggle", title: "How strong the layer is ([ and ])" }, "layer", this.slider),
      toggle("boxes", "The box of each mask (b)", "boxes"),
      toggle("points", "The point that each mask was found by (o)", "points"),
      toggle("only filtered", "Only masks that meet the filter (f)", "onlyMet"),
      toggle("two", "Two layers, or two sets, side by side (d)", "split"),
      button("fit", "The whole photo (0)", () => this.fit()),
      button("✕", "Back to the grid (Esc)", () => this.close(), { "aria-label": "Back to the grid", class: "close" }),
    );
    this.around = el("div", { class: "panes" }, ...this.panes.map((pane) => pane.node));
    this.node.append(bar, el("div", { class: "body" }, this.around, this.list.node), this.status);
  }

  get isOpen() {
    return !this.node.hidden;
  }

  async open(place) {
    const ask = (this.ask += 1);
    this.node.hidden = false;
    this.place = place;
    const entry = await this.grid.whenKnown(place);
    if (ask !== this.ask) return;
    Object.assign(this, { entry, hovered: null, locked: null });
    this.name.textContent = entry.key;
    history.replaceState(null, "", `#${entry.unit}/${entry.index}`);
    this.marked();
    this.facts.textContent = `${whole(place + 1)} of ${whole(this.grid.count)}`;
    this.split ? this.node.classList.add("two") : this.node.classList.remove("two");
    this.list.show([]);
    this.refreshChoosers();
    await Promise.all(this.shownPanes().map((pane) => this.load(pane, ask, true)));
  }

  shownPanes() {
    return this.split ? this.panes : this.panes.slice(0, 1);
  }

  // Fetch what a pane shows: photo, masks and, if its layer needs them, maps.
  async load(pane, ask, isNew) {
    const isFirst = pane === this.panes[0];
    const problems = [];
    const attempt = async (asked) => {
      try {
        return await asked();
      } catch (error) {
        problems.push(error.message);
        return null;
      }
    };
    if (isNew) Object.assign(pane, { photo: null, part: null, doubt: null, doubtOf: null, labels: [], refined: [], image: null });
    const named = pane.set === 0 ? this.entry : await attempt(() => this.source.beside(pane.set, this.entry));
    if (ask !== this.ask) return;
    pane.named = named;
    if (!named) {
      pane.tell(problems[0] ?? "This photo is not in the other set, or has not been read there yet.");
      this.draw();
      return;
    }
    if (!pane.image) pane.image = await attempt(() => this.source.image(pane.set, named, this.state.asked));
    if (ask !== this.ask) return;
    if (pane.image && isNew && isFirst) this.look.fit(pane.image, pane.box());
    if (pane.image) await this.loadMasks(pane, named, attempt);
    if (ask !== this.ask) return;
    const masks = pane.image?.masks ?? [];
    if (isFirst && this.list.masks !== masks) this.list.show(masks);
    this.draw();
    const photo = pane.photo ? null : await attempt(() => this.source.photo(pane.set, named));
    if (ask !== this.ask) return;
    if (photo) pane.photo = photo.bitmap;
    if (photo?.note) problems.push(photo.note);
    pane.tell([pane.image?.error, ...problems].filter(Boolean).join(" "));
    this.draw();
  }

  async loadMasks(pane, named, attempt) {
    const needsRefined = ["refined", "difference"].includes(pane.show);
    const refined = needsRefined ? await attempt(() => this.source.refined(pane.set, named, pane.layer)) : null;
    pane.setMasks(pane.image, refined);
    if (pane.show === "doubt") await this.loadDoubt(pane, named, attempt);
  }

  async loadDoubt(pane, named, attempt) {
    const mask = this.locked?.set === pane.set ? this.locked.mask : null;
    const name = `${pane.layer} ${named.unit} ${named.index} ${mask}`;
    if (pane.doubtOf === name) return;
    const doubt = await attempt(() => this.source.doubt(pane.set, named, pane.layer, mask));
    Object.assign(pane, { doubt, doubtOf: name });
  }

  changePane(pane, changed) {
    const isOther = "set" in changed && changed.set !== pane.set;
    Object.assign(pane, changed);
    if (isOther) pane.layer = this.about.sets[pane.set].layer;
    this.refreshChoosers();
    this.load(pane, this.ask, isOther);
  }

  refreshChoosers() {
    for (const pane of this.panes) {
      const { set, show, layer } = pane.choosers;
      const fill = (node, options, value) => {
        node.replaceChildren(...options.map(([is, words]) => el("option", { value: is, selected: String(is) === String(value) }, words)));
        node.hidden = options.length < 2;
      };
      fill(set, this.about.sets.map(({ name }, k) => [k, name]), pane.set);
      const names = this.shows(pane.set);
      if (!names.includes(pane.show)) pane.show = "label";
      fill(show, SHOWS.filter(([name]) => names.includes(name)), pane.show);
      const needsRefined = ["refined", "difference"].includes(pane.show);
      const { layers, refined } = this.about.sets[pane.set];
      const offered = needsRefined ? refined : pane.show === "doubt" ? layers : [];
      if (offered.length && !offered.includes(pane.layer)) [pane.layer] = offered;
      fill(layer, offered.map((name) => [name, name]), pane.layer);
    }
    for (const box of this.node.querySelectorAll("[data-toggle]")) box.checked = this[box.dataset.toggle];
  }

  isShown(mask, set) {
    if (!this.onlyMet) return true;
    return mask.meets !== false && !(set === 0 && this.entry && this.state.isRejected(this.entry, mask.mask));
  }

  // The mask of a set that stands out, or null.
  selectedOf(set) {
    const selected = this.hovered ?? this.locked;
    return selected?.set === set ? selected.mask : null;
  }

  get listed() {
    return this.panes[0].set;
  }

  highlight(mask, set = this.listed) {
    if ((this.hovered?.mask ?? null) === mask && (mask === null || this.hovered.set === set)) return;
    this.hovered = mask === null ? null : { set, mask };
    this.select();
  }

  choose(mask, set = this.listed) {
    const isSame = mask === null || (this.locked?.mask === mask && this.locked.set === set);
    this.locked = isSame ? null : { set, mask };
    this.select();
    for (const pane of this.shownPanes()) {
      if (pane.show === "doubt" && pane.named && pane.image) this.load(pane, this.ask, false);
    }
  }

  select() {
    const selected = this.selectedOf(this.listed);
    this.list.select(selected, this.hovered === null || this.list.isPointed ? null : selected);
    this.draw();
  }

  stepMask(way) {
    const masks = this.list.order();
    if (!masks.length) return;
    const at = this.locked?.set === this.listed ? masks.indexOf(this.locked.mask) : -1;
    Object.assign(this, { hovered: null, locked: null });
    this.choose(masks[at < 0 ? (way > 0 ? 0 : masks.length - 1) : (at + way + masks.length) % masks.length]);
    this.list.scrollTo(this.locked.mask);
  }

  step(way) {
    const place = this.place + way;
    if (place >= 0 && place < this.grid.count) this.open(place);
  }

  mark(mark) {
    if (this.entry) this.state.mark(this.entry, mark);
  }

  marked() {
    if (!this.isOpen || !this.entry) return;
    const mark = this.state.markOf(this.entry);
    this.pick.setAttribute("aria-pressed", mark === "picked");
    this.reject.setAttribute("aria-pressed", mark === "rejected");
    this.list.marked();
    this.draw();
  }

  rejectMask(mask) {
    if (mask !== null && this.entry && this.listed === 0) this.state.rejectMask(this.entry, mask);
  }

  setOpacity(opacity) {
    this.opacity = Math.min(1, Math.max(0, opacity));
    this.slider.value = this.opacity;
    this.draw();
  }

  toggle(name, value = !this[name]) {
    this[name] = value;
    this.refreshChoosers();
    if (name === "split") {
      this.node.classList.toggle("two", value);
      if (value) this.load(this.panes[1], this.ask, true);
    }
    this.list.marked();
    this.draw();
  }

  fit() {
    this.look.fit(this.panes[0].image ?? { width: 1, height: 1 }, this.panes[0].box());
  }

  resized() {
    if (!this.isOpen) return;
    if (this.look.isFitted && this.panes[0].image) this.fit();
    else this.draw();
  }

  pointAt(x, y) {
    const { look } = this;
    const isIn = x >= 0 && y >= 0 && x < look.width && y < look.height;
    this.tell(isIn ? `${Math.floor(x)}, ${Math.floor(y)}` : "");
  }

  tell(where = "") {
    const mask = this.panes[0].image?.masks.find((each) => each.mask === this.selectedOf(this.listed));
    const told = mask ? `mask ${mask.mask}  ·  predicted IoU ${fixed(mask.predicted_iou)}  ·  stability ${fixed(mask.stability)}  ·  ${whole(mask.area)} pixels  ·  mean u ${fixed(mask.mean_u)}` : "";
    const { look } = this;
    const place = this.panes[0].image?.place ?? "";
    this.status.replaceChildren(
      el("span", {}, `${look.width} × ${look.height}  ·  ${Math.round(100 * look.scale)} %`),
      el("span", {}, where),
      el("span", { class: "told" }, told),
      el("span", { class: "faint place", title: place }, place),
    );
  }

  draw() {
    if (this.drawing || !this.isOpen) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      for (const pane of this.shownPanes()) pane.draw();
      this.tell();
    });
  }

  close() {
    this.ask += 1;
    this.node.hidden = true;
    history.replaceState(null, "", location.pathname + location.search);
    this.grid.focus(this.place);
    this.grid.node.focus();
  }

  key(event) {
    const acts = {
      Escape: () => (this.locked === null ? this.close() : this.choose(null)),
      ArrowLeft: () => this.step(-1),
      ArrowRight: () => this.step(1),
      ArrowUp: () => this.stepMask(-1),
      ArrowDown: () => this.stepMask(1),
      "+": () => this.look.zoom(1.4),
      "=": () => this.look.zoom(1.4),
      "-": () => this.look.zoom(1 / 1.4),
      0: () => this.fit(),
      "[": () => this.setOpacity(this.opacity - 0.1),
      "]": () => this.setOpacity(this.opacity + 0.1),
      b: () => this.toggle("boxes"),
      o: () => this.toggle("points"),
      f: () => this.toggle("onlyMet"),
      d: () => this.toggle("split"),
      s: () => this.mark("picked"),
      x: () => this.mark("rejected"),
      r: () => this.rejectMask(this.selectedOf(this.listed)),
    };
    this.shows(this.panes[0].set).forEach((name, k) => {
      acts[String(k + 1)] = () => this.changePane(this.panes[0], { show: name });
    });
    if (!(event.key in acts)) return;
    event.preventDefault();
    acts[event.key]();
  }
}
