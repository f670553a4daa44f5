// Who is who, and which parts have a name. Everything here is an edit: it goes into the file beside the result.

import { endOf } from "./data.js";
import { clock, button, h, plural, say } from "./dom.js";

export class People {
  constructor(state) {
    this.state = state;
    this.faces = new Map(); // track -> canvas
    this.list = h("ul", { class: "people" });
    this.parts = h("ul", { class: "parts" });
    this.back = button("Undo", () => state.undo(), { title: "Take the last change back (Ctrl+Z)" });
    this.element = h("section", { class: "cast", "aria-label": "People and parts" },
      h("h2", {}, "People", this.back), this.list, h("h2", {}, "Parts"), this.parts);
    for (const event of ["people", "data", "parts"]) state.on(event, () => this.show());
    state.on("part", (selection) => this.mark(selection));
    state.on("video", (shown) => this.picture(shown));
    this.show();
  }

  show() {
    const { state } = this, gone = Object.keys(state.edits.people).map(Number).filter((track) => state.edit(track).excluded);
    this.back.disabled = !state.undoable;
    this.list.replaceChildren(...state.data.people.map((person) => this.person(person)), ...gone.map((track) => this.excluded(track)));
    if (!this.list.children.length) this.list.append(h("li", { class: "quiet" }, "no face was found"));
    this.parts.replaceChildren(...state.edits.parts.map((part, place) => this.part(part, place)));
    if (!state.edits.parts.length) this.parts.append(h("li", { class: "quiet" }, "drag over the curves, then “Name this part”"));
  }

  // The edit of one person, made where there was none.
  change(track, changed, rows) {
    return this.state.change((edits) => {
      const edit = { ...edits.people[track], ...changed };
      for (const [name, value] of Object.entries(edit)) if (value === null || value === "" || value === false) delete edit[name];
      edits.people[track] = edit;
    }, rows);
  }

  person({ track, at }) {
    const { state } = this, { hidden } = state.edit(track), { times } = state.data;
    const name = h("input", { class: "name", value: state.edit(track).name ?? "", placeholder: `person ${track}`, maxLength: 100,
      "aria-label": `Name of person ${track}`, onchange: () => this.change(track, { name: name.value.trim() }, false) });
    const face = this.faces.get(track) ?? h("canvas", { class: "face", width: "88", height: "88", "aria-hidden": "true" });
    this.faces.set(track, face);
    face.style.borderColor = state.colour(track);
    const first = h("button", { type: "button", class: "plain", title: "Go where this person is first seen", onclick: () => state.seek(at[0]) },
      `${plural(at.length, "frame")}, from ${clock(times[at[0]])}`);
    const others = state.data.people.filter((other) => other.track !== track);
    const merged = Object.keys(state.edits.people).map(Number).filter((other) => state.edit(other).merged_into === track);
    const menu = h("details", { class: "menu" }, h("summary", { "aria-label": `More for ${state.name(track)}`, title: "Merge, split, exclude" }, "⋯"), h("div", {},
      others.map((other) => button(`Merge into ${state.name(other.track)}`, () => this.change(track, { merged_into: other.track }))),
      merged.map((other) => button(`Separate ${state.name(other)}`, () => this.change(other, { merged_into: null }))),
      button(`Split at frame ${state.data.frames[state.k]}`, (event) => this.split(track, event), { class: "split" }),
      button("Exclude", () => this.change(track, { excluded: true }))));
    menu.addEventListener("toggle", () => {
      menu.querySelector(".split").textContent = `Split at frame ${state.data.frames[state.k]}`;
    });
    return h("li", { class: hidden ? "hidden" : "" }, face, h("div", { class: "who" }, name, first),
      h("button", { type: "button", "aria-pressed": String(!hidden), onclick: () => this.change(track, { hidden: !hidden }, false) }, hidden ? "Show" : "Hide"), menu);
  }

