// The queue: videos that are dropped here, chosen, or were found by the page are analysed, one after the other.

import { asked, getJSON, send, source } from "./api.js";
import { button, h, percent, plural, say } from "./dom.js";

const OPEN = ["copying", "waiting", "running"];
const FACES = { all: "everybody", largest: "the largest face", left: "the left one of two", right: "the right one of two" };
const toSend = []; // {file, faces} of videos that are still to be copied to the page, in order
let told = { paused: false, tasks: [], out: "" }, view = null, asking = false, changed = false, sending = false;

// Return an element for the page, or null where there is nothing to offer; `refresh` reads the list of results again.
export function analysing(features, refresh) {
  if (!features.analyse) return null;
  view = new Work(refresh);
  ask();
  return view.element;
}

// Read how far all is, again and again while something is under way.
async function ask() {
  changed = true;
  if (asking) return;
  asking = true;
  try {
    do {
      changed = false;
      const former = told.tasks.filter(({ state }) => state === "done").length;
      told = await getJSON("/api/queue");
      view.show();
      if (told.tasks.filter(({ state }) => state === "done").length !== former) view.renew();
      await new Promise((done) => setTimeout(done, 400));
    } while (changed || sending || told.tasks.some(({ state }) => OPEN.includes(state)));
  } catch (error) {
    say(error.message);
  }
  asking = false;
}

// One after the other: the disk is no faster by two.
async function sendAll() {
  if (sending) return;
  sending = true;
  for (let next; (next = toSend.shift());) {
    ask();
    try {
      await asked(`/api/uploads/${encodeURIComponent(next.file.name)}?faces=${next.faces}`, { method: "PUT", body: next.file });
    } catch (error) {
      say(error.message);
    }
  }
  sending = false;
  ask();
}

// The files of what was dropped: of folders, the videos in them and below.
async function* files(entry, inFolder = false) {
  if (!entry.isDirectory) {
    const file = entry instanceof File ? entry : await new Promise((done, failed) => entry.file(done, failed));
    if (!inFolder || isVideo(file)) yield file;
    return;
  }
  const reader = entry.createReader();
  for (let some; (some = await new Promise((done, failed) => reader.readEntries(done, failed))).length;) {
    for (const one of some) yield* files(one, true);
  }
}

const isVideo = ({ type }) => type.startsWith("video/") || type === "image/gif";

class Work {
  constructor(refresh) {
    this.refresh = refresh;
    this.rows = new Map(); // id of a task -> its elements
    this.faces = h("select", { "aria-label": "Whose faces" }, Object.entries(FACES).map(([value, text]) => h("option", { value }, text)));
    this.found = button("", () => this.takeFound(), { hidden: true });
    this.out = h("small");
    this.pause = button("Pause", () => this.change("PUT", "/api/queue/paused", !told.paused));
    this.clear = button("Clear", () => this.clearAll(), { title: "Take what is over off this list" });
    this.list = h("ul", { class: "tasks", "aria-label": "Queue" });
    this.foot = h("div", { class: "toolbar", hidden: true }, this.pause, this.clear, this.out);
    this.cleared = new Set(JSON.parse(sessionStorage.getItem("cleared") ?? "[]"));
    this.element = h("section", { class: "card work", "aria-label": "Analyse" },
      h("div", { class: "drop" }, h("p", {}, h("strong", {}, "Drop videos here to analyse them")),
        h("div", { class: "toolbar" }, this.chooser("Choose videos", { multiple: true, accept: "video/*,image/*" }),
          this.chooser("Choose a folder", { webkitdirectory: true }), this.found, h("label", {}, "faces of ", this.faces))),
      this.list, this.foot);
    this.renew();
  }

  chooser(text, properties) {
    const input = h("input", { type: "file", class: "unseen", tabIndex: -1, "aria-label": text, ...properties,
      onchange: () => { this.take([...input.files].filter((file) => !properties.webkitdirectory || isVideo(file))); input.value = ""; } });
    return [button(`${text}…`, () => input.click()), input];
  }

