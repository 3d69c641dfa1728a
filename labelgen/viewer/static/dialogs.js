// The dialogs: saving what is chosen as a selection, and the keys.

import { byId, el, plural } from "viewer/dom.js";

const KEYS = [
  ["grid", [["← → ↑ ↓", "walk"], ["Enter", "open the photo"], ["s", "pick the photo"], ["x", "reject the photo"], ["/", "search keys"], ["Home, End", "first, last photo"]]],
  ["photo", [
    ["← →", "photo before, next"], ["↑ ↓", "mask before, next"], ["1 to 5", "photo, label, refined, uncertainty, difference"],
    ["d", "two side by side"], ["[ ]", "layer weaker, stronger"], ["+ − 0", "zoom in, out, whole photo"], ["b, o", "boxes, points"],
    ["f", "only masks that meet the filter"], ["s, x", "pick, reject the photo"], ["r", "leave the mask out"], ["Esc", "back"],
  ]],
  ["everywhere", [["Ctrl-S", "save the selection"], ["?", "these keys"]]],
];

function show(title, ...children) {
  const dialog = byId("dialog");
  const close = el("button", { type: "button", class: "plain close", "aria-label": "Close", onclick: () => dialog.close() }, "✕");
  dialog.replaceChildren(el("div", { class: "dialog-head" }, el("h2", {}, title), close), ...children);
  if (!dialog.open) dialog.showModal();
  return dialog;
}

export function showKeys() {
  const parts = KEYS.map(([where, keys]) => el("div", {}, el("h3", {}, where), el("dl", { class: "keys" }, ...keys.flatMap(([key, act]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, act)]))));
  show("Keys", el("div", { class: "columns" }, ...parts));
}

export function showSave(source, state, about, facts) {
  const picked = state.photosMarked("picked");
  const rejected = state.photosMarked("rejected");
  const masks = state.masksRejected();
  const lines = [
    picked.length ? `Of ${plural(picked.length, "picked photo")}` : `Of ${plural(facts.photos, "photo")} on the list`,
    state.isFiltered ? "the masks that meet the filter" : "all masks",
    rejected.length ? `without ${plural(rejected.length, "rejected photo")}` : "",
    masks.length ? `without ${plural(masks.length, "mask")} that you left out` : "",
  ];
  const words = el("p", {}, `${lines.filter(Boolean).join(", ")}.`);
  if (!about.can_save) return showKeysOf(source, state, words);
  const out = el("input", { type: "text", id: "out", value: `${about.sets[0].url.replace(/\/+$/, "")}-chosen`, spellcheck: "false" });
  const told = el("p", { class: "told", role: "status" });
  const write = el("button", { type: "submit", class: "main" }, "Save");
  const save = async (event) => {
    event.preventDefault();
    write.disabled = true;
    told.className = "told";
    told.textContent = "Reading all manifests…";
    const wanted = { out: out.value, conditions: state.conditions, picked, rejected, rejected_masks: masks };
    try {
      const saved = await source.save(wanted);
      told.textContent = `${saved.told}. Every command reads ${out.value} as a shard set; in a recipe it is "shards".`;
      told.classList.add("good");
    } catch (error) {
      told.textContent = error.message;
      told.classList.add("bad");
    }
    write.disabled = false;
  };
  const form = el("form", { onsubmit: save }, words, el("label", { for: "out" }, "Folder or URL of the selection"), out, el("p", { class: "faint" }, "A selection is a small folder that says which masks are taken; no data are copied."), told, el("div", { class: "buttons" }, write));
  show("Save a selection", form);
  out.select();
}

// A page in a file cannot write a selection: it gives the list of keys that `labelgen select` takes.
async function showKeysOf(source, state, words) {
  const { photos } = await source.entries(state.asked, "set", 0, 0);
  const { entries } = await source.entries(state.asked, "set", 0, photos);
  const hasPicked = state.photosMarked("picked").length > 0;
  const kept = entries.filter((entry) => (hasPicked ? state.markOf(entry) === "picked" : state.markOf(entry) !== "rejected"));
  const address = URL.createObjectURL(new Blob([kept.map(({ key }) => `${key}\n`).join("")], { type: "text/plain" }));
  const link = el("a", { href: address, download: "keys.txt", class: "main button" }, `keys.txt, ${plural(kept.length, "key")}`);
  const { layer, ...ranges } = Object.fromEntries(Object.entries(state.conditions).filter(([, value]) => Array.isArray(value) || typeof value === "string"));
  const options = { predicted_iou: ["--min-predicted-iou"], stability: ["--min-stability"], area: ["--min-area", "--max-area"], mean_u: [null, "--max-mean-u"] };
  const given = Object.entries(options).flatMap(([name, names]) => ranges[name].map((bound, k) => (bound !== null && names[k] ? `${names[k]} ${bound}` : null)));
  const command = ["labelgen select --shards SHARDS --out SELECTION --image-list keys.txt", ...given].filter(Boolean).join(" ");
  const note = "This page is a file, and holds a part of the set. Load down the keys, and give the command:";
  show("Save a selection", words, el("p", {}, note), el("pre", {}, command), el("p", { class: "buttons" }, link));
}
