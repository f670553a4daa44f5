// The video, and over it what the result says of each face in the frame that is shown.

import { nearest } from "./data.js";
import { h } from "./dom.js";
import { source } from "./api.js";

export class Player {
  constructor(state) {
    this.state = state;
    this.video = h("video", { playsInline: true, preload: "auto", src: source.media(state.entry.id) });
    this.video.muted = false;
    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.element = h("div", { class: "stage" }, this.video, this.canvas);
    this.video.requestVideoFrameCallback((now, metadata) => this.shown(metadata));
    new ResizeObserver(() => this.draw()).observe(this.element);
    state.on("seek", (k) => this.seek(k));
  }

  shown(metadata) {
    const k = nearest(this.state.data.times, metadata.mediaTime - this.state.entry.playing.offset_s);
    this.state.show(k);
    this.draw();
    this.video.requestVideoFrameCallback((now, next) => this.shown(next));
  }

  // To the middle of a frame's time, which is inside it whatever the clocks round.
  seek(k) {
    const { times } = this.state.data;
    const next = k + 1 < times.length ? times[k + 1] : 2 * times[k] - (times[k - 1] ?? times[k] - 0.02);
    this.video.currentTime = (times[k] + next) / 2 + this.state.entry.playing.offset_s;
  }

  draw() {
    const { state, canvas } = this;
    const box = this.element.getBoundingClientRect(), ratio = devicePixelRatio;
    canvas.width = Math.round(box.width * ratio);
    canvas.height = Math.round(box.height * ratio);
    const { width, height } = state.entry.playing;
    const shape = this.video.videoWidth ? this.video.videoWidth / this.video.videoHeight : width / height;
    const shownWidth = Math.min(box.width, box.height * shape), shownHeight = shownWidth / shape;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.translate((box.width - shownWidth) / 2, (box.height - shownHeight) / 2);
    for (const person of state.data.people) {
      const row = person.rowAt[state.k];
      if (row < 0) continue;
      const [x, y, w, tall] = ["x", "y", "w", "h"].map((side) => person.columns[`box_${side}_px`][row]);
      pen.strokeStyle = state.colour(person.track);
      pen.lineWidth = 2;
      pen.strokeRect((x / width) * shownWidth, (y / height) * shownHeight, (w / width) * shownWidth, (tall / height) * shownHeight);
    }
  }
}
