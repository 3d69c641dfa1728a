// The page: what it shows comes from the server, or from the page itself if it is a file of its own.

import { byId, el, later, plural, whole } from "viewer/dom.js";
import { Embedded } from "viewer/embedded.js";
import { Grid } from "viewer/grid.js";
import { Histogram } from "viewer/histograms.js";
import { PhotoView } from "viewer/photo.js";
import { Served } from "viewer/served.js";
import { State } from "viewer/state.js";
import { showKeys, showSave } from "viewer/dialogs.js";

const ORDERS = {
  set: "as in the set",
  doubt: "most doubtful first",
  certain: "most certain first",
  most: "most masks first",
  fewest: "fewest masks first",
};
const READING = 700; // milliseconds until the page asks again how far reading is
const GROWING = 8000;

class Page {
  async start() {
    const embedded = byId("embedded");
    this.source = embedded ? new Embedded(JSON.parse(embedded.textContent)) : new Served();
    this.about = await this.source.about();
    const [first] = this.about.sets;
    this.state = new State(first, first.layer);
    byId("name").textContent = this.about.sets.map(({ name }) => name).join("  |  ");
    document.title = `${first.name} – labelgen`;
    this.grid = new Grid(byId("grid"), this.source, this.state, (place) => this.view.open(place));
    this.view = new PhotoView(this.source, this.state, this.about, this.grid);
    this.histograms = this.about.scales.map((scale) => new Histogram(scale, this.state, first.layers));
    byId("histograms").append(...this.histograms.map(({ node }) => node));
    this.fillChoices();
    this.fillAbout();
    this.listen();
    await this.refresh(true);
    await this.openNamed();
  }

