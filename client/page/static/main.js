// The page: a list of what was found, and one result at a time. Addresses: #/ and #/r/ID.

import { source } from "./api.js";
import { Curves } from "./curves.js";
import { decode } from "./data.js";
import { clock, h, say } from "./dom.js";
import { exporting } from "./export.js";
import { Player } from "./player.js";
import { State } from "./state.js";
import { watching } from "./live.js";
import { analysing } from "./analyse.js";

const main = document.getElementById("main");

async function list() {
  const { entries, features } = await source.entries();
  const rows = entries.map((entry) => h("li", {}, h("a", { href: `#/r/${entry.id}` }, entry.name), " ",
    h("small", {}, entry.summary ? `${clock(entry.summary.duration_s)}, ${entry.summary.people.length} people` : "", ...entry.notes)));
  main.replaceChildren(analysing(features) ?? "", watching(features) ?? "", h("ul", { class: "entries" }, rows));
}

async function result(id) {
  const [entry, bytes] = await Promise.all([source.entry(id), source.rows(id)]);
  const state = new State(entry, decode(bytes));
  const player = new Player(state), curves = new Curves(state);
  main.replaceChildren(h("h1", {}, entry.name), player.element, curves.element, exporting(state) ?? "");
  globalThis.affserve = { state, player, curves }; // for tests and the console
}

async function route() {
  const [, kind, id] = location.hash.split("/");
  try {
    await (kind === "r" ? result(id) : list());
  } catch (error) {
    main.replaceChildren(h("p", { class: "quiet" }, error.message));
    say(error.message);
  }
}

document.getElementById("top").append(h("a", { href: "#/", class: "brand" }, "affserve"));
addEventListener("hashchange", route);
route();
