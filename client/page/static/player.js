// The video, and over it what the result says of each face in the frame that is shown.
// Where there is no video, or not yet, a clock of our own goes through the frames.

import { source } from "./api.js";
import { endOf, nearest } from "./data.js";
import { button, clock, h, pen, percent } from "./dom.js";

const PLACES = [0.5, 0.7, 0.3, 0.6, 0.8, 0.2, 0.9, 0.4, 0.1]; // in the time of a frame, that a seek aims at
const SPEEDS = [0.1, 0.25, 0.5, 1, 1.5, 2, 4];

export class Player {
  constructor(state) {
    this.state = state;
    this.speed = 1;
    this.wanted = null; // the frame to seek to as soon as the seek under way is done
    this.clock = null; // of the film without a video
    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.note = h("p", { class: "stage-note" });
    this.stage = h("div", { class: "stage" }, this.canvas, this.note);
    this.element = h("section", { class: "player", "aria-label": "Video" }, this.stage, this.controls());
    new ResizeObserver(() => this.draw()).observe(this.stage);
    state.on("seek", (k) => this.seek(k));
    for (const event of ["data", "people"]) state.on(event, () => this.draw());
    state.on("show", () => this.progress());
    this.prepare(false);
    this.progress();
  }

  controls() {
    const { state } = this;
    const last = state.data.times.length - 1;
    this.play = button("▶", () => this.toggle(), { class: "play", "aria-label": "Play", title: "Play or pause (space)" });
    this.slider = h("input", { type: "range", min: "0", max: String(Math.max(0, last)), step: "1", value: "0", "aria-label": "Frame",
      oninput: () => state.seek(Number(this.slider.value)) });
    this.told = h("output", { class: "time" });
    const rate = h("select", { "aria-label": "Speed", title: "Speed (< and >)", onchange: () => this.rate(Number(rate.value)) },
      SPEEDS.map((speed) => h("option", { value: String(speed), selected: speed === 1 }, `${speed} ×`)));
    this.rates = rate;
    return h("div", { class: "controls" },
      this.slider, button("‹", () => this.step(-1), { "aria-label": "One frame back", title: "One frame back (←)" }), this.play,
      button("›", () => this.step(1), { "aria-label": "One frame on", title: "One frame on (→)" }), this.told, rate);
  }

  async prepare(copied) {
    const { entry } = this.state;
    let playing = copied ? await source.playing(entry.id, true) : entry.playing;
    while (playing?.state === "preparing" && !this.gone) {
      this.tell(`preparing the video for the browser: ${playing.total ? percent(playing.done / playing.total) : playing.done}`);
      await new Promise((done) => setTimeout(done, 300));
      playing = await source.playing(entry.id, copied);
    }
    if (playing === null) return this.tell("no video at hand: " + entry.notes.join("; "));
    if (playing.state === "failed") return this.tell(playing.error);
    this.playing = playing;
    if (!this.gone) this.load(copied);
  }

  load(copied) {
    this.tell("");
    const video = h("video", { preload: "auto", playsInline: true, "aria-label": this.state.entry.name, onclick: () => this.toggle() });
    video.disablePictureInPicture = true;
    video.addEventListener("error", () => {
      video.remove();
      this.video = null;
      if (copied) this.tell("the browser cannot play this video"); else this.prepare(true);
    });
    const follow = () => video.requestVideoFrameCallback((now, { mediaTime }) => { this.shown(mediaTime); follow(); });
    follow();
    video.addEventListener("seeked", () => {
      clearTimeout(this.late);
      if (this.wanted !== null) this.seekNext(); else this.late = setTimeout(() => this.check(), 250);
    });
    // A container may announce an end before its last frame, which a browser learns when it has come there.
    video.addEventListener("durationchange", () => this.paused && this.sought !== undefined && this.seek(this.sought));
    for (const event of ["play", "pause", "ended"]) video.addEventListener(event, () => this.playingChanged());
    video.addEventListener("loadedmetadata", () => { video.playbackRate = this.speed; this.seek(this.state.k); }, { once: true });
    video.src = source.media(this.state.entry.id, copied);
    this.halt();
    this.video = video;
    this.stage.prepend(video);
    this.state.tell("video", { video, playing: this.playing });
  }

