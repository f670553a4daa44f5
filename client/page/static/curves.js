// Curves over time, person by person, on canvases of our own.

import { h } from "./dom.js";

export class Curves {
  constructor(state) {
    this.state = state;
    this.canvas = h("canvas", { class: "curve", tabindex: "0" });
    this.element = h("section", { class: "curves", "aria-label": "Curves" }, this.canvas);
    this.canvas.addEventListener("click", (event) => {
      const { times } = state.data;
      state.seekTime((event.offsetX / this.canvas.clientWidth) * times[times.length - 1]);
    });
    new ResizeObserver(() => this.draw()).observe(this.element);
    state.on("show", () => this.draw());
  }

  draw() {
    const { canvas, state } = this, { times, people } = state.data;
    const width = canvas.clientWidth, height = canvas.clientHeight, end = times[times.length - 1] || 1;
    canvas.width = width * devicePixelRatio;
    canvas.height = height * devicePixelRatio;
    const pen = canvas.getContext("2d");
    pen.scale(devicePixelRatio, devicePixelRatio);
    for (const person of people) {
      pen.strokeStyle = state.colour(person.track);
      pen.beginPath();
      person.at.forEach((k, row) =>
        pen.lineTo((times[k] / end) * width, ((1 - person.columns.valence[row]) / 2) * height));
      pen.stroke();
    }
    pen.fillStyle = "red";
    pen.fillRect((times[state.k] / end) * width, 0, 1, height);
  }
}
