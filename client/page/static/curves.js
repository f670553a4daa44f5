// The curves of each person on one time axis: where one points is where the film goes.

import { binned } from "./data.js";
import { button, clock, h, pen, percent, plural, signed, themed } from "./dom.js";
import { axis, heat, lines, ramp, stacked } from "./panels.js";

const DRAGGED_PX = 4; // a pointer that moves less has clicked
const CAPTIONS = {
  valence_arousal: ["Valence", " from unpleasant −1 to pleasant +1, ", "arousal", " from calm −1 to excited +1"],
  expression: ["Expressions", " probability of each, in sum 1; the strip above shows the most probable"],
  action_units: ["Action units", " probability that each is active, 0 ", null, " 1"],
};
const prefixed = (task, name) => (task === "expression" ? `p_${name}` : name);

export class Curves {
  constructor(state) {
    this.state = state;
    this.shades = ramp(state.entry.colours.heat);
    this.tasks = Object.entries(state.entry.labels ?? {}).filter(([task]) => task in CAPTIONS);
    this.names = this.tasks.flatMap(([task, labels]) => labels.map((label) => prefixed(task, label)));
    this.overview = h("canvas", { class: "overview", "aria-hidden": "true" });
    this.axis = h("canvas", { class: "axis", "aria-hidden": "true" });
    this.cursor = h("div", { class: "cursor" });
    this.chosen = h("div", { class: "chosen", hidden: true });
    this.over = h("div", { class: "over", "aria-hidden": "true" }, this.chosen, this.cursor);
    this.groups = h("div", { class: "groups" });
    this.element = h("section", { class: "curves", "aria-label": "Curves" }, this.toolbar(),
      h("div", { class: "row head" }, h("span"), h("div", {}, this.overview, this.axis), h("span")), h("div", { class: "body" }, this.groups, this.over), this.meanings());
    this.listen();
    this.rebuild();
  }

  toolbar() {
    const { state } = this;
    this.selected = h("span", { class: "selected" });
    return h("div", { class: "toolbar" },
      button("−", () => state.zoom(2), { "aria-label": "Zoom out", title: "Zoom out (−)" }),
      button("+", () => state.zoom(0.5), { "aria-label": "Zoom in", title: "Zoom in (+)" }),
      button("Whole", () => state.look(state.begin, state.end), { title: "The whole video (0)" }), this.selected);
  }

  meanings() {
    const { columns = [] } = this.state.entry;
    const told = columns.filter(({ name }) => this.names.includes(name)).map(({ name, description, unit, range }) =>
      [h("dt", {}, name), h("dd", {}, description + (unit || range ? ` [${[unit, range].filter(Boolean).join(", ")}]` : ""))]);
    return h("details", { class: "meanings" }, h("summary", {}, "What each column means"), h("dl", {}, told));
  }