  take(taken) {
    if (!taken.length) return say("there is no video among them");
    toSend.push(...taken.map((file) => ({ file, faces: this.faces.value })));
    return sendAll();
  }

  async takeFound() {
    const { entries } = await source.entries();
    this.found.hidden = true;
    for (const { id } of entries.filter(unanalysed)) await this.change("POST", `/api/entries/${id}/analysis?faces=${this.faces.value}`, null);
  }

  async change(method, path, value) {
    try {
      await send(method, path, value);
    } catch (error) {
      say(error.message);
    }
    return ask();
  }

  clearAll() {
    for (const { id, state } of told.tasks) if (!OPEN.includes(state)) this.cleared.add(id);
    sessionStorage.setItem("cleared", JSON.stringify([...this.cleared]));
    this.show();
  }

  async renew() {
    this.refresh();
    const count = (await source.entries()).entries.filter(unanalysed).length;
    this.found.textContent = count === 1 ? "Analyse the video found" : `Analyse the ${count} videos found`;
    this.found.hidden = !count;
  }

  show() {
    const shown = told.tasks.filter(({ id }) => !this.cleared.has(id)), left = toSend.length ? `${plural(toSend.length, "video")} still to copy; ` : "";
    for (const task of shown) this.line(task);
    const lines = shown.map(({ id }) => this.rows.get(id).element), { children } = this.list;
    if (lines.length !== children.length || lines.some((line, place) => line !== children[place])) this.list.replaceChildren(...lines);
    this.pause.textContent = told.paused ? "Go on" : "Pause";
    this.pause.hidden = !shown.some(({ state }) => OPEN.includes(state));
    this.out.textContent = `${left}results go to ${told.out}`;
    this.foot.hidden = !shown.length;
  }

  line(task) {
    if (!this.rows.has(task.id)) this.rows.set(task.id, this.newLine(task));
    const { bar, text, link, cancel } = this.rows.get(task.id), part = task.total ? task.done / task.total : NaN;
    const words = { copying: `copying, ${percent(part)}`, failed: task.error, done: "",
      running: !task.done ? "starting" : Number.isNaN(part) ? plural(task.done, "frame") : percent(part) };
    const isOpen = OPEN.includes(task.state), state = words[task.state] ?? task.state;
    text.textContent = told.paused && task.state === "running" ? `paused at ${state}` : state;
    text.className = task.state === "failed" ? "note" : "quiet";
    bar.style.setProperty("--found", task.state === "done" ? 1 : part || 0);
    bar.hidden = !isOpen;
    cancel.hidden = !isOpen;
    link.hidden = task.state !== "done";
    link.href = task.outcome || "#/";
    link.textContent = task.outcome?.startsWith("#") ? "Show" : "Save";
  }

  newLine(task) {
    const bar = h("i", { class: "found", "aria-hidden": "true" }), text = h("small"), link = h("a", {}, "Show");
    const cancel = button("Cancel", () => this.change("DELETE", `/api/queue/${task.id}`, null), { "aria-label": `Cancel ${task.name}` });
    return { bar, text, link, cancel, element: h("li", {}, h("strong", {}, task.name), link, cancel, text, bar) };
  }
}

const unanalysed = ({ video, result }) => video && !result;

addEventListener("dragleave", ({ relatedTarget }) => relatedTarget ?? view?.element.classList.remove("over"));
for (const event of ["dragover", "drop"]) {
  addEventListener(event, async (happened) => {
    if (!view?.element.isConnected || !happened.dataTransfer?.types.includes("Files")) return;
    happened.preventDefault(); // or the browser leaves the page for the file
    view.element.classList.toggle("over", event === "dragover");
    if (event !== "drop") return;
    const items = [...happened.dataTransfer.items].map((item) => item.webkitGetAsEntry() ?? item.getAsFile()).filter(Boolean), taken = [];
    for (const item of items) for await (const file of files(item)) taken.push(file);
    view.take(taken);
  });
}
