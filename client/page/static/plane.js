// Valence and arousal as a place on a plane: where each person is now, was just before, and on the whole axis.

import { binned } from "./data.js";
import { h, pen, signed, themed } from "./dom.js";

const TRAIL_S = 3;
const STEPS = 400; // of what is on the axis

export class Plane {
  constructor(state) {
    this.state = state;
    this.canvas = h("canvas", { class: "plane", role: "img", "aria-label": "Valence to the right, arousal upwards, of each person" });
    this.element = h("figure", { class: "plane-box" }, this.canvas, h("figcaption", {}, "valence →, arousal ↑; the last 3 s, and faint what is on the axis"));
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    for (const event of ["show", "view", "data", "people"]) state.on(event, () => this.draw());
  }

  draw() {
    const { context, width, height } = pen(this.canvas), { state } = this, half = Math.min(width, height) / 2 - 14;
    if (half <= 0) return; // not on the screen
    const x = (valence) => width / 2 + valence * half, y = (arousal) => height / 2 - arousal * half;
    context.strokeStyle = themed("--rule");
    context.beginPath();
    context.arc(x(0), y(0), half, 0, 2 * Math.PI);
    context.moveTo(x(-1), y(0)); context.lineTo(x(1), y(0));
    context.moveTo(x(0), y(-1)); context.lineTo(x(0), y(1));
    context.stroke();
    context.fillStyle = themed("--quiet");
    context.font = "11px system-ui, sans-serif";
    for (const [text, v, a, align] of [["unpleasant", -1, 0, "left"], ["pleasant", 1, 0, "right"], ["excited", 0, 1, "center"], ["calm", 0, -1, "center"]]) {
      context.textAlign = align;
      context.fillText(text, x(v), y(a) + (a === 0 ? -4 : a > 0 ? -3 : 12));
    }
    for (const person of state.visible) if (person.columns.valence) this.trace(context, person, x, y);
  }

  trace(context, person, x, y) {
    const { state } = this, { times } = state.data;
    context.fillStyle = context.strokeStyle = state.colour(person.track);
    const { seen, means } = this.whole(person);
    context.globalAlpha = 0.18;
    seen.forEach((one, k) => one && context.fillRect(x(means[0][k]) - 1, y(means[1][k]) - 1, 2, 2));
    context.lineWidth = 1.5;
    for (let k = state.k; k > 0 && times[state.k] - times[k - 1] < TRAIL_S; k--) {
      const row = person.rowAt[k], former = person.rowAt[k - 1];
      if (row < 0 || former < 0) continue;
      context.globalAlpha = 1 - (times[state.k] - times[k]) / TRAIL_S;
      context.beginPath();
      context.moveTo(x(person.columns.valence[former]), y(person.columns.arousal[former]));
      context.lineTo(x(person.columns.valence[row]), y(person.columns.arousal[row]));
      context.stroke();
    }
    context.globalAlpha = 1;
    const row = person.rowAt[state.k];
    if (row === undefined || row < 0) return;
    context.beginPath();
    context.arc(x(person.columns.valence[row]), y(person.columns.arousal[row]), 5, 0, 2 * Math.PI);
    context.fill();
    context.strokeStyle = themed("--panel");
    context.stroke();
  }

  // Means over what is on the axis, kept until that changes.
  whole(person) {
    const { from, to } = this.state.view;
    if (person.plane?.from !== from || person.plane?.to !== to) {
      person.plane = { from, to, ...binned(this.state.data.times, person, ["valence", "arousal"], from, to, STEPS) };
    }
    return person.plane;
  }
}