  excluded(track) {
    return h("li", { class: "hidden" }, h("div", { class: "who" }, `${this.state.name(track)}, excluded`),
      button("Include", () => this.change(track, { excluded: false })));
  }

  // From the frame shown on, a person is another one: so is everybody who was merged into this one.
  split(track) {
    const { state } = this, frame = state.data.frames[state.k], known = [...(state.entry.summary?.people ?? []).map((one) => one.track), ...Object.keys(state.edits.people).map(Number)];
    const person = state.data.people.find((one) => one.track === track);
    if (!person || person.at[0] >= state.k || person.at[person.at.length - 1] < state.k) return say(`${state.name(track)} is not seen on both sides of frame ${frame}`);
    const root = (one) => { for (let hops = 0; hops < 100 && state.edit(one).merged_into !== undefined; hops++) one = state.edit(one).merged_into; return one; };
    const pieces = [...new Set([track, ...known])].filter((one) => root(one) === track), fresh = Math.max(-1, ...known) + 1;
    return state.change((edits) => pieces.forEach((piece, place) => {
      edits.people[fresh + place] = { split_from: piece, at_frame: frame, ...(place ? { merged_into: fresh } : {}) };
    }));
  }

  part({ name, from_s, to_s }, place) {
    const { state } = this;
    const field = h("input", { class: "name", value: name, maxLength: 100, "aria-label": "Name of the part",
      onchange: () => state.change((edits) => (edits.parts[place].name = field.value.trim() || "part"), false) });
    return h("li", {}, h("div", { class: "who" }, field, h("button", { type: "button", class: "plain", title: "Show this part",
      onclick: () => { state.look(from_s, to_s); state.select({ from: from_s, to: to_s }); state.seekTime(from_s); } }, `${clock(from_s)} – ${clock(to_s)}`)),
      button("Remove", () => state.change((edits) => edits.parts.splice(place, 1), false), { "aria-label": `Remove the part ${name}` }));
  }

  async mark({ from, to }) {
    const { state } = this, round = (time) => Math.round(time * 1000) / 1000;
    await state.change((edits) => edits.parts.push({ name: `part ${edits.parts.length + 1}`, from_s: round(from), to_s: round(to) }), false);
    this.parts.querySelector("li:last-child input")?.select();
  }

  // A second reader of the same video finds each person's best picture.
  picture({ video, playing }) {
    const { state } = this, reader = h("video", { preload: "auto", muted: true, src: video.currentSrc || video.src });
    const waiting = [...this.faces.keys()].map((track) => state.data.people.find((person) => person.track === track)).filter(Boolean);
    const next = () => {
      const person = waiting.shift();
      if (!person) return reader.removeAttribute("src");
      const row = best(person), k = person.at[row], { times } = state.data;
      reader.onseeked = () => { crop(reader, this.faces.get(person.track), person, row, playing); next(); };
      reader.currentTime = (times[k] + endOf(times, k)) / 2 + playing.offset_s;
      return undefined;
    };
    reader.addEventListener("loadeddata", next, { once: true });
  }
}

// The row whose face is large and sure.
function best({ at, columns }) {
  let most = -1, row = 0;
  for (let k = 0; k < at.length; k++) {
    const size = Math.sqrt(columns.box_w_px[k] * columns.box_h_px[k]) * (columns.face_score?.[k] || 0.5);
    if (size > most) [most, row] = [size, k];
  }
  return row;
}

function crop(video, canvas, { columns }, row, { width, height }) {
  const [x, y, w, tall] = ["x", "y", "w", "h"].map((side) => columns[`box_${side}_px`][row]);
  const side = 1.25 * Math.max(w, tall), right = video.videoWidth / width, down = video.videoHeight / height;
  canvas.getContext("2d").drawImage(video, (x + w / 2 - side / 2) * right, (y + tall / 2 - side / 2) * down, side * right, side * down, 0, 0, canvas.width, canvas.height);
}