  listen() {
    const { state } = this;
    const redraw = () => this.redraw();
    new ResizeObserver(redraw).observe(this.element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    state.on("view", redraw);
    state.on("parts", redraw);
    state.on("data", () => this.rebuild());
    state.on("people", () => this.rebuild());
    state.on("show", () => this.move());
    state.on("select", () => this.showSelection());
    this.element.addEventListener("pointerdown", (event) => this.press(event));
    this.element.addEventListener("dblclick", (event) => event.target.matches(".plot") && state.look(state.begin, state.end));
    this.element.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  // The time under a pointer.
  at(event, canvas = this.axis) {
    const { left, width } = canvas.getBoundingClientRect();
    const { from, to } = canvas === this.overview ? { from: this.state.begin, to: this.state.end } : this.state.view;
    return from + Math.max(0, Math.min(1, (event.clientX - left) / width)) * (to - from);
  }

  press(event) {
    const { target } = event, { state } = this;
    if (event.button !== 0 || !target.matches(".plot, .overview, .axis")) return;
    const start = event.clientX, scrubs = target !== this.overview ? null : this.overview;
    const move = (now) => {
      if (scrubs) return state.seekTime(this.at(now, scrubs));
      if (Math.abs(now.clientX - start) < DRAGGED_PX && !state.selection?.dragged) return undefined;
      const [from, to] = [this.at(event), this.at(now)].sort((a, b) => a - b);
      return state.select({ from, to, dragged: true });
    };
    const end = (now) => {
      for (const [name, listener] of [["pointermove", move], ["pointerup", end], ["pointercancel", end]]) target.removeEventListener(name, listener);
      if (now.type === "pointercancel") return;
      if (state.selection?.dragged) state.select({ from: state.selection.from, to: state.selection.to });
      else { if (!scrubs) state.select(null); state.seekTime(this.at(now, scrubs ?? this.axis)); }
    };
    if (state.selection) delete state.selection.dragged;
    target.setPointerCapture(event.pointerId);
    for (const [name, listener] of [["pointermove", move], ["pointerup", end], ["pointercancel", end]]) target.addEventListener(name, listener);
    if (scrubs) move(event);
  }

  wheel(event) {
    const { state } = this, { from, to } = state.view;
    if (!event.target.matches(".plot, .axis")) return;
    const along = event.shiftKey ? event.deltaY : event.deltaX;
    if (event.ctrlKey) state.zoom(Math.exp(event.deltaY / 200), this.at(event));
    else if (Math.abs(along) > Math.abs(event.shiftKey ? 0 : event.deltaY)) state.look(from + (along / 800) * (to - from), to + (along / 800) * (to - from));
    else return;
    event.preventDefault();
  }

  rebuild() {
    this.people = this.state.visible.map((person) => this.group(person));
    this.groups.replaceChildren(...this.people.map(({ element }) => element));
    if (!this.people.length) this.groups.append(h("p", { class: "quiet" }, "Nobody to show: no face was found, or everybody is hidden or excluded."));
    this.onScreen?.disconnect();
    this.onScreen = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        const group = this.people.find(({ element }) => element === target);
        if (group) { group.onScreen = isIntersecting; if (isIntersecting && group.stale) this.drawGroup(group); }
      }
    });
    for (const { element } of this.people) this.onScreen.observe(element);
    this.redraw();
    this.move();
  }

  group(person) {
    const { state } = this, group = { person, panels: [], onScreen: true };
    const name = state.name(person.track), swatch = h("i", { class: "swatch" });
    swatch.style.background = state.colour(person.track);
    group.element = h("section", { class: "group", "aria-label": `Curves of ${name}` },
      h("h2", {}, swatch, name, h("small", {}, ` seen in ${plural(person.at.length, "frame")} of ${state.data.times.length.toLocaleString("en")}`)),
      this.tasks.map(([task, labels]) => this.panel(group, task, labels, name)));
    return group;
  }

  panel(group, task, labels, name) {
    const { colours, meanings } = this.state.entry;
    const canvas = h("canvas", { class: `plot ${task}`, role: "img", "aria-label": `${CAPTIONS[task].filter(Boolean).join("")}, of ${name}` });
    const caption = h("p", { class: "caption" }, CAPTIONS[task].map((text, k) => (text === null ? this.scale() : k % 2 ? text : h("b", {}, text))));
    const inks = { valence_arousal: colours.lines, expression: colours.classes }[task];
    const values = labels.map(() => h("output"));
    const rows = (task === "expression" ? labels.map((_, k) => labels.length - 1 - k) : labels.map((_, k) => k)).map((k) => {
      const swatch = inks && h("i", { class: "swatch" });
      if (swatch) swatch.style.background = inks[k % inks.length];
      return h("li", {}, swatch, task === "action_units" ? null : h("span", {}, labels[k]), values[k]);
    });
    const gutter = { valence_arousal: ["+1", "0", "−1"], expression: ["1", "0"] }[task]?.map((tick) => h("span", {}, tick)) ??
      labels.map((label) => h("span", { title: meanings[label] ?? "" }, h("b", {}, label), h("em", {}, ` ${meanings[label] ?? ""}`)));
    group.panels.push({ task, canvas, values, columns: labels.map((label) => prefixed(task, label)), inks, write: task === "valence_arousal" ? signed : percent });
    return [caption, h("div", { class: "row" }, h("div", { class: `gutter ${task}` }, gutter), canvas, h("ul", { class: `values ${task}` }, rows))];
  }

  scale() {
    const bar = h("i", { class: "scale" });
    bar.style.background = `linear-gradient(to right, ${this.state.entry.colours.heat.join(", ")})`;
    return bar;
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.draw(); });
  }

  draw() {
    axis(this.axis, this.state.view, clock);
    this.drawOverview();
    for (const group of this.people) {
      group.stale = true;
      if (group.onScreen) this.drawGroup(group);
    }
    this.drawParts();
    this.move();
    this.showSelection();
  }

  drawGroup(group) {
    const { view, data } = this.state, width = group.panels[0]?.canvas.clientWidth;
    if (!width) return;
    group.stale = false;
    const bins = binned(data.times, group.person, this.names, view.from, view.to, Math.round(width * devicePixelRatio));
    for (const { task, canvas, columns, inks } of group.panels) {
      const pick = (all) => columns.map((name) => all[this.names.indexOf(name)]);
      const own = { seen: bins.seen, means: pick(bins.means), lows: pick(bins.lows), highs: pick(bins.highs) };
      if (task === "valence_arousal") lines(canvas, own, inks);
      else if (task === "expression") stacked(canvas, own, inks);
      else heat(canvas, own, this.shades);
    }
  }

  // Who is seen when in the whole video, the parts that have a name, and what of it is on the axis.
  drawOverview() {
    const { context, width, height } = pen(this.overview), { state } = this, whole = state.end - state.begin;
    const x = (time) => ((time - state.begin) / whole) * width, tall = Math.min(5, 22 / Math.max(1, this.people.length));
    context.fillStyle = themed("--rule");
    context.fillRect(0, 0, width, height);
    this.people.forEach(({ person }, place) => {
      context.fillStyle = state.colour(person.track);
      const { seen } = binned(state.data.times, person, [], state.begin, state.end, Math.ceil(width));
      seen.forEach((one, k) => one && context.fillRect(k, 3 + place * (tall + 1), 1, tall));
    });
    context.fillStyle = themed("--accent");
    for (const part of state.edits.parts) context.fillRect(x(part.from_s), height - 4, Math.max(2, x(part.to_s) - x(part.from_s)), 4);
    context.fillStyle = themed("--veil");
    context.fillRect(0, 0, x(state.view.from), height);
    context.fillRect(x(state.view.to), 0, width, height);
  }

  drawParts() {
    const marks = this.state.edits.parts.map(({ name, from_s, to_s }) => this.placed(h("div", { class: "part" }, h("span", {}, name)), from_s, to_s));
    this.over.replaceChildren(...marks, this.chosen, this.cursor);
  }

  placed(element, from_s, to_s) {
    const { from, to } = this.state.view, left = Math.max(0, (from_s - from) / (to - from)), right = Math.min(1, (to_s - from) / (to - from));
    element.hidden = right < 0 || left > 1;
    element.style.left = `${100 * left}%`;
    element.style.width = `${Math.max(0, 100 * (right - left))}%`;
    return element;
  }

  // The cursor and the numbers beside the curves follow the film.
  move() {
    const { view, time, k } = this.state, place = (time - view.from) / (view.to - view.from);
    this.cursor.hidden = place < 0 || place > 1;
    this.cursor.style.left = `${100 * place}%`;
    for (const { person, panels } of this.people) {
      const row = person.rowAt[k] ?? -1;
      for (const { values, columns, write } of panels) columns.forEach((name, c) => (values[c].textContent = write(row < 0 ? NaN : person.columns[name][row])));
    }
  }

  showSelection() {
    const { state } = this, { selection } = state;
    this.chosen.hidden = !selection;
    if (!selection) return this.selected.replaceChildren(h("small", {}, "click to go there, drag to select"));
    this.placed(this.chosen, selection.from, selection.to);
    return this.selected.replaceChildren(h("b", {}, `${clock(selection.from)} – ${clock(selection.to)}`),
      button("Zoom to it", () => state.look(selection.from, selection.to)),
      state.entry.result && button("Name this part", () => state.tell("part", selection)), button("Clear", () => state.select(null)));
  }
}
