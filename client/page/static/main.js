// The page: a list of what was found, and one result at a time. Addresses: #/ and #/r/ID.

import { analysing } from "./analyse.js";
import { source } from "./api.js";
import { Curves } from "./curves.js";
import { decode } from "./data.js";
import { clock, h, percent, plural } from "./dom.js";
import { exporting } from "./export.js";
import { watch, watching } from "./live.js";
import { People } from "./people.js";
import { Plane } from "./plane.js";
import { Player } from "./player.js";
import { State } from "./state.js";

const main = document.getElementById("main"), place = document.getElementById("place");
let open = null; // {state, player} of the result that is shown
let asked = 0; // counts views, so that a slow answer does not replace a newer one

async function list() {
  const { entries, features } = await source.entries();
  const rows = h("ul", { class: "entries" }, entries.map(line));
  if (!entries.length) rows.append(h("li", { class: "quiet" }, "No results and no videos were found in what was named."));
  place.replaceChildren();
  document.title = "affserve";
  main.className = "listing";
  const refresh = async (mine) => {
    const waiting = (await source.entries()).entries;
    if (mine !== asked) return;
    rows.replaceChildren(...waiting.map(line));
    if (waiting.some(unread)) setTimeout(() => refresh(mine), 700);
  };
  main.replaceChildren(...[analysing(features, () => refresh(asked)), watching(features)].filter(Boolean), h("h1", {}, "Results"), rows);
  if (entries.some(unread)) setTimeout(() => refresh(asked), 400);
}

const unread = ({ result, summary }) => result && !summary;

function line(entry) {
  const { summary } = entry, found = summary?.frames ? summary.frames_with_face / summary.frames : NaN;
  const facts = !entry.result ? [] : !summary ? ["reading…"] : summary.error && !summary.frames ? [] :
    [clock(summary.duration_s), plural(summary.people.length, "person", "people"), `faces in ${percent(found)} of ${plural(summary.frames, "frame")}`];
  const bar = h("i", { class: "found", "aria-hidden": "true" });
  bar.style.setProperty("--found", Number.isNaN(found) ? 0 : found);
  return h("li", {}, h("a", { href: `#/r/${entry.id}` }, h("strong", {}, entry.name), h("span", {}, facts.join(" · ")), bar,
    h("small", {}, [entry.result, entry.folder].filter(Boolean).join(" in ")),
    [...entry.notes, summary?.error].filter(Boolean).map((note) => h("small", { class: "note" }, note))));
}

async function result(id) {
  const mine = asked;
  const [entry, bytes] = await Promise.all([source.entry(id), source.rows(id)]);
  if (mine !== asked) return;
  const state = new State(entry, decode(bytes)), people = new People(state), player = new Player(state);
  const plane = state.entry.labels.valence_arousal && new Plane(state), curves = new Curves(state);
  place.replaceChildren(h("span", {}, entry.name), entry.notice && h("strong", { class: "notice" }, entry.notice));
  document.title = `${entry.name} – affserve`;
  main.className = "result";
  main.replaceChildren(h("h1", { class: "unseen" }, entry.name),
    h("div", { class: "left" }, player.element, h("div", { class: "below" }, plane && plane.element, people.element), exporting(state)), curves.element);
  open = { state, player, curves, people };
  globalThis.affserve = open; // for tests and the console
}

async function route() {
  const [, kind, id] = location.hash.split("/");
  open?.player.leave();
  open = null;
  asked += 1;
  try {
    await (kind === "r" ? result(id) : kind === "live" ? watch(main, place) : list());
  } catch (error) {
    main.className = "listing";
    main.replaceChildren(h("p", { class: "quiet" }, error.message), h("a", { href: "#/" }, "Back to the list"));
  }
}

const KEYS = {
  " ": ({ player }) => player.toggle(),
  ArrowLeft: ({ player }) => player.step(-1),
  ArrowRight: ({ player }) => player.step(1),
  "[": ({ player }) => player.stepTime(-1),
  "]": ({ player }) => player.stepTime(1),
  "<": ({ player }) => player.faster(-1),
  ">": ({ player }) => player.faster(1),
  Home: ({ state }) => state.seek(0),
  End: ({ state }) => state.seek(state.data.times.length - 1),
  "+": ({ state }) => state.zoom(0.5),
  "-": ({ state }) => state.zoom(2),
  0: ({ state }) => state.look(state.begin, state.end),
  Escape: ({ state }) => state.select(null),
};

addEventListener("keydown", (event) => {
  const undoes = (event.ctrlKey || event.metaKey) && event.key === "z", writing = event.target.matches("input:not([type=range]), select, textarea");
  if (!open || writing || event.altKey || ((event.ctrlKey || event.metaKey) && !undoes)) return;
  if (event.key === " " && event.target.matches("button, summary, a")) return; // presses what has the focus
  const act = undoes ? ({ state }) => state.undo() : KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act(open);
});
addEventListener("hashchange", route);
route();