  tell(text) {
    this.note.textContent = text;
  }

  get paused() {
    return this.video ? this.video.paused : this.clock === null;
  }

  toggle() {
    if (!this.paused) return this.video ? this.video.pause() : this.halt();
    const { state } = this;
    if (state.k >= state.data.times.length - 1) state.seek(0);
    this.sought = undefined;
    if (this.video) return this.video.play().catch((error) => this.tell(error.message));
    this.clock = { from: state.time, since: performance.now() };
    requestAnimationFrame(() => this.tick());
    return this.playingChanged();
  }

  halt() {
    this.clock = null;
    this.playingChanged();
  }

  tick() {
    if (!this.clock) return;
    const { state } = this, { from, since } = this.clock;
    const time = from + ((performance.now() - since) / 1000) * this.speed;
    state.show(nearest(state.data.times, time));
    this.draw();
    if (time >= state.end) this.halt(); else requestAnimationFrame(() => this.tick());
  }

  playingChanged() {
    this.play.textContent = this.paused ? "▶" : "❚❚";
    this.play.setAttribute("aria-label", this.paused ? "Play" : "Pause");
  }

  rate(speed) {
    this.speed = speed;
    this.rates.value = String(speed);
    if (this.video) this.video.playbackRate = speed;
    if (this.clock) this.clock = { from: this.state.time, since: performance.now() };
  }

  faster(steps) {
    const at = SPEEDS.indexOf(this.speed) + steps;
    this.rate(SPEEDS[Math.max(0, Math.min(SPEEDS.length - 1, at))]);
  }

  step(frames) {
    if (!this.paused) this.toggle();
    this.state.seek((this.wanted ?? this.state.k) + frames);
  }

  stepTime(seconds) {
    const { times } = this.state.data;
    this.state.seek(nearest(times, times[this.wanted ?? this.state.k] + seconds));
  }

  seek(k) {
    if (!this.video) {
      if (this.clock) this.clock = { from: this.state.data.times[k], since: performance.now() };
      this.state.show(k);
      return this.draw();
    }
    this.wanted = k;
    return this.video.seeking ? undefined : this.seekNext();
  }

  seekNext() {
    if (this.wanted === null || !this.video || this.video.readyState === 0) return;
    [this.sought, this.wanted, this.attempt] = [this.wanted, null, 0];
    this.aim();
  }

  // Into the time of a frame, where no rounding of clocks leads to another one.
  aim() {
    const { times } = this.state.data, k = this.sought;
    this.video.currentTime = times[k] + PLACES[this.attempt] * (endOf(times, k) - times[k]) + this.playing.offset_s;
  }

  shown(mediaTime) {
    this.state.show(nearest(this.state.data.times, mediaTime - this.playing.offset_s));
    this.draw();
    this.check();
  }

  // Files of uneven rate may give frames durations that are others': then the next place of the frame is tried.
  check() {
    const settled = this.paused && this.sought !== undefined && this.wanted === null && this.video && !this.video.seeking;
    if (!settled || this.state.k === this.sought || this.attempt + 1 >= PLACES.length) return;
    this.attempt += 1;
    this.aim();
  }

  progress() {
    const { state } = this;
    this.slider.value = String(state.k);
    this.slider.setAttribute("aria-valuetext", clock(state.time));
    this.told.textContent = `${clock(state.time)} / ${clock(state.end)}  frame ${state.data.frames[state.k] ?? 0}`;
  }

  // The rectangle of the picture inside the stage: letterboxes are not part of it.
  picture(width, height) {
    const wide = this.playing?.width || this.extent(0, 2), tall = this.playing?.height || this.extent(1, 3);
    const shape = this.video?.videoWidth ? this.video.videoWidth / this.video.videoHeight : wide / tall;
    const shown = Math.min(width, height * shape);
    return { left: (width - shown) / 2, top: (height - shown / shape) / 2, x: shown / wide, y: shown / shape / tall };
  }