  fillChoices() {
    const { order, what, side } = this.state;
    const orders = Object.entries(ORDERS).filter(([name]) => this.about.orders.includes(name));
    byId("order").append(...orders.map(([name, words]) => el("option", { value: name, selected: name === order }, words)));
    if (!this.about.sets[0].layers.length) byId("what").lastElementChild.remove();
    byId("what").value = what;
    if (!byId("what").value) byId("what").value = this.state.what = "masks";
    byId("side").value = side;
    byId("pattern").value = this.state.conditions.patterns.map((pattern) => pattern.replace(/^\*([^*?[]+)\*$/, "$1")).join(" ");
  }

  fillAbout() {
    const list = byId("about").querySelector("dl");
    for (const set of this.about.sets) {
      const facts = { set: set.url, "labelled by": set.sam.model_type, weights: set.sam.sha256?.slice(0, 12), ...set.settings };
      if (set.selection_of.length) facts["a selection of"] = set.selection_of.join(", ");
      for (const [name, value] of Object.entries(facts)) list.append(el("dt", {}, name), el("dd", {}, String(value)));
    }
  }

  listen() {
    const { state } = this;
    byId("pattern").addEventListener("input", later(() => state.setPattern(byId("pattern").value), 150));
    byId("what").addEventListener("change", (event) => state.set({ what: event.target.value }));
    byId("order").addEventListener("change", (event) => state.set({ order: event.target.value }));
    byId("side").addEventListener("input", (event) => {
      state.set({ side: Number(event.target.value) });
      this.grid.layout();
    });
    byId("save").addEventListener("click", () => this.save());
    byId("help").addEventListener("click", showKeys);
    byId("grid").addEventListener("trouble", (event) => this.trouble(event.detail));
    state.addEventListener("conditions", later(() => this.refresh(true), 40));
    state.addEventListener("marks", () => {
      this.grid.draw();
      this.showChosen();
    });
    document.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("resize", () => this.histograms.forEach((each) => each.draw()));
  }

  save() {
    if (this.facts) showSave(this.source, this.state, this.about, this.facts);
  }

  key(event) {
    if ((event.ctrlKey || event.metaKey) && event.key === "s") {
      event.preventDefault();
      this.save();
      return;
    }
    const isTyping = event.target.matches("input[type=text], input[type=search], textarea");
    if (isTyping || byId("dialog").open || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "?") showKeys();
    else if (this.view.isOpen) {
      if (!event.target.matches("select")) this.view.key(event);
    } else if (event.key === "/") {
      event.preventDefault();
      byId("pattern").focus();
    } else if (!event.target.matches("select, input, button, summary") && !byId("grid").contains(event.target)) {
      this.grid.key(event);
    }
  }

  // Ask how many photos and masks there are; `isNew` when the list is another one.
  async refresh(isNew) {
    clearTimeout(this.timer);
    const asked = this.state.asked;
    let facts;
    try {
      facts = await this.source.summary(asked);
    } catch (error) {
      this.trouble(error.message);
      this.timer = setTimeout(() => this.refresh(isNew), GROWING);
      return;
    }
    if (asked !== this.state.asked) return;
    const before = this.facts;
    this.facts = facts;
    this.problem = null;
    if (isNew || before?.photos !== facts.photos || before?.progress?.revision !== facts.progress?.revision) {
      this.grid.reset(facts.photos, { isNew });
    }
    this.show(facts);
    if (!facts.progress) return;
    const { read, committed, problems, is_growing: isGrowing } = facts.progress;
    const isReading = read + problems.length < committed;
    if (isReading || isGrowing) this.timer = setTimeout(() => this.refresh(false), isReading ? READING : GROWING);
  }

  show(facts) {
    const { progress } = facts;
    const masks = this.state.isFiltered ? `${whole(facts.masks)} of ${plural(facts.masks_read, "mask")}` : plural(facts.masks_read, "mask");
    byId("counts").textContent = `${plural(facts.photos, "photo")}  ·  ${masks}`;
    for (const each of this.histograms) each.show(facts.histograms[each.scale.name], facts.masks_read);
    const share = progress && progress.committed ? (progress.read + progress.problems.length) / progress.committed : 1;
    byId("progress").firstElementChild.style.width = `${100 * share}%`;
    byId("progress").classList.toggle("done", share >= 1);
    this.showNotes(progress, share);
    this.showKinds(facts.kinds);
    this.showChosen();
  }

  showNotes(progress, share) {
    const notes = [];
    if (this.problem) notes.push(el("p", { class: "bad" }, this.problem));
    if (progress && share < 1) {
      const reading = `Reading manifests: ${whole(progress.read)} of ${whole(progress.committed)} units. Numbers and filters are of these.`;
      notes.push(el("p", { class: "faint" }, reading));
    }
    if (progress?.is_growing) {
      const planned = progress.is_planned ? "" : " so far";
      notes.push(el("p", { class: "note" }, `${whole(progress.committed)} of ${whole(progress.units)} units${planned} are labelled. New ones appear as they come.`));
    }
    if (progress?.problems.length) {
      const { problems } = progress;
      const words = `${plural(problems.length, "unit")} cannot be read`;
      notes.push(el("details", { class: "bad" }, el("summary", {}, words), ...problems.slice(0, 20).map((each) => el("p", {}, each))));
    }
    byId("notes").replaceChildren(...notes);
  }

  showKinds(kinds) {
    const names = Object.keys(kinds).sort((a, b) => kinds[b] - kinds[a]);
    const chosen = this.state.conditions.kinds;
    const toggle = (name) => {
      const others = chosen.includes(name) ? chosen.filter((each) => each !== name) : [...chosen, name];
      this.state.set({ kinds: others.length === names.length ? [] : others.sort() });
    };
    const rows = names.map((name) => {
      const box = el("input", { type: "checkbox", checked: chosen.includes(name), onchange: () => toggle(name) });
      return el("label", { class: "kind" }, box, el("span", {}, name), el("span", { class: "faint" }, whole(kinds[name])));
    });
    byId("kinds").replaceChildren(el("div", { class: "head" }, el("b", {}, "photos")), ...(names.length > 1 || chosen.length ? rows : rows.slice(0, 0)));
    byId("kinds").hidden = names.length < 2 && !chosen.length;
  }

  showChosen() {
    const { state } = this;
    const counts = [
      [state.photosMarked("picked").length, "photo", "picked"],
      [state.photosMarked("rejected").length, "photo", "rejected"],
      [state.masksRejected().length, "mask", "left out"],
    ].filter(([count]) => count);
    const parts = counts.map(([count, word, how]) => el("p", {}, `${plural(count, word)} ${how}`));
    if (parts.length) parts.push(el("button", { type: "button", class: "plain", onclick: () => state.unmark() }, "forget marks"));
    const clear = () => {
      byId("pattern").value = "";
      state.clear();
    };
    if (state.isFiltered) parts.push(el("button", { type: "button", class: "plain", onclick: clear }, "clear all filters"));
    byId("chosen").replaceChildren(...parts);
  }

  trouble(words) {
    this.problem = words;
    this.showNotes(this.facts?.progress, 1);
  }

  // A photo that the address of the page names is opened.
  async openNamed() {
    const [, unit, index] = /^#(\d+)\/(\d+)$/.exec(location.hash) ?? [];
    if (unit === undefined) return;
    const named = { unit: Number(unit), index: Number(index) };
    const place = await this.source.place(this.state.asked, this.state.order, named);
    if (place >= 0) await this.view.open(place);
  }
}

new Page().start().catch((error) => {
  byId("notes").replaceChildren(el("p", { class: "bad" }, error.message));
  console.error(error);
});