  // How far boxes reach, where no video tells the size.
  extent(from, size) {
    const sides = ["x", "y", "w", "h"].map((side) => `box_${side}_px`);
    let most = 1;
    for (const { columns } of this.state.data.people) {
      columns[sides[from]]?.forEach((start, row) => (most = Math.max(most, start + columns[sides[size]][row])));
    }
    return most;
  }

  draw() {
    const { context, width, height } = pen(this.canvas), { state } = this;
    const place = this.picture(width, height);
    const seen = state.visible.map((person) => ({ person, row: person.rowAt[state.k] ?? -1 })).filter(({ row }) => row >= 0);
    for (const { person, row } of seen) {
      const [x, y, w, tall] = ["x", "y", "w", "h"].map((side) => person.columns[`box_${side}_px`]?.[row]);
      if (!Number.isFinite(x)) continue;
      const box = [place.left + x * place.x, place.top + y * place.y, w * place.x, tall * place.y];
      corners(context, box, state.colour(person.track));
      this.chip(context, box, person, row, width);
      if (person.columns.valence) dial(context, box, person, row, state, width, height);
    }
  }

  chip(context, [x, y], person, row, width) {
    const { state } = this, names = state.entry.labels?.expression ?? [];
    const values = names.map((name) => person.columns[`p_${name}`][row]);
    const top = values.indexOf(Math.max(...values));
    const text = state.name(person.track) + (top >= 0 ? `  ${names[top]} ${percent(values[top])}` : "");
    context.font = "600 12px system-ui, sans-serif";
    const wide = context.measureText(text).width + 12, left = Math.max(0, Math.min(width - wide, x)), upper = y > 24 ? y - 24 : y + 4;
    context.fillStyle = "rgb(16 20 24 / 82%)";
    context.beginPath();
    context.roundRect(left, upper, wide, 20, 4);
    context.fill();
    context.fillStyle = state.colour(person.track);
    context.fillRect(left, upper + 3, 3, 14);
    context.fillStyle = "#fff";
    context.fillText(text, left + 7, upper + 14.5);
  }

  leave() {
    this.gone = true;
    this.halt();
    this.video?.removeAttribute("src");
    this.video?.load();
  }
}

function corners(context, [x, y, w, tall], colour) {
  const arm = 0.25 * Math.min(w, tall);
  for (const [stroke, line] of [["rgb(16 20 24 / 75%)", 4.5], [colour, 2.5]]) {
    context.strokeStyle = stroke;
    context.lineWidth = line;
    context.beginPath();
    for (const [cx, cy, right, down] of [[x, y, 1, 1], [x + w, y, -1, 1], [x, y + tall, 1, -1], [x + w, y + tall, -1, -1]]) {
      context.moveTo(cx + right * arm, cy);
      context.lineTo(cx, cy);
      context.lineTo(cx, cy + down * arm);
    }
    context.stroke();
  }
}

// Valence to the right and arousal upwards, in a circle beside the face where there is room.
function dial(context, [x, y, w, tall], person, row, state, width, height) {
  const radius = Math.max(16, Math.min(34, 0.28 * tall)), beside = x + w + 2 * radius + 8 < width ? x + w + radius + 6 : x - radius - 6;
  const cx = Math.max(radius + 2, Math.min(width - radius - 2, beside)), cy = Math.max(radius + 2, Math.min(height - radius - 2, y + radius));
  context.fillStyle = "rgb(16 20 24 / 62%)";
  context.beginPath();
  context.arc(cx, cy, radius, 0, 2 * Math.PI);
  context.fill();
  context.strokeStyle = "rgb(255 255 255 / 45%)";
  context.lineWidth = 1;
  context.stroke();
  context.beginPath();
  context.moveTo(cx - radius, cy); context.lineTo(cx + radius, cy);
  context.moveTo(cx, cy - radius); context.lineTo(cx, cy + radius);
  context.stroke();
  context.fillStyle = state.colour(person.track);
  context.strokeStyle = "#fff";
  context.lineWidth = 1.5;
  context.beginPath();
  context.arc(cx + person.columns.valence[row] * radius, cy - person.columns.arousal[row] * radius, 4.5, 0, 2 * Math.PI);
  context.fill();
  context.stroke();
}
